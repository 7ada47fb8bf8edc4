//! Runs the program from system call to system call, numbers its effects over all threads, and strikes at one of them.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use keepmark_testkit::OrFail;
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::effect::Call;

/// Before an effect happens, or after it has happened and before the program knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    Before,
    After,
}

/// Where to strike: the effect of this number, counting from 0 those that are counted.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub number: usize,
    pub moment: Moment,
}

/// What becomes of the program after the strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Killed,
    Spared,
}

/// What happens during a run.
pub struct Script<'a> {
    /// Only files below are looked at.
    pub root: &'a Path,
    /// Which effects are numbered.
    pub counts: fn(&str) -> bool,
    pub cut: Option<Cut>,
    /// Called while the program's main thread stands before any effect, or waits for a call of libvirt's, with its name: it says nothing to
    /// QEMU meanwhile.
    pub meanwhile: &'a mut (dyn FnMut(&str) + Send),
    /// Whether that goes on after the strike.
    pub goes_on: bool,
    /// Called at the cut with the program's process.
    pub strike: &'a mut (dyn FnMut(u32) -> Fate + Send),
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// The numbered effects.
    pub effects: Vec<String>,
    /// The effect at which was struck.
    pub struck: Option<String>,
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
}

/// Runs `command` to its end. What it prints goes to the files `stdout` and `stderr` in `root`.
///
/// Only the thread that started a program can trace it, and waiting for "any child" must not take those of the test.
pub fn run(command: &Command, script: Script<'_>) -> Trace {
    std::thread::scope(|scope| scope.spawn(|| Tracer::start(command, script).run()).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

struct Tracer<'a> {
    script: Script<'a>,
    child: Child,
    main: Pid,
    is_running: bool,
    pending: Option<Pending>,
    trace: Trace,
}

/// What is waited for before a strike after an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    Return { thread: Pid },
    Answer { descriptor: u64 },
}

/// The shell waits until it is traced, then becomes the program.
fn gated(command: &Command, root: &Path) -> Command {
    let file = |name: &str| File::create(root.join(name)).or_fail("making a log");
    let mut gated = Command::new("/bin/sh");
    gated.args(["-c", "read -r go; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    gated.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    gated.stdin(Stdio::piped()).stdout(file("stdout")).stderr(file("stderr"));
    gated
}

impl<'a> Tracer<'a> {
    fn start(command: &Command, script: Script<'a>) -> Self {
        let child = gated(command, script.root).spawn().or_fail("starting the shell");
        let main = Pid::from_raw(i32::try_from(child.id()).or_fail("a process has an id"));
        // Threads are followed, other processes (watchdog, qemu-img, qemu-storage-daemon) are not.
        let options =
            Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
        ptrace::seize(main, options).or_fail("tracing (it needs CAP_SYS_PTRACE where that is restricted)");
        ptrace::interrupt(main).or_fail("interrupting the shell");
        Self { script, child, main, is_running: false, pending: None, trace: Trace::default() }
    }

    fn run(mut self) -> Trace {
        loop {
            // Of this thread's children and tracees only.
            match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
                Ok(WaitStatus::Exited(thread, code)) if thread == self.main => {
                    self.trace.code = Some(code);
                    return self.trace;
                }
                Ok(WaitStatus::Signaled(thread, ..)) if thread == self.main => return self.trace,
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    self.at_call(thread);
                    go_on(thread, None);
                }
                Ok(WaitStatus::PtraceEvent(thread, _, event)) => {
                    self.at_event(thread, event);
                    go_on(thread, None);
                }
                Ok(WaitStatus::Stopped(thread, signal)) => go_on(thread, Some(signal)),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => keepmark_testkit::fail(format_args!("waiting for the traced program: {error}")),
            }
        }
    }

    fn at_event(&mut self, thread: Pid, event: i32) {
        // The first stop is that of the interruption, or of the shell's own beginning: from now on nothing is missed.
        if let Some(gate) = self.child.stdin.take() {
            release(gate);
        } else if event == libc::PTRACE_EVENT_EXEC && thread == self.main {
            self.is_running = true;
        }
    }

    fn at_call(&mut self, thread: Pid) {
        let Some(call) = Call::of(thread) else { return };
        // A call's entry is told from its return by the result that the kernel presets; no effect really returns that.
        if call.result == -i64::from(libc::ENOSYS) { self.at_entry(thread, &call) } else { self.at_return(thread, &call) }
    }

    fn at_entry(&mut self, thread: Pid, call: &Call) {
        let effect = if self.is_running { call.effect(self.script.root) } else { None };
        let Some(effect) = effect.filter(|effect| (self.script.counts)(&effect.name)) else { return };
        // While a call of libvirt's is made by a thread of its own the main thread waits for it.
        let is_quiet = thread == self.main || effect.name.starts_with("libvirt ");
        if (self.trace.struck.is_none() || self.script.goes_on) && self.pending.is_none() && is_quiet {
            (self.script.meanwhile)(&effect.name);
        }
        let number = self.trace.effects.len();
        self.trace.effects.push(effect.name.clone());
        match self.script.cut.filter(|cut| cut.number == number).map(|cut| cut.moment) {
            Some(Moment::Before) => self.strike(),
            Some(Moment::After) => {
                let returns = Pending::Return { thread };
                self.pending = Some(effect.answered_on.map_or(returns, |descriptor| Pending::Answer { descriptor }));
            }
            None => {}
        }
    }

    fn at_return(&mut self, thread: Pid, call: &Call) {
        let is_due = match self.pending {
            Some(Pending::Return { thread: of }) => of == thread,
            Some(Pending::Answer { descriptor }) => call.has_answer_from(descriptor),
            None => false,
        };
        if is_due {
            self.pending = None;
            self.strike();
        }
    }

    fn strike(&mut self) {
        let number = self.script.cut.map_or(0, |cut| cut.number);
        self.trace.struck = self.trace.effects.get(number).cloned();
        if (self.script.strike)(self.child.id()) == Fate::Killed {
            // A thread that is killed at a call's entry does not make the call.
            kill(self.main, Signal::SIGKILL).or_fail("killing the program");
        }
    }
}

fn release(mut gate: std::process::ChildStdin) {
    use std::io::Write;
    gate.write_all(b"go\n").or_fail("letting the program go");
}

/// It may have been killed meanwhile.
fn go_on(thread: Pid, signal: Option<Signal>) {
    match ptrace::syscall(thread, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => keepmark_testkit::fail(format_args!("letting thread {thread} go on: {error}")),
    }
}
