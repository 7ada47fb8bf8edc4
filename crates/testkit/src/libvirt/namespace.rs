//! Mount, process and network namespaces of a test's own, and the processes in them.

use std::io::PipeWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::process::{Owned, wait_for};
use crate::{OrFail, fail};

const SCRIPT: &str = include_str!("namespace.sh");
// libvirtd that is told to end waits up to 30 s for what it is still doing.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Namespaces that last as long as this value. Dropping it, or the death of the test, ends every process in them.
#[derive(Debug)]
pub(super) struct Namespace {
    /// Its first process waits for the end of this pipe.
    alive: Option<PipeWriter>,
    /// `unshare`, which ends when all others have ended.
    holder: Owned,
    /// The process namespace as the kernel calls it.
    link: PathBuf,
    first: u32,
}

impl Namespace {
    /// Makes the namespaces over the folders in `dir`. Needs root.
    #[track_caller]
    pub(super) fn enter(dir: &Path) -> Self {
        let (reader, alive) = std::io::pipe().or_fail("making a pipe");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]);
        command.args(["sh", "-c", SCRIPT, "namespace.sh"]).arg(dir).stdin(Stdio::from(reader)).stdout(Stdio::null());
        let mut holder = Owned::spawn(&mut command);
        let ready = dir.join("ready");
        wait_for("the namespaces of a libvirt host", TIMEOUT, || {
            if let Some(status) = holder.ended() {
                fail(format_args!("making namespaces ended with {status} (it needs root)"));
            }
            ready.exists().then_some(())
        });
        let link = std::fs::read_link(format!("/proc/{}/ns/pid_for_children", holder.id())).or_fail("asking for the new namespace");
        let mut made = Self { alive: Some(alive), holder, link, first: 0 };
        made.first = made.outer_id(1).or_fail("the new namespace has no first process");
        made
    }

    /// A command that runs in them.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.to_string(), "--mount", "--pid", "--net", "--wdns=/", "--", program]);
        command
    }

    /// All processes in them, by the ids that they have outside.
    pub(super) fn processes(&self) -> Vec<u32> {
        let entries = std::fs::read_dir("/proc").or_fail("listing processes");
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id| std::fs::read_link(format!("/proc/{id}/ns/pid")).is_ok_and(|link| link == self.link)).collect()
    }

    /// The id outside of the process that has the id `inner` inside.
    pub(super) fn outer_id(&self, inner: u32) -> Option<u32> {
        self.processes().into_iter().find(|&id| inner_id(id) == Some(inner))
    }

    /// Sends a signal to a process in them.
    #[track_caller]
    pub(super) fn signal(&self, outer: u32, signal: Signal) {
        let id = i32::try_from(outer).ok().and_then(Pid::from_raw).or_fail("a process has an id");
        kill_process(id, signal).or_fail(format_args!("sending {signal:?} to process {outer}"));
    }

    /// Kills a process in them and waits until it has been reaped.
    #[track_caller]
    pub(super) fn end(&self, outer: u32, signal: Signal) {
        self.signal(outer, signal);
        wait_for("a process to end", TIMEOUT, || (!self.processes().contains(&outer)).then_some(()));
    }
}

impl Drop for Namespace {
    /// The kernel ends the first process only after all others are gone, and `unshare` waits for it.
    fn drop(&mut self) {
        drop(self.alive.take());
        if !std::thread::panicking() {
            self.holder.wait(TIMEOUT);
        }
    }
}

/// The id that a process has in its innermost namespace.
fn inner_id(outer: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{outer}/status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().next_back()?.parse().ok()
}
