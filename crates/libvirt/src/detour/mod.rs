//! Backups of a domain that libvirt holds for a dead job: libvirt begins no job there any more, so the moment is fixed through the monitor.
//!
//! A libvirtd that is killed while it prepares a backup remembers that it had a job, and not which. It restores that job after its
//! restart, and nothing ends it but the end of QEMU and another restart (docs/decisions/0004). Until then it refuses jobs and takes
//! everything else: checkpoints, freezes, commands for the monitor. So only what the job would have done is done in another way, the one
//! of a QEMU without libvirt, by the jobs that libvirt would have started too.

mod relay;

use std::collections::BTreeMap;
use std::time::Duration;

use keepmark_model::DiskName;
use keepmark_model::seam::{self, FrozenDisk, FrozenPoint, Moment, PointDisk, PointRequest};
use keepmark_qemu::qmp::Peer;
use keepmark_qemu::{Live, LiveOptions};

use crate::error::{Error, Result};
use crate::hindrances::user_of;
use crate::link::Link;
use crate::xml::DomainXml;
use crate::{Options, watchdog};

pub(crate) use relay::start as relay;

/// The domain's QEMU, reached by its monitor through libvirt. The caller has locked its images.
pub(crate) fn open(link: &Link, xml: &DomainXml, options: &Options) -> Result<Live> {
    let stream = relay(link.again()?)?;
    let (uid, gid) = user_of(xml);
    let called = watchdog::subject_of_monitor(link.uri(), link.uuid());
    let live = LiveOptions {
        name: Some(link.name().to_owned()),
        uuid: Some(link.uuid().to_owned()),
        watchdog: options.watchdog.clone(),
        // As libvirt does it: part of the transaction, without a pause, and its devices keep their nodes.
        force_jobs: true,
        // Longer than libvirt waits for the domain, and the relay for libvirtd: nobody may do later what was given up here.
        command_timeout: Duration::from_secs(60),
        ..LiveOptions::new(called, &options.scratch_dir, &options.run_dir)
    };
    Ok(Live::over(stream, Peer { pid: 0, uid, gid }, live)?)
}

/// What is said of a backup that was made so.
pub(crate) fn note(domain: &str) -> String {
    let held = Error::Wedged { domain: domain.to_owned() };
    format!("{held}; the moment is fixed through QEMU's monitor instead, and `keepmark doctor {domain}` tells what would end that job")
}

/// The request with the disks as a QEMU without libvirt calls them, and without its checkpoint, which libvirt makes.
pub(crate) fn translated(request: &PointRequest, called: &BTreeMap<DiskName, DiskName>) -> PointRequest {
    let name = |name: &DiskName| called.get(name).unwrap_or(name).clone();
    let disks = request.disks.iter().map(|disk| PointDisk { name: name(&disk.name), since: disk.since.clone() }).collect();
    PointRequest { disks, checkpoint: None, run: request.run.clone(), freeze: seam::Freeze::Never, push: keepmark_model::pushing::Push::No }
}

/// A moment that was fixed so.
pub(crate) struct Around<'a> {
    pub(crate) inner: Box<keepmark_qemu::Point<'a>>,
    pub(crate) moment: Moment,
    /// How QEMU calls the disks.
    pub(crate) called: BTreeMap<DiskName, DiskName>,
}

impl FrozenPoint for Around<'_> {
    fn moment(&self) -> &Moment {
        &self.moment
    }

    fn disk(&mut self, name: &DiskName) -> seam::Result<Box<dyn FrozenDisk>> {
        self.inner.disk(self.called.get(name).unwrap_or(name))
    }

    fn release(self: Box<Self>) -> seam::Result<()> {
        self.inner.release()
    }
}

#[cfg(test)]
mod tests {
    use keepmark_model::CheckpointName;
    use keepmark_model::seam::Freeze;

    use super::*;

    #[test]
    fn disks_are_asked_for_as_qemu_calls_them_and_the_checkpoint_is_libvirts() {
        let name = |text: &str| DiskName::new(text).unwrap();
        let checkpoint = CheckpointName::parse("km1-20261122T180000Z-3f9a1c0d7be2").ok();
        let disk = |disk: &str| PointDisk { name: name(disk), since: checkpoint.clone() };
        let request = PointRequest {
            disks: vec![disk("vda"), disk("vdb")],
            checkpoint: checkpoint.clone(),
            run: "r".into(),
            freeze: Freeze::IfPossible { deadline: std::time::Duration::from_secs(1) },
            push: keepmark_model::pushing::Push::No,
        };
        let asked = translated(&request, &BTreeMap::from([(name("vda"), name("virtio-disk0"))]));
        assert_eq!(asked.disks, [disk("virtio-disk0"), disk("vdb")]);
        assert_eq!((asked.checkpoint, asked.freeze), (None, Freeze::Never));
    }
}
