//! The disk writes an image while the hypervisor still copies into it.
//!
//! The kernel would begin only when much is waiting, and whoever closes the image then waits for all of it: under libvirt QEMU
//! does, and the guest with it.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::error::{Error, Result};

/// How much may wait to be written, about.
const WAITING_BYTES: u64 = 64 << 20;
const LOOK: Duration = Duration::from_millis(50);

/// Goes on until it is finished or dropped.
pub struct WriteBack {
    image: PathBuf,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl WriteBack {
    /// Begins for an image that is there.
    pub fn start(image: PathBuf) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (image, is_over) = (image.clone(), Arc::clone(&is_over));
            move || write_back(&image, &is_over)
        });
        Self { image, is_over, thread: Some(thread) }
    }

    /// Ends it. What failed is told here, since a disk tells an error but once.
    pub fn finish(mut self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        let written = self.thread.take().map_or(Ok(()), |thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        written.map_err(|error| Error::io("sync", &self.image, error))
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn write_back(image: &Path, is_over: &AtomicBool) -> io::Result<()> {
    let mut written = 0;
    while !is_over.load(Ordering::Relaxed) {
        let copied = image.metadata()?.blocks().saturating_mul(512);
        if copied >= written + WAITING_BYTES {
            sync(image)?;
            written = copied;
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Another process waits for the disk: we could not be killed meanwhile, and the guest may depend on that.
fn sync(image: &Path) -> io::Result<()> {
    let mut command = Command::new("sync");
    let output = command.args(["-d", "--"]).arg(image).stdin(Stdio::null()).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_written_while_it_grows_and_failures_are_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let back = WriteBack::start(file.path().to_owned());
        std::fs::write(file.path(), vec![1; 65 << 20]).unwrap();
        thread::sleep(LOOK * 3);
        back.finish().unwrap();
        let nowhere = WriteBack::start("/nowhere/image".into());
        while !nowhere.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            thread::sleep(LOOK);
        }
        assert!(nowhere.finish().is_err() && sync(Path::new("/nowhere/image")).is_err());
    }
}
