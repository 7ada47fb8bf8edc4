//! Push: QEMU itself copies disks of a frozen moment into new images, by jobs that read what the filters keep.
//!
//! The jobs read the frozen content and not the disks, so the guest never waits for a target: one that is full or stuck ends its
//! job, or delays it, and that is all. QEMU never flushes a target: it would have the guest wait for the disk, and the store
//! sees to it before it publishes.

use std::path::PathBuf;
use std::time::Duration;

use keepmark_model::DiskName;
use keepmark_model::pushing::PushTarget;
use keepmark_model::seam;
use serde_json::{Value, json};

use super::answer;
use super::target::{Delta, Target};
use super::undo::{Step, Undo, end_job};
use crate::error::{Error, Result, text};
use crate::qmp::Qmp;
use crate::temporary::Temporary;

// A thread of QEMU's waits for each, and QEMU has 64 for everything: of a store that does not answer the job's usual 64 would leave the
// guest none.
const COPIES_MAX: u32 = 16;
const LOOK: Duration = Duration::from_millis(20);
const LOOK_WHEN_NEW: Duration = Duration::from_millis(2);
const LOOKS_WHEN_NEW: u32 = 20;

/// A disk of the moment, as jobs read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    disk: DiskName,
    number: usize,
    /// The node with the frozen content.
    node: String,
    /// What changed since the checkpoint that was asked for, on that node; none for everything.
    delta: Option<String>,
    /// Whether QEMU may take zeros below for data.
    has_layers: bool,
}

/// Gives the frozen nodes the deltas, which jobs need there. Before anything is exported: what is, cannot be copied any more.
///
/// # Errors
/// When QEMU refuses.
pub fn prepare(qmp: &mut Qmp, targets: &[Target], nodes: &[String], names: &Temporary) -> Result<Vec<Source>> {
    targets.iter().zip(nodes).map(|(target, node)| source(qmp, target, node, names)).collect()
}

fn source(qmp: &mut Qmp, target: &Target, node: &str, names: &Temporary) -> Result<Source> {
    let mut source =
        Source { disk: target.name.clone(), number: target.number, node: node.to_owned(), delta: None, has_layers: target.images > 1 };
    if let Delta::Bitmaps { granularity, .. } = &target.delta {
        let mut bitmap = json!({ "node": node, "name": names.delta(), "persistent": false, "disabled": true });
        if *granularity != 0 {
            bitmap["granularity"] = (*granularity).into();
        }
        // It goes with its node.
        qmp.run("block-dirty-bitmap-add", bitmap)?;
        let from = json!([{ "node": target.active, "name": names.delta() }]);
        qmp.run("block-dirty-bitmap-merge", json!({ "node": node, "target": names.delta(), "bitmaps": from }))?;
        source.delta = Some(names.delta());
    }
    Ok(source)
}

/// Copies a disk into an image and closes it, whatever happens. One at a time: a job that begins or ends changes QEMU's graph of nodes,
/// and while another job waits for its store that change would wait too, and the guest with it. Where the image could not be closed its
/// folder is added to `stuck`.
///
/// # Errors
/// The job's failure in QEMU's words, that the image's last tables cannot be written, or what `progress` returned.
pub fn push(
    qmp: &mut Qmp,
    sources: &[Source],
    target: &PushTarget,
    names: &Temporary,
    progress: &mut dyn FnMut(u64, u64) -> seam::Result<()>,
    stuck: &mut Vec<PathBuf>,
) -> seam::Result<()> {
    let source = sources.iter().find(|source| source.disk == target.disk).ok_or_else(|| Error::UnknownDisk {
        name: target.disk.to_string(),
        known: sources.iter().map(|source| source.disk.as_str()).collect::<Vec<_>>().join(", "),
    })?;
    let mut undo = Undo::default();
    let copied = copy(qmp, source, target, names, progress, &mut undo);
    // One that is whole is closed without writing.
    let answered = if copied.is_ok() { Ok(()) } else { answer::must_answer(target.folder()) };
    let closed = answered.and_then(|()| undo.run(qmp));
    if closed.is_err() {
        stuck.push(target.folder().to_owned());
    }
    copied.and(closed.map_err(Into::into))
}

fn copy(
    qmp: &mut Qmp,
    source: &Source,
    target: &PushTarget,
    names: &Temporary,
    progress: &mut dyn FnMut(u64, u64) -> seam::Result<()>,
    undo: &mut Undo,
) -> seam::Result<()> {
    answer::wait(target.folder(), &mut || progress(0, 0))?;
    make(qmp, source, target, names, &mut || progress(0, 0), undo)?;
    let job = names.node("j", source.number);
    let (done, total) = work(qmp, "blockdev-backup", start(source, &job, target, names), progress)?;
    answer::wait(target.folder(), &mut || progress(done, total))?;
    // Its last tables are written now. When an image is closed QEMU does not tell whether they could be.
    let mut whole = image(source, names);
    whole["read-only"] = true.into();
    Ok(qmp.run("blockdev-reopen", json!({ "options": [whole] }))?)
}

/// Makes the image and opens it.
fn make(
    qmp: &mut Qmp,
    source: &Source,
    target: &PushTarget,
    names: &Temporary,
    goes_on: &mut dyn FnMut() -> seam::Result<()>,
    undo: &mut Undo,
) -> seam::Result<()> {
    let (storage, job) = (names.node("u", source.number), names.node("k", source.number));
    let file = json!({ "driver": "file", "node-name": storage, "filename": text(&target.image)?, "cache": { "no-flush": true } });
    qmp.run("blockdev-add", file)?;
    undo.push(Step::DeleteNode(storage.clone()));
    let mut options = json!({ "driver": "qcow2", "file": storage, "size": target.size });
    if let Some(backing) = &target.backing {
        options["backing-file"] = backing.as_str().into();
        options["backing-fmt"] = "qcow2".into();
    }
    work(qmp, "blockdev-create", json!({ "job-id": job, "options": options }), &mut |_, _| goes_on())?;
    qmp.run("blockdev-add", image(source, names))?;
    undo.push(Step::DeleteNode(names.node("t", source.number)));
    Ok(())
}

/// How the image is opened. Nothing lies below it while it is written: what it gets is written as it is, zeros too.
fn image(source: &Source, names: &Temporary) -> Value {
    let [node, storage] = ["t", "u"].map(|kind| names.node(kind, source.number));
    let zeros = if source.has_layers { "on" } else { "off" };
    json!({ "driver": "qcow2", "node-name": node, "file": storage, "backing": null, "detect-zeroes": zeros, "cache": { "no-flush": true } })
}

/// Starts a job, waits for its end and dismisses it, whatever happens; gives the bytes done and due.
fn work(
    qmp: &mut Qmp,
    command: &str,
    arguments: Value,
    progress: &mut dyn FnMut(u64, u64) -> seam::Result<()>,
) -> seam::Result<(u64, u64)> {
    let job = arguments["job-id"].as_str().unwrap_or_default().to_owned();
    qmp.run(command, arguments)?;
    let told = wait(qmp, &job, progress);
    let ended = end_job(qmp, &job);
    let told = told?;
    ended?;
    Ok(told)
}

/// The job of one disk. An error ends it, so that its failure is told and nothing waits for anybody.
fn start(source: &Source, job: &str, target: &PushTarget, names: &Temporary) -> Value {
    let mut start = json!({ "job-id": job, "device": source.node, "target": names.node("t", source.number), "auto-dismiss": false,
        "on-source-error": "report", "on-target-error": "report", "compress": target.compress, "x-perf": { "max-workers": COPIES_MAX } });
    match &source.delta {
        Some(delta) => {
            start["sync"] = "bitmap".into();
            start["bitmap"] = delta.as_str().into();
            start["bitmap-mode"] = "never".into();
        }
        None => start["sync"] = "full".into(),
    }
    start
}

/// Waits for a job's end, which stays to be seen until it is dismissed; gives the bytes done and due.
fn wait(qmp: &mut Qmp, job: &str, progress: &mut dyn FnMut(u64, u64) -> seam::Result<()>) -> seam::Result<(u64, u64)> {
    let failed = |message: &str| Error::Job { job: job.to_owned(), message: message.to_owned() };
    for look in 0_u32.. {
        let all: Vec<Value> = qmp.execute("query-jobs", Value::Null)?;
        let found = all.iter().find(|found| found["id"] == job).ok_or_else(|| failed("it is gone: somebody else has ended it"))?;
        let [done, total] = ["current-progress", "total-progress"].map(|key| found[key].as_u64().unwrap_or_default());
        progress(done, total)?;
        if found["status"] == "concluded" {
            return found["error"].as_str().map_or(Ok((done, total)), |error| Err(failed(error).into()));
        }
        std::thread::sleep(if look < LOOKS_WHEN_NEW { LOOK_WHEN_NEW } else { LOOK });
    }
    Err(failed("it never ends").into())
}

#[cfg(test)]
mod tests {
    use keepmark_model::Size;

    use super::*;

    #[test]
    fn a_job_copies_the_delta_or_everything() {
        let disk = DiskName::new("vda").unwrap();
        let source = |delta: Option<&str>| Source {
            disk: disk.clone(),
            number: 0,
            node: "a".into(),
            delta: delta.map(str::to_owned),
            has_layers: false,
        };
        let target = PushTarget { disk: disk.clone(), image: "/t".into(), size: Size(1), backing: None, compress: false };
        let names = Temporary::new("run1");
        let full = start(&source(None), "j", &target, &names);
        let some = start(&source(Some("d")), "j", &target, &names);
        assert_eq!((&full["sync"], &full["bitmap"], &full["target"]), (&"full".into(), &Value::Null, &"km1tmp-run1-t0".into()));
        assert_eq!((&some["sync"], &some["bitmap"], &some["bitmap-mode"]), (&"bitmap".into(), &"d".into(), &"never".into()));
    }
}
