//! A run: an immutable sorted file of records. A lookup reads one block of 4 KiB; memory holds 8 bytes for each block.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::repository::id::{BlobKind, ID_BYTES, Id, PackId};
use crate::repository::index::record::{self, BLOCK_BYTES, BLOCK_PACKS, BLOCK_RECORDS, RECORD_BYTES, Record, read_block};

/// Ends every run, after the footer's length; other versions are rebuilt.
pub const MAGIC: [u8; 8] = *b"KM1RUN\x00\x02";
/// Largest footer that is read, bytes: fences of 100 TiB of chunks.
const FOOTER_BYTES_MAX: u64 = 256 << 20;

/// Blocks of a run that are kept once they were read and checked: 1 MiB, all of a small repository's.
const BLOCKS_KEPT_MAX: usize = 256;

type Block = [u8; BLOCK_BYTES];

/// One sorted file of records.
#[derive(Debug)]
pub struct Run {
    /// Where it is; nowhere if it is kept in memory.
    pub path: Option<PathBuf>,
    file: File,
    /// The index files whose blobs it has, all of them.
    pub indexes: Vec<Id>,
    /// Number of records.
    pub records: u64,
    /// Number of packs in its table.
    pub packs: u32,
    /// First eight bytes of the first id of each block.
    fences: Vec<u64>,
    /// Blocks that were read lately.
    kept: Mutex<HashMap<u64, Arc<Block>>>,
}

/// A record that a lookup found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The record.
    pub record: Record,
    /// Its place in the run.
    pub ordinal: u64,
    /// The pack it names.
    pub pack: PackId,
}

/// What stands at the end of a run.
#[derive(Debug, Default)]
pub struct Footer {
    /// See [`Run::records`].
    pub records: u64,
    /// See [`Run::packs`].
    pub packs: u32,
    /// See [`Run::indexes`].
    pub indexes: Vec<Id>,
    /// First eight bytes of the first id of each block.
    pub fences: Vec<u64>,
}

impl Footer {
    /// Its bytes, with checksum, length and magic.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.records.to_le_bytes().to_vec();
        bytes.extend(self.packs.to_le_bytes());
        bytes.extend(u32::try_from(self.indexes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.indexes.iter().for_each(|id| bytes.extend(id.0));
        self.fences.iter().for_each(|fence| bytes.extend(fence.to_le_bytes()));
        bytes.extend(record::checksum(self.records, &bytes));
        let length = bytes.len() as u64;
        bytes.extend(length.to_le_bytes());
        bytes.extend(MAGIC);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<ID_BYTES>()?;
        let (records, rest) = body.split_first_chunk::<8>()?;
        let (packs, rest) = rest.split_first_chunk::<4>()?;
        let (indexes, rest) = rest.split_first_chunk::<4>()?;
        let records = u64::from_le_bytes(*records);
        if record::checksum(records, body) != *sum {
            return None;
        }
        let ids = usize::try_from(u32::from_le_bytes(*indexes)).ok()?.checked_mul(ID_BYTES)?;
        let (ids, fences) = rest.split_at_checked(ids)?;
        Some(Self {
            records,
            packs: u32::from_le_bytes(*packs),
            indexes: ids.chunks_exact(ID_BYTES).filter_map(Id::from_slice).collect(),
            fences: fences.chunks_exact(8).filter_map(|fence| fence.try_into().ok().map(u64::from_le_bytes)).collect(),
        })
    }
}

impl Run {
    /// Opens a run and checks its footer; blocks are checked when they are read.
    ///
    /// # Errors
    /// In words, when the file cannot be used.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        Self::of_file(file, Some(path.to_owned()))
    }

    /// Takes a run that is open already and checks its footer.
    ///
    /// # Errors
    /// In words, when the file cannot be used.
    pub fn of_file(file: File, path: Option<PathBuf>) -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let size = file.metadata().map_err(text)?.len();
        let mut trailer = [0; 16];
        let trailer_at = size.checked_sub(16).ok_or("it is too short")?;
        file.read_exact_at(&mut trailer, trailer_at).map_err(text)?;
        let (length, magic) = trailer.split_at(8);
        let length = length.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        let at = trailer_at.checked_sub(length).filter(|_| length <= FOOTER_BYTES_MAX && magic == MAGIC).ok_or("it has no footer")?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|error| error.to_string())?];
        file.read_exact_at(&mut bytes, at).map_err(text)?;
        let Footer { records, packs, indexes, fences } = Footer::decode(&bytes).ok_or("its footer does not fit its checksum")?;
        let blocks = records.div_ceil(BLOCK_RECORDS as u64);
        let length_fits = (blocks + u64::from(packs).div_ceil(BLOCK_PACKS as u64)).checked_mul(BLOCK_BYTES as u64) == Some(at);
        if !length_fits || fences.len() as u64 != blocks {
            return Err("its parts do not fit together".to_owned());
        }
        Ok(Self { path, file, indexes, records, packs, fences, kept: Mutex::default() })
    }

    /// Where it is, for messages.
    #[must_use]
    pub fn place(&self) -> String {
        self.path.as_ref().map_or_else(|| "memory".to_owned(), |path| path.display().to_string())
    }

    /// All places of a blob in this run.
    ///
    /// # Errors
    /// In words, when a block is damaged: the run must then be rebuilt.
    pub fn find(&self, id: &Id, kind: BlobKind, found: &mut impl FnMut(Found)) -> Result<(), String> {
        let prefix = id.prefix();
        // The block before the first fence that is not below may end with the id.
        let first = self.fences.partition_point(|fence| *fence < prefix).saturating_sub(1);
        for (number, fence) in self.fences.iter().enumerate().skip(first) {
            if *fence > prefix {
                break;
            }
            let block = self.block(number as u64)?;
            self.scan(&block, number, id, kind, found)?;
        }
        Ok(())
    }

    /// A block, checked when it was read.
    fn block(&self, number: u64) -> Result<Arc<Block>, String> {
        if let Some(block) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&number) {
            return Ok(Arc::clone(block));
        }
        let mut block = [0; BLOCK_BYTES];
        read_block(&self.file, number, &mut block)?;
        let block = Arc::new(block);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Ids are spread evenly: in a large run no block is likelier to be asked for again than another.
        if kept.len() >= BLOCKS_KEPT_MAX {
            kept.clear();
        }
        kept.insert(number, Arc::clone(&block));
        Ok(block)
    }

    fn scan(&self, block: &Block, number: usize, id: &Id, kind: BlobKind, found: &mut impl FnMut(Found)) -> Result<(), String> {
        let base = number as u64 * BLOCK_RECORDS as u64;
        let filled = usize::try_from(self.records.saturating_sub(base)).unwrap_or(usize::MAX).min(BLOCK_RECORDS);
        let at = |index: usize| block.get(index * RECORD_BYTES..(index + 1) * RECORD_BYTES).unwrap_or_default();
        let (mut low, mut high) = (0, filled);
        while low < high {
            let middle = low.midpoint(high);
            if at(middle).get(..ID_BYTES).unwrap_or_default() < id.0.as_slice() { low = middle + 1 } else { high = middle }
        }
        for index in low..filled {
            let record = Record::decode(at(index)).ok_or("a record makes no sense")?;
            if record.entry.id != *id {
                break;
            }
            if record.entry.kind == kind {
                found(Found { record, ordinal: base + index as u64, pack: self.pack(record.pack)? });
            }
        }
        Ok(())
    }

    /// A pack of the run's table.
    fn pack(&self, number: u32) -> Result<PackId, String> {
        if number >= self.packs {
            return Err("a record names a pack that is not in the table".to_owned());
        }
        let (table_block, slot) = (number as usize / BLOCK_PACKS, number as usize % BLOCK_PACKS);
        let block = self.block(self.fences.len() as u64 + table_block as u64)?;
        block.get(slot * ID_BYTES..(slot + 1) * ID_BYTES).and_then(Id::from_slice).ok_or_else(|| "a pack makes no sense".to_owned())
    }

    /// All packs of the table, in order.
    ///
    /// # Errors
    /// In words, when a block is damaged.
    pub fn pack_table(&self) -> Result<Vec<PackId>, String> {
        let mut packs = Vec::with_capacity(self.packs as usize);
        let mut block = [0; BLOCK_BYTES];
        for number in 0..u64::from(self.packs).div_ceil(BLOCK_PACKS as u64) {
            read_block(&self.file, self.fences.len() as u64 + number, &mut block)?;
            let left = self.packs as usize - packs.len();
            packs.extend(block.chunks_exact(ID_BYTES).take(left.min(BLOCK_PACKS)).filter_map(Id::from_slice));
        }
        Ok(packs)
    }

    /// All records in order, a block at a time.
    pub fn iter(&self) -> RunRecords<'_> {
        RunRecords { run: self, next: 0, block: Box::new([0; BLOCK_BYTES]) }
    }
}

/// Reads a run from start to end.
pub struct RunRecords<'a> {
    run: &'a Run,
    next: u64,
    block: Box<[u8; BLOCK_BYTES]>,
}

impl Iterator for RunRecords<'_> {
    type Item = Result<Record, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.run.records {
            return None;
        }
        let (block, slot) = (self.next / BLOCK_RECORDS as u64, usize::try_from(self.next % BLOCK_RECORDS as u64).unwrap_or(0));
        self.next += 1;
        if slot == 0
            && let Err(problem) = read_block(&self.run.file, block, &mut self.block)
        {
            self.next = self.run.records;
            return Some(Err(problem));
        }
        let record = self.block.get(slot * RECORD_BYTES..(slot + 1) * RECORD_BYTES).and_then(Record::decode);
        Some(record.ok_or_else(|| "a record makes no sense".to_owned()))
    }
}
