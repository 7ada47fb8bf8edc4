//! The frozen moment by copy-before-write filters (QEMU >= 7.1): a full or slow scratch breaks the backup, never the guest.

use serde_json::json;

use super::attach;
use super::scratch;
use super::target::Target;
use super::undo::{Step, Undo};
use crate::error::{Error, Result, text};
use crate::folder::HeldFolder;
use crate::leftovers::status;
use crate::qmp::Qmp;
use crate::temporary::Temporary;

// How long a guest's write may wait for its old content to be saved before the backup is broken instead.
const COPY_SECONDS_MAX: u32 = 10;
const RESUMED: [&str; 2] = ["RESUME", "WAKEUP"];

/// Opens the scratch images in QEMU; see [`super::scratch`] for why their files go at once, and are never flushed.
///
/// # Errors
/// When QEMU refuses.
pub fn add_scratch(qmp: &mut Qmp, targets: &[Target], names: &Temporary, folder: &HeldFolder, undo: &mut Undo) -> Result<()> {
    for target in targets {
        let node = names.node("s", target.number);
        let storage = json!({ "driver": "file", "filename": text(&scratch::path(target, names, folder.path()))?, "discard": "unmap" });
        let cache = json!({ "no-flush": true });
        qmp.run("blockdev-add", json!({ "driver": "qcow2", "node-name": node, "discard": "unmap", "file": storage, "cache": cache }))?;
        undo.push(Step::DeleteNode(node));
        scratch::unlink(target, names, folder)?;
    }
    Ok(())
}

/// Adds the filters above the disks. No device uses them yet, so nothing is copied yet.
///
/// # Errors
/// When QEMU refuses.
pub fn add_filters(qmp: &mut Qmp, targets: &[Target], names: &Temporary, undo: &mut Undo) -> Result<()> {
    for target in targets {
        let filter = names.node("c", target.number);
        qmp.run(
            "blockdev-add",
            json!({
                "driver": "copy-before-write",
                "node-name": filter,
                "file": target.root,
                "target": names.node("s", target.number),
                "on-cbw-error": "break-snapshot",
                "cbw-timeout": COPY_SECONDS_MAX,
            }),
        )?;
        undo.push(Step::DeleteNode(filter));
    }
    Ok(())
}

/// Puts the filters between the devices and their disks. The VM must stand still, or the disks get different moments: if somebody lets it
/// run meanwhile, that is an error.
///
/// # Errors
/// When a device does not use its disk any more, the VM was resumed, or QEMU refuses.
pub fn insert(qmp: &mut Qmp, targets: &[Target], names: &Temporary, undo: &mut Undo) -> Result<()> {
    let places: Vec<_> = targets.iter().map(|target| (target.qom_path.as_str(), names.node("c", target.number))).collect();
    places.iter().for_each(|(_, filter)| undo.push(Step::TakeOut(filter.clone())));
    let resumed_before = resumptions(qmp);
    attach::insert(qmp, &places)?;
    // QEMU tells in order: what happened before this answer has been heard.
    let is_running = status(qmp)? == "running";
    match targets {
        [first, _, ..] if is_running || resumptions(qmp) != resumed_before => {
            let change = "somebody resumed the VM while the moment of its disks was fixed".into();
            Err(Error::Changed { disk: first.name.to_string(), change })
        }
        _ => Ok(()),
    }
}

fn resumptions(qmp: &Qmp) -> usize {
    RESUMED.iter().map(|event| qmp.heard(event)).sum()
}

/// Makes the frozen content readable; gives the nodes to export.
///
/// # Errors
/// When QEMU refuses.
pub fn add_access(qmp: &mut Qmp, targets: &[Target], names: &Temporary, undo: &mut Undo) -> Result<Vec<String>> {
    let mut nodes = Vec::with_capacity(targets.len());
    for target in targets {
        let access = names.node("a", target.number);
        qmp.run("blockdev-add", json!({ "driver": "snapshot-access", "node-name": access, "file": names.node("c", target.number) }))?;
        undo.push(Step::DeleteNode(access.clone()));
        nodes.push(access);
    }
    Ok(nodes)
}
