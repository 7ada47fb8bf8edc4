//! Which node a device uses: looked up in the graph right before it is changed, in both directions.
//!
//! QEMU aborts, and the guest with it, when a device is given the node that it has already (10.0.2:
//! `bdrv_replace_child_noperm: Assertion old_bs != new_bs`). And whoever gives a device the node that it had once may give it a stale disk:
//! meanwhile it may have been unplugged, plugged again, snapshotted or mirrored. So nothing is put back that was noted;
//! a node of ours leaves whatever uses it now to what lies below it now.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::undo::{LET_GO, end_job};
use crate::disks::{self, Survey};
use crate::error::{Error, Result};
use crate::qmp::Qmp;

const LOOK: Duration = Duration::from_millis(5);

/// Who used a node of ours.
#[derive(Debug, Default)]
pub(crate) struct Freed {
    /// Devices, by their QOM paths.
    pub(crate) devices: Vec<String>,
    /// Images of overlays that lay on it.
    pub(crate) overlays: Vec<String>,
}

/// Gives each device the node of ours that was put above its disk: (device, node). All are looked at first.
///
/// # Errors
/// When one of them uses another node than the one below ours, or QEMU refuses.
pub(crate) fn insert(qmp: &mut Qmp, places: &[(&str, String)]) -> Result<()> {
    let now = disks::places(qmp)?;
    for (device, node) in places {
        let (used, below) = (now.root_of(device), now.uses.child(node, "file"));
        if used.is_none() || used != below {
            let change = format!("device {device} uses another node now");
            return Err(Error::Changed { disk: (*device).to_owned(), change });
        }
    }
    places.iter().try_for_each(|(device, node)| set(qmp, device, node))
}

/// Gives a device the node `to`, if it uses `from`.
pub(crate) fn exchange(qmp: &mut Qmp, device: &str, from: &str, to: &str) -> Result<bool> {
    let is_there = from != to && disks::places(qmp)?.root_of(device) == Some(from);
    if is_there {
        set(qmp, device, to)?;
    }
    Ok(is_there)
}

/// Takes a node of ours out of the way between its users and what lies below it; tells from whom. Harmless if it is out already.
///
/// An overlay that somebody put on it, by a snapshot through the device, names `copy-before-write` as the format below, and could
/// never be opened again: an empty stream corrects both the graph and the image's header.
///
/// # Errors
/// When QEMU refuses.
pub(crate) fn take_out(qmp: &mut Qmp, node: &str) -> Result<Freed> {
    let now = disks::look(qmp)?;
    let mut freed = Freed::default();
    let Some(below) = now.uses.child(node, "file").map(str::to_owned) else { return Ok(freed) };
    for device in now.devices_on(node) {
        set(qmp, &device, &below)?;
        freed.devices.push(device);
    }
    for overlay in now.uses.overlays(node) {
        repair(qmp, node, &overlay, &below)?;
        freed.overlays.push(image_of(&now, &overlay));
    }
    Ok(freed)
}

fn image_of(now: &Survey, overlay: &str) -> String {
    now.nodes.iter().find(|node| node.node_name == overlay).map_or_else(|| overlay.to_owned(), |node| disks::naming::location(&node.file))
}

fn repair(qmp: &mut Qmp, node: &str, overlay: &str, below: &str) -> Result<()> {
    let job = format!("{node}-overlay");
    qmp.run("block-stream", json!({ "job-id": job, "device": overlay, "base-node": below, "auto-dismiss": false }))?;
    let outcome = wait(qmp, &job);
    end_job(qmp, &job)?;
    outcome
}

fn wait(qmp: &mut Qmp, job: &str) -> Result<()> {
    let failed = |message: &str| Error::Job { job: job.to_owned(), message: message.to_owned() };
    let deadline = Instant::now() + LET_GO;
    while Instant::now() < deadline {
        let jobs: Vec<Value> = qmp.execute("query-jobs", Value::Null)?;
        let found = jobs.iter().find(|found| found["id"] == job).ok_or_else(|| failed("it is gone: somebody else has ended it"))?;
        if found["status"] == "concluded" {
            return found["error"].as_str().map_or(Ok(()), |error| Err(failed(error)));
        }
        std::thread::sleep(LOOK);
    }
    Err(failed("it does not end"))
}

fn set(qmp: &mut Qmp, device: &str, node: &str) -> Result<()> {
    qmp.run("qom-set", json!({ "path": device, "property": "drive", "value": node }))
}
