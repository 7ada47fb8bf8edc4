//! What a running QEMU is asked for, by a monitor that keepmark does not use.

use serde_json::{Value, json};

use super::super::images::{UNIT, io_words};
use super::super::meddling::{JOB, meddle, node_facts, size_of, try_qmp};
use super::super::{Change, Unable};
use super::{Stage, TIMEOUT};
use crate::image::{self, Format};
use crate::process::wait_for;
use crate::{OrFail, Qemu, Qmp};

impl Stage {
    pub(super) fn in_qemu(&mut self, at: usize, change: Change) -> Result<(), Unable> {
        let disk = self.images.disks[at].name.clone();
        let qemu = self.qemu.as_mut().or_fail("QEMU runs");
        // A frozen moment's filter is above the disk's own node, which is the one that has bitmaps.
        let node = qemu.node_of(&disk);
        let persistent = self.images.disks[at].images[0].1 == Format::Qcow2;
        match change {
            Change::Write(..) | Change::WriteZeros(..) | Change::Discard(..) => {
                drop(qemu.qemu_io(&disk, &io_words(change)));
                Ok(())
            }
            Change::Resize(units) => try_qmp(&mut qemu.control, "block_resize", json!({ "node-name": node, "size": units * UNIT })),
            Change::Snapshot(cluster) => self.live_overlay(at, &node, cluster, &[]),
            Change::ManagedSnapshot(cluster) => {
                let followed = recording(&mut qemu.control, &node);
                self.live_overlay(at, &node, cluster, &followed)
            }
            Change::Commit => {
                job(qemu, "block-commit", json!({ "device": node }))?;
                self.images.disks[at].images.remove(0);
                Ok(())
            }
            Change::Stream => {
                job(qemu, "block-stream", json!({ "device": node }))?;
                self.images.disks[at].images.truncate(1);
                Ok(())
            }
            Change::Mirror => self.mirror(at, &node),
            Change::AddBitmap(_)
            | Change::RemoveBitmap(_)
            | Change::DisableBitmap(_)
            | Change::EnableBitmap(_)
            | Change::ClearBitmap(_)
            | Change::MergeBitmap(..)
            | Change::HoldBitmap(_)
            | Change::LetGo => meddle(&mut qemu.control, &node, persistent, change),
            Change::Convert(_) | Change::Amend | Change::CopyFile | Change::PutBack => Err(Unable::NotHere("done to files")),
        }
    }

    /// As libvirt does it: the new image is made and opened, then the snapshot and the bitmaps that go on come in one transaction.
    fn live_overlay(&mut self, at: usize, node: &str, cluster: u64, followed: &[(String, u64)]) -> Result<(), Unable> {
        self.images.overlay(at, cluster);
        let name = format!("overlay{}", self.images.files);
        let qemu = self.qemu.as_mut().or_fail("QEMU runs");
        let file = json!({ "driver": "file", "filename": self.images.disks[at].images[0].0 });
        let added = json!({ "driver": "qcow2", "node-name": name, "discard": "unmap", "file": file, "backing": null });
        let mut actions = vec![json!({ "type": "blockdev-snapshot", "data": { "node": node, "overlay": name } })];
        actions.extend(followed.iter().map(|(bitmap, granularity)| {
            let data = json!({ "node": name, "name": bitmap, "persistent": true, "granularity": granularity });
            json!({ "type": "block-dirty-bitmap-add", "data": data })
        }));
        let done = try_qmp(&mut qemu.control, "blockdev-add", added)
            .and_then(|()| try_qmp(&mut qemu.control, "transaction", json!({ "actions": actions })));
        if done.is_err() {
            self.images.disks[at].images.remove(0);
        }
        done
    }

    fn mirror(&mut self, at: usize, node: &str) -> Result<(), Unable> {
        let to = self.images.fresh("mirrored.qcow2");
        let (name, cluster) = (format!("mirrored{}", self.images.files), self.images.disks[at].cluster);
        let qemu = self.qemu.as_mut().or_fail("QEMU runs");
        let size = size_of(&mut qemu.control, node);
        image::create_with(&to, Format::Qcow2, size, &format!("cluster_size={}", cluster * UNIT));
        let file = json!({ "driver": "file", "filename": to });
        try_qmp(&mut qemu.control, "blockdev-add", json!({ "driver": "qcow2", "node-name": name, "discard": "unmap", "file": file }))?;
        job(qemu, "blockdev-mirror", json!({ "device": node, "target": name, "sync": "full" }))?;
        self.images.disks[at].images = vec![(to, Format::Qcow2)];
        Ok(())
    }
}

/// Names and granularities of the bitmaps that record.
fn recording(qmp: &mut Qmp, node: &str) -> Vec<(String, u64)> {
    let facts = node_facts(qmp, node);
    let found = facts["dirty-bitmaps"].as_array().into_iter().flatten().filter(|bitmap| bitmap["recording"] == true);
    found.filter_map(|bitmap| Some((bitmap["name"].as_str()?.to_owned(), bitmap["granularity"].as_u64()?))).collect()
}

/// Runs a job to its end, through `ready` where it has that.
fn job(qemu: &mut Qemu, command: &str, mut arguments: Value) -> Result<(), Unable> {
    arguments["job-id"] = JOB.into();
    try_qmp(&mut qemu.control, command, arguments)?;
    let mut is_completed = false;
    wait_for("a job's end", TIMEOUT, || {
        let jobs = qemu.qmp("query-jobs", json!({}));
        let status = jobs.as_array().into_iter().flatten().find(|job| job["id"] == JOB).map(|job| job["status"].clone());
        if status == Some("ready".into()) && !is_completed {
            qemu.qmp("job-complete", json!({ "id": JOB }));
            is_completed = true;
        }
        status.is_none().then_some(())
    });
    Ok(())
}
