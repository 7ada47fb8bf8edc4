//! Small files of the local cache: written beside and renamed, behind the SHA-256 of what they hold.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::repository::id::{ID_BYTES, Id};

/// The content of a file, if it is there and whole.
#[must_use]
pub fn load(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (sum, content) = bytes.split_first_chunk::<ID_BYTES>()?;
    (Id::of(content) == Id(*sum)).then(|| content.to_vec())
}

/// Replaces a file. It is not synced: a cache that is lost costs time only.
///
/// # Errors
/// When the folder cannot be written.
pub fn save(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temporary = path.with_file_name(format!("{name}-{:016x}.tmp", rand::random::<u64>()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(&Id::of(content).0).and_then(|()| file.write_all(content)).and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))
}
