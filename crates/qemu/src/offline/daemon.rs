//! A qemu-storage-daemon of our own: it opens images as QEMU would, speaks QMP, and ends when we do, however we end.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::error::{Error, Result, text};
use crate::qmp::Qmp;
use crate::workspace::Workspace;

const START_WAIT: Duration = Duration::from_secs(10);
// Closing stores bitmaps and flushes what was written.
const QUIT_WAIT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(2);

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) qmp: Qmp,
    pub(crate) workspace: Workspace,
    ended: Receiver<io::Result<Output>>,
    is_over: bool,
}

impl Daemon {
    /// Starts one with a private monitor under `run_dir`.
    pub(crate) fn start(run_dir: &Path, command_timeout: Duration) -> Result<Self> {
        let run = format!("qsd-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let workspace = Workspace::create(run_dir, &run)?;
        let socket = workspace.path().join("qmp");
        let listener = listen(&socket)?;
        let ended = spawn(command(&socket)?);
        let stream = accept(&listener, &socket, &ended)?;
        let qmp = Qmp::over(stream, socket.display().to_string(), command_timeout)?;
        Ok(Self { qmp, workspace, ended, is_over: false })
    }

    /// Closes all images, which stores their bitmaps, and waits for the end.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.is_over = true;
        self.qmp.run("quit", Value::Null)?;
        let output = self.ended.recv_timeout(QUIT_WAIT);
        ending(output.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.is_over {
            drop(self.end());
        }
    }
}

// We listen and the daemon connects. The other way round it now and then reads the socket from two of its threads at once, which
// mangles commands: seen with 10.0.2, 7 times in 4,377 starts on a loaded machine.
fn listen(socket: &Path) -> Result<UnixListener> {
    let failed = |source| Error::Connect { peer: socket.display().to_string(), source };
    let listener = UnixListener::bind(socket).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

fn accept(listener: &UnixListener, socket: &Path, ended: &Receiver<io::Result<Output>>) -> Result<UnixStream> {
    let failed = |source| Error::Connect { peer: socket.display().to_string(), source };
    let deadline = Instant::now() + START_WAIT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return stream.set_nonblocking(false).map(|()| stream).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {}
            Err(error) => return Err(failed(error)),
        }
        if let Ok(output) = ended.recv_timeout(POLL) {
            return Err(ending(output).err().unwrap_or_else(|| Error::Daemon { message: "it ended at once".into() }));
        }
    }
}

// `setpriv` because the daemon must not outlive us with the images locked; a process group of its own, so that Ctrl-C reaches
// only us, who then close the images in order.
fn command(socket: &Path) -> Result<Command> {
    let path = text(socket)?;
    let chardev = format!("socket,id=qmp,path={},server=off", path.replace(',', ",,"));
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "qemu-storage-daemon", "--chardev", &chardev, "--monitor", "chardev=qmp"]);
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}

// The signal comes when the *thread* that started the child ends, so one is kept for it: it waits.
fn spawn(mut command: Command) -> Receiver<io::Result<Output>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let output = command.spawn().and_then(std::process::Child::wait_with_output);
        drop(sender.send(output));
    });
    receiver
}

// QEMU ends well even if it could not store a bitmap; it only says so.
fn ending(output: io::Result<Output>) -> Result<()> {
    let output = output.map_err(|source| Error::Spawn { program: "qemu-storage-daemon".into(), source })?;
    let words = String::from_utf8_lossy(&output.stderr);
    // A warning's second line, without its mark: the image was made version 2 by qemu-img while it had bitmaps.
    let is_harmless = |line: &&str| line.contains("warning:") || line.contains("Some clusters may be leaked");
    let words = words.lines().filter(|line| !is_harmless(line)).collect::<Vec<_>>().join(" ");
    if output.status.success() && words.trim().is_empty() {
        return Ok(());
    }
    let words: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(600).collect();
    Err(Error::Daemon { message: format!("{} {}", output.status, words.trim()) })
}
