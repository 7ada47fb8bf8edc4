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

impl Target {
    /// Whether the bitmaps of its delta went on recording between two looks.
    ///
    /// # Errors
    /// When one of them did not.
    pub fn check_still_recorded(&self, before: &Disk, after: &Disk) -> Result<()> {
        let Delta::Bitmaps { checkpoint, .. } = &self.delta else { return Ok(()) };
        let changed = |change: String| Error::Changed { disk: self.name.to_string(), change };
        recorded(&after.facts, checkpoint).map_err(|doubt| changed(doubt.to_string()))?;
        let marked = |disk: &Disk| {
            let bitmaps = disk.facts.bitmaps().filter(|bitmap| bitmap.name == checkpoint.as_str());
            bitmaps.map(|bitmap| bitmap.dirty.0).collect::<Vec<_>>()
        };
        let is_cleared = marked(before).iter().zip(marked(after)).any(|(before, after)| *before > after);
        if is_cleared { Err(changed("somebody cleared its bitmap while the moment was fixed".into())) } else { Ok(()) }
    }
}

/// Finds the request's disks and their deltas.
///
/// # Errors
/// When a disk is unknown, a job of somebody else's works on it, several devices use it, it has no bitmap of the checkpoint, or one
/// that cannot be believed (any more).
pub fn targets(disks: &[Disk], nodes: &[Node], request: &PointRequest) -> Result<Vec<Target>> {
    if request.disks.is_empty() {
        return Err(Error::Usage { what: "list of disks", value: String::new(), problem: "there is none to back up".into() });
    }
    let sizes: HashMap<&str, u64> = nodes.iter().map(|node| (node.node_name.as_str(), node.image.virtual_size)).collect();
    let target = |(number, wanted): (usize, &keepmark_model::seam::PointDisk)| {
        let disk = find(disks, wanted.name.as_str())?;
        check_free(disks, disk)?;
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

// A job will put another node under the device, or another image; two devices on one node leave a filter only one of them.
fn check_free(disks: &[Disk], disk: &Disk) -> Result<()> {
    let name = || disk.facts.name.to_string();
    if let Some(job) = &disk.job {
        return Err(Error::JobRuns { disk: name(), job: job.id.clone(), kind: job.kind.clone() });
    }
    let is_other = |other: &&Disk| other.qom_path != disk.qom_path && other.active() == disk.active();
    match disks.iter().find(is_other) {
        Some(other) => Err(Error::SharedNode { disk: name(), other: other.facts.name.to_string() }),
        None => Ok(()),
    }
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

/// The actions that start the checkpoint on all disks, and put an empty bitmap for the delta beside it.
#[must_use]
pub fn beginning(targets: &[Target], checkpoint: Option<&CheckpointName>, names: &Temporary) -> Vec<Value> {
    let mut actions = Vec::new();
    for target in targets {
        if let Some(checkpoint) = checkpoint {
            actions.push(add(&json!({ "node": target.active, "name": checkpoint.as_str(), "persistent": target.stored })));
        }
        if let Delta::Bitmaps { granularity, .. } = &target.delta {
            let mut bitmap = json!({ "node": target.active, "name": names.delta(), "persistent": false, "disabled": true });
            if *granularity != 0 {
                bitmap["granularity"] = (*granularity).into();
            }
            actions.push(add(&bitmap));
        }
    }
    actions
}

/// The actions that fill the deltas with what the base's bitmaps, of all layers, have recorded until now.
#[must_use]
pub fn merges(targets: &[Target], names: &Temporary) -> Vec<Value> {
    let merge = |target: &Target| {
        let Delta::Bitmaps { checkpoint, nodes, .. } = &target.delta else { return None };
        let sources: Vec<Value> = nodes.iter().map(|node| json!({ "node": node, "name": checkpoint.as_str() })).collect();
        let merge = json!({ "node": target.active, "target": names.delta(), "bitmaps": sources });
        Some(json!({ "type": "block-dirty-bitmap-merge", "data": merge }))
    };
    targets.iter().filter_map(merge).collect()
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
        LayerFacts { image: "x".into(), id: None, bitmaps: vec![bitmap] }
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
        Disk { facts, root: "filter".into(), qom_path: "/machine/peripheral/vda".into(), nodes, job: None }
    }

    #[test]
    fn a_disk_with_a_job_or_a_second_device_is_refused_by_name() {
        let bare = || disk(vec![LayerFacts { image: "x".into(), id: None, bitmaps: vec![] }]);
        let mut worked_on = bare();
        worked_on.job = Some(crate::disks::reply::Job { id: "mj".into(), kind: "mirror".into() });
        let error = targets(&[worked_on], &[], &request("vda", None)).unwrap_err();
        assert!(matches!(&error, Error::JobRuns { job, kind, .. } if job == "mj" && kind == "mirror"), "{error}");
        let mut second = bare();
        second.facts.name = DiskName::new("vdb").unwrap();
        second.qom_path = "/machine/peripheral/vdb".into();
        let error = targets(&[bare(), second], &[], &request("vda", None)).unwrap_err();
        assert!(matches!(&error, Error::SharedNode { other, .. } if other == "vdb"), "{error}");
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
        let names = Temporary::new("r");
        insta::assert_json_snapshot!([beginning(&targets, Some(&new), &names), merges(&targets, &names)].concat());
    }

    #[test]
    fn what_cannot_be_believed_at_the_moment_is_refused() {
        let bare = LayerFacts { image: "x".into(), id: None, bitmaps: vec![] };
        let mut stopped = layer(65_536);
        stopped.bitmaps[0].recording = false;
        for layers in [vec![bare.clone(), layer(65_536)], vec![layer(65_536), bare, layer(65_536)], vec![stopped]] {
            let error = targets(&[disk(layers)], &[], &request("vda", Some(OLD))).unwrap_err();
            assert!(matches!(error, Error::Changed { .. }), "{error}");
        }
    }

    #[test]
    fn a_bitmap_that_was_paused_or_cleared_around_the_moment_is_refused() {
        let marked = |dirty: u64, recording: bool| {
            let mut layer = layer(65_536);
            (layer.bitmaps[0].dirty, layer.bitmaps[0].recording) = (Size(dirty), recording);
            disk(vec![layer])
        };
        let before = marked(131_072, true);
        let target = &targets(std::slice::from_ref(&before), &[node("n0", 1 << 20)], &request("vda", Some(OLD))).unwrap()[0];
        for (after, is_fine) in
            [(marked(131_072, true), true), (marked(196_608, true), true), (marked(65_536, true), false), (marked(131_072, false), false)]
        {
            assert_eq!(target.check_still_recorded(&before, &after).is_ok(), is_fine, "{:?}", after.facts.layers);
        }
    }

    #[test]
    fn layers_of_different_size_make_everything_count_as_changed() {
        let disks = [disk(vec![layer(65_536), layer(65_536)])];
        let nodes = [node("n0", 1 << 20), node("n1", 1 << 19)];
        let targets = targets(&disks, &nodes, &request("vda", Some(OLD))).unwrap();
        assert_eq!(targets[0].delta, Delta::Everything);
        let names = Temporary::new("r");
        assert!(beginning(&targets, None, &names).is_empty() && merges(&targets, &names).is_empty());
    }

    #[test]
    fn an_unknown_disk_or_bitmap_is_named() {
        let disks = [disk(vec![LayerFacts { image: "x".into(), id: None, bitmaps: vec![] }])];
        assert!(matches!(targets(&disks, &[], &request("vdb", None)), Err(Error::UnknownDisk { known, .. }) if known == "vda"));
        assert!(matches!(targets(&disks, &[], &request("vda", Some(OLD))), Err(Error::NoBitmap { .. })));
    }
}
