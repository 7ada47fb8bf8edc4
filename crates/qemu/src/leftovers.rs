//! What a dead run of keepmark left in a QEMU, found by prefix and removed; nothing else is touched.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::agent;
use crate::disks::{self, Survey};
use crate::error::{Error, Result};
use crate::point::attach::take_out;
use crate::point::undo::{delete_export, end_job, wake_from_error};
use crate::point::{answer, export};
use crate::qmp::Qmp;
use crate::temporary::{FROZEN, HALTED, PAUSED, REVERTING, is_ours};

const READER: &str = "snapshot-access";
const FILTER: &str = "copy-before-write";
const THAW_WAIT: Duration = Duration::from_secs(5);

/// Things of ours in the block layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    /// Filters, which devices may use.
    pub(crate) filters: Vec<String>,
    /// Nodes that read a filter's frozen content.
    pub(crate) readers: Vec<String>,
    /// Other nodes.
    pub(crate) nodes: Vec<String>,
    /// Bitmaps: (node, name).
    pub(crate) bitmaps: Vec<(String, String)>,
    /// Folders in which images of ours are, or were before they lost their names: scratch and what is pushed.
    pub(crate) folders: BTreeSet<PathBuf>,
}

impl Leftovers {
    pub(crate) fn any(&self) -> bool {
        self.any_node() || !self.bitmaps.is_empty()
    }

    fn any_node(&self) -> bool {
        !self.readers.is_empty() || !self.filters.is_empty() || !self.nodes.is_empty()
    }

    /// Nodes can be removed only while their images' folders answer (see [`answer`]).
    ///
    /// # Errors
    /// When one does not.
    pub(crate) fn check_folders(&self) -> Result<()> {
        self.folders.iter().try_for_each(|folder| answer::must_answer(folder))
    }

    fn has_bitmap(&self, prefix: &str) -> bool {
        self.bitmaps.iter().any(|(_, name)| name.starts_with(prefix))
    }
}

/// Finds them. Pure.
pub(crate) fn find(survey: &Survey) -> Leftovers {
    let ours: Vec<_> = survey.nodes.iter().filter(|node| is_ours(&node.node_name)).collect();
    let of =
        |wanted: &dyn Fn(&str) -> bool| ours.iter().filter(|node| wanted(&node.drv)).map(|node| node.node_name.clone()).collect::<Vec<_>>();
    let is_other = |driver: &str| ![READER, FILTER].contains(&driver);
    // Those on nodes of ours go with their nodes.
    let bitmaps = survey.nodes.iter().filter(|node| !is_ours(&node.node_name)).flat_map(|node| {
        let names = node.dirty_bitmaps.iter().filter_map(|bitmap| bitmap.name.clone());
        names.filter(|name| is_ours(name) && !is_of_revert(name)).map(|name| (node.node_name.clone(), name))
    });
    Leftovers {
        filters: of(&|driver| driver == FILTER),
        readers: of(&|driver| driver == READER),
        nodes: of(&is_other),
        bitmaps: bitmaps.collect(),
        folders: survey.nodes.iter().filter_map(|node| folder(Path::new(&node.file))).collect(),
    }
}

// They are no leftovers: they go when the revert is finished.
fn is_of_revert(name: &str) -> bool {
    name.starts_with(HALTED) || name.starts_with(REVERTING)
}

// Of an image `FOLDER/km1tmp-RUN-scratch/NAME`, or of one that was being pushed, `FOLDER/.km1tmp-NUMBER/NAME`.
fn folder(image: &Path) -> Option<PathBuf> {
    let run = image.parent().filter(|_| image.is_absolute())?;
    run.file_name().and_then(OsStr::to_str).filter(|name| is_ours(name.trim_start_matches('.')))?;
    run.parent().map(Path::to_owned)
}

/// Removes everything of ours from a QEMU, the guest's needs first; says in words what was done.
///
/// # Errors
/// When something of ours is there and cannot be removed.
pub(crate) fn remove(qmp: &mut Qmp) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let found = find(&disks::look(qmp)?);
    let is_awake = wake(qmp, &found, &mut said)?;
    found.check_folders()?;
    let exports = export::list(qmp)?;
    let (ours, foreign): (Vec<_>, Vec<_>) = exports.into_iter().partition(|export| is_ours(&export.id));
    for export in &ours {
        tried("export", &export.id, delete_export(qmp, &export.id), &mut said)?;
    }
    // Only ours ran in it, or it was started by a run that died before its first export.
    let is_server_ours = (!ours.is_empty() || found.any_node()) && foreign.iter().all(|export| export.kind != "nbd");
    if is_server_ours && qmp.run("nbd-server-stop", Value::Null).is_ok() {
        said.push("NBD server".into());
    }
    end_jobs(qmp, &mut said)?;
    remove_nodes(qmp, &found, &mut said)?;
    for (node, name) in found.bitmaps.iter().filter(|(_, name)| is_awake || !name.starts_with(FROZEN)) {
        tried("bitmap", name, qmp.run("block-dirty-bitmap-remove", json!({ "node": node, "name": name })), &mut said)?;
    }
    Ok(said)
}

// Whether the marks can go.
fn wake(qmp: &mut Qmp, found: &Leftovers, said: &mut Vec<String>) -> Result<bool> {
    if found.has_bitmap(PAUSED) && status(qmp)? == "paused" {
        tried("pause", "of the VM", qmp.run("cont", Value::Null), said)?;
    }
    if found.has_bitmap(FROZEN)
        && let Some(channel) = agent::find(qmp)?
    {
        match agent::thaw_at(&channel.socket, THAW_WAIT) {
            Ok(()) => said.push("freeze of the guest's file systems".into()),
            // It may have been restarted since, or be beyond help; backups must go on. The mark stays for the next run.
            Err(error) => {
                said.push(format!("nothing of a freeze: the guest may still be frozen, since {error}"));
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn end_jobs(qmp: &mut Qmp, said: &mut Vec<String>) -> Result<()> {
    let jobs: Vec<Value> = qmp.execute("query-jobs", Value::Null)?;
    let ours: Vec<&str> = jobs.iter().filter_map(|job| job["id"].as_str()).filter(|id| is_ours(id)).collect();
    for id in &ours {
        tried("job", id, end_job(qmp, id), said)?;
    }
    if ours.is_empty() { Ok(()) } else { wake_from_error(qmp) }
}

/// Ends the jobs of one dead run, so that they cannot fail the guest's writes. What else it left harms nobody.
pub(crate) fn end_jobs_of(qmp: &mut Qmp, run: &str) -> Result<()> {
    let jobs: Vec<Value> = qmp.execute("query-jobs", Value::Null)?;
    let ours = jobs.iter().filter_map(|job| job["id"].as_str()).filter(|id| is_ours(id) && id.split('-').nth(1) == Some(run));
    ours.map(str::to_owned).collect::<Vec<_>>().iter().try_for_each(|id| end_job(qmp, id))?;
    wake_from_error(qmp)
}

fn remove_nodes(qmp: &mut Qmp, found: &Leftovers, said: &mut Vec<String>) -> Result<()> {
    // A filter cannot leave its device while something reads its frozen content, nor go while a device uses it.
    for node in &found.readers {
        tried("node", node, delete_node(qmp, node), said)?;
    }
    for filter in &found.filters {
        let freed = take_out(qmp, filter).map_err(|error| left("filter", filter, error))?;
        said.extend(freed.devices.iter().map(|device| format!("filter of device {device}")));
        said.extend(
            freed.overlays.iter().map(|image| format!("filter under {image}, a snapshot's overlay that named it as its backing format")),
        );
    }
    for node in found.filters.iter().chain(&found.nodes) {
        tried("node", node, delete_node(qmp, node), said)?;
    }
    Ok(())
}

fn delete_node(qmp: &mut Qmp, node: &str) -> Result<()> {
    qmp.run("blockdev-del", json!({ "node-name": node }))
}

fn tried(kind: &str, name: &str, result: Result<()>, said: &mut Vec<String>) -> Result<()> {
    match result {
        Ok(()) => said.push(format!("{kind} {name}")),
        Err(error) => return Err(left(kind, name, error)),
    }
    Ok(())
}

fn left(kind: &str, name: &str, error: Error) -> Error {
    if error.is_unreachable() { error } else { Error::LeftBehind { subject: format!("{kind} {name}"), source: Box::new(error) } }
}

/// QEMU's run state: `running`, `paused`, `prelaunch`, ...
pub(crate) fn status(qmp: &mut Qmp) -> Result<String> {
    let status: Value = qmp.execute("query-status", Value::Null)?;
    Ok(status["status"].as_str().unwrap_or_default().to_owned())
}

/// Resumes a VM that a dead run of keepmark paused, and removes the mark of it. Other states are left alone.
pub(crate) fn resume(qmp: &mut Qmp) -> Result<()> {
    if status(qmp)? == "paused" {
        qmp.run("cont", Value::Null)?;
    }
    let marks = find(&disks::look(qmp)?).bitmaps.into_iter().filter(|(_, name)| name.starts_with(PAUSED));
    for (node, name) in marks {
        qmp.run("block-dirty-bitmap-remove", json!({ "node": node, "name": name }))?;
    }
    Ok(())
}
