//! A QMP proxy that holds a program back before a command, until the test has done what it wants to.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use keepmark_testkit::{Qemu, QmpProxy, Verdict};

use crate::lab::Lab;

/// Holds every client of the proxy at the first command of a name.
pub struct Gate {
    proxy: QmpProxy,
    reached: Receiver<()>,
    open: Sender<()>,
}

impl Gate {
    pub fn before(command: &'static str, qemu: &Qemu, lab: &Lab) -> Self {
        let (reached_sender, reached) = channel();
        let (open, opened) = channel();
        let mut armed = true;
        let proxy = QmpProxy::start(&lab.path("gate"), &qemu.qmp_socket(), move |message| {
            if armed && message["execute"] == command {
                armed = false;
                reached_sender.send(()).unwrap();
                // A test that has ended without opening it has failed already.
                opened.recv_timeout(Duration::from_secs(60)).ok();
            }
            Verdict::Forward
        });
        Self { proxy, reached, open }
    }

    pub fn vm(&self) -> String {
        self.proxy.vm()
    }

    /// Waits until a client stands before the gate.
    #[track_caller]
    pub fn wait(&self) {
        self.reached.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    pub fn open(&self) {
        self.open.send(()).unwrap();
    }
}
