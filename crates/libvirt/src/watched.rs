//! A disk of a pull backup, read with an eye on whether the moment still holds.
//!
//! libvirt's job copies a block before the guest overwrites it. Were that job to end early, the export would show later content for
//! a moment before libvirt closes it; so a read counts only if the job was still whole after it.

use std::path::{Path, PathBuf};

use keepmark_model::seam::{self, FrozenDisk, Recycler};
use keepmark_model::{Extent, Extents, Size};

use crate::error::{Error, Result};
use crate::link::Link;
use crate::monitor;
use crate::point::running;

/// The disk, and what is watched.
pub(crate) struct Watched {
    inner: Box<dyn FrozenDisk>,
    link: Link,
    socket: PathBuf,
    jobs: usize,
}

impl Watched {
    /// `jobs` is how many disks the backup has.
    pub(crate) fn new(inner: Box<dyn FrozenDisk>, link: Link, socket: PathBuf, jobs: usize) -> Self {
        Self { inner, link, socket, jobs }
    }

    fn check_moment(&mut self) -> Result<()> {
        let ours = running(&mut self.link, &|socket: &str| Path::new(socket) == self.socket)?;
        let holds = ours.is_some() && monitor::healthy_backups(&mut self.link)? >= self.jobs;
        if holds { Ok(()) } else { Err(Error::MomentOver { domain: self.link.name().to_owned() }) }
    }
}

impl FrozenDisk for Watched {
    fn size(&self) -> Size {
        self.inner.size()
    }

    // Bitmaps are frozen copies; they do not change with what the guest writes.
    fn dirty(&mut self) -> seam::Result<Extents> {
        self.inner.dirty()
    }

    fn data(&mut self, within: &Extents) -> seam::Result<Extents> {
        let data = self.inner.data(within)?;
        self.check_moment()?;
        Ok(data)
    }

    fn read(
        &mut self,
        ranges: &mut dyn Iterator<Item = Extent>,
        sink: &mut dyn FnMut(Extent, Vec<u8>) -> seam::Result<()>,
    ) -> seam::Result<()> {
        self.inner.read(ranges, sink)?;
        Ok(self.check_moment()?)
    }

    fn recycler(&self) -> Recycler {
        self.inner.recycler()
    }
}
