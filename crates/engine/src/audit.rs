//! The audit of an incremental, before anything is stored: do the blocks that the bitmaps call clean still fit the base?

use keepmark_model::audit::{
    AuditRecord, AuditWish, clean_from_end, end, end_chunks, sample, sample_count, suspicion, undetected_max_ppm, window, windows_from_end,
};
use keepmark_model::rules::{Rule, broken};
use keepmark_model::seam::{BackupReader, FrozenDisk, Monitor, Result};
use keepmark_model::{ChunkIndex, ChunkSize, DiskName, Extent, Extents, Size};

use crate::error::Error;

/// What an audit compares with, and how much is wanted.
pub struct Audit<'a> {
    /// The base.
    pub base: &'a dyn BackupReader,
    /// The part of the disk that the last audit checked.
    pub last: Option<Extent>,
    /// Bytes of a cluster of the active image; 1 where it has none.
    pub cluster: u64,
    /// How much is wanted.
    pub wish: AuditWish,
    /// Chooses the sample; fresh for every audit.
    pub seed: u64,
    /// Who says that it is to end.
    pub monitor: &'a dyn Monitor,
}

/// What an audit found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audited {
    /// Nothing contradicts the bitmaps; so many bytes were read to see that. Without a record only the end was looked at.
    Clean(Option<AuditRecord>, u64),
    /// The bitmaps lied; in words.
    Contradiction(String),
}

/// Audits one disk; `changed` are the chunks that are going to be read anyway.
///
/// # Errors
/// When the disk or the base cannot be read.
pub fn audit(disk: &mut dyn FrozenDisk, name: &DiskName, changed: &Extents, chunk: ChunkSize, audit: &Audit<'_>) -> Result<Audited> {
    let end = chunks_at_end(disk, name, changed, chunk, audit)?;
    let (read_at_end, cut) = compare(disk, name, &end, chunk, audit.base)?;
    if let Some(cut) = cut.filter(|_| !broken(Rule::End)) {
        return Ok(Audited::Contradiction(format!(
            "the last data that are called clean, bytes {} to {}, are not as in the last backup: the disk may have been cut and grown again",
            cut.start, cut.end
        )));
    }
    if audit.wish == AuditWish::Off {
        return Ok(Audited::Clean(None, read_at_end));
    }
    Ok(match sampled(disk, name, changed, chunk, audit)? {
        Audited::Clean(record, bytes) => Audited::Clean(record, bytes + read_at_end),
        lie @ Audited::Contradiction(_) => lie,
    })
}

/// The chunks that no cut of the disk can have spared without sparing everything that is clean.
fn chunks_at_end(
    disk: &mut dyn FrozenDisk,
    name: &DiskName,
    changed: &Extents,
    chunk: ChunkSize,
    audit: &Audit<'_>,
) -> Result<Vec<ChunkIndex>> {
    let size = disk.size();
    if changed.total() >= size {
        return Ok(Vec::new());
    }
    let last = end_of_clean_content(name, size, changed, chunk, audit)?;
    let end = end(last, audit.cluster, chunk, size);
    let clean = Extents::from_iter([end]).round_out(chunk, size).difference(changed);
    let (now, then) = (disk.data(&clean)?, audit.base.data(name, &clean)?.clip(size));
    Ok(end_chunks(last, audit.cluster, changed, (&now, &then), chunk, size))
}

/// The last chunk that is called clean and was not all zeros.
fn end_of_clean_content(name: &DiskName, size: Size, changed: &Extents, chunk: ChunkSize, audit: &Audit<'_>) -> Result<Option<ChunkIndex>> {
    for window in windows_from_end(size) {
        let data_then = audit.base.data(name, &Extents::from_iter([window]))?.clip(size);
        let last = first_with_content(clean_from_end(&data_then, changed, chunk), name, size, chunk, audit)?;
        if last.is_some() {
            return Ok(last);
        }
    }
    Ok(None)
}

/// The first of these chunks that is not all zeros in the base, by its bytes: an image that was pushed keeps written zeros as data.
fn first_with_content(
    mut chunks: impl Iterator<Item = ChunkIndex>,
    name: &DiskName,
    size: Size,
    chunk: ChunkSize,
    audit: &Audit<'_>,
) -> Result<Option<ChunkIndex>> {
    let zeros = vec![0; usize::try_from(chunk.bytes()).unwrap_or(usize::MAX)];
    let has_content = |index: &ChunkIndex| {
        if audit.monitor.interrupted() {
            return Err(Error::Interrupted.into());
        }
        let bytes = usize::try_from(chunk.extent(*index, size).len()).unwrap_or(usize::MAX).min(zeros.len());
        Ok(broken(Rule::EndByBytes) || !audit.base.is_same(name, *index, &zeros[..bytes])?)
    };
    chunks.find_map(|index| has_content(&index).map(|has| has.then_some(index)).transpose()).transpose()
}

/// The allocation of the part of the disk whose turn it is, and a random sample of it.
fn sampled(disk: &mut dyn FrozenDisk, name: &DiskName, changed: &Extents, chunk: ChunkSize, audit: &Audit<'_>) -> Result<Audited> {
    let size = disk.size();
    let window = window(size, audit.last);
    let within = Extents::from_iter([window]);
    let data_then = audit.base.data(name, &within)?.clip(size);
    let data_now = disk.data(&within)?;
    let suspect = suspicion(window, changed, &data_now, &data_then, chunk, size);
    let holes = suspect.contradictions.chunks(chunk).filter(|_| !broken(Rule::Allocation));
    if let Some(index) = first_with_content(holes, name, size, chunk, audit)? {
        let lie = chunk.extent(index, size);
        return Ok(Audited::Contradiction(format!(
            "bytes {} to {} are called clean and held data in the last backup, but are a hole now",
            lie.start, lie.end
        )));
    }
    let clean = data_then.difference(changed);
    let count = sample_count(audit.wish, changed.chunks(chunk).count() as u64, clean.chunks(chunk).count() as u64);
    let sampled = sample(&clean, chunk, count, audit.seed);
    let doubts = sample_count(audit.wish, changed.chunks(chunk).count() as u64, suspect.to_compare.chunks(chunk).count() as u64);
    let doubtful = sample(&suspect.to_compare, chunk, doubts, audit.seed.rotate_left(32));
    let mut chosen: Vec<ChunkIndex> = sampled.iter().chain(&doubtful).copied().collect();
    chosen.sort_unstable();
    chosen.dedup();
    let (bytes, lie) = compare(disk, name, &chosen, chunk, audit.base)?;
    if let Some(lie) = lie {
        return Ok(Audited::Contradiction(format!("bytes {} to {} are called clean, but differ from the last backup", lie.start, lie.end)));
    }
    let record = AuditRecord {
        allocation_checked: window,
        clean_bytes: clean.total().0,
        sampled_bytes: sampled.iter().map(|index| chunk.extent(*index, size).len()).sum(),
        undetected_max_ppm: undetected_max_ppm(sampled.len() as u64, clean.chunks(chunk).count() as u64),
    };
    Ok(Audited::Clean(Some(record), bytes))
}

/// Reads chunks and compares them with the base: bytes read, and the first that differs.
fn compare(
    disk: &mut dyn FrozenDisk,
    name: &DiskName,
    chosen: &[ChunkIndex],
    chunk: ChunkSize,
    base: &dyn BackupReader,
) -> Result<(u64, Option<Extent>)> {
    let size = disk.size();
    let recycler = disk.recycler();
    let (mut bytes_read, mut lie) = (0, None);
    let mut wanted = chosen.iter().map(|index| chunk.extent(*index, size));
    disk.read(&mut wanted, &mut |extent, bytes| {
        bytes_read += extent.len();
        if !base.is_same(name, chunk.index(extent.start), &bytes)? {
            lie = Some(extent);
        }
        recycler(bytes);
        Ok(())
    })?;
    Ok((bytes_read, lie))
}
