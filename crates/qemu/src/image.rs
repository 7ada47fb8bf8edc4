//! New images for restores: made by `qemu-img`, written through a qemu-storage-daemon over NBD, so that any format will do.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keepmark_model::opening::{ImageFormat, Permit, Purpose};
use keepmark_model::{Extent, Size};
use keepmark_nbd::{Address, Client, Options};
use serde_json::json;

use crate::error::{Error, Result};
use crate::offline::complaint::explain;
use crate::offline::daemon::Daemon;
use crate::opening::{Manner, look, node};
use crate::{folder, program};

const EXPORT: &str = "target";
const COMMAND_WAIT: Duration = Duration::from_secs(60);

/// Makes an empty image of `size` bytes out of an open file of ours, whatever its name leads to by now.
///
/// # Errors
/// When `qemu-img` fails.
pub fn create(open: &File, format: ImageFormat, size: Size) -> Result<()> {
    let output = program::end("qemu-img create", start_create(open, format, size.0)?, program::CREATE_WAIT)?;
    program::check("qemu-img create", Ok(output)).map(drop)
}

// The file must stay open until the program has ended.
pub(crate) fn start_create(open: &File, format: ImageFormat, size: u64) -> Result<Child> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", format.word()]).arg(folder::name_of(open)).arg(size.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(|source| Error::Spawn { program: "qemu-img".into(), source })
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
        Self::start(&path, &path, format, run_dir)
    }

    /// As [`ImageWriter::open`], of an open file of ours; `called` is its name in messages.
    ///
    /// # Errors
    /// As [`ImageWriter::open`].
    pub fn of(open: &File, called: &Path, format: ImageFormat, run_dir: &Path) -> Result<Self> {
        Self::start(&folder::name_of(open), called, format, run_dir)
    }

    fn start(path: &Path, called: &Path, format: ImageFormat, run_dir: &Path) -> Result<Self> {
        let mut daemon = Daemon::start(run_dir, COMMAND_WAIT)?;
        let permit = Permit::of_new(path, format, look(path)?.storage);
        for image in permit.layers() {
            let manner = Manner { name: EXPORT, below: None, read_only: !permit.is_writable(0, Purpose::Write), discard: true };
            daemon.qmp.run("blockdev-add", node(image, manner)?).map_err(|error| explain(error, called))?;
        }
        let socket = daemon.workspace.path().join("nbd");
        let address = json!({ "type": "unix", "data": { "path": crate::error::text(&socket)? } });
        daemon.qmp.run("nbd-server-start", json!({ "addr": address }))?;
        daemon
            .qmp
            .run("block-export-add", json!({ "type": "nbd", "id": EXPORT, "node-name": EXPORT, "name": EXPORT, "writable": true }))?;
        Ok(Self { daemon, path: called.to_owned(), socket })
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

    /// Makes everything durable and closes the image, however long that takes, unless `interrupted` says so. All handles must be done.
    ///
    /// # Errors
    /// When anything could not be made durable: the image is not to be used then.
    pub fn finish(self, interrupted: &dyn Fn() -> bool) -> Result<()> {
        self.handle()?.flush_unless(interrupted)?;
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
        self.flush_unless(&|| false)
    }

    fn flush_unless(&mut self, interrupted: &dyn Fn() -> bool) -> Result<()> {
        let result = self.client.flush_unless(interrupted);
        self.named(result)
    }

    fn named(&self, result: keepmark_nbd::Result<()>) -> Result<()> {
        result.map_err(|source| Error::Write { image: self.path.clone(), source })
    }
}
