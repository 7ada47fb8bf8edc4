//! Merging: an image takes in what images below it hold, so that it no longer needs them.
//!
//! The new image is built beside the old one, checked, compared and made durable before it takes its name; until then nothing has
//! changed. Its content is the same at every moment. The cost follows what these images hold, not the disk.

use std::path::{Path, PathBuf};

use keepmark_model::images::{Access, CLUSTER_BYTES, ImageTools};
use keepmark_model::seam::Monitor;
use keepmark_model::{BackupId, ChunkSize, DiskName, Extent, Extents, Failure, FailureClass, Size};
use keepmark_nbd::{BufferPool, Request};

use crate::error::{Error, Result};
use crate::images::checksums::{Checksums, hash};
use crate::images::medium::{Medium, Reader, pieces};
use crate::images::shelf::{Layer, Shelf, sibling};
use crate::images::{durable, place};

const IN_FLIGHT: usize = 8;

/// What merging works with.
pub struct Merger<'a> {
    /// QEMU's tools.
    pub tools: &'a dyn ImageTools,
    /// The VM's backups.
    pub shelf: &'a Shelf,
    /// Who is told.
    pub monitor: &'a dyn Monitor,
}

/// The parts of an image that have to be in it when it lies on something lower.
struct Content {
    /// All of them, in whole clusters.
    all: Extents,
    /// Those that are not zero.
    data: Extents,
}

impl Merger<'_> {
    /// Makes a backup's image of a disk lie directly on the one of backup `onto`, which is somewhere below it, or on nothing.
    /// The caller is alone with the VM's backups.
    ///
    /// # Errors
    /// When anything cannot be read or written, or is not as it should be; then the image is as before.
    pub fn merge(&self, id: &BackupId, disk: &DiskName, onto: Option<&BackupId>) -> Result<()> {
        let chain = self.shelf.chain(id, disk)?;
        let below = onto.map_or(chain.len(), |onto| chain.iter().position(|layer| layer.backup == *onto).unwrap_or(chain.len()));
        if below <= 1 {
            return Ok(());
        }
        let image = chain.first().map(|layer| layer.path.clone()).unwrap_or_default();
        let new = Unfinished(image.with_file_name(place::temporary_name()));
        // Before the work: those of another version stand in its way.
        let checksums = Checksums::read(&self.shelf.folder_of(id))?;
        self.build(&chain, below, disk, &new.0)?;
        exchange(&image, &new.0, checksums)
    }

    fn build(&self, chain: &[Layer], below: usize, disk: &DiskName, new: &Path) -> Result<()> {
        let (taken, rest) = chain.split_at(below);
        let size = taken.first().map_or(0, |top| top.size);
        let compressed = self.check_all(taken)?;
        self.tools.create(new, Size(size), rest.first().map(|layer| sibling(&layer.backup, disk)).as_deref())?;
        let old = Medium::read(self.tools, chain)?;
        let content = content(&mut old.client_with_depth()?, taken, rest, size)?;
        let access = if compressed && size.is_multiple_of(CLUSTER_BYTES) { Access::WriteCompressed } else { Access::Write };
        let target = Medium::open(self.tools, vec![new.to_owned()], access)?;
        self.copy(&old, &target, &content, disk, !rest.is_empty())?;
        target.close()?;
        self.compare(&old, new, &content, disk, !rest.is_empty())?;
        old.close()?;
        durable::sync(new)
    }

    /// Refuses to take over what is damaged; says whether any is compressed.
    fn check_all(&self, images: &[Layer]) -> Result<bool> {
        let mut compressed = false;
        for layer in images {
            let check = self.tools.check(&layer.path)?;
            if check.corruptions > 0 {
                let problem = format!("qemu-img check finds {} mistakes in its tables", check.corruptions);
                return Err(Error::damaged("image", layer.path.display(), problem));
            }
            compressed |= check.compressed;
        }
        Ok(compressed)
    }

    fn copy(&self, old: &Medium, target: &Medium, content: &Content, disk: &DiskName, on_another: bool) -> Result<()> {
        let (mut source, mut writer) = (old.client()?, target.client()?);
        if on_another {
            content.all.difference(&content.data).iter().try_for_each(|zero| writer.zero(zero))?;
        }
        self.read_all(&mut source, &content.data, &format!("merge {disk}"), &mut |offset, bytes| writer.write(offset, bytes))?;
        writer.flush()
    }

    /// The new image by itself has all that it is to have, and nothing else than the old one has there.
    fn compare(&self, old: &Medium, new: &Path, content: &Content, disk: &DiskName, on_another: bool) -> Result<()> {
        let differs = |problem: &str| Error::damaged("image", new.display(), format!("{problem}, just written"));
        if self.tools.check(new)?.corruptions > 0 {
            return Err(differs("it is not whole"));
        }
        let medium = Medium::open(self.tools, vec![new.to_owned()], Access::Read)?;
        let (mut source, mut reader) = (old.client()?, medium.client_with_depth()?);
        let whole = Extent::new(0, reader.client.info().size);
        let expected = if on_another { &content.all } else { &content.data };
        if !expected.difference(&reader.in_top(whole, 1)?).is_empty()
            || !reader.data(&Extents::from_iter([whole]))?.difference(&content.data).is_empty()
        {
            return Err(differs("it lacks what it should have"));
        }
        let mut written = Vec::new();
        self.read_all(&mut source, &content.data, &format!("compare {disk}"), &mut |offset, bytes| {
            written.resize(bytes.len(), 0);
            reader.fill(offset, &mut written)?;
            if written == bytes { Ok(()) } else { Err(differs("it has another content")) }
        })?;
        drop(reader);
        medium.close()
    }

    fn read_all(&self, source: &mut Reader, data: &Extents, subject: &str, sink: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let (pool, total, mut done) = (BufferPool::new(IN_FLIGHT * 2), data.total().0, 0);
        let mut wanted = data.iter().flat_map(pieces);
        self.monitor.progress(subject, 0, total);
        source.read_each(&mut wanted, IN_FLIGHT, &pool, &mut |request: Request, bytes: &[u8]| {
            sink(request.offset, bytes)?;
            done += bytes.len() as u64;
            self.monitor.progress(subject, done, total);
            if self.monitor.interrupted() { Err(interrupted()) } else { Ok(()) }
        })?;
        self.monitor.finished(subject);
        Ok(())
    }
}

/// What the taken images hold, and what is hidden below them since one of them is short: beyond its end there are zeros, whatever
/// the images below it have there.
fn content(reader: &mut Reader, taken: &[Layer], rest: &[Layer], size: u64) -> Result<Content> {
    let whole = Extent::new(0, size);
    let shortest = taken.iter().skip(1).map(|layer| layer.size).min().unwrap_or(size);
    let seen_below = rest.first().map_or(0, |layer| layer.size).min(size);
    let hidden = Extents::from_iter([Extent::new(shortest, seen_below)]);
    let cluster =
        ChunkSize::try_from(u32::try_from(CLUSTER_BYTES).unwrap_or_default()).map_err(|error| Error::internal("count clusters", error))?;
    let all = reader.in_top(whole, taken.len() as u64)?.union(&hidden).round_out(cluster, Size(size));
    let data = reader.data(&Extents::from_iter([whole]))?.intersection(&all).round_out(cluster, Size(size));
    Ok(Content { all, data })
}

/// Puts the new image in the old one's place. Until the hash of the old one is forgotten both fit.
fn exchange(image: &Path, new: &Path, mut checksums: Checksums) -> Result<()> {
    let (folder, name) = (image.parent().unwrap_or(Path::new(".")), image.file_name().and_then(|name| name.to_str()).unwrap_or_default());
    let hash = hash(new, &mut |_| Ok(()))?;
    checksums.expect(name, &hash);
    durable::write(&folder.join(place::CHECKSUMS), &checksums.encode()?)?;
    durable::rename(new, image)?;
    checksums.settle(name, hash);
    durable::write(&folder.join(place::CHECKSUMS), &checksums.encode()?)
}

fn interrupted() -> Error {
    #[derive(Debug, thiserror::Error)]
    #[error("interrupted; the next command goes on with it")]
    struct Interrupted;
    Error::Sink(Failure::new(FailureClass::Interrupted, Interrupted))
}

/// A file that is removed unless it got another name.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Renamed, never made, or swept by the next who is alone.
        drop(std::fs::remove_file(&self.0));
    }
}
