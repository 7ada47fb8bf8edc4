//! An image that the hypervisor writes: its place is prepared here, and taken over when it is closed.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use keepmark_model::images::CLUSTER_BYTES;
use keepmark_model::pushing::PushTarget;
use keepmark_model::seam::DiskStored;
use keepmark_model::{BackupId, DiskName, Size};

use crate::error::{Error, Result};
use crate::images::shelf::{Shelf, sibling};
use crate::images::write::disk::{image_size, listed_chain, stored_bytes};
use crate::images::write::write_back::WriteBack;
use crate::images::{ImageOptions, place};

/// Prepares the place of a disk's image, which the disk writes from now on as it grows; `folder` is where the new backup grows.
pub fn target(
    options: &ImageOptions,
    shelf: &Shelf,
    folder: &Path,
    disk: &DiskName,
    size: Size,
    base: Option<&BackupId>,
) -> Result<(PushTarget, WriteBack)> {
    let backing = base.map(|id| listed_chain(shelf, id, disk).map(|_| sibling(id, disk))).transpose()?;
    // QEMU opens it by its name; the store may have been named from somewhere else than where QEMU works.
    let folder = std::path::absolute(folder).map_err(|error| Error::io("find", folder, error))?;
    let image = place::image_path(&folder, disk)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&image).map_err(|error| Error::io("create", &image, error))?;
    let write_back = WriteBack::start(image.clone());
    let target = PushTarget {
        disk: disk.clone(),
        image,
        size: image_size(size),
        backing,
        compress: options.compress && size.0.is_multiple_of(CLUSTER_BYTES),
    };
    Ok((target, write_back))
}

/// Takes over an image that the hypervisor has closed.
pub fn take_over(target: &PushTarget, write_back: WriteBack) -> Result<DiskStored> {
    write_back.finish()?;
    Ok(DiskStored { stored_bytes: stored_bytes(&target.image)?, ..DiskStored::default() })
}
