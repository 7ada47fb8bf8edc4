//! How an image and its backing chain are opened in qemu-storage-daemon: every format said, nothing probed again.

use std::collections::HashMap;

use keepmark_model::facts::DiskFacts;
use keepmark_model::opening::{ImageFormat, Permit, PermittedImage, Purpose};
use keepmark_model::{DiskName, Size};
use serde_json::{Value, json};

use crate::disks::Disk;
use crate::disks::reply::Node;
use crate::disks::wiring::{layer, persistence};
use crate::error::Result;
use crate::opening::{Manner, node};

/// The node of a disk's layer; 0 is the active image.
pub(crate) fn node_name(disk: usize, layer: usize) -> String {
    format!("disk{disk}-layer{layer}")
}

/// The node that holds off writers from a layer.
pub(crate) fn hold_name(disk: usize, layer: usize) -> String {
    format!("disk{disk}-hold{layer}")
}

/// The `blockdev-add` of each layer, lowest first.
///
/// # Errors
/// When a path is not UTF-8.
pub(crate) fn definitions(disk: usize, permit: &Permit, purpose: Purpose) -> Result<Vec<Value>> {
    let define = |(number, image): (usize, &PermittedImage)| {
        let below = (number + 1 < permit.layers().len()).then(|| node_name(disk, number + 1));
        let (name, read_only) = (node_name(disk, number), !permit.is_writable(number, purpose));
        node(image, Manner { name: &name, below: below.as_deref(), read_only, discard: false })
    };
    permit.layers().iter().enumerate().map(define).rev().collect()
}

/// The layers of which QEMU itself keeps no writer off while they are read: raw ones. With the `blockdev-add` of a node that does.
pub(crate) fn holds(disk: usize, permit: &Permit) -> impl Iterator<Item = (&PermittedImage, String, Value)> {
    let raw = permit.layers().iter().enumerate().filter(|(_, image)| image.format == ImageFormat::Raw);
    raw.map(move |(number, image)| {
        let name = hold_name(disk, number);
        let refused = ["write", "resize"];
        let node = json!({ "driver": "blkdebug", "node-name": name, "image": node_name(disk, number), "unshare-child-perms": refused });
        (image, name, node)
    })
}

/// The disk of these layers, out of what the daemon says of its nodes.
pub(crate) fn disk(number: usize, name: &DiskName, permit: &Permit, nodes: &[Node]) -> Option<Disk> {
    let by_name: HashMap<&str, &Node> = nodes.iter().map(|node| (node.node_name.as_str(), node)).collect();
    let names: Vec<String> = (0..permit.layers().len()).map(|layer| node_name(number, layer)).collect();
    let found: Vec<&Node> = names.iter().map(|name| by_name.get(name.as_str()).copied()).collect::<Option<_>>()?;
    let active = *found.first()?;
    let image = permit.layers().first()?;
    let facts = DiskFacts {
        name: name.clone(),
        size: Size(active.image.virtual_size),
        format: image.format.word().to_owned(),
        cluster_size: active.image.cluster_size,
        image: image.path.to_string_lossy().into_owned(),
        persistence: persistence(&active.drv, active.image.compat()),
        layers: found.iter().map(|node| layer(node)).collect(),
    };
    Some(Disk { facts, root: active.node_name.clone(), qom_path: String::new(), nodes: names, job: None })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use keepmark_model::opening::Storage;

    use super::*;

    #[test]
    fn formats_are_said_and_only_the_active_image_is_writable() {
        let chain = Permit::of_store(&["/a".into(), "/b".into()]);
        insta::assert_json_snapshot!(definitions(1, &chain, Purpose::Write).unwrap());
        assert_eq!(definitions(0, &chain, Purpose::Read).unwrap()[1]["read-only"], true);
    }

    #[test]
    fn writers_are_held_off_from_raw_layers() {
        let raw = Permit::of_new(Path::new("/dev/a"), ImageFormat::Raw, Storage::Device);
        insta::assert_json_snapshot!((definitions(0, &raw, Purpose::Mark).unwrap(), holds(0, &raw).map(|hold| hold.2).collect::<Vec<_>>()));
        assert_eq!(holds(0, &Permit::of_store(&["/a".into()])).count(), 0);
    }
}
