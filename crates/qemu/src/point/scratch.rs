//! Scratch images, where the old content of blocks goes that the guest overwrites while a backup reads them.
//!
//! Their files are unlinked as soon as QEMU has them open: whatever dies, nothing stays on the file system. QEMU never opens
//! them again by name, since they are opened writable from the start. Nothing of them has to survive anything, so QEMU never flushes them
//! (`no-flush`): when it closes one the guest would wait for the disk to write what nobody will read.

use std::fs::File;
use std::path::{Path, PathBuf};

use keepmark_model::opening::ImageFormat;

use super::target::Target;
use crate::error::Result;
use crate::folder::{self, HeldFolder};
use crate::image;
use crate::program::{CREATE_WAIT, check, end};
use crate::qmp::Peer;
use crate::temporary::Temporary;

/// Makes an empty image per disk, all at once, and gives them to QEMU's user. The folder stays ours.
///
/// # Errors
/// When an image cannot be made.
pub fn make(targets: &[Target], names: &Temporary, folder: &HeldFolder, peer: &Peer) -> Result<()> {
    let images = targets.iter().map(|target| (names.node("s", target.number), target.size)).collect::<Vec<_>>();
    make_images(&images, folder, peer)
}

/// As [`make`], for images of these names and sizes.
///
/// # Errors
/// As [`make`].
pub fn make_images(images: &[(String, u64)], folder: &HeldFolder, peer: &Peer) -> Result<()> {
    let files = images.iter().map(|(name, _)| folder.make_file(name, 0o600)).collect::<Result<Vec<File>>>()?;
    let running: Vec<_> = files.iter().zip(images).map(|(file, (_, size))| image::start_create(file, ImageFormat::Qcow2, *size)).collect();
    let outputs: Vec<_> = running.into_iter().map(|child| end("qemu-img create", child?, CREATE_WAIT)).collect();
    outputs.into_iter().try_for_each(|output| check("qemu-img create", Ok(output?)).map(drop))?;
    files.iter().zip(images).try_for_each(|(file, (name, _))| folder::give(file, peer, &folder.path().join(name)))
}

/// Where a disk's scratch image is until QEMU has it open.
#[must_use]
pub fn path(target: &Target, names: &Temporary, folder: &Path) -> PathBuf {
    folder.join(names.node("s", target.number))
}

/// Takes the name away from an image that QEMU has open.
///
/// # Errors
/// When the file cannot be removed.
pub fn unlink(target: &Target, names: &Temporary, folder: &HeldFolder) -> Result<()> {
    folder.remove(&names.node("s", target.number))
}
