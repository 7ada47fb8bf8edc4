//! Which system calls of the program change something outside of it: its effects, each with a name.
//!
//! Effects are what is written to monitors, libvirt, guest agent, watchdog and disks (over NBD), everything that changes files below the test's folder or
//! a loop device, and starting a process. Questions (`query-*`, `qom-get`, ...) and reading are none.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use keepmark_testkit::OrFail;
use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;
use serde_json::Value;

use crate::rpc;

/// Longest part of a message or path that is looked at.
const LOOK_BYTES: usize = 16 << 10;

/// One effect, about to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// What is done to what, the same in every run: `qmp transaction`, `rename store/snapshots`.
    pub name: String,
    /// The socket on which the answer to it comes, if one does.
    pub answered_on: Option<u64>,
}

/// A system call as it stands in the registers.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    thread: Pid,
    number: i64,
    arguments: [u64; 5],
    /// What it returned; meaningless at its entry.
    pub result: i64,
}

impl Call {
    /// The call at which a thread stands; none if the thread is gone.
    pub fn of(thread: Pid) -> Option<Self> {
        let registers = ptrace::getregs(thread).ok()?;
        Some(Self {
            thread,
            number: registers.orig_rax.cast_signed(),
            arguments: [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8],
            result: registers.rax.cast_signed(),
        })
    }

    /// Whether it read an answer (or the end) from this descriptor.
    pub fn has_answer_from(&self, descriptor: u64) -> bool {
        if ![libc::SYS_read, libc::SYS_recvfrom].contains(&self.number) || self.arguments[0] != descriptor {
            return false;
        }
        let length = usize::try_from(self.result).unwrap_or_default();
        let bytes = self.memory(self.arguments[1], length);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // A time-out is no answer. An agent's is read byte by byte, up to the line's end.
        let is_answer = length == 0 || text == "\n" || text.contains("\"return\"") || text.contains("\"error\"") || rpc::is_answer(&bytes);
        self.result != -i64::from(libc::EAGAIN) && is_answer
    }

    /// The effect that this call has, if any, on what lies below `root` or on another process.
    pub fn effect(&self, root: &Path) -> Option<Effect> {
        let [first, second, third, fourth, _] = self.arguments;
        let creates = |flags: u64| flags & u64::from(libc::O_CREAT.cast_unsigned()) != 0;
        let (verb, path) = match self.number {
            libc::SYS_write | libc::SYS_sendto | libc::SYS_pwrite64 | libc::SYS_writev => return self.write(root),
            libc::SYS_clone | libc::SYS_clone3 | libc::SYS_vfork | libc::SYS_fork => return self.spawn(),
            libc::SYS_fsync | libc::SYS_fdatasync => ("sync", self.open_file(first)?),
            libc::SYS_fallocate => ("punch", self.open_file(first)?),
            libc::SYS_ftruncate => ("truncate", self.open_file(first)?),
            libc::SYS_fchmod => ("chmod", self.open_file(first)?),
            libc::SYS_rename => ("rename", self.path(None, second)?),
            libc::SYS_renameat | libc::SYS_renameat2 => ("rename", self.path(Some(third), fourth)?),
            libc::SYS_linkat => ("link", self.path(Some(third), fourth)?),
            libc::SYS_unlink => ("unlink", self.path(None, first)?),
            libc::SYS_unlinkat => ("unlink", self.path(Some(first), second)?),
            libc::SYS_rmdir => ("rmdir", self.path(None, first)?),
            libc::SYS_mkdir => ("mkdir", self.path(None, first)?),
            libc::SYS_mkdirat => ("mkdir", self.path(Some(first), second)?),
            libc::SYS_chmod => ("chmod", self.path(None, first)?),
            libc::SYS_open if creates(second) => ("create", self.path(None, first)?),
            libc::SYS_openat if creates(third) => ("create", self.path(Some(first), second)?),
            _ => return None,
        };
        Some(Effect { name: format!("{verb} {}", place(root, &path)?), answered_on: None })
    }

    fn write(&self, root: &Path) -> Option<Effect> {
        let [descriptor, buffer, length, ..] = self.arguments;
        let target = self.open_file(descriptor)?;
        if let Some(place) = place(root, &target) {
            return (descriptor > 2).then(|| silent(format!("write {place}")));
        }
        let bytes = match self.number {
            libc::SYS_writev => self.first_part(buffer),
            _ => self.memory(buffer, usize::try_from(length).unwrap_or(LOOK_BYTES)),
        };
        match target.to_string_lossy() {
            name if name.starts_with("socket:") => {
                let called = rpc::change(&bytes).map(|name| Effect { name, answered_on: Some(descriptor) });
                called.or_else(|| change(&bytes)).or_else(|| command(&bytes, descriptor))
            }
            name if name.starts_with("pipe:") => announcement(&bytes),
            _ => None,
        }
    }

    /// The first of the parts that are written at once.
    fn first_part(&self, parts: u64) -> Vec<u8> {
        let bytes = self.memory(parts, 16);
        let number = |at: usize| bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes);
        self.memory(number(0), usize::try_from(number(8)).unwrap_or(LOOK_BYTES))
    }

    fn spawn(&self) -> Option<Effect> {
        let flags = match self.number {
            libc::SYS_clone => self.arguments[0],
            libc::SYS_clone3 => u64::from_ne_bytes(self.memory(self.arguments[0], 8).try_into().ok()?),
            _ => 0,
        };
        let is_thread = flags & u64::from(libc::CLONE_THREAD.cast_unsigned()) != 0;
        (!is_thread).then(|| silent("start process".to_owned()))
    }

    fn open_file(&self, descriptor: u64) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.thread)).ok()
    }

    /// A path argument, made absolute.
    fn path(&self, folder: Option<u64>, address: u64) -> Option<PathBuf> {
        let bytes = self.memory(address, 4096);
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let path = PathBuf::from(String::from_utf8_lossy(&bytes[..end]).into_owned());
        let is_relative = path.is_relative();
        let base = folder.filter(|_| is_relative).and_then(|folder| self.open_file(folder));
        Some(base.map_or(path.clone(), |base| base.join(path)))
    }

    /// At most `length` bytes of the program's memory; fewer where it ends.
    fn memory(&self, address: u64, length: usize) -> Vec<u8> {
        let memory = File::open(format!("/proc/{}/mem", self.thread)).or_fail("opening the program's memory");
        let mut bytes = vec![0; length.min(LOOK_BYTES)];
        let mut done = 0;
        // What lies behind the last mapped page cannot be read; then a part is all there is.
        while done < bytes.len() {
            let to_page_end = 4096 - (address + done as u64) % 4096;
            let end = bytes.len().min(done + usize::try_from(to_page_end).unwrap_or_default());
            match memory.read_at(&mut bytes[done..end], address + done as u64) {
                Ok(count) if count > 0 => done += count,
                _ => break,
            }
        }
        bytes.truncate(done);
        bytes
    }
}

fn silent(name: String) -> Effect {
    Effect { name, answered_on: None }
}

/// What an NBD server is to change.
fn change(bytes: &[u8]) -> Option<Effect> {
    const MAGICS: [[u8; 4]; 2] = [[0x25, 0x60, 0x95, 0x13], [0x21, 0xe4, 0x1c, 0x71]];
    let (magic, rest) = bytes.split_first_chunk()?;
    let command = rest.get(2..4).filter(|_| MAGICS.contains(magic))?;
    let verb = match u16::from_be_bytes(command.try_into().ok()?) {
        1 => "write",
        3 => "flush",
        6 => "zero",
        _ => return None,
    };
    Some(silent(format!("nbd {verb}")))
}

/// What is said to a monitor or the guest's agent.
fn command(bytes: &[u8], descriptor: u64) -> Option<Effect> {
    // An agent's message may begin with a byte that resets its parser.
    let start = bytes.iter().position(|&byte| byte == b'{')?;
    let message: Value = serde_json::Deserializer::from_slice(&bytes[start..]).into_iter().next()?.ok()?;
    let name = message["execute"].as_str()?;
    let asks = name.contains("query-") || ["qom-get", "qom-list", "qmp_capabilities", "guest-sync", "guest-sync-delimited"].contains(&name);
    let party = if name.starts_with("guest-") { "agent" } else { "qmp" };
    (!asks).then(|| Effect { name: format!("{party} {name}"), answered_on: Some(descriptor) })
}

/// What is said to the watchdog.
fn announcement(bytes: &[u8]) -> Option<Effect> {
    let text = String::from_utf8_lossy(bytes);
    let word = text.split_whitespace().next()?;
    ["pausing", "running", "freezing", "thawed"].contains(&word).then(|| silent(format!("watchdog {word}")))
}

/// The place of a path without what is different in every run: `store/data`, `run`, `device`; none for anything else.
fn place(root: &Path, path: &Path) -> Option<String> {
    if path.to_string_lossy().starts_with("/dev/loop") {
        return Some("device".to_owned());
    }
    let below = path.strip_prefix(root).ok()?;
    let names: Vec<String> = below.components().filter_map(name).collect();
    let depth = if names.first().is_some_and(|first| first == "store") { 2 } else { 1 };
    Some(names[..names.len().min(depth)].join("/"))
}

fn name(component: Component<'_>) -> Option<String> {
    match component {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir | Component::ParentDir => None,
    }
}

#[test]
fn questions_are_no_effects_and_answers_are_waited_for() {
    let qmp = |text: &str| command(text.as_bytes(), 7).map(|effect| (effect.name, effect.answered_on));
    assert_eq!(qmp(r#"{"execute":"query-status","id":1}"#), None);
    assert_eq!(qmp("{\"execute\":\"stop\",\"id\":1}\r\n"), Some(("qmp stop".into(), Some(7))));
    assert_eq!(qmp("\u{fffd}{\"execute\":\"guest-fsfreeze-freeze\"}").unwrap().0, "agent guest-fsfreeze-freeze");
    assert_eq!(qmp("rubbish"), None);
    assert_eq!(announcement(b"pausing 2500\n").unwrap().name, "watchdog pausing");
}

#[test]
fn of_nbd_only_changes_are_effects() {
    let request = |command: u8| [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, command][..], &[0; 20]].concat();
    assert_eq!(
        [0, 1, 2, 3, 6, 7].map(|command| change(&request(command)).map(|effect| effect.name)),
        [None, Some("nbd write".to_owned()), None, Some("nbd flush".to_owned()), Some("nbd zero".to_owned()), None]
    );
}

#[test]
fn places_have_no_random_names() {
    let at = |path: &str| place(Path::new("/lab"), Path::new(path));
    assert_eq!(at("/lab/store/data/0f/0f33").as_deref(), Some("store/data"));
    assert_eq!(at("/lab/run/km1tmp-1/lock").as_deref(), Some("run"));
    assert_eq!(at("/dev/loop7").as_deref(), Some("device"));
    assert_eq!(at("/proc/1/x"), None);
}
