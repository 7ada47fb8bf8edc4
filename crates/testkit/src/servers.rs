//! NBD servers and the storage daemon, owned, on unix sockets.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::image::Format;
use crate::process::{Owned, wait_for};
use crate::{OrFail, Qmp, fail};

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running NBD server; dropping it kills it.
#[derive(Debug)]
pub struct NbdServer {
    /// The process, to kill or signal.
    pub process: Owned,
    socket: PathBuf,
}

impl NbdServer {
    /// Starts nbdkit with its arguments (plugin, filters, parameters; not the socket).
    #[must_use]
    #[track_caller]
    pub fn nbdkit(socket: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("nbdkit");
        let ready = ready_file(socket);
        command.args(["--foreground", "--pidfile"]).arg(&ready).arg("--unix").arg(socket).args(arguments);
        Self::start(command, socket, &ready)
    }

    /// Starts qemu-nbd on an image, with further arguments (e.g. `--read-only`, `-B BITMAP`, `--shared=4`, `-x NAME`).
    #[must_use]
    #[track_caller]
    pub fn qemu_nbd(socket: &Path, image: &Path, format: Format, arguments: &[&str]) -> Self {
        let mut command = Command::new("qemu-nbd");
        let ready = ready_file(socket);
        command.args(["--persistent", "-f", format.name(), "--pid-file"]).arg(&ready);
        command.arg("--socket").arg(socket).args(arguments).arg(image);
        Self::start(command, socket, &ready)
    }

    /// Both servers write their process id once they listen. Asking by a connection would count as one, and be logged.
    fn start(mut command: Command, socket: &Path, ready: &Path) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Owned::spawn(&mut command);
        wait_for(&format!("{command:?}"), START_TIMEOUT, || {
            still_running(&mut process, &command);
            std::fs::read(ready).is_ok_and(|id| id.ends_with(b"\n")).then_some(())
        });
        Self { process, socket: socket.to_owned() }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its address as `qemu-img` and `nbdinfo` take it, with the given export's name.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

/// A file left by an earlier server must not be taken for this one's.
fn ready_file(socket: &Path) -> PathBuf {
    let path = socket.with_extension("pid");
    std::fs::remove_file(&path).ok();
    path
}

#[track_caller]
fn still_running(process: &mut Owned, command: &Command) {
    if let Some(status) = process.ended() {
        fail(format_args!("{command:?} ended with {status}"));
    }
}

/// A running qemu-storage-daemon with two monitors; dropping it kills it.
#[derive(Debug)]
pub struct StorageDaemon {
    /// The tests' own monitor; the one on [`Self::qmp_socket`] is free for the program under test.
    pub control: Qmp,
    process: Owned,
    dir: PathBuf,
}

impl StorageDaemon {
    /// Starts one without images, its sockets in `dir`.
    #[must_use]
    #[track_caller]
    pub fn start(dir: &Path) -> Self {
        let mut command = Command::new("qemu-storage-daemon");
        for monitor in ["qsd-qmp", "qsd-control"] {
            let socket = dir.join(monitor);
            command.args(["--chardev".into(), format!("socket,id={monitor},path={},server=on,wait=off", socket.display())]);
            command.args(["--monitor".into(), format!("chardev={monitor}")]);
        }
        command.stdin(Stdio::null());
        let mut process = Owned::spawn(&mut command);
        let control = wait_for("qemu-storage-daemon's monitor", START_TIMEOUT, || {
            still_running(&mut process, &command);
            Qmp::try_connect(&dir.join("qsd-control"))
        });
        Self { control, process, dir: dir.to_owned() }
    }

    /// The first monitor's socket.
    #[must_use]
    pub fn qmp_socket(&self) -> PathBuf {
        self.dir.join("qsd-qmp")
    }

    /// Executes a QMP command on the tests' monitor; an error ends the test.
    #[track_caller]
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        self.control.execute(command, arguments)
    }

    /// Opens an image as node `node`.
    #[track_caller]
    pub fn open(&mut self, node: &str, image: &Path, format: Format, read_only: bool) {
        let file = json!({"driver": "file", "filename": image, "discard": "unmap"});
        let blockdev = json!({"driver": format.name(), "node-name": node, "read-only": read_only, "discard": "unmap", "file": file});
        self.qmp("blockdev-add", blockdev);
    }

    /// Serves NBD on a unix socket, whose path it gives; exports are added by [`Self::export`].
    #[track_caller]
    pub fn listen(&mut self) -> PathBuf {
        let socket = self.dir.join("qsd-nbd");
        let path = socket.to_str().or_fail("a socket's path is not UTF-8");
        self.qmp("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": path}}, "max-connections": 16}));
        socket
    }

    /// Exports a node under its own name, with these of its bitmaps.
    #[track_caller]
    pub fn export(&mut self, node: &str, writable: bool, bitmaps: &[&str]) {
        self.qmp(
            "block-export-add",
            json!({"type": "nbd", "id": node, "node-name": node, "name": node, "writable": writable,
                   "bitmaps": bitmaps, "allocation-depth": true}),
        );
    }

    /// Kills it as a crash would.
    pub fn kill9(mut self) {
        self.process.kill9();
    }

    /// Ends it cleanly, which stores bitmaps.
    #[track_caller]
    pub fn quit(mut self) {
        self.qmp("quit", json!({}));
        self.process.wait(START_TIMEOUT);
    }
}
