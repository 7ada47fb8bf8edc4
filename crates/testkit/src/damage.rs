//! Damage done to files, as bad disks and bad luck do it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{OrFail, fail};

/// Flips bit `bit` (0 to 7) of the byte at `offset`.
pub fn flip_bit(path: &Path, offset: u64, bit: u8) {
    let file = open(path);
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).or_fail(format_args!("reading {} at {offset}", path.display()));
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, offset).or_fail(format_args!("writing {} at {offset}", path.display()));
}

/// Flips a bit in the middle of the file.
pub fn flip_middle(path: &Path) {
    flip_bit(path, size(path) / 2, 3);
}

/// Cuts the file to `length` bytes.
pub fn truncate(path: &Path, length: u64) {
    open(path).set_len(length).or_fail(format_args!("truncating {}", path.display()));
}

/// Cuts off the second half.
pub fn halve(path: &Path) {
    truncate(path, size(path) / 2);
}

/// Removes the file.
pub fn delete(path: &Path) {
    std::fs::remove_file(path).or_fail(format_args!("removing {}", path.display()));
}

/// Overwrites the whole file with zeros of the same length.
pub fn zero(path: &Path) {
    let length = size(path);
    truncate(path, 0);
    truncate(path, length);
}

/// Replaces the file's content.
pub fn replace(path: &Path, content: &[u8]) {
    make_writable(path);
    std::fs::write(path, content).or_fail(format_args!("writing {}", path.display()));
}

/// All files under `dir`, sorted by path; fails if there are none.
#[must_use]
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(dir, &mut found);
    if found.is_empty() {
        fail(format_args!("no files under {}", dir.display()));
    }
    found.sort();
    found
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).or_fail(format_args!("listing {}", dir.display())) {
        let path = entry.or_fail(format_args!("listing {}", dir.display())).path();
        if path.is_dir() { collect(&path, found) } else { found.push(path) }
    }
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).or_fail(format_args!("asking for {}", path.display())).len()
}

fn open(path: &Path) -> File {
    make_writable(path);
    OpenOptions::new().read(true).write(true).open(path).or_fail(format_args!("opening {}", path.display()))
}

/// Repositories keep their files read-only.
fn make_writable(path: &Path) {
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::chmod(path, mode).or_fail(format_args!("making {} writable", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_does_what_it_says() {
        let dir = crate::tmp();
        let path = dir.path().join("file");
        std::fs::write(&path, [0_u8; 8]).unwrap();
        flip_middle(&path);
        assert_eq!(std::fs::read(&path).unwrap(), [0, 0, 0, 0, 8, 0, 0, 0]);
        halve(&path);
        assert_eq!(size(&path), 4);
        replace(&path, b"x");
        zero(&path);
        assert_eq!(std::fs::read(&path).unwrap(), [0]);
        assert_eq!(files(dir.path()), [path.as_path()]);
        delete(&path);
        assert!(!path.exists());
    }
}
