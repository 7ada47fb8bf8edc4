//! The guest's serial console: what it printed, and lines of shell run in it.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::process::wait_for;
use crate::{OrFail, fail};

/// Output goes to the file `serial`, input comes from the pipe `serial.in` of the VM's folder or from a socket.
#[derive(Debug)]
pub struct Serial {
    log: PathBuf,
    input: File,
    commands: u32,
}

impl Serial {
    /// Makes the pipe. It is open for reading and writing here, so that neither end ever waits for the other.
    pub(crate) fn make(dir: &Path) -> Self {
        let (log, pipe) = (dir.join("serial"), dir.join("serial.in"));
        // What an earlier QEMU printed here must not be taken for this one's.
        std::fs::remove_file(&log).ok();
        if !pipe.exists() {
            mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).or_fail("making the console's pipe");
        }
        let input = File::options().read(true).write(true).open(&pipe).or_fail("opening the console's pipe");
        Self { log, input, commands: 0 }
    }

    /// A console that QEMU logs to the file `log` and serves on `socket`, one client at a time.
    #[track_caller]
    pub(crate) fn on_socket(log: PathBuf, socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).or_fail(format_args!("connecting to {}", socket.display()));
        let input = stream.try_clone().or_fail("duplicating a socket");
        // What nobody reads would hold the guest up. The thread ends with QEMU.
        std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        Self { log, input: File::from(OwnedFd::from(input)), commands: 0 }
    }

    /// All that the guest has printed.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `text` has been printed.
    #[track_caller]
    pub fn wait_for(&self, text: &str, timeout: Duration) {
        self.wait_times(text, 1, timeout);
    }

    /// Waits until `text` has been printed so many times.
    #[track_caller]
    pub fn wait_times(&self, text: &str, count: usize, timeout: Duration) {
        let found = wait_or_end(timeout, || self.log().matches(text).count() >= count);
        if !found {
            fail(format_args!("the guest did not print {text} {count} times within {timeout:?}; it printed:\n{}", self.log()));
        }
    }

    /// Fails the test if the guest has seen an I/O error, a damaged file system or a failed write.
    #[track_caller]
    pub fn assert_unharmed(&self) {
        let log = self.log();
        let bad = ["KM-WRITER-ERROR", "KM-MOUNT-ERROR", "I/O error", "EXT4-fs error", "EXT4-fs warning", "Kernel panic", "hung_task"];
        if let Some(line) = log.lines().find(|line| bad.iter().any(|word| line.contains(word))) {
            fail(format_args!("the guest was harmed: {line}"));
        }
    }

    /// Types a line.
    pub fn send(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).or_fail("typing into the console");
    }

    /// Runs a line of shell and gives what it printed; another exit code than 0 ends the test.
    #[track_caller]
    pub fn run(&mut self, line: &str, timeout: Duration) -> String {
        self.commands += 1;
        let id = self.commands;
        self.send(&format!("run {id} {line}"));
        let (done, printed) = (format!("KM-DONE {id} "), format!("KM-OUT {id} "));
        let code = wait_for(&format!("`{line}` in the guest"), timeout, || {
            let log = self.log();
            let rest = log.split(&done).nth(1)?;
            rest.contains('\n').then(|| rest.lines().next().unwrap_or_default().trim().to_owned())
        });
        let log = self.log();
        let text: String =
            log.lines().filter_map(|one| one.split_once(&printed)).map(|(_, text)| format!("{}\n", text.trim_end())).collect();
        if code != "0" {
            fail(format_args!("`{line}` in the guest ended with {code}: {text}"));
        }
        text
    }

    /// The heartbeats so far: number, guest's uptime in seconds, number of writes done by the writer.
    #[must_use]
    pub fn beats(&self) -> Vec<(u64, f64, u64)> {
        self.log().lines().filter_map(beat).collect()
    }

    /// Waits until the guest has beaten `count` times more.
    #[track_caller]
    pub fn wait_beats(&self, count: usize, timeout: Duration) {
        let before = self.beats().len();
        wait_for("the guest's heartbeat", timeout, || (self.beats().len() >= before + count).then_some(()));
    }

    /// Waits until the writer has written `count` times more.
    #[track_caller]
    pub fn wait_writes(&self, count: u64, timeout: Duration) {
        let writes = || self.beats().last().map_or(0, |beat| beat.2);
        let before = writes();
        wait_for("the guest's writer", timeout, || (writes() >= before + count).then_some(()));
    }
}

fn beat(line: &str) -> Option<(u64, f64, u64)> {
    let mut words = line.split_once("KM-BEAT ")?.1.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

fn wait_or_end(timeout: Duration, mut probe: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + timeout;
    while std::time::Instant::now() < deadline {
        if probe() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_is_read_from_anywhere_in_a_line() {
        assert_eq!(beat("[    3.1] KM-BEAT 7 12.50 3\r"), Some((7, 12.5, 3)));
        assert_eq!(beat("KM-BEAT 7 12"), None);
    }
}
