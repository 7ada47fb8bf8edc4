//! Files of a restored domain: private, durable, and never half there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Result, file};

// What is in a VM's disks and TPM is nobody's business; QEMU's user gets through to what libvirt gives it.
const PRIVATE: u32 = 0o600;
const PASSABLE: u32 = 0o711;

/// Makes a folder, and those above it, through which QEMU's user gets; one that is there stays as it is.
pub(super) fn folder(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(PASSABLE).create(path).map_err(file("create", path))
}

/// Writes a file, whole or not at all; its folder is made.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    folder(parent)?;
    let temporary = partial(path);
    // Left over by a run that died.
    drop(std::fs::remove_file(&temporary));
    let fill = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()
    };
    fill().map_err(file("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(file("create", path))?;
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(file("sync", parent))
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_private_in_a_folder_that_others_get_through() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b.partial"), "left over").unwrap();
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, PRIVATE);
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        write(&dir.path().join("c/d/e"), b"").unwrap();
        assert_eq!(std::fs::metadata(dir.path().join("c/d")).unwrap().permissions().mode() & 0o777, PASSABLE);
    }
}
