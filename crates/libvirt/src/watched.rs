//! A disk of a pull backup, read with an eye on what the guest needs and on whether the moment still holds.
//!
//! libvirt's job copies a block before the guest overwrites it. Were that job to end early, the export would show later content for
//! a moment before libvirt closes it; so a read counts only if the job was still whole after it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepmark_model::seam::{self, FrozenDisk, Recycler};
use keepmark_model::{Extent, Extents, Size};

use crate::error::{Error, Result, file};
use crate::link::Link;
use crate::monitor;
use crate::point::running;

const SPACE_CHECK: Duration = Duration::from_millis(500);
const SPACE_BYTES_MIN: u64 = 256 << 20;

/// The disk, and what is watched.
pub(crate) struct Watched {
    inner: Box<dyn FrozenDisk>,
    link: Link,
    socket: PathBuf,
    scratch: PathBuf,
    jobs: usize,
    space_checked: Instant,
}

impl Watched {
    /// `jobs` is how many disks the backup has.
    pub(crate) fn new(inner: Box<dyn FrozenDisk>, link: Link, socket: PathBuf, scratch: PathBuf, jobs: usize) -> Self {
        Self { inner, link, socket, scratch, jobs, space_checked: Instant::now() }
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
        let (scratch, checked) = (&self.scratch, &mut self.space_checked);
        self.inner.read(ranges, &mut |extent, bytes| {
            watch_space(scratch, checked)?;
            sink(extent, bytes)
        })?;
        Ok(self.check_moment()?)
    }

    fn recycler(&self) -> Recycler {
        self.inner.recycler()
    }
}

fn watch_space(folder: &Path, checked: &mut Instant) -> Result<()> {
    if checked.elapsed() < SPACE_CHECK {
        return Ok(());
    }
    *checked = Instant::now();
    let space = rustix::fs::statvfs(folder).map_err(|error| file("look at", folder)(error.into()))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    if free < SPACE_BYTES_MIN { Err(Error::Space { folder: folder.to_owned(), free }) } else { Ok(()) }
}
