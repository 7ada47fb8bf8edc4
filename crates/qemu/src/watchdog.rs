//! A second process that gives the guest back its life when keepmark dies or hangs while it holds a pause or a freeze.
//!
//! keepmark announces over a pipe what it is about to take, before it takes it: `pausing MS`, `running`, `freezing MS PATH`,
//! `thawed`, `copying RUN`, `copied`. At the pipe's end (also that of a kill -9), with something outstanding, the watchdog does
//! `cont`, thaws, and ends the run's jobs. When MS milliseconds pass with something outstanding and keepmark still alive, it kills keepmark first. It has a session of
//! its own, so Ctrl-C in the terminal does not reach it. What ends whole control groups at once (`systemctl kill`) does: then
//! the marker bitmaps let the next run find the pause (see `temporary`).

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::qmp::Qmp;
use crate::{agent, leftovers};

/// What it is called in errors.
pub(crate) const NAME: &str = "the watchdog";
const READY: &str = "ready";
const ANSWER_WAIT: Duration = Duration::from_secs(5);
// How long the watchdog goes on trying: QEMU may be busy, or still serve its dead client.
const TRY_FOR: Duration = Duration::from_secs(120);
const TRY_PAUSE: Duration = Duration::from_millis(100);

/// How to start the watchdog: a program and its first arguments; the rest, which [`run`] takes, is added.
#[derive(Debug, Clone)]
pub struct WatchdogCommand {
    /// The program, normally keepmark itself.
    pub program: PathBuf,
    /// Its first arguments, such as a hidden subcommand.
    pub arguments: Vec<OsString>,
}

/// A running watchdog, seen from keepmark. Dropped with something outstanding, it acts.
#[derive(Debug)]
pub struct Watchdog {
    child: Child,
    pipe: Option<ChildStdin>,
    is_paused: bool,
    is_frozen: bool,
    is_copying: bool,
}

impl Watchdog {
    /// Starts it and waits until it says that it watches.
    ///
    /// # Errors
    /// When it cannot be started or does not get ready.
    pub fn spawn(command: &WatchdogCommand, socket: &Path) -> Result<Self> {
        let name = command.program.display().to_string();
        let fail = |source| Error::Spawn { program: name.clone(), source };
        let mut process = Command::new(&command.program);
        process.args(&command.arguments).arg(socket).arg(std::process::id().to_string());
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = process.spawn().map_err(fail)?;
        let (pipe, answers) = (child.stdin.take(), child.stdout.take());
        let watchdog = Self { child, pipe, is_paused: false, is_frozen: false, is_copying: false };
        let line = answers.map_or(Ok(String::new()), first_line).map_err(fail)?;
        if line.trim() == READY { Ok(watchdog) } else { Err(fail(io::Error::other("the watchdog did not get ready"))) }
    }

    /// The VM will be stopped now and must run again before `within` is over.
    ///
    /// # Errors
    /// When the watchdog is gone: do not stop the VM then.
    pub fn pausing(&mut self, within: Duration) -> Result<()> {
        self.is_paused = true;
        self.say(format!("pausing {}", within.as_millis()).as_bytes())
    }

    /// The VM runs again.
    ///
    /// # Errors
    /// When the watchdog is gone.
    pub fn running(&mut self) -> Result<()> {
        self.is_paused = false;
        self.say(b"running")
    }

    /// The guest's file systems will be frozen now, by the agent at `socket`, for no longer than `within`.
    ///
    /// # Errors
    /// When the watchdog is gone: do not freeze then.
    pub fn freezing(&mut self, within: Duration, socket: &Path) -> Result<()> {
        self.is_frozen = true;
        self.say(&[format!("freezing {} ", within.as_millis()).as_bytes(), socket.as_os_str().as_bytes()].concat())
    }

    /// The guest's file systems are thawed.
    ///
    /// # Errors
    /// When the watchdog is gone.
    pub fn thawed(&mut self) -> Result<()> {
        self.is_frozen = false;
        self.say(b"thawed")
    }

    /// Jobs of this run, a word, will copy what the guest overwrites: they must not outlive keepmark, which watches their space.
    ///
    /// # Errors
    /// When the watchdog is gone: do not start them then.
    pub fn copying(&mut self, run: &str) -> Result<()> {
        self.is_copying = true;
        self.say(format!("copying {run}").as_bytes())
    }

    /// The jobs are gone.
    ///
    /// # Errors
    /// When the watchdog is gone.
    pub fn copied(&mut self) -> Result<()> {
        self.is_copying = false;
        self.say(b"copied")
    }

    fn say(&mut self, line: &[u8]) -> Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let written = pipe.write_all(&[line, b"\n"].concat()).and_then(|()| pipe.flush());
        written.map_err(|source| Error::Spawn { program: NAME.into(), source })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.pipe = None;
        // With something outstanding it has to wait until this process lets go of the monitor, so nobody may wait for it here.
        if !self.is_paused && !self.is_frozen && !self.is_copying {
            drop(self.child.wait());
        }
    }
}

fn first_line(output: impl Read + Send + 'static) -> io::Result<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(output.take(64)).read_line(&mut line).map(|_| line);
        drop(sender.send(read));
    });
    receiver.recv_timeout(ANSWER_WAIT).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// What is outstanding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Outstanding {
    paused_until: Option<Instant>,
    frozen_until: Option<(Instant, PathBuf)>,
    copying: Option<String>,
}

impl Outstanding {
    fn hear(&mut self, line: &[u8], now: Instant) {
        let mut words = line.splitn(3, |&byte| byte == b' ');
        let (verb, number, path) = (words.next().unwrap_or_default(), words.next(), words.next());
        let word = number.and_then(|text| std::str::from_utf8(text).ok());
        let deadline = word.and_then(|text| text.parse().ok()).map(|ms| now + Duration::from_millis(ms));
        match (verb, deadline, path) {
            (b"pausing", Some(deadline), _) => self.paused_until = Some(deadline),
            (b"running", ..) => self.paused_until = None,
            (b"freezing", Some(deadline), Some(path)) => {
                self.frozen_until = Some((deadline, PathBuf::from(std::ffi::OsStr::from_bytes(path))));
            }
            (b"thawed", ..) => self.frozen_until = None,
            (b"copying", ..) => self.copying = word.map(str::to_owned),
            (b"copied", ..) => self.copying = None,
            _ => {}
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.paused_until.into_iter().chain(self.frozen_until.as_ref().map(|(until, _)| *until)).min()
    }
}

/// The watchdog's whole life. `arguments` are those that [`Watchdog::spawn`] adds: the monitor's socket and the process to watch.
/// `input` is the pipe from it; `ready` is told when watching has begun.
///
/// # Errors
/// When the arguments make no sense, or the guest could not be given its life back.
pub fn run(arguments: &[OsString], input: impl Read + Send + 'static, ready: &mut dyn Write) -> Result<()> {
    let thaw = |agent: &Path| agent::thaw_at(agent, ANSWER_WAIT);
    run_with(arguments, input, ready, &Rescue { resume: &resume, thaw: &thaw, end_jobs: &end_jobs })
}

/// How a VM is given back what was taken from it. Each is tried again until it succeeds.
#[derive(Clone, Copy)]
pub struct Rescue<'a> {
    /// Lets it run; gets the first argument.
    pub resume: &'a dyn Fn(&Path) -> Result<()>,
    /// Thaws it; gets what [`Watchdog::freezing`] was told.
    pub thaw: &'a dyn Fn(&Path) -> Result<()>,
    /// Ends a run's jobs; gets the first argument, and what [`Watchdog::copying`] was told.
    pub end_jobs: &'a dyn Fn(&Path, &str) -> Result<()>,
}

/// As [`run`], for VMs that are rescued in another way.
///
/// # Errors
/// As [`run`].
pub fn run_with(arguments: &[OsString], input: impl Read + Send + 'static, ready: &mut dyn Write, rescue: &Rescue<'_>) -> Result<()> {
    let [socket, parent] = arguments else { return Err(usage(arguments)) };
    let parent =
        parent.to_str().and_then(|text| text.parse().ok()).and_then(rustix::process::Pid::from_raw).ok_or_else(|| usage(arguments))?;
    // It fails where the process leads a session already, which serves as well.
    rustix::process::setsid().ok();
    writeln!(ready, "{READY}").and_then(|()| ready.flush()).map_err(|source| Error::Spawn { program: NAME.into(), source })?;
    let outstanding = watch(input, parent);
    let resumed = if outstanding.paused_until.is_some() { keep_trying(|| (rescue.resume)(Path::new(socket))) } else { Ok(()) };
    let thawed = outstanding.frozen_until.map_or(Ok(()), |(_, agent)| keep_trying(|| (rescue.thaw)(&agent)));
    let ended = outstanding.copying.map_or(Ok(()), |run| keep_trying(|| (rescue.end_jobs)(Path::new(socket), &run)));
    resumed.and(thawed).and(ended)
}

fn usage(arguments: &[OsString]) -> Error {
    Error::Usage { what: "watchdog arguments", value: format!("{arguments:?}"), problem: "expected a socket and a process".into() }
}

// Until the pipe ends, or a deadline passes and the parent is killed.
fn watch(input: impl Read + Send + 'static, parent: rustix::process::Pid) -> Outstanding {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(input).split(b'\n').map_while(io::Result::ok);
        lines.map(|line| sender.send(line)).take_while(std::result::Result::is_ok).for_each(drop);
    });
    let mut outstanding = Outstanding::default();
    loop {
        let left = outstanding.deadline().map_or(Duration::from_secs(3600), |deadline| deadline.saturating_duration_since(Instant::now()));
        match lines.recv_timeout(left) {
            Ok(line) => outstanding.hear(&line, Instant::now()),
            Err(RecvTimeoutError::Disconnected) => return outstanding,
            Err(RecvTimeoutError::Timeout) if outstanding.deadline().is_some_and(|deadline| deadline <= Instant::now()) => {
                kill(parent);
                return outstanding;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

// Its number may belong to somebody else by now; as long as it is our parent, it is the one.
fn kill(parent: rustix::process::Pid) {
    if rustix::process::getppid() == Some(parent) {
        rustix::process::kill_process(parent, rustix::process::Signal::KILL).ok();
    }
}

fn keep_trying(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let end = Instant::now() + TRY_FOR;
    loop {
        match attempt() {
            // Nobody listens any more: QEMU is gone, and the guest with it.
            Err(Error::Connect { source, .. }) if is_gone(&source) => return Ok(()),
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(TRY_PAUSE),
            Ok(()) => return Ok(()),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn resume(socket: &Path) -> Result<()> {
    leftovers::resume(&mut Qmp::connect(socket, ANSWER_WAIT)?)
}

fn end_jobs(socket: &Path, run: &str) -> Result<()> {
    leftovers::end_jobs_of(&mut Qmp::connect(socket, ANSWER_WAIT)?, run)
}

/// Ends a run's jobs as [`run`] does, over a connection to the monitor that the caller has made.
///
/// # Errors
/// When nobody answers there, or the jobs do not end.
pub fn end_jobs_over(stream: UnixStream, run: &str) -> Result<()> {
    leftovers::end_jobs_of(&mut Qmp::over(stream, NAME.into(), ANSWER_WAIT)?, run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outstanding_follows_what_is_said() {
        let now = Instant::now();
        let mut state = Outstanding::default();
        state.hear(b"pausing 500", now);
        state.hear(b"freezing 200 /run/a b", now);
        assert_eq!(state.deadline(), Some(now + Duration::from_millis(200)));
        assert_eq!(state.frozen_until, Some((now + Duration::from_millis(200), "/run/a b".into())));
        state.hear(b"thawed", now);
        assert_eq!(state.deadline(), Some(now + Duration::from_millis(500)));
        state.hear(b"running", now);
        state.hear(b"copying 12ab", now);
        assert_eq!((state.deadline(), state.copying.as_deref()), (None, Some("12ab")));
        state.hear(b"copied", now);
        for rubbish in [&b"pausing"[..], b"pausing x", b"freezing 1", b"", b"\xff"] {
            state.hear(rubbish, now);
        }
        assert_eq!(state, Outstanding::default());
    }
}
