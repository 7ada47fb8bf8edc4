//! A push backup of libvirt's: waited for, and believed only if libvirt says that it ended well and that it is the one.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepmark_model::DiskName;
use keepmark_model::pushing::PushTarget;
use keepmark_model::seam::{self, FrozenDisk, FrozenPoint, Moment};
use keepmark_qemu::space::SpaceWatch;
use keepmark_qemu::watchdog::Watchdog;

use crate::api::{Domain, EndedJob, Outcome};
use crate::error::{Error, Result};
use crate::handed::Handed;
use crate::link::Link;
use crate::monitor::{self, Copying};
use crate::point::{END_WAIT, end_backup, running};

const LOOK: Duration = Duration::from_millis(20);
/// Within it nobody begins and ends another backup.
const GAP_MAX: Duration = Duration::from_secs(1);
/// What two clocks may differ by.
const SLACK: Duration = Duration::from_millis(100);

/// A running push backup of ours.
#[derive(Debug)]
pub(crate) struct PushPoint<'a> {
    pub(crate) link: &'a mut Link,
    pub(crate) moment: Moment,
    pub(crate) targets: Vec<DiskName>,
    /// Where its images are.
    pub(crate) folder: PathBuf,
    /// Without free space QEMU fails the guest's writes: this ends the backup before.
    pub(crate) space: SpaceWatch,
    /// Ends the backup when nobody watches that space any more.
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) seen: Seen,
    pub(crate) is_over: bool,
    // After the job's end.
    pub(crate) _handed: Handed,
}

/// When a job was seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// When it was begun.
    begun: Instant,
    /// The last time that it ran for sure.
    running: Instant,
    /// Right after that.
    gone: Instant,
}

impl Seen {
    /// Of a job that runs.
    pub(crate) fn now() -> Self {
        let now = Instant::now();
        Self { begun: now, running: now, gone: now }
    }

    /// For how long it ran for sure.
    fn ran(&self) -> Duration {
        self.running.saturating_duration_since(self.begun)
    }

    /// How long nobody looked before it was seen to be gone.
    fn gap(&self) -> Duration {
        self.gone.saturating_duration_since(self.running)
    }
}

/// Whether a backup's place is an image in this folder.
pub(crate) fn lies_in(folder: &Path) -> impl Fn(&str) -> bool + use<> {
    let folder = folder.to_owned();
    move |place| Path::new(place).parent() == Some(&folder)
}

impl PushPoint<'_> {
    fn wait(&mut self, progress: &mut dyn FnMut(&DiskName, u64, u64) -> seam::Result<()>) -> seam::Result<()> {
        let is_ours = lies_in(&self.folder);
        while running(self.link, &is_ours)?.is_some() {
            self.seen.running = Instant::now();
            for (disk, Copying { done, due }) in self.copying()? {
                progress(&disk, done, due)?;
            }
            if self.link.call(Domain::is_stopped_by_error)? {
                return Err(Error::TargetFull { folder: self.folder.clone() }.into());
            }
            std::thread::sleep(LOOK);
        }
        self.seen.gone = Instant::now();
        self.is_over = true;
        self.space.validity().check().map_err(|_| Error::TargetFull { folder: self.folder.clone() })?;
        let ended = self.link.call(Domain::take_ended_job)?;
        judge(ended.as_ref(), self.seen.ran(), self.seen.gap())
            .map_err(|problem| Error::NotPushed { domain: self.link.name().to_owned(), problem })?;
        Ok(())
    }

    fn copying(&mut self) -> Result<Vec<(DiskName, Copying)>> {
        let jobs = monitor::copying(self.link)?;
        let of =
            |disk: &DiskName| jobs.iter().find(|(job, _)| job.starts_with(&format!("backup-{disk}-libvirt-"))).map(|(_, copying)| *copying);
        Ok(self.targets.iter().filter_map(|disk| Some((disk.clone(), of(disk)?))).collect())
    }

    fn end(&mut self) -> Result<()> {
        self.is_over = true;
        let is_ours = lies_in(&self.folder);
        let ended = end_backup(self.link, is_ours).and_then(|_| self.wait_closed());
        // A failed write that waits for space is done again now.
        if self.link.call(Domain::is_stopped_by_error)? {
            self.link.call(Domain::resume)?;
        }
        if ended.is_ok() {
            // One that is gone has nothing left to do.
            drop(self.watchdog.as_mut().map(Watchdog::copied));
        }
        ended
    }

    // libvirt says that a backup is over before QEMU has closed its images.
    fn wait_closed(&mut self) -> Result<()> {
        let (folder, begun) = (self.folder.to_string_lossy().into_owned(), Instant::now());
        while monitor::look(self.link)?.nodes.iter().any(|node| node.file.contains(&folder)) {
            if begun.elapsed() >= END_WAIT {
                return Err(Error::NotEnded { domain: self.link.name().to_owned(), seconds: END_WAIT.as_secs() });
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Whether all was copied, by what libvirt says of the last job that ended; ours was seen to run for `ran`, and then for `gap` nobody
/// looked. Pure.
fn judge(ended: Option<&EndedJob>, ran: Duration, gap: Duration) -> std::result::Result<(), String> {
    let Some(job) = ended else { return Err("libvirt was restarted meanwhile and does not know how it ended".into()) };
    // Another's that began after ours had ended cannot have gone on for longer than nobody looked; and ours has not for less than it was seen.
    let is_ours = job.is_backup && (gap < GAP_MAX || job.elapsed > gap) && job.elapsed + SLACK >= ran;
    match (is_ours, job.outcome) {
        (false, _) => Err("it cannot be told how it ended: another job may have run since".into()),
        (true, Outcome::Done) => Ok(()),
        (true, Outcome::Aborted) => Err("somebody ended it".into()),
        (true, Outcome::Failed) => Err(job.problem.clone().unwrap_or_else(|| "QEMU gives no reason".into())),
    }
}

impl FrozenPoint for PushPoint<'_> {
    fn moment(&self) -> &Moment {
        &self.moment
    }

    fn disk(&mut self, _: &DiskName) -> seam::Result<Box<dyn FrozenDisk>> {
        Err(Error::OnlyPushed { domain: self.link.name().to_owned() }.into())
    }

    fn push(&mut self, _: &[PushTarget], progress: &mut dyn FnMut(&DiskName, u64, u64) -> seam::Result<()>) -> seam::Result<()> {
        let pushed = self.wait(progress);
        let ended = self.end();
        pushed.and(ended.map_err(Into::into))
    }

    fn release(self: Box<Self>) -> seam::Result<()> {
        Ok(())
    }
}

impl Drop for PushPoint<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // Nobody can be told here; what remains is found by its images' folder in the next run.
            drop(self.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_good_end_counts() {
        let job = |outcome, is_backup, seconds| EndedJob { outcome, is_backup, elapsed: Duration::from_secs(seconds), problem: None };
        let (near, far) = (Duration::from_millis(20), Duration::from_secs(30));
        let (short, long) = (Duration::ZERO, Duration::from_secs(20));
        assert!(judge(Some(&job(Outcome::Done, true, 0)), short, near).is_ok());
        assert!(judge(Some(&job(Outcome::Done, true, 31)), short, far).is_ok());
        assert!(judge(Some(&job(Outcome::Done, true, 20)), long, near).is_ok());
        assert!(judge(Some(&job(Outcome::Done, true, 1)), long, near).is_err());
        for (ended, gap) in [
            (None, near),
            (Some(job(Outcome::Done, false, 5)), near),
            (Some(job(Outcome::Done, true, 29)), far),
            (Some(job(Outcome::Aborted, true, 5)), near),
            (Some(job(Outcome::Failed, true, 5)), near),
        ] {
            assert!(judge(ended.as_ref(), short, gap).is_err(), "{ended:?}");
        }
        let full = EndedJob { problem: Some("No space left on device".into()), ..job(Outcome::Failed, true, 5) };
        assert_eq!(judge(Some(&full), short, near), Err("No space left on device".into()));
    }
}
