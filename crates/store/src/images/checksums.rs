//! The hashes of a backup's images, by which `verify --read-data` finds what has changed since they were written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::images::{durable, place};

const VERSION: u32 = 1;
const FILE_BYTES_MAX: u64 = 16 << 20;
const PIECE_BYTES: usize = 1 << 20;

/// The content of a backup's file of checksums.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksums {
    version: u32,
    /// The SHA-256 of each image. Two while an image is being exchanged: of the one that is there, and of the one that will be.
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
        if checksums.version > VERSION { Err(Error::damaged("file", path.display(), "a newer keepmark is needed")) } else { Ok(checksums) }
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

/// The SHA-256 of a file; `read` is told of bytes as they are read.
pub fn hash(path: &Path, read: &mut dyn FnMut(u64) -> Result<()>) -> Result<String> {
    let failed = |error| Error::io("read", path, error);
    let (mut file, mut context) = (File::open(path).map_err(failed)?, digest::Context::new(&digest::SHA256));
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(failed)? {
            0 => return Ok(hex::encode(context.finish())),
            length => {
                context.update(&piece[..length]);
                read(length as u64)?;
            }
        }
    }
}
