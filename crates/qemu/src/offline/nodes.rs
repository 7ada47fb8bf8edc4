//! How an image and its backing chain are opened in qemu-storage-daemon: every format said, nothing probed again.

use std::collections::HashMap;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use keepmark_model::facts::DiskFacts;
use keepmark_model::{DiskName, Size};
use serde_json::{Value, json};

use super::probe::Layer;
use crate::disks::Disk;
use crate::disks::reply::Node;
use crate::disks::wiring::{layer, persistence};

/// The node of a disk's layer; 0 is the active image.
pub(crate) fn node_name(disk: usize, layer: usize) -> String {
    format!("disk{disk}-layer{layer}")
}

/// The `blockdev-add` of each layer, lowest first. Only the active image is ever opened for writing.
pub(crate) fn definitions(disk: usize, layers: &[Layer], writable: bool) -> Vec<Value> {
    let count = layers.len();
    let define = |(number, layer): (usize, &Layer)| {
        let mut node = json!({
            "driver": layer.format,
            "node-name": node_name(disk, number),
            "read-only": number > 0 || !writable,
            "file": { "driver": driver(Path::new(&layer.filename)), "filename": layer.filename },
        });
        if number + 1 < count {
            node["backing"] = node_name(disk, number + 1).into();
        } else if layer.format == "qcow2" || layer.format == "qed" {
            node["backing"] = Value::Null;
        }
        node
    };
    layers.iter().enumerate().map(define).rev().collect()
}

/// The protocol driver for a path.
pub(crate) fn driver(path: &Path) -> &'static str {
    let is_device = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    if is_device { "host_device" } else { "file" }
}

/// The disk of these layers, out of what the daemon says of its nodes.
pub(crate) fn disk(number: usize, name: &DiskName, layers: &[Layer], nodes: &[Node]) -> Option<Disk> {
    let by_name: HashMap<&str, &Node> = nodes.iter().map(|node| (node.node_name.as_str(), node)).collect();
    let names: Vec<String> = (0..layers.len()).map(|layer| node_name(number, layer)).collect();
    let found: Vec<&Node> = names.iter().map(|name| by_name.get(name.as_str()).copied()).collect::<Option<_>>()?;
    let active = *found.first()?;
    let facts = DiskFacts {
        name: name.clone(),
        size: Size(active.image.virtual_size),
        format: layers.first()?.format.clone(),
        cluster_size: active.image.cluster_size,
        image: layers.first()?.filename.clone(),
        persistence: persistence(&active.drv, active.image.compat()),
        layers: found.iter().map(|node| layer(node)).collect(),
    };
    Some(Disk { facts, root: active.node_name.clone(), qom_path: String::new(), nodes: names, job: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_said_and_only_the_active_image_is_writable() {
        let layers = [("/a", "qcow2"), ("/b", "qcow2"), ("/c", "raw")];
        let layers = layers.map(|(name, format)| Layer { filename: name.into(), format: format.into() });
        insta::assert_json_snapshot!(definitions(1, &layers, true));
        assert_eq!(definitions(0, &layers[..1], false)[0]["backing"], Value::Null);
        assert_eq!(definitions(0, &layers[..1], false)[0]["read-only"], true);
    }
}
