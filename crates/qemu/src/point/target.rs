//! What a frozen point means for each disk, and the transaction that fixes it. Pure.

use std::collections::HashMap;

use keepmark_model::facts::Persistence;
use keepmark_model::seam::PointRequest;
use keepmark_model::trust::recorded;
use keepmark_model::{CheckpointName, DiskName};
use serde_json::{Value, json};

use crate::disks::reply::Node;
use crate::disks::{Disk, find};
use crate::error::{Error, Result};
use crate::temporary::Temporary;

/// One disk of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its place in the request; part of temporary names.
    pub number: usize,
    /// How it is called.
    pub name: DiskName,
    /// Bytes.
    pub size: u64,
    /// The node that its device uses.
    pub root: String,
    /// The active image's node, where bitmaps go.
    pub active: String,
    /// How many images it has.
    pub images: usize,
    /// The device, for `qom-set`; empty where there is none.
    pub qom_path: String,
    /// Whether new bitmaps are stored in the image.
    pub stored: bool,
    /// What changed since the checkpoint that was asked for.
    pub delta: Delta,
}

/// Where the changes since a checkpoint are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// None was asked for.
    Unwanted,
    /// In these nodes' bitmaps of the checkpoint, united.
    Bitmaps {
        /// Whose.
        checkpoint: CheckpointName,
        /// Where.
        nodes: Vec<String>,
        /// Bytes per bit of the united one: the finest of them.
        granularity: u64,
    },
    /// In bitmaps that QEMU cannot unite, since the layers have different sizes: everything counts as changed.
    Everything,
}

/// Finds the request's disks and their deltas.
///
/// # Errors
/// When a disk is unknown, has no bitmap of the checkpoint, or has one that cannot be believed (any more).
pub fn targets(disks: &[Disk], nodes: &[Node], request: &PointRequest) -> Result<Vec<Target>> {
    if request.disks.is_empty() {
        return Err(Error::Usage { what: "list of disks", value: String::new(), problem: "there is none to back up".into() });
    }
    let sizes: HashMap<&str, u64> = nodes.iter().map(|node| (node.node_name.as_str(), node.image.virtual_size)).collect();
    let target = |(number, wanted): (usize, &keepmark_model::seam::PointDisk)| {
        let disk = find(disks, wanted.name.as_str())?;
        Ok(Target {
            number,
            name: disk.facts.name.clone(),
            size: disk.facts.size.0,
            root: disk.root.clone(),
            active: disk.active().to_owned(),
            images: disk.nodes.len(),
            qom_path: disk.qom_path.clone(),
            stored: disk.facts.persistence == Persistence::Stored,
            delta: wanted.since.as_ref().map_or(Ok(Delta::Unwanted), |checkpoint| delta(disk, checkpoint, &sizes))?,
        })
    };
    request.disks.iter().enumerate().map(target).collect()
}

fn delta(disk: &Disk, checkpoint: &CheckpointName, sizes: &HashMap<&str, u64>) -> Result<Delta> {
    let carriers = disk.carriers(checkpoint);
    let Some(granularity) = carriers.iter().map(|(_, granularity)| *granularity).min() else {
        return Err(Error::NoBitmap { disk: disk.facts.name.to_string(), checkpoint: checkpoint.to_string() });
    };
    // The second look: what was judged for the plan must hold for what is read.
    recorded(&disk.facts, checkpoint).map_err(|doubt| Error::Changed { disk: disk.facts.name.to_string(), change: doubt.to_string() })?;
    if carriers.iter().any(|(node, _)| sizes.get(node).is_some_and(|size| *size != disk.facts.size.0)) {
        return Ok(Delta::Everything);
    }
    let nodes = carriers.into_iter().map(|(node, _)| node.to_owned()).collect();
    Ok(Delta::Bitmaps { checkpoint: checkpoint.clone(), nodes, granularity })
}

/// The actions that, in one transaction, start the checkpoint on all disks and fix their deltas.
#[must_use]
pub fn actions(targets: &[Target], checkpoint: Option<&CheckpointName>, names: &Temporary) -> Vec<Value> {
    let mut actions = Vec::new();
    for target in targets {
        if let Some(checkpoint) = checkpoint {
            actions.push(add(&json!({ "node": target.active, "name": checkpoint.as_str(), "persistent": target.stored })));
        }
        if let Delta::Bitmaps { checkpoint, nodes, granularity } = &target.delta {
            let mut bitmap = json!({ "node": target.active, "name": names.delta(), "persistent": false, "disabled": true });
            if *granularity != 0 {
                bitmap["granularity"] = (*granularity).into();
            }
            actions.push(add(&bitmap));
            let sources: Vec<Value> = nodes.iter().map(|node| json!({ "node": node, "name": checkpoint.as_str() })).collect();
            let merge = json!({ "node": target.active, "target": names.delta(), "bitmaps": sources });
            actions.push(json!({ "type": "block-dirty-bitmap-merge", "data": merge }));
        }
    }
    actions
}

fn add(bitmap: &Value) -> Value {
    json!({ "type": "block-dirty-bitmap-add", "data": bitmap })
}

#[cfg(test)]
mod tests {
    use keepmark_model::Size;
    use keepmark_model::facts::{BitmapFacts, DiskFacts, LayerFacts};
    use keepmark_model::seam::{Freeze, PointDisk};

    use super::*;

    const OLD: &str = "km1-20261122T180000Z-3f9a1c0d7be2";

    fn layer(granularity: u64) -> LayerFacts {
        let bitmap = BitmapFacts {
            name: OLD.into(),
            recording: true,
            busy: false,
            inconsistent: false,
            persistent: true,
            granularity,
            dirty: Size(0),
        };
        LayerFacts { image: "x".into(), bitmaps: vec![bitmap] }
    }

    fn disk(layers: Vec<LayerFacts>) -> Disk {
        let nodes = (0..layers.len()).map(|n| format!("n{n}")).collect();
        let facts = DiskFacts {
            name: DiskName::new("vda").unwrap(),
            size: Size(1 << 20),
            format: "qcow2".into(),
            cluster_size: None,
            image: "x".into(),
            persistence: Persistence::Stored,
            layers,
        };
        Disk { facts, root: "filter".into(), qom_path: "/machine/peripheral/vda".into(), nodes }
    }

    fn request(disk: &str, since: Option<&str>) -> PointRequest {
        let since = since.map(|name| CheckpointName::parse(name).unwrap());
        PointRequest {
            disks: vec![PointDisk { name: DiskName::new(disk).unwrap(), since }],
            checkpoint: None,
            run: "r".into(),
            freeze: Freeze::Never,
            push: keepmark_model::pushing::Push::No,
        }
    }

    fn node(name: &str, size: u64) -> Node {
        serde_json::from_value(json!({ "node-name": name, "image": { "virtual-size": size } })).unwrap()
    }

    #[test]
    fn a_delta_unites_all_layers_at_the_finest_granularity() {
        let disks = [disk(vec![layer(65_536), layer(4096)])];
        let nodes = [node("n0", 1 << 20), node("n1", 1 << 20)];
        let targets = targets(&disks, &nodes, &request("vda", Some(OLD))).unwrap();
        let new = CheckpointName::parse("km1-20261123T180000Z-3f9a1c0d7be2").unwrap();
        insta::assert_json_snapshot!(actions(&targets, Some(&new), &Temporary::new("r")));
    }

    #[test]
    fn what_cannot_be_believed_at_the_moment_is_refused() {
        let bare = LayerFacts { image: "x".into(), bitmaps: vec![] };
        let mut stopped = layer(65_536);
        stopped.bitmaps[0].recording = false;
        for layers in [vec![bare.clone(), layer(65_536)], vec![layer(65_536), bare, layer(65_536)], vec![stopped]] {
            let error = targets(&[disk(layers)], &[], &request("vda", Some(OLD))).unwrap_err();
            assert!(matches!(error, Error::Changed { .. }), "{error}");
        }
    }

    #[test]
    fn layers_of_different_size_make_everything_count_as_changed() {
        let disks = [disk(vec![layer(65_536), layer(65_536)])];
        let nodes = [node("n0", 1 << 20), node("n1", 1 << 19)];
        let targets = targets(&disks, &nodes, &request("vda", Some(OLD))).unwrap();
        assert_eq!(targets[0].delta, Delta::Everything);
        assert!(actions(&targets, None, &Temporary::new("r")).is_empty());
    }

    #[test]
    fn an_unknown_disk_or_bitmap_is_named() {
        let disks = [disk(vec![LayerFacts { image: "x".into(), bitmaps: vec![] }])];
        assert!(matches!(targets(&disks, &[], &request("vdb", None)), Err(Error::UnknownDisk { known, .. }) if known == "vda"));
        assert!(matches!(targets(&disks, &[], &request("vda", Some(OLD))), Err(Error::NoBitmap { .. })));
    }
}
