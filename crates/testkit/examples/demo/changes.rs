//! What really changed between two moments, found by comparing QEMU's copies of them chunk by chunk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use keepmark_testkit::{OrFail, Witness};

/// keepmark's default chunk, in bytes.
pub const CHUNK: usize = 256 << 10;

/// Chunks that differ.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Bytes of those that hold data now: what a backup cannot avoid reading.
    pub data: u64,
    /// Bytes of those that hold only zeros now, such as discarded ones.
    pub zeroed: u64,
}

/// Compares two moments of the disks called `disks`.
pub fn between(before: &Witness, after: &Witness, disks: &[&str]) -> Changes {
    let mut changes = Changes::default();
    for disk in disks {
        count(&before.image(disk), &after.image(disk), &mut changes);
    }
    changes
}

fn count(before: &Path, after: &Path, changes: &mut Changes) {
    let (mut before, mut after) = (open(before), open(after));
    loop {
        let (was, is) = (chunk(&mut before), chunk(&mut after));
        if is.is_empty() {
            return;
        }
        if was != is {
            let data = is.iter().any(|&byte| byte != 0);
            *if data { &mut changes.data } else { &mut changes.zeroed } += is.len() as u64;
        }
    }
}

fn open(path: &Path) -> File {
    File::open(path).or_fail(format_args!("opening {}", path.display()))
}

fn chunk(file: &mut File) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CHUNK);
    file.take(CHUNK as u64).read_to_end(&mut bytes).or_fail("reading a witness");
    bytes
}
