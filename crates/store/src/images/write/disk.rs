//! Writing one disk: a new image, on the base's or the compared one's where there is one, and in it only what differs from that.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use keepmark_model::images::{Access, CLUSTER_BYTES};
use keepmark_model::seam::{self, DiskContent, DiskStored, Recycler};
use keepmark_model::{BackupId, ChunkIndex, DiskName, Extent, Extents, Size};

use crate::error::{Error, Result};
use crate::images::medium::{Medium, Reader};
use crate::images::shelf::{Layer, Shelf, sibling};
use crate::images::write::crew::{Below, Chunk, Crew};
use crate::images::{ImageOptions, durable, place};

/// QEMU's images have whole sectors.
const SECTOR_BYTES: u64 = 512;

/// One disk while it is being written.
pub struct DiskWriter {
    content: DiskContent,
    image: PathBuf,
    /// Chunks that have come, a bit each.
    come: Vec<u64>,
    // Before the image, so that nobody writes to it when it is closed.
    crew: Crew,
    medium: Medium,
}

impl DiskWriter {
    /// Makes the image and prepares it; `folder` is where the new backup grows.
    pub fn begin(options: &ImageOptions, shelf: &Shelf, folder: &Path, content: &DiskContent) -> Result<Self> {
        let below = below(shelf, content)?;
        check_covered(content, below.first().filter(|_| content.base.is_some()))?;
        let (image, size) = (place::image_path(folder, &content.name)?, image_size(content.size));
        let backing = below.first().map(|layer| sibling(&layer.backup, &content.name));
        options.tools.create(&image, size, backing.as_deref())?;
        let chain = std::iter::once(image.clone()).chain(below.iter().map(|layer| layer.path.clone())).collect();
        let compress = options.compress && size.0.is_multiple_of(CLUSTER_BYTES);
        let medium = Medium::open(&*options.tools, chain, if compress { Access::WriteCompressed } else { Access::Write })?;
        let mut writer = medium.client()?;
        let kind = match (below.is_empty(), &content.compare) {
            (true, _) => Below::Nothing,
            (false, Some(_)) if content.base.is_none() => Below::Compared(writer.data(&content.put)?),
            (false, _) => Below::Base,
        };
        if kind != Below::Nothing {
            zero(&mut writer, content)?;
        }
        let crew = Crew::start(&medium, kind)?;
        let words =
            usize::try_from(content.chunk_size.count(content.size).div_ceil(64)).map_err(|error| Error::internal("count chunks", error))?;
        Ok(Self { content: content.clone(), image, come: vec![0; words], crew, medium })
    }

    fn put_chunk(&mut self, index: ChunkIndex, data: Vec<u8>, recycler: &Recycler) -> Result<()> {
        let extent = self.content.chunk_size.extent(index, self.content.size);
        let (word, bit) = (usize::try_from(index.0 / 64).unwrap_or(usize::MAX), 1_u64 << (index.0 % 64));
        let is_awaited = !extent.is_empty() && data.len() as u64 == extent.len() && self.content.put.contains(extent.start);
        match self.come.get_mut(word).filter(|come| is_awaited && **come & bit == 0) {
            Some(come) => *come |= bit,
            None => return Err(self.wrong(format!("chunk {index} with {} bytes is not awaited, or came twice", data.len()))),
        }
        self.crew.submit(Chunk { offset: extent.start, data, recycler: Recycler::clone(recycler) })
    }

    fn complete(self) -> Result<DiskStored> {
        let come: u64 = self.come.iter().map(|word| u64::from(word.count_ones())).sum();
        let awaited = self.content.put.chunks(self.content.chunk_size).count() as u64;
        if come != awaited {
            return Err(self.wrong(format!("{} chunks were never put", awaited.saturating_sub(come))));
        }
        let Self { crew, medium, image, .. } = self;
        let written = crew.finish()?;
        medium.client()?.flush()?;
        medium.close()?;
        durable::sync(&image)?;
        Ok(DiskStored { stored_bytes: stored_bytes(&image)?, chunks_new: written, chunks_known: awaited.saturating_sub(written) })
    }

    fn wrong(&self, problem: String) -> Error {
        Error::Content { disk: self.content.name.to_string(), problem }
    }
}

impl seam::DiskWriter for DiskWriter {
    fn put(&mut self, chunk: ChunkIndex, data: Vec<u8>, recycler: &Recycler) -> seam::Result<()> {
        Ok(self.put_chunk(chunk, data, recycler)?)
    }

    fn finish(self: Box<Self>) -> seam::Result<DiskStored> {
        Ok(self.complete()?)
    }
}

/// What an image takes of its file system.
pub fn stored_bytes(image: &Path) -> Result<u64> {
    let facts = std::fs::metadata(image).map_err(|error| Error::io("look at", image, error))?;
    Ok(facts.blocks().saturating_mul(512))
}

/// How large an image has to be for a disk.
pub fn image_size(size: Size) -> Size {
    Size(size.0.next_multiple_of(SECTOR_BYTES))
}

/// The images that the new one will lie on.
fn below(shelf: &Shelf, content: &DiskContent) -> Result<Vec<Layer>> {
    content.base.as_ref().or(content.compare.as_ref()).map_or(Ok(Vec::new()), |id| listed_chain(shelf, id, &content.name))
}

/// The images of a listed backup's disk.
pub fn listed_chain(shelf: &Shelf, id: &BackupId, disk: &DiskName) -> Result<Vec<Layer>> {
    if shelf.is_listed(id) { shelf.chain(id, disk) } else { Err(Error::Missing { kind: "backup", id: id.to_string() }) }
}

/// Whatever is neither put nor zero must be in the base.
fn check_covered(content: &DiskContent, base: Option<&Layer>) -> Result<()> {
    let told = content.put.union(&content.zero);
    let both = content.put.intersection(&content.zero);
    let left = Extents::whole(content.size).difference(&told);
    let left = left.difference(&Extents::whole(Size(base.map_or(0, |base| base.size))));
    let problem = match (both.iter().next(), left.iter().next()) {
        (Some(extent), _) => format!("bytes {} to {} are both put and zero", extent.start, extent.end),
        (None, Some(extent)) => format!("bytes {} to {} are neither put nor zero nor in a base", extent.start, extent.end),
        (None, None) => return Ok(()),
    };
    Err(Error::Content { disk: content.name.to_string(), problem })
}

/// Makes zero what is to be zero and is not yet.
fn zero(writer: &mut Reader, content: &DiskContent) -> Result<()> {
    let end = image_size(content.size).0;
    for extent in writer.data(&content.zero)?.round_out(content.chunk_size, content.size).intersection(&content.zero).iter() {
        let whole = if extent.end == content.size.0 { Extent::new(extent.start, end) } else { extent };
        writer.zero(whole)?;
    }
    Ok(())
}
