//! What a permit allows, as nodes of QEMU's: every driver, file and image below is said, so that QEMU follows nothing by itself.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use keepmark_model::opening::head::{self, HEAD_BYTES};
use keepmark_model::opening::{Look, PermittedImage, Storage};
use rustix::fs::OFlags;
use serde_json::{Value, json};

use crate::error::{Error, Result, file, text};

/// Looks at what an image claims to be, without QEMU: bounded, for reading only, and never waiting for anybody.
///
/// # Errors
/// When it is neither a regular file nor a block device, or cannot be read.
pub(crate) fn look(image: &Path) -> Result<Look> {
    // A pipe or a character device is not even opened.
    let storage = storage(image, &fs::metadata(image).map_err(file("look at", image))?)?;
    let opened = OpenOptions::new().read(true).custom_flags(quietly()).open(image).map_err(file("open", image))?;
    if storage != self::storage(image, &opened.metadata().map_err(file("look at", image))?)? {
        return Err(Error::Image { image: image.to_owned(), problem: "it was exchanged while it was looked at".into() });
    }
    let head = read_head(opened).map_err(file("read", image))?;
    Ok(Look { storage, head: head::read(&head) })
}

fn quietly() -> i32 {
    i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0)
}

fn storage(image: &Path, meta: &fs::Metadata) -> Result<Storage> {
    match meta.file_type() {
        kind if kind.is_file() => Ok(Storage::File),
        kind if kind.is_block_device() => Ok(Storage::Device),
        _ => Err(Error::Image { image: image.to_owned(), problem: "it is neither a file nor a block device".into() }),
    }
}

fn read_head(opened: File) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    opened.take(u64::try_from(HEAD_BYTES).unwrap_or(u64::MAX)).read_to_end(&mut head)?;
    Ok(head)
}

/// How a node is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// The node of the image below, if one is.
    pub(crate) below: Option<&'a str>,
    /// Whether it is only read.
    pub(crate) read_only: bool,
    /// Whether zeros and discards free space.
    pub(crate) discard: bool,
}

/// The `blockdev-add` of an image.
///
/// # Errors
/// When its path is not UTF-8.
pub(crate) fn node(image: &PermittedImage, manner: Manner<'_>) -> Result<Value> {
    let mut node = json!({
        "driver": image.format.word(),
        "node-name": manner.name,
        "read-only": manner.read_only,
        "file": storage_node(&image.path, image.storage, manner.discard)?,
    });
    if image.format.can_lie_on_another() {
        node["backing"] = manner.below.map_or(Value::Null, Value::from);
    }
    if let Some((data, storage)) = &image.data_file {
        node["data-file"] = storage_node(data, *storage, manner.discard)?;
    }
    if manner.discard {
        node["discard"] = "unmap".into();
    }
    Ok(node)
}

fn storage_node(path: &Path, storage: Storage, discard: bool) -> Result<Value> {
    let driver = match storage {
        Storage::File => "file",
        Storage::Device => "host_device",
    };
    let mut node = json!({ "driver": driver, "filename": text(path)? });
    if discard {
        node["discard"] = "unmap".into();
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_are_looked_at_and_nobody_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for image in [pipe.as_path(), Path::new("/dev/zero"), folder.path()] {
            assert!(look(image).unwrap_err().to_string().contains("neither a file nor a block device"));
        }
        let image = folder.path().join("image");
        fs::write(&image, b"KDMV").unwrap();
        assert!(look(&image).unwrap().head.problem.is_some());
    }
}
