//! Watches the scratch's free space beside a backup by jobs, ours or libvirt's: QEMU would fail the guest's writes when there is none
//! left, so the frozen moment is given up before.
//!
//! A thread of its own does that, since the backup may wait for its store just then.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::error::{Error, Result};

const CHECK: Duration = Duration::from_millis(100);
/// What must stay free, bytes: more than a guest writes between two looks.
pub const SPACE_BYTES_MIN: u64 = 256 << 20;

/// Whether the moment still is what it was; asked by who reads it.
#[derive(Debug, Clone)]
pub struct Validity {
    is_over: Arc<AtomicBool>,
    scratch: PathBuf,
}

impl Validity {
    /// To be asked after each reply and before it is believed: the moment is given up only after this says so.
    ///
    /// # Errors
    /// When the moment was given up.
    pub fn check(&self) -> Result<()> {
        if self.is_over.load(Ordering::SeqCst) { Err(Error::ScratchFull { folder: self.scratch.clone() }) } else { Ok(()) }
    }
}

/// The watch; dropping it ends it.
#[derive(Debug)]
pub struct SpaceWatch {
    validity: Validity,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SpaceWatch {
    /// Begins to watch a folder. When there is too little space, `give_up` ends what copies into it, on the watch's own thread.
    #[must_use]
    pub fn start(scratch: &Path, give_up: impl FnOnce() + Send + 'static) -> Self {
        let validity = Validity { is_over: Arc::default(), scratch: scratch.to_owned() };
        let (end, ended) = mpsc::channel();
        let watched = validity.clone();
        let thread = std::thread::spawn(move || {
            while has_space(&watched.scratch) {
                if ended.recv_timeout(CHECK) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
            watched.is_over.store(true, Ordering::SeqCst);
            give_up();
        });
        Self { validity, end: Some(end), thread: Some(thread) }
    }

    /// For the readers.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity.clone()
    }
}

impl Drop for SpaceWatch {
    fn drop(&mut self) {
        self.end = None;
        // It looks at nothing but the free space, and has nothing to say.
        drop(self.thread.take().map(JoinHandle::join));
    }
}

/// Whether there is more than what must stay free. What cannot be asked is not taken for full.
#[must_use]
pub fn has_space(folder: &Path) -> bool {
    let free = |space: rustix::fs::StatVfs| space.f_bavail.saturating_mul(space.f_frsize);
    rustix::fs::statvfs(folder).map_or(true, |space| free(space) >= SPACE_BYTES_MIN)
}
