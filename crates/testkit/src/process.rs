//! Child processes that cannot outlive the test that owns them, and tools that must succeed.

use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use crate::{OrFail, fail};

/// A running child; dropping it kills (SIGKILL) and reaps it.
#[derive(Debug)]
pub struct Owned {
    child: Child,
    name: String,
}

impl Owned {
    /// Starts `command`.
    #[must_use]
    pub fn spawn(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().or_fail(format_args!("starting {name} (`make deps` installs it)"));
        Self { child, name }
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().or_fail(format_args!("asking for {}", self.name))
    }

    /// Kills with SIGKILL and reaps.
    pub fn kill9(&mut self) {
        self.child.kill().ok();
        self.child.wait().or_fail(format_args!("reaping {}", self.name));
    }

    /// Sends `signal`, e.g. `rustix::process::Signal::TERM`.
    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .or_fail(format_args!("sending {signal:?} to {}", self.name));
    }

    /// Waits for the end and gives the status; after `timeout` the test fails.
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let what = format!("{} to end", self.name);
        wait_for(&what, timeout, || self.ended())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Asks `probe` every 10 ms until it gives a value; after `timeout` the test fails, saying what it waited for.
#[track_caller]
pub fn wait_for<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        if Instant::now() >= deadline {
            fail(format_args!("waited {timeout:?} in vain for {what}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs to the end and gives stdout; a failure ends the test with what was printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        fail(format_args!("{command:?} ended with {}\n{stdout}{stderr}", output.status));
    }
    stdout
}

/// Runs to the end, whatever the exit code.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).output().or_fail(format_args!("starting {program} (`make deps` installs it)"))
}
