//! Images of a store while QEMU's user has them; they come back whatever happens, to be read by nobody else.
//!
//! libvirt itself gives an image to QEMU's user and takes it back (`dynamic_ownership`), perhaps for another owner than it had. Nothing that
//! QEMU's user may have put there is followed: images are named in a folder that stays ours.

use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::error::{Result, file};

const PRIVATE_FOLDER: u32 = 0o700;
// QEMU has to get through, and sees nothing else of it.
const PASSABLE_FOLDER: u32 = 0o711;
const PRIVATE: u32 = 0o600;

/// Images in a folder of ours that are taken back when this is dropped.
#[derive(Debug)]
pub(crate) struct Handed {
    folder: PathBuf,
    images: Vec<PathBuf>,
}

impl Handed {
    /// Lets everybody through to the images, so that libvirt can give them to QEMU's user.
    pub(crate) fn open(folder: &Path, images: Vec<PathBuf>) -> Result<Self> {
        set_mode(folder, PASSABLE_FOLDER).map_err(file("set the mode of", folder))?;
        Ok(Self { folder: folder.to_owned(), images })
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        // What cannot be taken back cannot be read either, which is said then.
        self.images.iter().for_each(|image| drop(take_back(image)));
        drop(set_mode(&self.folder, PRIVATE_FOLDER));
    }
}

fn take_back(image: &Path) -> std::io::Result<()> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let image: File = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(image)?;
    if rustix::process::geteuid().is_root() {
        fchown(&image, Some(0), Some(rustix::process::getegid().as_raw()))?;
    }
    image.set_permissions(Permissions::from_mode(PRIVATE))
}

fn set_mode(folder: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(folder, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_open_is_private_again_and_nothing_is_followed() {
        let top = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let [image, link, other] = ["a", "b", "other"].map(|name| top.path().join(name));
        [&image, &other].iter().for_each(|path| std::fs::write(path, "x").unwrap());
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let handed = Handed::open(top.path(), vec![image.clone(), link]).unwrap();
        [&image, &other].iter().for_each(|path| set_mode(path, 0o644).unwrap());
        assert_eq!(mode(top.path()), 0o711);
        drop(handed);
        assert_eq!((mode(top.path()), mode(&image), mode(&other)), (0o700, 0o600, 0o644));
    }
}
