//! Restore: disks of a backup to new files, to one file, or onto a block device; verified while it is written.
//!
//! A file gets its name only when all of it is written and synced, so an interrupted restore never leaves something that looks
//! whole, and `--force` never destroys the old file before the new one is complete.

mod device;
mod file;
mod image;
mod target;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use keepmark_model::DiskName;
use keepmark_model::manifest::{Manifest, ManifestDisk};
use keepmark_model::names::child;
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
    /// Format of new images; without, qcow2 where the image that was backed up was qcow2, else raw.
    pub format: Option<Format>,
    /// Which disks; empty means all.
    pub disks: Vec<DiskName>,
    /// Whether what is there may be overwritten.
    pub force: bool,
    /// Folder for sockets.
    pub run_dir: PathBuf,
}

impl RestoreJob {
    fn format_of(&self, disk: &ManifestDisk) -> Format {
        let as_it_was = if disk.format == Format::Qcow2.word() { Format::Qcow2 } else { Format::Raw };
        self.format.unwrap_or(as_it_was)
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
    disks.iter().zip(places).map(|(disk, place)| restore_disk(backup, disk, &place, job, monitor)).collect()
}

fn wanted<'a>(manifest: &'a Manifest, names: &[DiskName]) -> Result<Vec<&'a ManifestDisk>> {
    let known = || manifest.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
    let find = |name: &DiskName| manifest.disk(name).ok_or_else(|| Error::UnknownDisk { name: name.to_string(), known: known() }.into());
    if names.is_empty() { Ok(manifest.disks.iter().collect()) } else { names.iter().map(find).collect() }
}

/// Where each disk goes; refuses before anything is written.
fn places(disks: &[&ManifestDisk], job: &RestoreJob) -> Result<Vec<PathBuf>> {
    if job.to.exists() && !job.to.is_dir() {
        return single_place(disks, job);
    }
    std::fs::create_dir_all(&job.to).map_err(|source| Error::Io { doing: "create", path: job.to.clone(), source })?;
    let places = disks.iter().map(|disk| job.place_of(disk)).collect::<Result<Vec<PathBuf>>>()?;
    match places.iter().find(|place| place.symlink_metadata().is_ok()) {
        Some(taken) if !job.force => Err(Error::TargetExists { path: taken.clone() }.into()),
        _ => Ok(places),
    }
}

fn single_place(disks: &[&ManifestDisk], job: &RestoreJob) -> Result<Vec<PathBuf>> {
    let refuse = |why: &str| Err(Error::Target { path: job.to.clone(), why: why.to_owned() }.into());
    if disks.len() != 1 {
        return refuse("it is no folder, and the backup has several disks; choose one with --disk");
    }
    if !job.force {
        return Err(Error::TargetExists { path: job.to.clone() }.into());
    }
    if device::is_block_device(&job.to) && job.format.is_some_and(|format| format != Format::Raw) {
        return refuse("a block device takes the raw format only");
    }
    Ok(vec![job.to.clone()])
}

fn restore_disk(
    backup: &dyn BackupReader,
    disk: &ManifestDisk,
    place: &Path,
    job: &RestoreJob,
    monitor: &dyn Monitor,
) -> Result<RestoredDisk> {
    let target = open_target(place, disk, job)?;
    let done = AtomicU64::new(0);
    let data = AtomicU64::new(0);
    monitor.progress(disk.name.as_str(), 0, disk.size.0);
    backup.read_disk(&disk.name, None, &|piece| {
        let length = write_piece(target.as_ref(), piece, &data)?;
        let so_far = done.fetch_add(length, Ordering::Relaxed) + length;
        monitor.progress(disk.name.as_str(), so_far, disk.size.0);
        if monitor.interrupted() { Err(Error::Interrupted.into()) } else { Ok(()) }
    })?;
    target.finish()?;
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

fn open_target(place: &Path, disk: &ManifestDisk, job: &RestoreJob) -> Result<Box<dyn Target>> {
    if device::is_block_device(place) {
        return Ok(Box::new(device::Device::open(place, disk.size)?));
    }
    match job.format_of(disk) {
        Format::Raw => Ok(Box::new(file::RawFile::create(place, disk.size)?)),
        Format::Qcow2 => Ok(Box::new(image::Qcow2Image::create(place, disk.size, &job.run_dir)?)),
    }
}
