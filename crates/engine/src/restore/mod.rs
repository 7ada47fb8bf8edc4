//! Restore: disks of a backup to new files, to one file, or onto a block device; verified while it is written.
//!
//! A file gets its name only when all of it is written and synced, so an interrupted restore never leaves something that looks
//! whole, and `--force` never destroys the old file before the new one is complete.

mod device;
mod file;
mod image;
mod target;
mod used;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use keepmark_model::DiskName;
use keepmark_model::manifest::{Manifest, ManifestDisk};
use keepmark_model::names::child;
use keepmark_model::opening::ImageFormat;
use keepmark_model::seam::{BackupReader, Monitor, Piece, Result};
use serde::Serialize;

use crate::error::Error;
use target::Target;

/// Format of a restored image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes as the guest saw them, sparse.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

impl Format {
    /// The word used as file name extension and for qemu-img.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What is to be restored, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoreJob {
    /// A folder (made if it is not there), or with one disk a block device or an existing file.
    pub to: PathBuf,
    /// Format of new images; without, what the target's name says, else as `as_it_was` says.
    pub format: Option<Format>,
    /// Whether an image that was qcow2 becomes qcow2 again, rather than raw as every other.
    pub as_it_was: bool,
    /// Which disks; empty means all.
    pub disks: Vec<DiskName>,
    /// Whether what is there may be overwritten.
    pub force: bool,
    /// Folder for sockets.
    pub run_dir: PathBuf,
}

impl RestoreJob {
    fn format_of(&self, disk: &ManifestDisk) -> Format {
        let was_qcow2 = self.as_it_was && disk.format == Format::Qcow2.word();
        self.format.unwrap_or(if was_qcow2 { Format::Qcow2 } else { Format::Raw })
    }

    /// The format of a target that has a name of its own; why there is none, in words.
    fn format_by_name(&self, disk: &ManifestDisk) -> std::result::Result<Format, String> {
        let Some(named) = ImageFormat::of_name(&self.to).filter(|_| !device::is_block_device(&self.to)) else {
            return Ok(self.format_of(disk));
        };
        let wanted = self.format.map_or(named.word(), Format::word);
        match [Format::Raw, Format::Qcow2].into_iter().find(|format| format.word() == named.word()) {
            None => Err(format!("it is called {named}, and disks are restored as raw or qcow2 only")),
            Some(format) if format.word() == wanted => Ok(format),
            Some(_) => Err(format!("it is called {named}, and --format says {wanted}")),
        }
    }

    fn place_of(&self, disk: &ManifestDisk) -> Result<PathBuf> {
        let name = format!("{}.{}", disk.name, self.format_of(disk).word());
        Ok(child(&self.to, &name).map_err(|error| Error::Target { path: self.to.clone(), why: error.to_string() })?)
    }

    /// Where all disks of a backup will be in the folder, and in which format.
    ///
    /// # Errors
    /// When a disk's name cannot be that of a file in the folder.
    pub fn images(&self, manifest: &Manifest) -> Result<Vec<(DiskName, PathBuf, Format)>> {
        manifest.disks.iter().map(|disk| Ok((disk.name.clone(), self.place_of(disk)?, self.format_of(disk)))).collect()
    }
}

/// One restored disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestoredDisk {
    /// Which disk.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
    /// Its size, bytes.
    pub size: u64,
    /// Bytes that were not zero.
    pub data_bytes: u64,
}

/// Restores disks of a backup.
///
/// # Errors
/// When a target exists and force is not given, a chunk is damaged, or the target cannot be written. Disks that were
/// complete before stay.
pub fn restore(backup: &dyn BackupReader, job: &RestoreJob, monitor: &dyn Monitor) -> Result<Vec<RestoredDisk>> {
    let disks = wanted(backup.manifest(), &job.disks)?;
    let places = places(&disks, job)?;
    disks.iter().zip(places).map(|(disk, (place, format))| restore_disk(backup, disk, (&place, format), job, monitor)).collect()
}

fn wanted<'a>(manifest: &'a Manifest, names: &[DiskName]) -> Result<Vec<&'a ManifestDisk>> {
    let known = || manifest.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
    let find = |name: &DiskName| manifest.disk(name).ok_or_else(|| Error::UnknownDisk { name: name.to_string(), known: known() }.into());
    if names.is_empty() { Ok(manifest.disks.iter().collect()) } else { names.iter().map(find).collect() }
}

/// Where each disk goes; refuses before anything is written.
fn places(disks: &[&ManifestDisk], job: &RestoreJob) -> Result<Vec<(PathBuf, Format)>> {
    let places = free_places(disks, job)?;
    for (place, _) in &places {
        check_kind(place)?;
        drop(used::check(place)?);
    }
    Ok(places)
}

// A device that is replaced by a file, or a pipe, or a file that is found through somebody's link, is no target.
fn check_kind(place: &Path) -> Result<()> {
    let refuse = |why: &str| Err(Error::Target { path: place.to_owned(), why: why.to_owned() }.into());
    let Ok(named) = place.symlink_metadata() else { return Ok(()) };
    match named.file_type() {
        kind if kind.is_file() || device::is_block_device(place) => Ok(()),
        kind if kind.is_symlink() => refuse("it is a link; name the file that it leads to"),
        kind if kind.is_dir() => refuse("a folder of that name is there"),
        _ => refuse("it is neither a file nor a block device"),
    }
}

fn free_places(disks: &[&ManifestDisk], job: &RestoreJob) -> Result<Vec<(PathBuf, Format)>> {
    if job.to.exists() && !job.to.is_dir() {
        return single_place(disks, job);
    }
    std::fs::create_dir_all(&job.to).map_err(|source| Error::Io { doing: "create", path: job.to.clone(), source })?;
    let places = disks.iter().map(|disk| Ok((job.place_of(disk)?, job.format_of(disk)))).collect::<Result<Vec<(PathBuf, Format)>>>()?;
    match places.iter().find(|(place, _)| place.symlink_metadata().is_ok()) {
        Some((taken, _)) if !job.force => Err(Error::TargetExists { path: taken.clone() }.into()),
        _ => Ok(places),
    }
}

fn single_place(disks: &[&ManifestDisk], job: &RestoreJob) -> Result<Vec<(PathBuf, Format)>> {
    let refused = |why: &str| Error::Target { path: job.to.clone(), why: why.to_owned() };
    let [disk] = disks else {
        return Err(refused("it is no folder, and the backup has several disks; choose one with --disk").into());
    };
    if !job.force {
        return Err(Error::TargetExists { path: job.to.clone() }.into());
    }
    if device::is_block_device(&job.to) && job.format.is_some_and(|format| format != Format::Raw) {
        return Err(refused("a block device takes the raw format only").into());
    }
    let format = job.format_by_name(disk).map_err(|why| refused(&why))?;
    Ok(vec![(job.to.clone(), format)])
}

fn restore_disk(
    backup: &dyn BackupReader,
    disk: &ManifestDisk,
    (place, format): (&Path, Format),
    job: &RestoreJob,
    monitor: &dyn Monitor,
) -> Result<RestoredDisk> {
    let target = open_target(place, format, disk, job)?;
    let done = AtomicU64::new(0);
    let data = AtomicU64::new(0);
    monitor.progress(disk.name.as_str(), 0, disk.size.0);
    backup.read_disk(&disk.name, None, &|piece| {
        let length = write_piece(target.as_ref(), piece, &data)?;
        let so_far = done.fetch_add(length, Ordering::Relaxed) + length;
        monitor.progress(disk.name.as_str(), so_far, disk.size.0);
        if monitor.interrupted() { Err(Error::Interrupted.into()) } else { Ok(()) }
    })?;
    target.finish(&|| monitor.interrupted())?;
    monitor.finished(disk.name.as_str());
    Ok(RestoredDisk { name: disk.name.to_string(), path: place.to_owned(), size: disk.size.0, data_bytes: data.into_inner() })
}

fn write_piece(target: &dyn Target, piece: Piece<'_>, data: &AtomicU64) -> Result<u64> {
    match piece {
        Piece::Data { offset, bytes } => {
            target.write(offset, bytes)?;
            let length = bytes.len() as u64;
            data.fetch_add(length, Ordering::Relaxed);
            Ok(length)
        }
        Piece::Zero(extent) => target.zero(extent).map(|()| extent.len()),
    }
}

fn open_target(place: &Path, format: Format, disk: &ManifestDisk, job: &RestoreJob) -> Result<Box<dyn Target>> {
    if device::is_block_device(place) {
        return Ok(Box::new(device::Device::open(place, disk.size)?));
    }
    match format {
        Format::Raw => Ok(Box::new(file::RawFile::create(place, disk.size, job.force)?)),
        Format::Qcow2 => Ok(Box::new(image::Qcow2Image::create(place, disk.size, &job.run_dir, job.force)?)),
    }
}
