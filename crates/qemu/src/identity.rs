//! Which file an image is: what stays when it is moved within its file system, and what no copy of it carries along.
//!
//! A copy carries the bitmaps of its origin, and a converted one may carry bitmaps that are true of another content. Inode and birth time
//! are the file's own. The device is left out: its number changes when the host starts anew, and a file system that was copied as
//! a whole has images that are true with their bitmaps. Block devices are known by what the device mapper calls them.

use std::collections::HashSet;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use keepmark_model::facts::ImageId;

use crate::disks::Disk;

/// The files that a process has open, as far as it can be known.
pub struct OpenFiles(Option<HashSet<(u64, u64)>>);

impl OpenFiles {
    /// Not known: then what lies at an image's place is taken for what is open.
    pub const UNKNOWN: Self = Self(None);

    /// Of a process.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Self::UNKNOWN };
        let open = descriptors.flatten().filter_map(|descriptor| std::fs::metadata(descriptor.path()).ok());
        let open: HashSet<(u64, u64)> = open.map(|file| (file.dev(), file.ino())).collect();
        Self((!open.is_empty()).then_some(open))
    }

    fn has(&self, file: &Metadata) -> bool {
        self.0.as_ref().is_some_and(|open| open.contains(&(file.dev(), file.ino())))
    }

    fn may_have(&self, file: &Metadata) -> bool {
        self.0.is_none() || self.has(file)
    }
}

/// Says of each image of these disks which file it is. A process that has none of them open is not QEMU but somebody who passes on
/// what it says.
pub fn identify(disks: &mut [Disk], open: &OpenFiles) {
    let images = disks.iter().flat_map(|disk| &disk.facts.layers);
    let is_qemu = images.filter_map(|layer| std::fs::metadata(&layer.image).ok()).any(|file| open.has(&file));
    let open = if is_qemu { open } else { &OpenFiles::UNKNOWN };
    let layers = disks.iter_mut().flat_map(|disk| &mut disk.facts.layers);
    layers.for_each(|layer| layer.id = of(Path::new(&layer.image), open));
}

/// Which file lies there, if the process has it open; nothing where that cannot be told.
fn of(image: &Path, open: &OpenFiles) -> Option<ImageId> {
    let file = std::fs::metadata(image).ok().filter(|file| image.is_absolute() && open.may_have(file))?;
    if file.file_type().is_block_device() {
        return mapped(&file).map(ImageId::new);
    }
    let born = file.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let born = born.map(|born| format!(" {}.{:09}", born.as_secs(), born.subsec_nanos()));
    Some(ImageId::new(format!("{}{}", file.ino(), born.unwrap_or_default())))
}

/// The device mapper's own lasting name of a volume.
fn mapped(device: &Metadata) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device.rdev()), rustix::fs::minor(device.rdev()));
    let uuid = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/uuid")).ok()?;
    Some(uuid.trim().to_owned()).filter(|uuid| !uuid.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_wherever_it_is_moved_and_a_copy_is_another_one() {
        let dir = keepmark_testkit::tmp();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("a"), "image").unwrap();
        let id = |name: &str| of(&path(name), &OpenFiles::UNKNOWN);
        let first = id("a");
        assert!(first.is_some());
        std::fs::rename(path("a"), path("b")).unwrap();
        assert_eq!((id("b"), id("a")), (first.clone(), None));
        std::fs::copy(path("b"), path("a")).unwrap();
        assert_ne!(id("a"), first);
        std::fs::write(path("b"), "written").unwrap();
        assert_eq!(id("b"), first, "what is written changes nothing");
        assert_eq!(of(Path::new("b"), &OpenFiles::UNKNOWN), None);
    }

    #[test]
    fn what_lies_in_the_place_of_an_open_file_is_not_it() {
        let dir = keepmark_testkit::tmp();
        let path = dir.path().join("image");
        let _open = std::fs::File::create(&path).unwrap();
        let own = OpenFiles::of(std::process::id());
        assert!(of(&path, &own).is_some());
        std::fs::write(dir.path().join("other"), "").unwrap();
        std::fs::rename(dir.path().join("other"), &path).unwrap();
        assert_eq!(of(&path, &own), None);
    }
}
