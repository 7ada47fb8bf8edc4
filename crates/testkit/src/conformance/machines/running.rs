//! What a running QEMU is asked for, by a monitor that keepmark does not use.

use serde_json::{Value, json};

use super::super::{Change, Unable, bitmap_name};
use super::files::io_words;
use super::{Stage, TIMEOUT, UNIT};
use crate::image::{self, Format};
use crate::process::wait_for;
use crate::{OrFail, Qemu};

const JOB: &str = "conformance-job";

impl Stage {
    pub(super) fn in_qemu(&mut self, at: usize, change: Change) -> Result<(), Unable> {
        let disk = self.disks[at].name.clone();
        let qemu = self.qemu.as_mut().or_fail("QEMU runs");
        // A frozen moment's filter is above the disk's own node, which is the one that has bitmaps.
        let node = qemu.node_of(&disk);
        let persistent = self.disks[at].images[0].1 == Format::Qcow2;
        let bitmap = |label: &str| json!({ "node": node, "name": bitmap_name(label) });
        match change {
            Change::Write(..) | Change::WriteZeros(..) | Change::Discard(..) => {
                drop(qemu.qemu_io(&disk, &io_words(change)));
                Ok(())
            }
            Change::Resize(units) => try_qmp(qemu, "block_resize", json!({ "node-name": node, "size": units * UNIT })),
            Change::Snapshot(cluster) => self.live_overlay(at, &node, cluster, &[]),
            Change::ManagedSnapshot(cluster) => {
                let followed = recording(qemu, &node);
                self.live_overlay(at, &node, cluster, &followed)
            }
            Change::Commit => {
                job(qemu, "block-commit", json!({ "device": node }))?;
                self.disks[at].images.remove(0);
                Ok(())
            }
            Change::Stream => {
                job(qemu, "block-stream", json!({ "device": node }))?;
                self.disks[at].images.truncate(1);
                Ok(())
            }
            Change::Mirror => self.mirror(at, &node),
            Change::AddBitmap(label) => {
                let arguments = json!({ "node": node, "name": bitmap_name(label), "persistent": persistent });
                try_qmp(qemu, "block-dirty-bitmap-add", arguments)
            }
            Change::RemoveBitmap(label) => try_qmp(qemu, "block-dirty-bitmap-remove", bitmap(label)),
            Change::DisableBitmap(label) => try_qmp(qemu, "block-dirty-bitmap-disable", bitmap(label)),
            Change::EnableBitmap(label) => try_qmp(qemu, "block-dirty-bitmap-enable", bitmap(label)),
            Change::ClearBitmap(label) => try_qmp(qemu, "block-dirty-bitmap-clear", bitmap(label)),
            Change::HoldBitmap(label) => hold(qemu, &node, label),
            Change::LetGo => let_go(qemu),
            Change::Convert(_) | Change::Amend | Change::CopyFile | Change::PutBack => Err(Unable::NotHere("done to files")),
        }
    }

    /// As libvirt does it: the new image is made and opened, then the snapshot and the bitmaps that go on come in one transaction.
    fn live_overlay(&mut self, at: usize, node: &str, cluster: u64, followed: &[(String, u64)]) -> Result<(), Unable> {
        self.overlay(at, cluster);
        let name = format!("overlay{}", self.files);
        let qemu = self.qemu.as_mut().or_fail("QEMU runs");
        let file = json!({ "driver": "file", "filename": self.disks[at].images[0].0 });
        let added = json!({ "driver": "qcow2", "node-name": name, "discard": "unmap", "file": file, "backing": null });
        let mut actions = vec![json!({ "type": "blockdev-snapshot", "data": { "node": node, "overlay": name } })];
        actions.extend(followed.iter().map(|(bitmap, granularity)| {
            let data = json!({ "node": name, "name": bitmap, "persistent": true, "granularity": granularity });
            json!({ "type": "block-dirty-bitmap-add", "data": data })
        }));
        let done = try_qmp(qemu, "blockdev-add", added).and_then(|()| try_qmp(qemu, "transaction", json!({ "actions": actions })));
        if done.is_err() {
            self.disks[at].images.remove(0);
        }
        done
    }

    fn mirror(&mut self, at: usize, node: &str) -> Result<(), Unable> {
        let to = self.fresh("mirrored.qcow2");
        let (name, cluster) = (format!("mirrored{}", self.files), self.disks[at].cluster);
        let qemu = self.qemu.as_mut().or_fail("QEMU runs");
        let size = size_of(qemu, node);
        image::create_with(&to, Format::Qcow2, size, &format!("cluster_size={}", cluster * UNIT));
        let file = json!({ "driver": "file", "filename": to });
        try_qmp(qemu, "blockdev-add", json!({ "driver": "qcow2", "node-name": name, "discard": "unmap", "file": file }))?;
        job(qemu, "blockdev-mirror", json!({ "device": node, "target": name, "sync": "full" }))?;
        self.disks[at].images = vec![(to, Format::Qcow2)];
        Ok(())
    }
}

fn try_qmp(qemu: &mut Qemu, command: &str, arguments: Value) -> Result<(), Unable> {
    qemu.control.try_execute(command, arguments).map(drop).map_err(|error| Unable::Refused(error.to_string()))
}

/// What QEMU says of a node.
fn node_facts(qemu: &mut Qemu, node: &str) -> Value {
    let nodes = qemu.qmp("query-named-block-nodes", json!({ "flat": true }));
    let mut found = nodes.as_array().into_iter().flatten().filter(|one| one["node-name"] == node);
    found.next().cloned().or_fail(format_args!("no node {node}"))
}

fn size_of(qemu: &mut Qemu, node: &str) -> u64 {
    node_facts(qemu, node)["image"]["virtual-size"].as_u64().or_fail("a node has a size")
}

/// Names and granularities of the bitmaps that record.
fn recording(qemu: &mut Qemu, node: &str) -> Vec<(String, u64)> {
    let facts = node_facts(qemu, node);
    let found = facts["dirty-bitmaps"].as_array().into_iter().flatten().filter(|bitmap| bitmap["recording"] == true);
    found.filter_map(|bitmap| Some((bitmap["name"].as_str()?.to_owned(), bitmap["granularity"].as_u64()?))).collect()
}

/// Runs a job to its end, through `ready` where it has that.
fn job(qemu: &mut Qemu, command: &str, mut arguments: Value) -> Result<(), Unable> {
    arguments["job-id"] = JOB.into();
    try_qmp(qemu, command, arguments)?;
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

/// A job of somebody else's that has read by the bitmap and is not told to end.
fn hold(qemu: &mut Qemu, node: &str, label: &str) -> Result<(), Unable> {
    let size = size_of(qemu, node);
    qemu.qmp("blockdev-add", json!({ "driver": "null-co", "node-name": "theirs", "size": size }));
    let waiting = json!({ "job-id": JOB, "device": node, "target": "theirs", "sync": "incremental", "bitmap": bitmap_name(label), "auto-finalize": false });
    try_qmp(qemu, "blockdev-backup", waiting)?;
    wait_for("a job that waits", TIMEOUT, || (qemu.qmp("query-jobs", json!({}))[0]["status"] == "pending").then_some(()));
    Ok(())
}

fn let_go(qemu: &mut Qemu) -> Result<(), Unable> {
    try_qmp(qemu, "job-cancel", json!({ "id": JOB }))?;
    wait_for("the job's end", TIMEOUT, || (qemu.qmp("query-jobs", json!({})) == json!([])).then_some(()));
    try_qmp(qemu, "blockdev-del", json!({ "node-name": "theirs" }))
}
