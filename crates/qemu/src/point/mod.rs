//! A frozen point: one moment of several disks, exported over a private NBD server inside QEMU, and its end.

pub mod answer;
pub(crate) mod attach;
pub mod export;
pub mod filters;
pub mod jobs;
pub(crate) mod moment;
pub mod push;
pub mod scratch;
pub mod target;
pub mod undo;

use std::path::PathBuf;
use std::time::Duration;

use keepmark_model::pushing::{CannotPush, PushTarget};
use keepmark_model::seam::{self, FrozenDisk, FrozenPoint, Moment};
use keepmark_model::{DiskName, Failure, FailureClass};

use crate::disk::{Opening, open};
use crate::disks;
use crate::error::{Error, Result};
use crate::folder;
use crate::qmp::Qmp;
use crate::space::SpaceWatch;
use crate::temporary::Temporary;
use crate::watchdog::Watchdog;
use crate::workspace::Workspace;
use answer::must_answer;
use undo::Undo;

/// A frozen point in a running QEMU or in qemu-storage-daemon.
#[derive(Debug)]
pub struct Point<'a> {
    pub(crate) qmp: &'a mut Qmp,
    pub(crate) undo: Undo,
    pub(crate) moment: Moment,
    pub(crate) openings: Vec<Opening>,
    pub(crate) guards: Guards,
    pub(crate) names: Temporary,
    /// What can be pushed; nothing where that was not asked for.
    pub(crate) sources: Vec<push::Source>,
    // Holds the socket's folder until the end.
    pub(crate) _workspace: Workspace,
}

/// What looks after the guest as long as a point exists; nothing where no guest runs.
#[derive(Debug, Default)]
pub(crate) struct Guards {
    /// Where QEMU may have files of ours open; nothing is taken back while one of them does not answer.
    pub(crate) folders: Vec<PathBuf>,
    pub(crate) space: Option<SpaceWatch>,
    /// Ends jobs that could fail the guest's writes when nobody watches their space any more.
    pub(crate) watchdog: Option<Watchdog>,
}

impl Guards {
    /// Takes everything back.
    pub(crate) fn undo(&mut self, undo: &mut Undo, qmp: &mut Qmp) -> Result<()> {
        self.space = None;
        if undo.is_empty() {
            return Ok(());
        }
        if let Err(stuck) = self.folders.iter().try_for_each(|folder| must_answer(folder)) {
            // The watchdog is not told that all is well, so that it ends the jobs.
            undo.forget(|_| true);
            return Err(stuck);
        }
        let result = undo.run(qmp);
        if result.is_ok() {
            // If it has died there is nobody to be told.
            drop(self.watchdog.as_mut().map(Watchdog::copied));
        }
        result
    }
}

impl Point<'_> {
    // Steps that QEMU refuses may have been undone by somebody else: only what is really still there counts.
    fn end(&mut self) -> Result<()> {
        match self.guards.undo(&mut self.undo, self.qmp) {
            Err(error) if error.is_unreachable() || matches!(error, Error::Stuck { .. }) => Err(error),
            Err(error) if has_leftovers(self.qmp)? => {
                Err(Error::LeftBehind { subject: "all of the frozen point".into(), source: Box::new(error) })
            }
            _ => match self.undo.repaired() {
                overlays if overlays.is_empty() => Ok(()),
                overlays => Err(Error::Snapshotted { overlays: overlays.join(", ") }),
            },
        }
    }
}

/// The opening of one disk.
pub(crate) fn opening_of<'o>(openings: &'o [Opening], name: &DiskName) -> Result<&'o Opening> {
    openings.iter().find(|opening| opening.disk == *name).ok_or_else(|| Error::UnknownDisk {
        name: name.to_string(),
        known: openings.iter().map(|opening| opening.disk.as_str()).collect::<Vec<_>>().join(", "),
    })
}

fn has_leftovers(qmp: &mut Qmp) -> Result<bool> {
    let survey = disks::look(qmp)?;
    Ok(crate::leftovers::find(&survey).any())
}

impl FrozenPoint for Point<'_> {
    fn moment(&self) -> &Moment {
        &self.moment
    }

    fn disk(&mut self, name: &DiskName) -> seam::Result<Box<dyn FrozenDisk>> {
        Ok(Box::new(open(opening_of(&self.openings, name)?)?))
    }

    fn push(&mut self, targets: &[PushTarget], progress: &mut dyn FnMut(&DiskName, u64, u64) -> seam::Result<()>) -> seam::Result<()> {
        if self.sources.is_empty() {
            return Err(Failure::new(FailureClass::Usage, CannotPush::new("it was not asked for when the moment was fixed")));
        }
        for target in targets {
            folder::give(folder::plain(&target.image)?, &self.qmp.peer()?, &target.image)?;
        }
        // Nobody would wait for the jobs any more.
        self.guards.watchdog.as_mut().map_or(Ok(()), |watchdog| watchdog.copying(self.names.run()))?;
        for target in targets {
            let mut told = |done, total| progress(&target.disk, done, total);
            push::push(self.qmp, &self.sources, target, &self.names, &mut told, &mut self.guards.folders)?;
        }
        Ok(())
    }

    fn release(mut self: Box<Self>) -> seam::Result<()> {
        Ok(self.end()?)
    }
}

impl Drop for Point<'_> {
    fn drop(&mut self) {
        // Nobody can be told here; what remains is found by prefix in the next run.
        drop(self.guards.undo(&mut self.undo, self.qmp));
    }
}

/// How long the VM stood still, and whether its file systems were quiet; what fixing a moment achieved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fixed {
    pub(crate) pause: Duration,
    pub(crate) frozen: Option<Duration>,
    pub(crate) findings: Vec<String>,
}
