//! Locks as restic writes and honours them: our lease against a prune, and theirs against us.

pub mod file;
mod others;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Core;
use crate::repository::id::{Id, PackId};
use crate::repository::lock::file::{Holder, LockFile, STALE_AFTER};
pub use crate::repository::lock::others::Other;
use crate::repository::mark::Mark;
use crate::repository::sealed_file;

/// How often a held lock is written anew; restic's own interval.
const REFRESH_EVERY: Duration = Duration::from_mins(5);

/// So often a lock's upload may be swept away by others before that is an error.
const SWEPT_MAX: usize = 10;

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

/// What a lease is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Nothing that it may read goes while it is held, whatever is marked.
    Read,
    /// The same, except what was marked before, which it does not use.
    Write,
    /// It excludes others of its kind.
    Prune,
}

/// A held lock; dropping it gives it up.
pub struct Lease {
    held: Arc<Held>,
    stop: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
    /// Whether no other lock was there, dead ones aside, when it was taken.
    pub alone: bool,
    /// Packs that may go while it is held: a writer uses nothing in them.
    pub marked: BTreeSet<PackId>,
}

struct Held {
    core: Arc<Core>,
    environment: Environment,
    current: Mutex<Current>,
}

/// The lock file as it is now.
#[derive(Clone)]
struct Current {
    id: Id,
    exclusive: bool,
    holder: Holder,
    /// When it was written, by our own clock.
    written: Timestamp,
    /// Somebody took it for dead and removed it: whatever it protected may be gone.
    lost: bool,
}

impl Lease {
    /// Takes a lock. Ours is written before others' are looked at, so that of two who come at once at least one sees the other.
    /// Marks are read after it was written: whoever sweeps one sees this lock, or else we see the mark.
    ///
    /// # Errors
    /// [`Error::Locked`] when another's lock and ours exclude each other.
    pub fn take(core: &Arc<Core>, environment: &Environment, purpose: Purpose) -> Result<Self> {
        let prunes = purpose == Purpose::Prune;
        // A cheap look first: a prune that runs is not disturbed by our file.
        others::look(core, environment, prunes, None)?;
        let held = Arc::new(Held::new(core, environment, prunes)?);
        let alone = others::look(core, environment, prunes, Some(&held.id()));
        let marks = alone.and_then(|alone| Ok((alone, if purpose == Purpose::Write { Mark::all(core)? } else { Vec::new() })));
        let (alone, marks) = marks.inspect_err(|_| held.give_up())?;
        if !marks.is_empty() {
            held.renew(|current| current.holder.marks = marks.iter().map(|(id, _)| *id).collect()).inspect_err(|_| held.give_up())?;
        }
        let (stop, stopped) = channel();
        let keep = Arc::clone(&held);
        let keeper = std::thread::Builder::new().name("lease".to_owned()).spawn(move || keep.keep(&stopped));
        let keeper = keeper.map_err(|error| Error::internal("start a thread", error)).inspect_err(|_| held.give_up())?;
        let marked = marks.into_iter().flat_map(|(_, mark)| mark.packs).collect();
        Ok(Self { held, stop: Some(stop), keeper: Some(keeper), alone, marked })
    }

    /// Whether it still holds. One that was not refreshed for long is refreshed first, which tells whether anybody minded.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when somebody took it for dead: then nothing that it protected may be counted on.
    pub fn check(&self) -> Result<()> {
        let (id, written) = {
            let current = self.held.current();
            (current.id, current.written)
        };
        let age = (self.held.environment.now)().duration_since(written);
        if age > STALE_AFTER / 2 || age.is_negative() {
            return self.held.renew(|_| ());
        }
        if !self.held.current().lost && self.held.core.backend.size(FileKind::Lock, &id)?.is_some() {
            return Ok(());
        }
        // Gone, or written anew meanwhile.
        self.held.renew(|_| ())
    }

    /// Makes it exclusive against other programs, or takes that back.
    ///
    /// # Errors
    /// When it cannot be written, or was lost.
    pub fn exclude_others(&self, exclusive: bool) -> Result<()> {
        self.held.renew(|current| current.exclusive = exclusive)
    }

    /// All other locks that are there, and the time by the place's clock. Our own is written anew first: a client of a file server then
    /// asks the server instead of its memory, and two that were written by one clock can be compared.
    ///
    /// # Errors
    /// When they cannot be read, or ours was lost.
    pub fn others(&self) -> Result<(Vec<Other>, Option<Timestamp>)> {
        self.held.renew(|_| ())?;
        let id = self.held.id();
        let now = self.held.core.backend.written(FileKind::Lock, &id)?;
        Ok((others::all(&self.held.core, &self.held.environment, &id, now)?, now))
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

impl Held {
    fn new(core: &Arc<Core>, environment: &Environment, prunes: bool) -> Result<Self> {
        let now = (environment.now)();
        let holder = Holder { id: Id(rand::random()), prunes, since: now, born: None, marks: Vec::new() };
        let mut current = Current { id: Id([0; 32]), exclusive: false, holder, written: now, lost: false };
        current.id = write(core, environment, &current)?;
        Ok(Self { core: Arc::clone(core), environment: environment.clone(), current: Mutex::new(current) })
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self) -> Id {
        self.current().id
    }

    /// Writes the lock anew. The old file must still be there when the new one is: then at no time was there none.
    fn renew(&self, change: impl FnOnce(&mut Current)) -> Result<()> {
        let mut current = self.current();
        if current.lost {
            return Err(Error::LeaseLost);
        }
        let backend = &*self.core.backend;
        let mut next = current.clone();
        next.holder.born = next.holder.born.or(backend.written(FileKind::Lock, &current.id)?);
        change(&mut next);
        next.written = (self.environment.now)();
        next.id = write(&self.core, &self.environment, &next)?;
        match backend.size(FileKind::Lock, &current.id) {
            Ok(Some(_)) => {
                backend.remove(FileKind::Lock, &current.id)?;
                *current = next;
                Ok(())
            }
            other => {
                drop(backend.remove(FileKind::Lock, &next.id));
                current.lost = other.is_ok();
                other.and(Err(Error::LeaseLost))
            }
        }
    }

    fn give_up(&self) {
        // What stays expires.
        drop(self.core.backend.remove(FileKind::Lock, &self.id()));
    }

    /// Refreshes the lock until it is given up, then removes it. A refresh that fails is tried again the next time: six may fail
    /// before the lock expires.
    fn keep(&self, stopped: &std::sync::mpsc::Receiver<()>) {
        while stopped.recv_timeout(REFRESH_EVERY) == Err(RecvTimeoutError::Timeout) {
            drop(self.renew(|_| ()));
        }
        self.give_up();
    }
}

/// Writes a lock. Before it has its name nobody knows that we are there: who believes to be alone may sweep the upload away.
fn write(core: &Core, environment: &Environment, current: &Current) -> Result<Id> {
    let file = LockFile::ours(environment, current.exclusive, current.holder.clone());
    let attempt = || sealed_file::write(&*core.backend, &core.key, FileKind::Lock, &file);
    let is_swept = |outcome: &Result<Id>| matches!(outcome, Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound);
    let again = std::iter::repeat_with(attempt).take(SWEPT_MAX).find(|outcome| !is_swept(outcome));
    again.unwrap_or_else(attempt)
}
