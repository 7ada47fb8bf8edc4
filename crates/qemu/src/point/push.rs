//! Push: QEMU itself copies disks of a frozen moment into new images, by jobs that read what the filters keep.
//!
//! The jobs read the frozen content and not the disks, so the guest never waits for a target: one that is full or stuck ends its
//! job, or delays it, and that is all.

use std::time::Duration;

use keepmark_model::DiskName;
use keepmark_model::pushing::PushTarget;
use keepmark_model::seam;
use serde_json::{Value, json};

use super::target::{Delta, Target};
use super::undo::{Step, Undo};
use crate::error::{Error, Result, text};
use crate::qmp::Qmp;
use crate::temporary::Temporary;

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

/// Copies disks into images and closes these, whatever happens.
///
/// # Errors
/// The first job's failure in QEMU's words, or what `progress` returned.
pub fn push(
    qmp: &mut Qmp,
    sources: &[Source],
    targets: &[PushTarget],
    names: &Temporary,
    progress: &mut dyn FnMut(&DiskName, u64, u64) -> seam::Result<()>,
) -> seam::Result<()> {
    let mut undo = Undo::default();
    let copied = copy(qmp, sources, targets, names, progress, &mut undo);
    let closed = undo.run(qmp);
    copied.and(closed.map_err(Into::into))
}

fn copy(
    qmp: &mut Qmp,
    sources: &[Source],
    targets: &[PushTarget],
    names: &Temporary,
    progress: &mut dyn FnMut(&DiskName, u64, u64) -> seam::Result<()>,
    undo: &mut Undo,
) -> seam::Result<()> {
    let mut jobs = Vec::with_capacity(targets.len());
    for target in targets {
        let source = sources.iter().find(|source| source.disk == target.disk).ok_or_else(|| Error::UnknownDisk {
            name: target.disk.to_string(),
            known: sources.iter().map(|source| source.disk.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        make(qmp, source, target, names, undo)?;
        jobs.push((source, names.node("j", source.number)));
    }
    for ((source, job), target) in jobs.iter().zip(targets) {
        qmp.run("blockdev-backup", start(source, job, target, names))?;
        undo.push(Step::EndJob(job.clone()));
    }
    jobs.iter().try_for_each(|(source, job)| wait(qmp, job, &mut |done, total| progress(&source.disk, done, total)))
}

/// Makes the image and opens it. Nothing lies below it while it is written: what it gets is written as it is, zeros too.
fn make(qmp: &mut Qmp, source: &Source, target: &PushTarget, names: &Temporary, undo: &mut Undo) -> seam::Result<()> {
    let file = json!({ "driver": "file", "filename": text(&target.image)? });
    let mut making = Undo::default();
    let made = create(qmp, &file, target, names, source.number, &mut making);
    // The file is opened anew, so that it goes with its image.
    let closed = making.run(qmp);
    made?;
    closed?;
    let (node, zeros) = (names.node("t", source.number), if source.has_layers { "on" } else { "off" });
    qmp.run("blockdev-add", json!({ "driver": "qcow2", "node-name": node, "file": file, "backing": null, "detect-zeroes": zeros }))?;
    undo.push(Step::DeleteNode(node));
    Ok(())
}

fn create(qmp: &mut Qmp, file: &Value, target: &PushTarget, names: &Temporary, number: usize, undo: &mut Undo) -> seam::Result<()> {
    let (storage, job) = (names.node("u", number), names.node("k", number));
    let mut named = file.clone();
    named["node-name"] = storage.clone().into();
    qmp.run("blockdev-add", named)?;
    undo.push(Step::DeleteNode(storage.clone()));
    let mut options = json!({ "driver": "qcow2", "file": storage, "size": target.size });
    if let Some(backing) = &target.backing {
        options["backing-file"] = backing.as_str().into();
        options["backing-fmt"] = "qcow2".into();
    }
    qmp.run("blockdev-create", json!({ "job-id": job, "options": options }))?;
    undo.push(Step::EndJob(job.clone()));
    wait(qmp, &job, &mut |_, _| Ok(()))
}

/// The job of one disk. An error ends it, so that its failure is told and nothing waits for anybody.
fn start(source: &Source, job: &str, target: &PushTarget, names: &Temporary) -> Value {
    let mut start = json!({ "job-id": job, "device": source.node, "target": names.node("t", source.number), "auto-dismiss": false,
        "on-source-error": "report", "on-target-error": "report", "compress": target.compress });
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

/// Waits for a job's end, which stays to be seen until it is dismissed.
fn wait(qmp: &mut Qmp, job: &str, progress: &mut dyn FnMut(u64, u64) -> seam::Result<()>) -> seam::Result<()> {
    let failed = |message: &str| Error::Job { job: job.to_owned(), message: message.to_owned() };
    for look in 0_u32.. {
        let all: Vec<Value> = qmp.execute("query-jobs", Value::Null)?;
        let found = all.iter().find(|found| found["id"] == job).ok_or_else(|| failed("it is gone: somebody else has ended it"))?;
        let number = |key: &str| found[key].as_u64().unwrap_or_default();
        progress(number("current-progress"), number("total-progress"))?;
        if found["status"] == "concluded" {
            return found["error"].as_str().map_or(Ok(()), |error| Err(failed(error).into()));
        }
        std::thread::sleep(if look < LOOKS_WHEN_NEW { LOOK_WHEN_NEW } else { LOOK });
    }
    Ok(())
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
