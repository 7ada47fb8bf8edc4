//! Files that are there whole or not at all: written beside, synced, renamed, and their folder synced.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::error::{Error, Result};
use crate::folders;
use crate::images::place::temporary_name;

/// Writes a file durably; what was there before is there until all of the new one is.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_file_name(temporary_name());
    let written = write_new(&temporary, bytes).and_then(|()| rename(&temporary, path));
    if written.is_err() {
        // Swept later if it cannot be removed now.
        drop(fs::remove_file(&temporary));
    }
    written
}

/// What goes into a file, which is there already, empty and under another name.
pub type Content<'a> = &'a dyn Fn(&Path) -> Result<Vec<u8>>;

/// Writes a file anew, durably; what was there before is there until all of the new one is.
pub fn replace(path: &Path, content: Content<'_>) -> Result<()> {
    let temporary = path.with_file_name(temporary_name());
    let written = fill_new(&temporary, content).and_then(|()| rename(&temporary, path));
    written.inspect_err(|_| drop(fs::remove_file(&temporary)))
}

fn fill_new(path: &Path, content: Content<'_>) -> Result<()> {
    let failed = |error| Error::io("write", path, error);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(&content(path)?).and_then(|()| file.sync_all()).map_err(failed)
}

/// Writes a file that is not there yet, durably, and whole from when on it has its name.
pub fn create(path: &Path, content: Content<'_>) -> Result<()> {
    let temporary = path.with_file_name(temporary_name());
    let named = || folders::rename_new(&temporary, path).map_err(|error| Error::io("create", path, error));
    let settled = || folders::sync(path.parent().unwrap_or(Path::new("."))).inspect_err(|_| drop(fs::remove_file(path)));
    fill_new(&temporary, content).and_then(|()| named()).inspect_err(|_| drop(fs::remove_file(&temporary)))?;
    settled()
}

/// Writes a file that is not there yet, for the owner only, and syncs it but not its name.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| Error::io("write", path, error))
}

/// Renames, and makes that durable.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| Error::io("rename to", to, error))?;
    folders::sync(to.parent().unwrap_or(Path::new(".")))
}

/// Makes a file's content durable.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| Error::io("sync", path, error))
}

/// Reads a file of `bytes_max` bytes at most. No link is followed: it could lead out of the store.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    folders::read_regular(path, bytes_max).map_err(|error| Error::io("read", path, error))
}

/// Fills a buffer from an offset, or what there is; bytes read.
pub fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], offset.saturating_add(length as u64))? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

/// Removes a file, which may be gone already.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => folders::sync(path.parent().unwrap_or(Path::new("."))),
    }
}

/// Removes a file or a folder with all that is in it, which may be gone already.
pub fn remove_all(path: &Path) -> Result<()> {
    let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}
