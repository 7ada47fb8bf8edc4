//! How long a guest's writes took: the longest time in which its count of finished, synced writes stood still.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Watches a guest from its making on. The guest tells its count every 0.2 s.
pub struct Pulse {
    is_over: Arc<AtomicBool>,
    watcher: JoinHandle<Duration>,
}

impl Pulse {
    /// Of the guest whose console prints to this file.
    pub fn of(console: PathBuf) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_over);
        Self { is_over, watcher: std::thread::spawn(move || watch(&console, &flag)) }
    }

    /// The longest wait so far, and the end of watching.
    pub fn longest(self) -> Duration {
        self.is_over.store(true, Ordering::Relaxed);
        self.watcher.join().unwrap()
    }
}

fn watch(console: &Path, is_over: &AtomicBool) -> Duration {
    let (mut count, mut since, mut longest) = (writes(console), Instant::now(), Duration::ZERO);
    while !is_over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
        longest = longest.max(since.elapsed());
        let now = writes(console);
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    longest
}

/// `KM-BEAT number uptime writes`, in the last line that is complete.
fn writes(console: &Path) -> Option<u64> {
    let printed = std::fs::read(console).unwrap_or_default();
    let printed = String::from_utf8_lossy(&printed);
    let (complete, _) = printed.rsplit_once('\n')?;
    let (_, beat) = complete.rsplit_once("KM-BEAT ")?;
    beat.split_whitespace().nth(2)?.parse().ok()
}
