//! Building runs: from records in memory, and by merging runs; both write from start to end with little memory.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Error, Result};
use crate::repository::blob::BlobEntry;
use crate::repository::id::{ID_BYTES, Id, PackId};
use crate::repository::index::INDEX_CACHE;
use crate::repository::index::record::{BLOCK_PACKS, BLOCK_RECORDS, PACKS_MAX, PAYLOAD_BYTES, RECORD_BYTES, Record, checksum};
use crate::repository::index::run::{Footer, Run};

/// End of a run's file name.
pub const RUN_SUFFIX: &str = ".run";
/// End of the name of one that is being written.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// Where runs are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shelf {
    /// As files of the cache folder.
    Folder(PathBuf),
    /// In memory, because there is no folder that can be written.
    Memory,
}

/// Records in memory that become a run.
#[derive(Debug, Default)]
pub struct Batch {
    records: Vec<Record>,
    packs: Vec<PackId>,
    numbers: HashMap<PackId, u32>,
    indexes: Vec<Id>,
}

impl Batch {
    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing is in it, not even an empty index file.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indexes.is_empty()
    }

    /// Adds a blob. An index file counts as contained when [`Batch::complete`] was called for it.
    pub fn add(&mut self, pack: PackId, entry: BlobEntry) {
        let next = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(pack).or_insert(next);
        if number == next {
            self.packs.push(pack);
        }
        self.records.push(Record { entry, pack: number });
    }

    /// All blobs of this index file have been added.
    pub fn complete(&mut self, index: Id) {
        self.indexes.push(index);
    }

    /// Forgets what was added after there were so many records: the index file was damaged half way.
    pub fn truncate(&mut self, records: usize) {
        self.records.truncate(records);
    }

    /// Writes the run and empties the batch.
    ///
    /// # Errors
    /// When the cache folder cannot be written.
    pub fn write(&mut self, shelf: &Shelf) -> Result<Run> {
        let mut batch = std::mem::take(self);
        batch.records.sort_unstable_by_key(Record::sort_key);
        batch.records.dedup();
        let records = batch.records.iter().map(|record| Ok(*record));
        write_run(shelf, batch.indexes, &batch.packs, records)
    }
}

/// Merges runs into one that stands for all of them.
///
/// # Errors
/// When the cache folder cannot be written, or a run is damaged ([`Error::Damaged`]).
pub fn merge(shelf: &Shelf, runs: &[&Run]) -> Result<Run> {
    let damaged = |run: &Run, problem: String| Error::damaged(INDEX_CACHE, run.place(), problem);
    let (mut packs, mut numbers, mut maps) = (Vec::new(), HashMap::new(), Vec::new());
    for run in runs {
        let mut map = Vec::with_capacity(run.packs as usize);
        for pack in run.pack_table().map_err(|problem| damaged(run, problem))? {
            let next = u32::try_from(packs.len()).unwrap_or(u32::MAX);
            let number = *numbers.entry(pack).or_insert(next);
            if number == next {
                packs.push(pack);
            }
            map.push(number);
        }
        maps.push(map);
    }
    drop(numbers);
    let mut sources: Vec<_> = runs
        .iter()
        .zip(&maps)
        .map(|(run, map)| {
            run.iter().map(move |record| {
                match record {
                    Ok(record) => map
                        .get(record.pack as usize)
                        .map(|pack| Record { pack: *pack, ..record })
                        .ok_or_else(|| "a record names no pack".to_owned()),
                    Err(problem) => Err(problem),
                }
                .map_err(|problem| damaged(run, problem))
            })
        })
        .collect();
    let mut indexes: Vec<Id> = runs.iter().flat_map(|run| run.indexes.iter().copied()).collect();
    indexes.sort_unstable();
    indexes.dedup();
    let merged = MergedRecords::new(&mut sources)?;
    write_run(shelf, indexes, &packs, merged)
}

/// The records of several sorted sources in order. Exact duplicates are left out; other places of the same blob stay.
struct MergedRecords<'a, I> {
    sources: &'a mut [I],
    heads: BinaryHeap<Reverse<Head>>,
    last: Option<Record>,
}

struct Head {
    record: Record,
    source: usize,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.record.sort_key(), self.source).cmp(&(other.record.sort_key(), other.source))
    }
}

impl<'a, I: Iterator<Item = Result<Record>>> MergedRecords<'a, I> {
    fn new(sources: &'a mut [I]) -> Result<Self> {
        let mut merged = Self { heads: BinaryHeap::with_capacity(sources.len()), sources, last: None };
        (0..merged.sources.len()).try_for_each(|source| merged.pull(source))?;
        Ok(merged)
    }

    fn pull(&mut self, source: usize) -> Result<()> {
        if let Some(record) = self.sources.get_mut(source).and_then(Iterator::next).transpose()? {
            self.heads.push(Reverse(Head { record, source }));
        }
        Ok(())
    }
}

impl<I: Iterator<Item = Result<Record>>> Iterator for MergedRecords<'_, I> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        loop {
            let Reverse(Head { record, source }) = self.heads.pop()?;
            if let Err(error) = self.pull(source) {
                return Some(Err(error));
            }
            if self.last != Some(record) {
                self.last = Some(record);
                return Some(Ok(record));
            }
        }
    }
}

/// Writes blocks with their checksums.
struct BlockWriter<W> {
    out: W,
    number: u64,
    payload: Vec<u8>,
}

impl<W: Write> BlockWriter<W> {
    fn add(&mut self, bytes: &[u8], room: usize) -> std::io::Result<()> {
        self.payload.extend_from_slice(bytes);
        if self.payload.len() >= room { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.payload.is_empty() {
            return Ok(());
        }
        self.payload.resize(PAYLOAD_BYTES, 0);
        self.out.write_all(&self.payload)?;
        self.out.write_all(&checksum(self.number, &self.payload))?;
        self.payload.clear();
        self.number += 1;
        Ok(())
    }
}

fn write_run(shelf: &Shelf, indexes: Vec<Id>, packs: &[PackId], records: impl Iterator<Item = Result<Record>>) -> Result<Run> {
    match shelf {
        Shelf::Folder(folder) => write_in_folder(folder, indexes, packs, records),
        Shelf::Memory => write_in_memory(indexes, packs, records),
    }
}

fn write_in_folder(folder: &Path, indexes: Vec<Id>, packs: &[PackId], records: impl Iterator<Item = Result<Record>>) -> Result<Run> {
    let name = format!("{:016x}", rand::random::<u64>());
    let (temporary, path) = (folder.join(format!("{name}{TEMPORARY_SUFFIX}")), folder.join(format!("{name}{RUN_SUFFIX}")));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let written = file
        .map_err(|error| Error::io("write", &temporary, error))
        .and_then(|file| write_file(file, &temporary, indexes, packs, records))
        .and_then(|()| fs::rename(&temporary, &path).map_err(|error| Error::io("publish", &path, error)));
    if let Err(error) = written {
        // The folder is a cache: what stays there is removed by the next refresh.
        drop(fs::remove_file(&temporary));
        return Err(error);
    }
    Run::open(&path).map_err(|problem| Error::damaged(INDEX_CACHE, path.display(), problem))
}

fn write_in_memory(indexes: Vec<Id>, packs: &[PackId], records: impl Iterator<Item = Result<Record>>) -> Result<Run> {
    let failed = |error| Error::internal("keep the index in memory", error);
    let file = memfd_create("keepmark-index", MemfdFlags::CLOEXEC).map(File::from).map_err(|error| failed(std::io::Error::from(error)))?;
    write_file(file.try_clone().map_err(failed)?, Path::new("memory"), indexes, packs, records)?;
    Run::of_file(file, None).map_err(|problem| Error::damaged(INDEX_CACHE, "memory", problem))
}

fn write_file(file: File, path: &Path, indexes: Vec<Id>, packs: &[PackId], records: impl Iterator<Item = Result<Record>>) -> Result<()> {
    let failed = |error| Error::io("write", path, error);
    let packs_number = u32::try_from(packs.len()).ok().filter(|number| *number < PACKS_MAX);
    let packs_number = packs_number.ok_or_else(|| Error::Refused { problem: "too many packs for the index cache".to_owned() })?;
    let mut blocks = BlockWriter { out: BufWriter::with_capacity(1 << 16, file), number: 0, payload: Vec::with_capacity(PAYLOAD_BYTES) };
    let mut footer = Footer { packs: packs_number, indexes, ..Footer::default() };
    for record in records {
        let record = record?;
        if blocks.payload.is_empty() {
            footer.fences.push(record.entry.id.prefix());
        }
        blocks.add(&record.encode(), BLOCK_RECORDS * RECORD_BYTES).map_err(failed)?;
        footer.records += 1;
    }
    blocks.flush().map_err(failed)?;
    packs.iter().try_for_each(|pack| blocks.add(&pack.0, BLOCK_PACKS * ID_BYTES)).map_err(failed)?;
    blocks.flush().map_err(failed)?;
    blocks.out.write_all(&footer.encode()).and_then(|()| blocks.out.flush()).map_err(failed)
}
