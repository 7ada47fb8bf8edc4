//! Looking at the locks of others.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Core;
use crate::repository::id::Id;
use crate::repository::lock::Environment;
use crate::repository::lock::file::{LockFile, STALE_AFTER, Verdict};
use crate::repository::sealed_file;

/// Locks are listed until two listings are alike, so often at most.
const LISTINGS_MAX: usize = 50;

/// A lock of somebody else.
#[derive(Debug, Clone)]
pub struct Other {
    /// Its file.
    pub id: Id,
    /// What it says.
    pub lock: LockFile,
    /// When it was written, by the place's clock.
    pub written: Option<Timestamp>,
    /// How long ago it was written: the shorter of what two clocks say.
    pub age: SignedDuration,
    /// Whether its owner is there.
    pub verdict: Verdict,
}

/// Looks at all other locks; removes those of dead processes. Returns whether there is none.
pub fn look(core: &Core, environment: &Environment, prunes: bool, ours: Option<&Id>) -> Result<bool> {
    let mut alone = true;
    for (id, _) in core.backend.list(FileKind::Lock)? {
        if Some(&id) == ours {
            continue;
        }
        let Some(lock) = read(core, environment, &id, &mut alone)? else { continue };
        match lock.judge(environment, None) {
            Verdict::Dead => core.backend.remove(FileKind::Lock, &id)?,
            Verdict::Held if lock.refuses(prunes) => {
                return Err(Error::Locked { hostname: lock.hostname, pid: lock.pid, since: lock.time.to_string() });
            }
            Verdict::Held | Verdict::Expired => alone = false,
        }
    }
    Ok(alone)
}

/// All other locks. A lock that is refreshed while it is listed may be missed under both of its names, so the listing is repeated until
/// two are alike: nobody refreshes that often.
pub fn all(core: &Core, environment: &Environment, ours: &Id, now: Option<Timestamp>) -> Result<Vec<Other>> {
    let mut before: Option<BTreeMap<Id, LockFile>> = None;
    for _ in 0..LISTINGS_MAX {
        let listed = list(core, environment, ours)?;
        if before.as_ref() == Some(&listed) {
            return listed.into_iter().map(|(id, lock)| other(core, environment, id, lock, now)).collect();
        }
        before = Some(listed);
    }
    Err(Error::Refused { problem: "the repository's locks change too fast to be listed".to_owned() })
}

fn list(core: &Core, environment: &Environment, ours: &Id) -> Result<BTreeMap<Id, LockFile>> {
    let mut found = BTreeMap::new();
    for (id, _) in core.backend.list(FileKind::Lock)?.into_iter().filter(|(id, _)| id != ours) {
        found.extend(read(core, environment, &id, &mut true)?.map(|lock| (id, lock)));
    }
    Ok(found)
}

fn other(core: &Core, environment: &Environment, id: Id, lock: LockFile, now: Option<Timestamp>) -> Result<Other> {
    let written = core.backend.written(FileKind::Lock, &id)?;
    let by_place = now.zip(written).map(|(now, written)| now.duration_since(written));
    let (age, verdict) = (lock.age(environment, by_place), lock.judge(environment, by_place));
    Ok(Other { id, lock, written, age, verdict })
}

/// A lock, unless it cannot be read and is held by nobody; `alone` says whether nothing is there then.
fn read(core: &Core, environment: &Environment, id: &Id, alone: &mut bool) -> Result<Option<LockFile>> {
    match sealed_file::read(&*core.backend, &core.key, FileKind::Lock, id) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) => {
            *alone &= is_gone(core, id, environment, error)?;
            Ok(None)
        }
    }
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
