//! The hashes of a backup's images, by which `verify --read-data` finds what has changed since they were written.
//!
//! XXH3 with 128 bits, as `xxh128sum` prints it: it has to find bits that fell over, and who could change an image on purpose
//! could change its hash beside it as well. SHA-256 would take as long as QEMU takes to copy the data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, Result};
use crate::images::{durable, place};

const VERSION: u32 = 2;
const FILE_BYTES_MAX: u64 = 16 << 20;
const PIECE_BYTES: usize = 1 << 20;

/// The content of a backup's file of checksums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    version: u32,
    /// The XXH3 of each image, 128 bits in hexadecimal. Two while an image is being exchanged: of the one that is there, and of the one that will be.
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

/// The XXH3 of a file, 128 bits in hexadecimal; `read` is told of bytes as they are read.
pub fn hash(path: &Path, read: &mut dyn FnMut(u64) -> Result<()>) -> Result<String> {
    let failed = |error| Error::io("read", path, error);
    let (mut file, mut context) = (File::open(path).map_err(failed)?, Xxh3::new());
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => return Ok(format!("{:032x}", context.digest128())),
            length => {
                context.update(&piece[..length]);
                read(length as u64)?;
            }
        }
    }
}
