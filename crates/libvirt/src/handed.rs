//! Images of a store while QEMU's user has them; they come back whatever happens, to be read by nobody else.
//!
//! libvirt itself gives an image to QEMU's user and takes it back (`dynamic_ownership`), perhaps for another owner than it had. Nothing that
//! QEMU's user may have put there is followed: images are named in a folder that stays ours.

use std::path::{Path, PathBuf};

use keepmark_qemu::folder::{HeldFolder, take_back};

use crate::error::Result;

const PRIVATE_FOLDER: u32 = 0o700;
// QEMU has to get through, and sees nothing else of it.
const PASSABLE_FOLDER: u32 = 0o711;

/// Images in a folder of ours that are taken back when this is dropped.
#[derive(Debug)]
pub(crate) struct Handed {
    folder: HeldFolder,
    images: Vec<PathBuf>,
}

impl Handed {
    /// Lets everybody through to the images, so that libvirt can give them to QEMU's user.
    pub(crate) fn open(folder: &Path, images: Vec<PathBuf>) -> Result<Self> {
        let folder = HeldFolder::open(folder)?;
        folder.set_mode(PASSABLE_FOLDER)?;
        Ok(Self { folder, images })
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        // What cannot be taken back cannot be read either, which is said then.
        self.images.iter().for_each(|image| drop(take_back(image)));
        drop(self.folder.set_mode(PRIVATE_FOLDER));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_open_is_private_again_and_nothing_is_followed() {
        let top = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let [image, link, other] = ["a", "b", "other"].map(|name| top.path().join(name));
        [&image, &other].iter().for_each(|path| std::fs::write(path, "x").unwrap());
        std::os::unix::fs::symlink(&other, &link).unwrap();
        let handed = Handed::open(top.path(), vec![image.clone(), link]).unwrap();
        let readable = std::fs::Permissions::from_mode(0o644);
        [&image, &other].iter().for_each(|path| std::fs::set_permissions(path, readable.clone()).unwrap());
        assert_eq!(mode(top.path()), 0o711);
        drop(handed);
        assert_eq!((mode(top.path()), mode(&image), mode(&other)), (0o700, 0o600, 0o644));
    }
}
