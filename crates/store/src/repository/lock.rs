//! Locks as restic writes and honours them: our lease against a prune, and theirs against us.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Core;
use crate::repository::id::Id;
use crate::repository::sealed_file;

/// A lock that was not refreshed for so long has lost its owner; restic's own limit.
const STALE_AFTER: SignedDuration = SignedDuration::from_mins(30);
/// How often a held lock is written anew; restic's own interval.
const REFRESH_EVERY: Duration = Duration::from_mins(5);

/// What the machine says of us; passed in, because a library does not look around.
#[derive(Clone)]
pub struct Environment {
    /// Name of this host.
    pub hostname: String,
    /// Name of the user.
    pub username: String,
    /// The user's id.
    pub uid: u32,
    /// The group's id.
    pub gid: u32,
    /// Our process.
    pub pid: u32,
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Whether a process of this host lives.
    pub is_alive: fn(u32) -> bool,
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{} process {}", self.username, self.hostname, self.pid)
    }
}

/// A lock file as JSON has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockFile {
    /// When it was written last.
    pub time: Timestamp,
    /// Whether nobody else may be there.
    pub exclusive: bool,
    /// Host of the owner.
    #[serde(default)]
    pub hostname: String,
    /// User of the owner.
    #[serde(default)]
    pub username: String,
    /// Process of the owner.
    #[serde(default)]
    pub pid: u32,
    /// The user's id.
    #[serde(default)]
    pub uid: u32,
    /// The group's id.
    #[serde(default)]
    pub gid: u32,
}

/// What becomes of someone else's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Its owner lives, or may live.
    Held,
    /// It is so old that its owner would have refreshed it.
    Expired,
    /// Its owner was a process of this host and is gone.
    Dead,
}

impl LockFile {
    fn ours(environment: &Environment, exclusive: bool) -> Self {
        let Environment { hostname, username, uid, gid, pid, now, .. } = environment.clone();
        Self { time: now(), exclusive, hostname, username, pid, uid, gid }
    }

    fn judge(&self, environment: &Environment) -> Verdict {
        if self.hostname == environment.hostname && self.pid != environment.pid && !(environment.is_alive)(self.pid) {
            Verdict::Dead
        } else if (environment.now)().duration_since(self.time) > STALE_AFTER {
            Verdict::Expired
        } else {
            Verdict::Held
        }
    }

    fn refuses(&self, exclusive: bool) -> bool {
        self.exclusive || exclusive
    }
}

/// A held lock; dropping it gives it up.
pub struct Lease {
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
    /// Whether no other lock was there, dead ones aside, when it was taken.
    pub alone: bool,
}

impl Lease {
    /// Takes a lock. Ours is written before others' are looked at, so that of two who come at once at least one sees the other.
    ///
    /// # Errors
    /// [`Error::Locked`] when another's lock and ours exclude each other.
    pub fn take(core: &Arc<Core>, environment: &Environment, exclusive: bool) -> Result<Self> {
        // A cheap look first: a prune that runs is not disturbed by our file.
        others(core, environment, exclusive, None)?;
        let id = write(core, environment, exclusive)?;
        let alone = match others(core, environment, exclusive, Some(&id)) {
            Ok(alone) => alone,
            Err(error) => {
                core.backend.remove(FileKind::Lock, &id)?;
                return Err(error);
            }
        };
        let (stop, stopped) = channel();
        let (core, environment) = (Arc::clone(core), environment.clone());
        let keep = move || keep(&core, &environment, exclusive, id, &stopped);
        let keeper =
            std::thread::Builder::new().name("lease".to_owned()).spawn(keep).map_err(|error| Error::internal("start a thread", error))?;
        Ok(Self { stop: Some(stop), keeper: Some(keeper), alone })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(keeper) = self.keeper.take() {
            // The keeper removes the file; had it panicked, the file would expire.
            drop(keeper.join());
        }
    }
}

fn write(core: &Core, environment: &Environment, exclusive: bool) -> Result<Id> {
    sealed_file::write(&*core.backend, &core.key, FileKind::Lock, &LockFile::ours(environment, exclusive))
}

/// Refreshes the lock until it is given up, then removes it. A refresh that fails is tried again the next time: six may fail
/// before the lock expires.
fn keep(core: &Core, environment: &Environment, exclusive: bool, mut id: Id, stopped: &std::sync::mpsc::Receiver<()>) {
    while stopped.recv_timeout(REFRESH_EVERY) == Err(RecvTimeoutError::Timeout) {
        if let Ok(fresh) = write(core, environment, exclusive) {
            drop(core.backend.remove(FileKind::Lock, &id));
            id = fresh;
        }
    }
    drop(core.backend.remove(FileKind::Lock, &id));
}

/// Looks at all other locks; removes those of dead processes. Returns whether there is none.
fn others(core: &Core, environment: &Environment, exclusive: bool, ours: Option<&Id>) -> Result<bool> {
    let mut alone = true;
    for (id, _) in core.backend.list(FileKind::Lock)? {
        if Some(&id) == ours {
            continue;
        }
        let lock: LockFile = match sealed_file::read(&*core.backend, &core.key, FileKind::Lock, &id) {
            Ok(lock) => lock,
            Err(error) => {
                alone &= is_gone(core, &id, environment, error)?;
                continue;
            }
        };
        match lock.judge(environment) {
            Verdict::Dead => core.backend.remove(FileKind::Lock, &id)?,
            Verdict::Expired => alone = false,
            Verdict::Held if lock.refuses(exclusive) => {
                return Err(Error::Locked { hostname: lock.hostname, pid: lock.pid, since: lock.time.to_string() });
            }
            Verdict::Held => alone = false,
        }
    }
    Ok(alone)
}

/// Whether a lock that cannot be read has vanished meanwhile. One that may still be held is an error.
///
/// An empty file is an upload that was never finished: restic ignores those, too. Any other may be an exclusive one, whatever is
/// in it now; but who holds a lock writes it anew every five minutes, so an old file is held by nobody.
fn is_gone(core: &Core, id: &Id, environment: &Environment, error: Error) -> Result<bool> {
    match core.backend.size(FileKind::Lock, id)? {
        None => return Ok(true),
        Some(0) => return Ok(false),
        Some(_) => {}
    }
    let Error::Damaged { problem, .. } = error else { return Err(error) };
    let age = core.backend.written(FileKind::Lock, id)?.map(|written| (environment.now)().duration_since(written));
    if age.is_some_and(|age| age > STALE_AFTER) { Ok(false) } else { Err(Error::LockUnreadable { id: id.hex(), problem }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn environment() -> Environment {
        Environment {
            hostname: "here".into(),
            username: "root".into(),
            uid: 0,
            gid: 0,
            pid: 100,
            now: || Timestamp::from_second(NOW).unwrap(),
            is_alive: |pid| pid == 200,
        }
    }

    #[test]
    fn staleness_table() {
        let cases = [
            ("here", 100, 3000, Verdict::Expired),
            ("here", 100, 0, Verdict::Held),
            ("here", 200, 60, Verdict::Held),
            ("here", 200, 1801, Verdict::Expired),
            ("here", 300, 0, Verdict::Dead),
            ("there", 300, 0, Verdict::Held),
            ("there", 300, 1800, Verdict::Held),
            ("there", 300, 1801, Verdict::Expired),
            ("there", 300, -500, Verdict::Held),
        ];
        for (hostname, pid, age, verdict) in cases {
            let time = Timestamp::from_second(NOW - age).unwrap();
            let lock = LockFile { time, exclusive: true, hostname: hostname.into(), username: String::new(), pid, uid: 0, gid: 0 };
            assert_eq!(lock.judge(&environment()), verdict, "{hostname} {pid} {age}");
        }
    }

    #[test]
    fn a_lock_reads_as_restic_writes_it() {
        let json =
            r#"{"time":"2026-11-22T20:00:00.123456789+01:00","exclusive":true,"hostname":"h","username":"u","pid":7,"uid":1,"gid":2}"#;
        let lock: LockFile = serde_json::from_str(json).unwrap();
        assert!(lock.exclusive && lock.pid == 7);
    }
}
