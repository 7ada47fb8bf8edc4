//! The frozen moment by `blockdev-backup sync=none` (QEMU < 7.1): part of the transaction, so no pause is needed.
//!
//! The price: when the scratch is full, these QEMUs fail the guest's write or stop the guest. So the space is watched (see `space`),
//! and the jobs are ended at once when keepmark dies (see `watchdog`). A copy has no time-out there: the guest's writes wait for
//! a slow scratch.

use serde_json::{Value, json};

use super::scratch;
use super::target::Target;
use super::undo::{Step, Undo};
use crate::error::{Result, text};
use crate::folder::HeldFolder;
use crate::qmp::{Aside, Qmp};
use crate::temporary::Temporary;

/// Opens the scratch images in QEMU as overlays of their disks; gives the nodes to export.
///
/// # Errors
/// When QEMU refuses.
pub fn add_overlays(qmp: &mut Qmp, targets: &[Target], names: &Temporary, folder: &HeldFolder, undo: &mut Undo) -> Result<Vec<String>> {
    let mut nodes = Vec::with_capacity(targets.len());
    for target in targets {
        let node = names.node("s", target.number);
        let storage = json!({ "driver": "file", "filename": text(&scratch::path(target, names, folder.path()))? });
        let overlay = json!({ "driver": "qcow2", "node-name": node, "file": storage, "backing": target.root,
            "cache": { "no-flush": true } });
        qmp.run("blockdev-add", overlay)?;
        undo.push(Step::DeleteNode(node.clone()));
        scratch::unlink(target, names, folder)?;
        nodes.push(node);
    }
    Ok(nodes)
}

/// The transaction's actions that start the jobs.
#[must_use]
pub fn actions(targets: &[Target], names: &Temporary) -> Vec<Value> {
    let start = |target: &Target| {
        json!({ "type": "blockdev-backup", "data": {
            "job-id": names.node("j", target.number),
            "device": target.root,
            "target": names.node("s", target.number),
            "sync": "none",
            "auto-dismiss": false,
        } })
    };
    targets.iter().map(start).collect()
}

/// Ends them at once, without waiting for an answer. A QEMU that is gone needs no saving.
pub fn cancel(aside: &Aside, jobs: &[String]) {
    let cancel = |job: &String| aside.send("block-job-cancel", &json!({ "device": job, "force": true }));
    drop(jobs.iter().try_for_each(cancel));
}

/// Notes that the jobs have to be ended, and the guest woken if they stopped it. Gives the jobs' names.
pub fn note(targets: &[Target], names: &Temporary, undo: &mut Undo) -> Vec<String> {
    let jobs: Vec<String> = targets.iter().map(|target| names.node("j", target.number)).collect();
    undo.push(Step::WakeFromError);
    jobs.iter().for_each(|job| undo.push(Step::EndJob(job.clone())));
    jobs
}
