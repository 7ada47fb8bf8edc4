//! Killing libvirtd exactly when it touches a file.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::OrFail;
use crate::process::{Owned, wait_for};

/// A trap for a libvirtd; dropping it takes the trap away.
#[derive(Debug)]
pub struct Strike {
    strace: Owned,
}

impl Strike {
    /// Lays it: the process dies at the entry of its first system call that names `path`, or a file opened as that.
    #[track_caller]
    pub(super) fn lay(process: u32, path: &str, log: &Path) -> Self {
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=%file,%desc", "-e", "inject=all:signal=SIGKILL", "-P", path]);
        command.args(["-p", &process.to_string(), "-o"]).arg(log).stdin(Stdio::null()).stderr(Stdio::null());
        let mut strace = Owned::spawn(&mut command);
        wait_for("strace to trace libvirtd", Duration::from_secs(20), || {
            assert!(strace.ended().is_none(), "strace ended: may it trace?");
            all_threads_traced(process).then_some(())
        });
        Self { strace }
    }

    /// Waits until it has struck.
    #[track_caller]
    pub fn wait(mut self, timeout: Duration) {
        self.strace.wait(timeout);
    }
}

fn all_threads_traced(process: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).or_fail("libvirtd is gone");
    tasks.flatten().all(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}
