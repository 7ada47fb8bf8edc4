//! A shut-off domain: libvirt can neither back it up nor change its bitmaps, so its images are opened by qemu-storage-daemon.

use std::path::PathBuf;
use std::time::Duration;

use keepmark_model::facts::{SkippedDisk, VmFacts};
use keepmark_model::manifest::Consistency;
use keepmark_model::seam::{self, Definition, FrozenDisk, FrozenPoint, Hypervisor, Moment, PointRequest};
use keepmark_model::writing::{Rest, Unfinished, WriteRequest, Writing};
use keepmark_model::{CheckpointName, DiskName};
use keepmark_qemu::{Offline, OfflineOptions, Said};

use crate::api::{Domain, DomainState, View};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::running::identify;
use crate::xml::{DiskXml, DomainXml, Source};
use crate::{Options, UserFolders, checkpoints, halting, said, saved};

/// A shut-off domain.
#[derive(Debug)]
pub(crate) struct ShutOff {
    link: Link,
    offline: Box<Offline>,
    skipped: Vec<SkippedDisk>,
    agent: bool,
    user: UserFolders,
    // Whether a checkpoint was begun, which libvirt does not know yet.
    began: bool,
    hide_checkpoints: bool,
    // Whether keepmark has shut its guest down, and is to start it again.
    halted: bool,
}

impl ShutOff {
    pub(crate) fn open(mut link: Link, options: Options) -> Result<Self> {
        let xml = DomainXml::parse(&link.call(|domain| domain.xml(View::Current))?)?;
        let identity = identify(&link, &options)?;
        let (user, hide_checkpoints) = (options.user.clone(), options.hide_checkpoints);
        let mut skipped = Vec::new();
        let mut images = Vec::new();
        let mut words = Vec::new();
        for disk in &xml.disks {
            match image(&link, disk)? {
                Ok(path) => {
                    words.push(said::words(&link, disk)?);
                    images.push((Some(disk.target.clone()), path));
                }
                Err(why) => skipped.push(SkippedDisk { name: disk.target.clone(), why }),
            }
        }
        let half_reverted = options.half_reverted;
        let defaults = OfflineOptions::new(images, options.run_dir);
        let options =
            OfflineOptions { name: Some(identity.name), uuid: identity.uuid, said: Said::Definition(words), half_reverted, ..defaults };
        let offline = Box::new(Offline::open(options)?);
        Ok(Self { link, offline, skipped, agent: xml.agent, user, began: false, hide_checkpoints, halted: false })
    }

    /// Says that keepmark has shut its guest down, and is to start it again.
    pub(crate) fn halted(self) -> Self {
        Self { halted: true, ..self }
    }

    // Closes the images; libvirt hears of checkpoints that were begun.
    fn shut(self) -> seam::Result<Link> {
        let Self { mut link, mut offline, began, hide_checkpoints, .. } = self;
        let facts = if began && !hide_checkpoints { offline.facts().ok() } else { None };
        offline.close()?;
        if let Some(facts) = facts {
            drop(checkpoints::note(&mut link, &facts.disks));
        }
        Ok(link)
    }

    fn heal(&mut self) -> seam::Result<Vec<String>> {
        let facts = self.offline.facts()?;
        let repairs = checkpoints::repairs(&facts.disks, &checkpoints::known(&mut self.link)?);
        let said = checkpoints::forget_gone(&mut self.link, &repairs)?;
        if self.hide_checkpoints {
            checkpoints::hide(&mut self.link)?;
        } else {
            // libvirt cannot look at the bitmaps of a domain that does not run; what it does not take now is adopted when it does.
            drop(checkpoints::note(&mut self.link, &facts.disks));
        }
        Ok(said)
    }

    fn remove(&mut self, names: &[CheckpointName]) -> seam::Result<()> {
        self.offline.remove_checkpoints(names)?;
        names.iter().try_for_each(|name| Ok(checkpoints::forget(&mut self.link, name)?))
    }

    /// Removes checkpoints and closes the images.
    pub(crate) fn remove_and_close(mut self, names: &[CheckpointName]) -> seam::Result<()> {
        let removed = self.remove(names);
        self.offline.close().and(removed)
    }

    // Somebody may have started it since it was opened; its images are then held by its QEMU.
    fn check(&mut self) -> Result<()> {
        if self.link.call(Domain::state)? == DomainState::Off {
            return Ok(());
        }
        Err(Error::Busy { domain: self.link.name().to_owned(), what: "QEMU: it was started meanwhile" })
    }
}

// Where a disk's image is, or why it is not backed up. An image that should be there and is not is a failure.
fn image(link: &Link, disk: &DiskXml) -> Result<std::result::Result<PathBuf, String>> {
    if let Some(why) = disk.left_out() {
        return Ok(Err(why));
    }
    Ok(match &disk.source {
        Source::File(path) | Source::Block(path) => Ok(path.into()),
        Source::Volume { pool, volume } => {
            let path = PathBuf::from(link.volume_path(pool, volume)?);
            if path.is_absolute() { Ok(path) } else { Err(format!("it is volume {volume} of pool {pool}, which is not on this host")) }
        }
        Source::Network(protocol) => Err(format!("it is on the network ({protocol}): only a running domain reads it")),
        Source::Empty | Source::Other(_) => Err("it has no image".into()),
    })
}

impl Hypervisor for ShutOff {
    fn facts(&mut self) -> seam::Result<VmFacts> {
        let mut facts = self.offline.facts()?;
        facts.hypervisor = format!("libvirt {}, {}", self.link.version()?, facts.hypervisor);
        facts.skipped.extend(self.skipped.iter().cloned());
        facts.agent = self.agent;
        Ok(facts)
    }

    fn clean_up(&mut self) -> seam::Result<Vec<String>> {
        let mut said = self.offline.clean_up()?;
        said.extend(self.heal()?);
        Ok(said)
    }

    fn begin(&mut self, request: &PointRequest) -> seam::Result<Box<dyn FrozenPoint + '_>> {
        self.check()?;
        let is_saved = self.link.call(Domain::has_managed_save)?;
        self.began |= request.checkpoint.is_some();
        let point = self.offline.begin(request)?;
        if !is_saved {
            return Ok(point);
        }
        let mut moment = point.moment().clone();
        moment.consistency = Consistency::Crash;
        moment.findings.push("the domain has a managed save: its disks are as the guest left them in the middle of its work".into());
        Ok(Box::new(SavedPoint { point, moment }))
    }

    fn remove_checkpoints(&mut self, names: &[CheckpointName]) -> seam::Result<()> {
        self.remove(names)
    }

    fn definition(&mut self) -> seam::Result<Definition> {
        let mut definition = saved::definition(&mut self.link, false, &self.user)?;
        definition.files.extend(self.offline.definition()?.files);
        Ok(definition)
    }

    fn rest(&mut self) -> seam::Result<Rest> {
        self.check()?;
        if self.link.call(Domain::has_managed_save)? {
            return Ok(Rest::Held("the domain has a managed save, from which its next start would go on".into()));
        }
        Ok(Rest::Resting { by_us: self.halted })
    }

    fn unfinished(&mut self) -> seam::Result<Vec<Unfinished>> {
        self.offline.unfinished()
    }

    fn power_down(self: Box<Self>, _: Duration, _: &dyn Fn() -> bool) -> seam::Result<Box<dyn Hypervisor>> {
        Ok(self)
    }

    fn begin_writing(&mut self, request: &WriteRequest) -> seam::Result<Box<dyn Writing + '_>> {
        self.check()?;
        self.offline.begin_writing(request)
    }

    fn start(self: Box<Self>) -> seam::Result<()> {
        let is_to_start = self.halted;
        let mut link = self.shut()?;
        if is_to_start { Ok(halting::start(&mut link)?) } else { Ok(()) }
    }

    fn close(self: Box<Self>) -> seam::Result<()> {
        self.shut().map(drop)
    }
}

// A point of images whose guest is not shut down, but stored in the middle of its work.
struct SavedPoint<'a> {
    point: Box<dyn FrozenPoint + 'a>,
    moment: Moment,
}

impl FrozenPoint for SavedPoint<'_> {
    fn moment(&self) -> &Moment {
        &self.moment
    }

    fn disk(&mut self, name: &DiskName) -> seam::Result<Box<dyn FrozenDisk>> {
        self.point.disk(name)
    }

    fn check(&mut self) -> seam::Result<()> {
        self.point.check()
    }

    fn release(self: Box<Self>) -> seam::Result<()> {
        self.point.release()
    }
}
