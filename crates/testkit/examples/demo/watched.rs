//! One backup of the running VM, watched from outside: QEMU's own copy of its moment, and what QEMU read meanwhile.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use keepmark_testkit::{Keepmark, OrFail, PauseWitness, Qemu, QmpProxy, Verdict, Witness};
use serde_json::Value;

/// What came of a watched backup.
pub struct Watched {
    /// keepmark's object `finished`.
    pub answer: Value,
    /// QEMU's copy of the same frozen moment.
    pub witness: Witness,
    /// How long the guest's processors stood still, without the time in which that copy was made.
    pub pause: Duration,
    /// Bytes that QEMU's process read from files between the pause and the end of the export, by the kernel's count.
    pub qemu_read: u64,
}

/// Stands between keepmark and QEMU: keepmark, our proxy, the witness' proxy, QEMU.
pub struct Watch {
    proxy: QmpProxy,
    witness: PauseWitness,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    point_fixed: bool,
    stopping: Option<Instant>,
    pause: Duration,
    is_resuming: bool,
    read_at_start: u64,
    read_at_end: Option<u64>,
}

impl Watch {
    /// Attaches to a VM that has just been started; the folder must be new.
    pub fn attach(qemu: &Qemu, folder: &Path) -> Self {
        let witness = PauseWitness::attach(qemu, folder);
        let inner = PathBuf::from(witness.vm().trim_start_matches("qmp:"));
        let (seen, process) = (Arc::new(Mutex::new(Seen::default())), qemu.id());
        let shared = Arc::clone(&seen);
        let proxy = QmpProxy::start(&folder.join("outer"), &inner, move |message| {
            lock(&shared).see(message["execute"].as_str().unwrap_or_default(), process);
            Verdict::Forward
        });
        Self { proxy, witness, seen }
    }

    /// Backs up through it.
    pub fn backup(&self, keepmark: &Keepmark) -> Watched {
        *lock(&self.seen) = Seen::default();
        let answer = keepmark.backup(&self.proxy.vm(), &[]);
        let witness = self.witness.take();
        let seen = lock(&self.seen);
        let end = seen.read_at_end.or_fail("keepmark never deleted its export");
        Watched { answer, witness, pause: seen.pause, qemu_read: end - seen.read_at_start }
    }
}

impl Seen {
    /// The first command after `cont` comes when that has been answered, so the witness has its copy and the VM runs again.
    fn see(&mut self, command: &str, process: u32) {
        if std::mem::take(&mut self.is_resuming) {
            self.read_at_start = read_by(process);
        }
        match command {
            "transaction" => self.point_fixed = true,
            "stop" => self.stopping = Some(Instant::now()),
            "cont" if std::mem::take(&mut self.point_fixed) => {
                self.is_resuming = true;
                self.pause = self.stopping.map_or(Duration::ZERO, |since| since.elapsed());
            }
            "block-export-del" if self.read_at_end.is_none() => self.read_at_end = Some(read_by(process)),
            _ => {}
        }
    }
}

/// Bytes that a process has read from files, from the page cache or not.
fn read_by(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/io")).or_fail("reading QEMU's I/O counters");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.and_then(|number| number.parse().ok()).or_fail("the kernel counts no reads")
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
