//! New images for restores: made by `qemu-img`, written through a qemu-storage-daemon over NBD, so that any format will do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_model::opening::{ImageFormat, Permit, Purpose};
use keepmark_model::{Extent, Size};
use keepmark_nbd::{Address, Client, Options};
use serde_json::json;

use crate::error::{Error, Result};
use crate::offline::complaint::explain;
use crate::offline::daemon::Daemon;
use crate::opening::{Manner, look, node};
use crate::program;

const EXPORT: &str = "target";
const COMMAND_WAIT: Duration = Duration::from_secs(60);

/// Makes an empty image of `size` bytes. An existing file is overwritten: whether it may be is the caller's question.
///
/// # Errors
/// When `qemu-img` fails.
pub fn create(path: &Path, format: ImageFormat, size: Size) -> Result<()> {
    let (path, size) = (std::path::absolute(path).map_err(crate::error::file("find", path))?, size.0.to_string());
    let arguments = ["create".as_ref(), "-q".as_ref(), "-f".as_ref(), format.word().as_ref(), path.as_os_str(), size.as_ref()];
    program::run("qemu-img", arguments, program::CREATE_WAIT).map(drop)
}

/// An image open for writing. Dropped without [`ImageWriter::finish`], what was written may be incomplete.
#[derive(Debug)]
pub struct ImageWriter {
    daemon: Daemon,
    path: PathBuf,
    socket: PathBuf,
}

impl ImageWriter {
    /// Opens an image or block device that is ours to fill. Its format is the one that it was made in; sockets go under `run_dir`.
    ///
    /// # Errors
    /// When it cannot be opened for writing; [`Error::ImageInUse`] when another process has it.
    pub fn open(path: &Path, format: ImageFormat, run_dir: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(crate::error::file("find", path))?;
        let mut daemon = Daemon::start(run_dir, COMMAND_WAIT)?;
        let permit = Permit::of_new(&path, format, look(&path)?.storage);
        for image in permit.layers() {
            let manner = Manner { name: EXPORT, below: None, read_only: !permit.is_writable(0, Purpose::Write), discard: true };
            daemon.qmp.run("blockdev-add", node(image, manner)?).map_err(|error| explain(error, &path))?;
        }
        let socket = daemon.workspace.path().join("nbd");
        let address = json!({ "type": "unix", "data": { "path": crate::error::text(&socket)? } });
        daemon.qmp.run("nbd-server-start", json!({ "addr": address }))?;
        daemon
            .qmp
            .run("block-export-add", json!({ "type": "nbd", "id": EXPORT, "node-name": EXPORT, "name": EXPORT, "writable": true }))?;
        Ok(Self { daemon, path, socket })
    }

    /// A connection to write through; each thread takes its own.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn handle(&self) -> Result<WriterHandle> {
        let client = Client::connect(&Address::Unix(self.socket.clone()), &Options::new(EXPORT));
        let client = client.map_err(|source| Error::Write { image: self.path.clone(), source })?;
        Ok(WriterHandle { client, path: self.path.clone() })
    }

    /// Makes everything durable and closes the image. All handles must be done.
    ///
    /// # Errors
    /// When anything could not be made durable: the image is not to be used then.
    pub fn finish(self) -> Result<()> {
        self.handle()?.flush()?;
        self.daemon.quit()
    }
}

/// One connection to an image being written.
#[derive(Debug)]
pub struct WriterHandle {
    client: Client,
    path: PathBuf,
}

impl WriterHandle {
    /// What a guest would see as the disk's size.
    #[must_use]
    pub fn size(&self) -> Size {
        Size(self.client.info().size)
    }

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let result = self.client.write_all_at(offset, bytes);
        self.named(result)
    }

    /// Writes many pieces, several at once, in no particular order; `Err` items end it.
    ///
    /// # Errors
    /// When any cannot be written, or the first `Err` item.
    pub fn write_many<B: AsRef<[u8]>>(&mut self, pieces: &mut dyn Iterator<Item = (u64, B)>, in_flight: usize) -> Result<()> {
        let result = self.client.write_many(&mut pieces.map(Ok::<_, keepmark_nbd::Error>), in_flight);
        self.named(result)
    }

    /// Makes a range read as zeros, without storing any where the format can.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn zero(&mut self, range: Extent) -> Result<()> {
        let result = self.client.write_zeroes(range.start, range.len());
        self.named(result)
    }

    /// Returns when everything written through any handle so far is durable.
    ///
    /// # Errors
    /// When it is not: the image is not to be used then.
    pub fn flush(&mut self) -> Result<()> {
        let result = self.client.flush();
        self.named(result)
    }

    fn named(&self, result: keepmark_nbd::Result<()>) -> Result<()> {
        result.map_err(|source| Error::Write { image: self.path.clone(), source })
    }
}
