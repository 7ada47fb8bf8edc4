//! The steps that take keepmark out of QEMU again, run in reverse. A step is noted after its thing was done, or does nothing where it was not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::attach::{exchange, take_out};
use super::export;
use crate::error::{Error, Result};
use crate::leftovers::status;
use crate::qmp::Qmp;

// How long QEMU may take to let go of an export or a cancelled job.
pub(super) const LET_GO: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(2);

/// One thing to take back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `blockdev-del`.
    DeleteNode(String),
    /// A filter of ours leaves whatever uses it to what lies below it.
    TakeOut(String),
    /// A device that uses a stand-in of ours gets its disk back: what an export of ours holds.
    PutBack {
        /// The device.
        device: String,
        /// The stand-in.
        stand_in: String,
        /// The export that keeps the disk's node.
        holder: String,
    },
    /// Temporary bitmaps, or a checkpoint's that came to nothing.
    RemoveBitmap {
        /// Where.
        node: String,
        /// Which.
        name: String,
    },
    /// `nbd-server-stop`.
    StopServer,
    /// `block-export-del`, and wait for it.
    DeleteExport(String),
    /// Cancel a job, wait for its end, dismiss it.
    EndJob(String),
    /// `cont`, if QEMU stopped the guest since a write failed: without our jobs the write succeeds when it is tried again.
    WakeFromError,
}

/// Steps in the order in which they became necessary.
#[derive(Debug, Default)]
pub struct Undo {
    steps: Vec<Step>,
    /// What was found between filters and devices that somebody else has put there, in words.
    repaired: Vec<String>,
}

impl Undo {
    /// Notes a step.
    pub fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// What was made is to stay.
    pub fn forget(&mut self, keep: impl Fn(&Step) -> bool) {
        self.steps.retain(|step| !keep(step));
    }

    /// Whether there is nothing to take back.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Runs all steps, last first. One that fails does not keep the others from being run; the first failure is returned.
    ///
    /// # Errors
    /// What the first failing step says.
    pub fn run(&mut self, qmp: &mut Qmp) -> Result<()> {
        let mut first = Ok(());
        while let Some(step) = self.steps.pop() {
            let result = self.take_back(&step, qmp);
            let is_over = result.as_ref().is_err_and(Error::is_unreachable);
            if first.is_ok() {
                first = result;
            }
            if is_over {
                self.steps.clear();
            }
        }
        first
    }

    /// What somebody else has put on a filter of ours meanwhile, and was repaired.
    pub fn repaired(&mut self) -> Vec<String> {
        std::mem::take(&mut self.repaired)
    }

    fn take_back(&mut self, step: &Step, qmp: &mut Qmp) -> Result<()> {
        let Step::TakeOut(node) = step else { return step.run(qmp) };
        self.repaired.extend(take_out(qmp, node)?.overlays);
        Ok(())
    }
}

impl Step {
    fn run(&self, qmp: &mut Qmp) -> Result<()> {
        match self {
            Self::DeleteNode(name) => qmp.run("blockdev-del", json!({ "node-name": name })),
            Self::TakeOut(node) => take_out(qmp, node).map(drop),
            Self::PutBack { device, stand_in, holder } => put_back(qmp, device, stand_in, holder),
            Self::RemoveBitmap { node, name } => qmp.run("block-dirty-bitmap-remove", json!({ "node": node, "name": name })),
            Self::StopServer => qmp.run("nbd-server-stop", Value::Null),
            Self::DeleteExport(id) => delete_export(qmp, id),
            Self::EndJob(id) => end_job(qmp, id),
            Self::WakeFromError => wake_from_error(qmp),
        }
    }
}

/// Gives a device that uses a stand-in the node that an export holds for it; by now that may be an overlay of the disk's.
pub(crate) fn put_back(qmp: &mut Qmp, device: &str, stand_in: &str, holder: &str) -> Result<()> {
    let held = export::list(qmp)?.into_iter().find(|export| export.id == holder).map(|export| export.node);
    held.map_or(Ok(()), |node| exchange(qmp, device, stand_in, &node).map(drop))
}

// Asked rather than told by an event: not every way to a monitor brings events.
pub(crate) fn delete_export(qmp: &mut Qmp, id: &str) -> Result<()> {
    qmp.run("block-export-del", json!({ "id": id, "mode": "hard" }))?;
    let deadline = Instant::now() + LET_GO;
    while export::list(qmp)?.iter().any(|export| export.id == id) {
        if Instant::now() >= deadline {
            let message = format!("the export was not let go within {} s", LET_GO.as_secs());
            return Err(Error::Job { job: id.to_owned(), message });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

pub(crate) fn wake_from_error(qmp: &mut Qmp) -> Result<()> {
    if status(qmp)? == "io-error" { qmp.run("cont", Value::Null) } else { Ok(()) }
}

pub(crate) fn end_job(qmp: &mut Qmp, id: &str) -> Result<()> {
    let deadline = Instant::now() + LET_GO;
    let mut is_cancelled = false;
    while Instant::now() < deadline {
        let jobs: Vec<Value> = qmp.execute("query-jobs", Value::Null)?;
        let Some(job) = jobs.iter().find(|job| job["id"] == id) else { return Ok(()) };
        if job["status"] == "concluded" {
            return qmp.run("job-dismiss", json!({ "id": id }));
        }
        if !is_cancelled {
            qmp.run("block-job-cancel", json!({ "device": id, "force": true }))?;
            is_cancelled = true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(Error::Job { job: id.to_owned(), message: format!("it did not end within {} s", LET_GO.as_secs()) })
}
