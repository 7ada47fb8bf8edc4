//! Scratch images, where the old content of blocks goes that the guest overwrites while a backup reads them.
//!
//! Their files are unlinked as soon as QEMU has them open: whatever dies, nothing stays on the file system. QEMU never opens
//! them again by name, since they are opened writable from the start. Nothing of them has to survive anything, so QEMU never flushes them
//! (`no-flush`): when it closes one the guest would wait for the disk to write what nobody will read.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::target::Target;
use crate::error::{Error, Result, file};
use crate::program::{CREATE_WAIT, check, end};
use crate::qmp::Peer;
use crate::temporary::Temporary;
use crate::workspace::give;

/// Makes an empty image per disk, all at once, and gives them to QEMU's user.
///
/// # Errors
/// When an image cannot be made.
pub fn make(targets: &[Target], names: &Temporary, folder: &Path, peer: &Peer) -> Result<()> {
    let running: Vec<_> = targets.iter().map(|target| start(target, &path(target, names, folder))).collect();
    let outputs: Vec<_> = running.into_iter().map(|child| end("qemu-img create", child?, CREATE_WAIT)).collect();
    outputs.into_iter().try_for_each(|output| check("qemu-img create", Ok(output?)).map(drop))?;
    targets.iter().try_for_each(|target| give(&path(target, names, folder), peer))
}

fn start(target: &Target, path: &Path) -> Result<Child> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(target.size.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(|source| Error::Spawn { program: "qemu-img".into(), source })
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
pub fn unlink(target: &Target, names: &Temporary, folder: &Path) -> Result<()> {
    let path = path(target, names, folder);
    std::fs::remove_file(&path).map_err(file("remove", path))
}
