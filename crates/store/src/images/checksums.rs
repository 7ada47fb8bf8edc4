//! The hashes of a backup's images, by which `verify --read-data` finds what has changed since they were written.
//!
//! XXH3 with 128 bits: it has to find bits that fell over, and who could change an image on purpose could change its hash beside it as
//! well. SHA-256 would take as long as QEMU takes to copy the data. Several threads hash blocks of 64 MiB, of whose hashes (16 bytes each,
//! big-endian, in order) the image's is one: a single thread takes an eighth of QEMU's time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Sender, unbounded};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::error::{Error, Result};
use crate::folders;
use crate::images::{durable, place};

const VERSION: u32 = 3;
const FILE_BYTES_MAX: u64 = 16 << 20;
const BLOCK_BYTES: u64 = 64 << 20;
const PIECE_BYTES: usize = 1 << 20;
const THREADS_MAX: u64 = 4;

/// The content of a backup's file of checksums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    version: u32,
    /// The [`hash`] of each image. Two while an image is being exchanged: of the one that is there, and of the one that will be.
    images: BTreeMap<String, Vec<String>>,
}

impl Checksums {
    /// Of images in a folder that is not published yet.
    pub fn of(images: BTreeMap<String, String>) -> Self {
        Self { version: VERSION, images: images.into_iter().map(|(name, hash)| (name, vec![hash])).collect() }
    }

    /// Those of a backup.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(place::CHECKSUMS);
        let bytes = durable::read(&path, FILE_BYTES_MAX)?;
        let checksums: Self = serde_json::from_slice(&bytes).map_err(|error| Error::damaged("file", path.display(), error))?;
        match checksums.version {
            VERSION => Ok(checksums),
            other => Err(Error::damaged("file", path.display(), format!("its version is {other}, and this keepmark knows {VERSION} only"))),
        }
    }

    /// As the file has it.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).map_err(|error| Error::internal("write checksums", error))
    }

    /// From now on an image may be another one.
    pub fn expect(&mut self, image: &str, hash: &str) {
        self.images.entry(image.to_owned()).or_default().push(hash.to_owned());
    }

    /// An image is this one and no other.
    pub fn settle(&mut self, image: &str, hash: String) {
        self.images.insert(image.to_owned(), vec![hash]);
    }

    /// Whether an image is as it was written.
    pub fn fits(&self, image: &str, hash: &str) -> bool {
        self.images.get(image).is_some_and(|hashes| hashes.iter().any(|known| known == hash))
    }
}

/// The hash of a file, in hexadecimal; `read` is told of bytes as they are read.
pub fn hash(path: &Path, read: &mut dyn FnMut(u64) -> Result<()>) -> Result<String> {
    let failed = |error| Error::io("read", path, error);
    let file = folders::open_regular(path).map_err(failed)?;
    let blocks = Blocks { count: file.metadata().map_err(failed)?.len().div_ceil(BLOCK_BYTES), file, next: AtomicU64::new(0) };
    let (teller, told) = unbounded();
    let hashes = std::thread::scope(|scope| {
        let work = |teller: Sender<u64>| scope.spawn(|| blocks.hash(teller));
        let workers: Vec<_> = (0..threads(blocks.count)).map(|_| work(teller.clone())).collect();
        drop(teller);
        // Who refuses to hear more ends it as an error of reading does.
        told.into_iter().try_for_each(read)?;
        let hashes = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)).map_err(failed));
        hashes.collect::<Result<Vec<_>>>()
    })?;
    let in_order: BTreeMap<u64, u128> = hashes.into_iter().flatten().collect();
    let joined: Vec<u8> = in_order.into_values().flat_map(u128::to_be_bytes).collect();
    Ok(format!("{:032x}", xxh3_128(&joined)))
}

fn threads(blocks: u64) -> u64 {
    std::thread::available_parallelism().map_or(1, |count| count.get() as u64).min(THREADS_MAX).min(blocks)
}

/// A file, of which each thread takes the block whose turn it is.
struct Blocks {
    file: File,
    count: u64,
    next: AtomicU64,
}

impl Blocks {
    fn hash(&self, teller: Sender<u64>) -> io::Result<Vec<(u64, u128)>> {
        let (mut hashes, mut piece) = (Vec::new(), vec![0; PIECE_BYTES]);
        loop {
            let block = self.next.fetch_add(1, Ordering::Relaxed);
            if block >= self.count {
                return Ok(hashes);
            }
            hashes.push((block, self.hash_block(block, &mut piece, &teller).inspect_err(|_| self.end())?));
        }
    }

    // For the other threads too.
    fn end(&self) {
        self.next.store(self.count, Ordering::Relaxed);
    }

    fn hash_block(&self, block: u64, piece: &mut [u8], teller: &Sender<u64>) -> io::Result<u128> {
        let (mut context, start) = (Xxh3::new(), block.saturating_mul(BLOCK_BYTES));
        for offset in (start..start.saturating_add(BLOCK_BYTES)).step_by(PIECE_BYTES) {
            let length = durable::read_up_to(&self.file, piece, offset)?;
            context.update(&piece[..length]);
            teller.send(length as u64).map_err(io::Error::other)?;
            if length < piece.len() {
                break;
            }
        }
        Ok(context.digest128())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file_of(length: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(length).unwrap();
        for block in 0..length.div_ceil(BLOCK_BYTES) {
            file.as_file().write_at(&block.to_be_bytes(), block * BLOCK_BYTES).unwrap();
        }
        file
    }

    #[test]
    fn a_hash_is_of_the_blocks_hashes_in_their_order() {
        let file = file_of(2 * BLOCK_BYTES + 4096);
        let bytes = std::fs::read(file.path()).unwrap();
        let block_size = usize::try_from(BLOCK_BYTES).unwrap();
        let joined: Vec<u8> = bytes.chunks(block_size).flat_map(|block| xxh3_128(block).to_be_bytes()).collect();
        let mut told = 0;
        let found = hash(file.path(), &mut |bytes| {
            told += bytes;
            Ok(())
        })
        .unwrap();
        assert_eq!((found, told), (format!("{:032x}", xxh3_128(&joined)), bytes.len() as u64));
    }

    #[test]
    fn every_length_and_every_block_counts() {
        let lengths = [0, 1 << 20, (1 << 20) + 1, BLOCK_BYTES, BLOCK_BYTES + 1];
        let mut hashes: Vec<String> = lengths.iter().map(|length| hash(file_of(*length).path(), &mut |_| Ok(())).unwrap()).collect();
        hashes.sort();
        hashes.dedup();
        assert_eq!(hashes.len(), lengths.len());
    }

    #[test]
    fn who_wants_to_hear_no_more_ends_it() {
        let stopped = hash(file_of(4 * BLOCK_BYTES).path(), &mut |_| Err(Error::internal("test", "stopped")));
        assert!(stopped.is_err());
    }
}
