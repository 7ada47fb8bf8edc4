//! Small files of a repository outside packs (index, snapshot, lock): JSON, compressed, sealed, named by their SHA-256.

use std::io::{Cursor, Read};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::repository::backend::{Backend, FileKind};
use crate::repository::crypto::Key;
use crate::repository::id::Id;

/// First byte of a compressed file; `{` and `[` begin an uncompressed one.
const COMPRESSED: u8 = 2;
/// Largest such file that is read, bytes, sealed.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Largest content of one, bytes.
const CONTENT_BYTES_MAX: u64 = 1 << 30;

/// Writes a value as a file; durable and visible when this returns.
///
/// # Errors
/// When it cannot be written.
pub fn write(backend: &dyn Backend, key: &Key, kind: FileKind, value: &impl Serialize) -> Result<Id> {
    write_if(backend, key, kind, value, &|| Ok(()))
}

/// The same if a condition holds, see [`Backend::write_if`].
///
/// # Errors
/// When it cannot be written, and what the condition says.
pub fn write_if(
    backend: &dyn Backend,
    key: &Key,
    kind: FileKind,
    value: &impl Serialize,
    condition: &dyn Fn() -> Result<()>,
) -> Result<Id> {
    let json = serde_json::to_vec(value).map_err(|error| Error::internal("write JSON", error))?;
    let sealed = seal(key, &json)?;
    let id = Id::of(&sealed);
    backend.write_if(kind, &id, &sealed, condition)?;
    Ok(id)
}

/// The bytes of a file with this content.
///
/// # Errors
/// When the libraries refuse.
pub fn seal(key: &Key, json: &[u8]) -> Result<Vec<u8>> {
    let mut plain = vec![COMPRESSED];
    let packed = zstd::bulk::compress(json, 3).map_err(|error| Error::internal("compress", error))?;
    plain.extend_from_slice(&packed);
    key.seal(&plain)
}

/// Reads a file's value.
///
/// # Errors
/// [`Error::Damaged`] when it is not what its name says.
pub fn read<T: DeserializeOwned>(backend: &dyn Backend, key: &Key, kind: FileKind, id: &Id) -> Result<T> {
    let content = content(backend, key, kind, id)?;
    serde_json::from_reader(std::io::BufReader::new(content)).map_err(|error| Error::damaged(kind.noun(), id, error))
}

/// Reads a file and gives its content as a stream, so that large ones are not unpacked into memory.
///
/// # Errors
/// [`Error::Damaged`] when it is not what its name says.
pub fn content(backend: &dyn Backend, key: &Key, kind: FileKind, id: &Id) -> Result<Box<dyn Read>> {
    let damaged = |problem: &dyn ToString| Error::damaged(kind.noun(), id, problem.to_string());
    match backend.size(kind, id)? {
        Some(size) if size <= FILE_BYTES_MAX => {}
        Some(size) => return Err(damaged(&format!("it has {size} bytes, more than any such file"))),
        None => return Err(damaged(&"it is not there")),
    }
    let mut sealed = backend.read(kind, id)?;
    if Id::of(&sealed) != *id {
        return Err(damaged(&"its content does not hash to its name"));
    }
    let plain = key.open(&mut sealed).map_err(|error| damaged(&error))?;
    let first = plain.first().copied();
    let (start, length) = (crate::repository::crypto::NONCE_BYTES, plain.len());
    sealed.truncate(start.saturating_add(length));
    let mut cursor = Cursor::new(sealed);
    cursor.set_position(start as u64);
    match first {
        Some(COMPRESSED) => {
            cursor.set_position(start as u64 + 1);
            let unpacked = zstd::stream::read::Decoder::new(cursor).map_err(|error| damaged(&error))?;
            Ok(Box::new(unpacked.take(CONTENT_BYTES_MAX)))
        }
        Some(b'{' | b'[') => Ok(Box::new(cursor)),
        Some(_) | None => Err(damaged(&"it is of a version that is not known")),
    }
}
