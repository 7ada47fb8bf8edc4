//! Temporary folders with space for disks and names short enough for sockets.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::OrFail;

/// A new folder, removed when dropped. It lies on a real disk where there is one (a `/tmp` in memory is too small for disks and
/// knows no `O_DIRECT`), and its path is short: a socket's path must stay below 108 bytes.
#[must_use]
pub fn tmp() -> TempDir {
    let base = std::env::var_os("KEEPMARK_TEST_TMP").map_or_else(default_base, PathBuf::from);
    tempfile::Builder::new().prefix("km-").tempdir_in(&base).or_fail(format_args!("making a folder in {}", base.display()))
}

/// A path in a folder that nobody had yet: `kind` and a number.
#[must_use]
#[track_caller]
pub fn fresh(folder: &Path, kind: &str) -> PathBuf {
    let used = std::fs::read_dir(folder).or_fail(format_args!("listing {}", folder.display())).count();
    let mut paths = (used..).map(|number| folder.join(format!("{kind}{number}")));
    paths.find(|path| !path.exists()).or_fail("numbers never end")
}

fn default_base() -> PathBuf {
    let on_disk = Path::new("/var/tmp");
    if on_disk.is_dir() { on_disk.to_owned() } else { std::env::temp_dir() }
}
