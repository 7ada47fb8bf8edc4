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

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::error::{Error, Result, text};
use crate::qmp::Qmp;
use crate::workspace::Workspace;

const START_WAIT: Duration = Duration::from_secs(10);
// Closing stores bitmaps and flushes what was written.
const QUIT_WAIT: Duration = Duration::from_secs(300);
// One that does not answer waits for a storage that may never answer either.
const DEAF_WAIT: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(2);

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) qmp: Qmp,
    pub(crate) workspace: Workspace,
    running: Running,
    is_over: bool,
}

/// The process.
#[derive(Debug)]
struct Running {
    pid: Option<Pid>,
    ended: Receiver<io::Result<Output>>,
}

impl Running {
    fn kill(&self) {
        if let Some(pid) = self.pid {
            // It may be over by now.
            kill_process(pid, Signal::KILL).ok();
        }
    }
}

impl Daemon {
    /// Starts one with a private monitor under `run_dir`.
    pub(crate) fn start(run_dir: &Path, command_timeout: Duration) -> Result<Self> {
        let run = format!("qsd-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let workspace = Workspace::create(run_dir, &run)?;
        let socket = workspace.path().join("qmp");
        let listener = listen(&socket)?;
        let running = spawn(command(&socket)?);
        let stream = accept(&listener, &socket, &running.ended).inspect_err(|_| running.kill())?;
        let qmp = Qmp::over(stream, socket.display().to_string(), command_timeout)?;
        Ok(Self { qmp, workspace, running, is_over: false })
    }

    /// Closes all images, which stores their bitmaps, and waits for the end.
    pub(crate) fn quit(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.is_over = true;
        let asked = self.qmp.run("quit", Value::Null);
        let wait = if asked.is_ok() { QUIT_WAIT } else { DEAF_WAIT };
        let output = self.running.ended.recv_timeout(wait).unwrap_or_else(|_| {
            self.running.kill();
            Err(io::ErrorKind::TimedOut.into())
        });
        asked.and_then(|()| ending(output))
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
fn spawn(mut command: Command) -> Running {
    let (sender, ended) = mpsc::channel();
    let (started, pid) = mpsc::channel();
    thread::spawn(move || {
        let child = command.spawn().inspect(|child| started.send(Pid::from_child(child)).unwrap_or_default());
        drop(started);
        drop(sender.send(child.and_then(std::process::Child::wait_with_output)));
    });
    Running { pid: pid.recv().ok(), ended }
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
