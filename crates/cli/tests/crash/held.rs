//! A backup that is held while its moment is fixed and nothing of it is read yet, made by either of the two methods.
//!
//! It is held before the last of its two exports; stopped there as a process, it goes on to reading without another command.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use keepmark_testkit::{KeepmarkRun, QmpProxy, RunningKeepmark, Verdict};
use rustix::process::Signal;

use crate::live::Rig;

const PATIENCE: Duration = Duration::from_secs(90);

/// How keepmark has QEMU keep the old content of what the guest overwrites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Copy-before-write filters (QEMU >= 7.1).
    Filters,
    /// `blockdev-backup sync=none` jobs: QEMU is said to be too old for filters.
    Jobs,
}

/// A backup in the background, which stands before its first export.
pub struct Held {
    running: RunningKeepmark,
    open: Sender<()>,
    /// Who works for keepmark when it is dead comes through it too.
    _proxy: QmpProxy,
}

impl Held {
    /// Starts a full backup and waits until it stands there.
    #[track_caller]
    pub fn start(rig: &mut Rig, method: Method) -> Self {
        let (reached_sender, reached) = channel();
        let (open, opened) = channel();
        let mut is_armed = true;
        // The newest whose filters would fail the guest's writes.
        let version = (method == Method::Jobs).then_some((7, 0));
        let proxy = QmpProxy::start_as(version, &rig.lab.path("held"), &rig.qemu.qmp_socket(), move |message| {
            let command = message["execute"].as_str().unwrap_or_default();
            let is_last = command == "block-export-add" && message["arguments"]["id"].as_str().is_some_and(|id| id.ends_with("-e1"));
            if is_last && std::mem::take(&mut is_armed) {
                hold(&reached_sender, &opened);
            }
            Verdict::Forward
        });
        let running = rig.lab.keepmark.spawn(&["backup", &proxy.vm(), "--kind", "full"]);
        reached.recv_timeout(PATIENCE).unwrap();
        Self { running, open, _proxy: proxy }
    }

    /// Stops all of it, with its moment exported.
    pub fn stop(&self) {
        self.running.process.signal(Signal::STOP);
        self.open();
        std::thread::sleep(Duration::from_millis(500));
    }

    /// Lets it go on after that.
    pub fn go_on(&self) {
        self.running.process.signal(Signal::CONT);
    }

    /// Lets it go on.
    pub fn open(&self) {
        self.open.send(()).unwrap();
    }

    /// Kills it where it stands; its connections end too.
    pub fn kill(&mut self) {
        self.running.process.kill9();
        self.open();
    }

    /// Waits for its end.
    #[track_caller]
    pub fn end(self) -> KeepmarkRun {
        self.running.wait(PATIENCE)
    }
}

/// A test that has ended without opening it has failed already.
fn hold(reached: &Sender<()>, opened: &Receiver<()>) {
    reached.send(()).unwrap();
    opened.recv_timeout(PATIENCE).ok();
}
