//! A pull backup: one moment of several disks, fixed and exported by libvirt, and its end.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepmark_model::DiskName;
use keepmark_model::seam::{self, FrozenDisk, FrozenPoint, Moment};
use keepmark_qemu::exported::Exported;
use keepmark_qemu::space::SpaceWatch;
use keepmark_qemu::watchdog::Watchdog;
use keepmark_qemu::workspace::Workspace;

use crate::api::{Domain, Kind};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::watched::Watched;
use crate::xml::backup;

pub(crate) const END_WAIT: Duration = Duration::from_secs(30);
const END_ASKED_AGAIN: Duration = Duration::from_secs(2);
const END_POLL: Duration = Duration::from_millis(5);

/// A running pull backup of ours.
#[derive(Debug)]
pub(crate) struct Point<'a> {
    pub(crate) link: &'a mut Link,
    pub(crate) moment: Moment,
    pub(crate) exports: Vec<Exported>,
    pub(crate) socket: PathBuf,
    /// Without free space in the scratch QEMU fails the guest's writes: this ends the backup before.
    pub(crate) space: SpaceWatch,
    /// Ends the backup when nobody watches that space any more.
    pub(crate) watchdog: Option<Watchdog>,
    // Held until the end: the socket's folder, where it is ours, and the scratch images'.
    pub(crate) _folders: Vec<Workspace>,
    pub(crate) is_over: bool,
}

impl Point<'_> {
    fn end(&mut self) -> Result<()> {
        self.is_over = true;
        let ended = end_backup(self.link, |socket| Path::new(socket) == self.socket);
        drop(std::fs::remove_file(&self.socket));
        if ended.is_ok() {
            // One that is gone has nothing left to do.
            drop(self.watchdog.as_mut().map(Watchdog::copied));
        }
        ended.map(drop)
    }
}

impl FrozenPoint for Point<'_> {
    fn moment(&self) -> &Moment {
        &self.moment
    }

    fn disk(&mut self, name: &DiskName) -> seam::Result<Box<dyn FrozenDisk>> {
        let found = self.exports.iter().find(|export| export.disk == *name);
        let domain = self.link.name();
        let export = found.ok_or_else(|| Error::NoDisk { domain: domain.to_owned(), disk: name.to_string() })?;
        let link = self.link.again()?;
        let inner = export.open(&self.socket, self.space.validity())?;
        Ok(Box::new(Watched::new(inner, link, self.socket.clone(), self.exports.len())))
    }

    fn release(mut self: Box<Self>) -> seam::Result<()> {
        Ok(self.end()?)
    }
}

impl Drop for Point<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // Nobody can be told here; what remains is found by its socket's name in the next run.
            drop(self.end());
        }
    }
}

/// Ends the running backup if its place (see [`backup::places`]) is ours; says whether there was one.
pub(crate) fn end_backup(link: &mut Link, is_ours: impl Fn(&str) -> bool) -> Result<bool> {
    let Some(xml) = running(link, &is_ours)? else { return Ok(false) };
    abort(link, &xml, &is_ours)?;
    let begun = Instant::now();
    let mut asked = begun;
    while running(link, &is_ours)?.is_some() {
        if begun.elapsed() >= END_WAIT {
            return Err(Error::NotEnded { domain: link.name().to_owned(), seconds: END_WAIT.as_secs() });
        }
        if asked.elapsed() >= END_ASKED_AGAIN {
            // A libvirtd that was killed after its answer has forgotten that it was asked. What counts is whether it ends in time.
            drop(abort(link, &xml, &is_ours));
            asked = Instant::now();
        }
        std::thread::sleep(END_POLL);
    }
    if backup::is_push(&xml) && link.call(Domain::is_stopped_by_error)? {
        // What failed was a write into its image, or will fail again by itself.
        link.call(Domain::resume)?;
    }
    Ok(true)
}

fn abort(link: &mut Link, xml: &str, is_ours: &impl Fn(&str) -> bool) -> Result<()> {
    match link.attempt(Domain::abort_job)? {
        // It has ended by itself, or is a headless one.
        Err(fault) if fault.kind == Kind::Invalid => end_headless(link, &backup::targets(xml), is_ours),
        other => Ok(other?),
    }
}

// When libvirt cannot store the checkpoint's record it forgets the domain's job but not the backup: its disks' jobs go on for ever,
// and "no job is active" (seen with 11.3.0). The end of its disks' jobs is the end of the backup then.
fn end_headless(link: &mut Link, targets: &[String], is_ours: &impl Fn(&str) -> bool) -> Result<()> {
    for target in targets {
        let ended = link.attempt(|domain| domain.abort_block_job(target))?;
        if let (Err(fault), true) = (ended, running(link, is_ours)?.is_some()) {
            return Err(fault.into());
        }
    }
    Ok(())
}

/// The running backup's description if its place is ours. A domain that ended has taken its backup with it.
pub(crate) fn running(link: &mut Link, is_ours: &impl Fn(&str) -> bool) -> Result<Option<String>> {
    match link.attempt(Domain::backup_xml)? {
        Ok(xml) => Ok(backup::places(&xml).iter().any(|place| is_ours(place)).then_some(xml)),
        Err(fault) if matches!(fault.kind, Kind::NoBackup | Kind::Invalid | Kind::NoDomain) => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}
