//! Whether powered-off raw images stayed as they were while they were read, where QEMU's locks could not see to it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use keepmark_model::DiskName;
use keepmark_model::opening::{ImageFormat, Permit, Storage};
use keepmark_model::seam::{self, FrozenDisk, FrozenPoint, Moment};

use crate::error::{Error, Result, file};
use crate::point::Point;

/// What a file shows that was not written: its identity, its size, and the time of its last write.
type Shape = (u64, u64, u64, i64, i64);

/// The raw files of a moment, as they were when it began.
#[derive(Debug)]
pub(super) struct Stillness(Vec<(DiskName, PathBuf, Shape)>);

impl Stillness {
    /// Looks at the disks' raw files.
    pub(super) fn of<'a>(disks: impl Iterator<Item = (&'a DiskName, &'a Permit)>) -> Result<Self> {
        let files = |(name, permit): (&'a DiskName, &'a Permit)| {
            let raw = permit.layers().iter().filter(|image| image.format == ImageFormat::Raw && image.storage == Storage::File);
            raw.map(move |image| (name, &image.path))
        };
        let looked_at = disks.flat_map(files).map(|(name, path)| Ok((name.clone(), path.clone(), shape(path)?)));
        looked_at.collect::<Result<_>>().map(Self)
    }

    fn check(&self) -> Result<()> {
        for (disk, path, then) in &self.0 {
            if shape(path)? != *then {
                let change = format!("{} was written or exchanged while it was read", path.display());
                return Err(Error::Changed { disk: disk.to_string(), change });
            }
        }
        Ok(())
    }
}

fn shape(path: &PathBuf) -> Result<Shape> {
    let meta = fs::metadata(path).map_err(file("look at", path))?;
    Ok((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

/// A moment of images that nobody may write.
#[derive(Debug)]
pub(super) struct StillPoint<'a> {
    pub(super) point: Point<'a>,
    pub(super) still: Stillness,
}

impl FrozenPoint for StillPoint<'_> {
    fn moment(&self) -> &Moment {
        self.point.moment()
    }

    fn disk(&mut self, name: &DiskName) -> seam::Result<Box<dyn FrozenDisk>> {
        self.point.disk(name)
    }

    fn check(&mut self) -> seam::Result<()> {
        Ok(self.still.check()?)
    }

    fn release(self: Box<Self>) -> seam::Result<()> {
        Box::new(self.point).release()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_write_and_an_exchange_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (image, other) = (folder.path().join("a"), folder.path().join("b"));
        let of = |path: &Path| {
            let permit = Permit::of_new(path, ImageFormat::Raw, Storage::File);
            Stillness::of(std::iter::once((&DiskName::new("vda").unwrap(), &permit))).unwrap()
        };
        for path in [&image, &other] {
            fs::write(path, "x").unwrap();
        }
        let still = of(&image);
        still.check().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&image, "y").unwrap();
        assert!(still.check().unwrap_err().to_string().contains("was written"));
        let still = of(&image);
        fs::rename(&other, &image).unwrap();
        assert!(still.check().is_err());
    }
}
