//! Removing what is marked: nobody is there who does not know the mark, what snapshots use is looked at again, the index goes first.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use keepmark_model::seam::{Monitor, Pruned};

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Scratch;
use crate::repository::id::{BlobKind, ChunkId, Id, PackId, TreeId};
use crate::repository::index::Place;
use crate::repository::lock::Lease;
use crate::repository::lock::file::STALE_AFTER;
use crate::repository::mark::Mark;
use crate::repository::prune::usage::{Usage, Visitor, walk};
use crate::repository::prune::{reindex, waiting};
use crate::repository::{Repository, noun};

/// What it is called on the screen.
const REMOVE: &str = "remove";

/// One sweep of marks.
pub struct Sweep<'a> {
    pub repository: &'a Repository,
    pub lease: &'a Lease,
    /// What snapshots used when the marks were there already, or were made of it.
    pub usage: &'a Usage,
    /// Packs in marks that something needed even then.
    pub needed: &'a HashSet<PackId>,
    pub delay: SignedDuration,
    pub monitor: &'a dyn Monitor,
}

impl Sweep<'_> {
    /// Sweeps those of the marks for which nobody is waited for. Other programs are kept out meanwhile.
    ///
    /// # Errors
    /// When anything cannot be read or written, or our lease was lost; the next prune goes on.
    pub fn run(&self, marks: &[(Id, Mark)], report: &mut Pruned) -> Result<()> {
        self.wait_for_others_caches()?;
        self.lease.exclude_others(true)?;
        let outcome = self.ripe(marks, report).and_then(|ripe| if ripe.is_empty() { Ok(()) } else { self.sweep(&ripe, report) });
        let released = self.lease.exclude_others(false);
        outcome.and(released)
    }

    /// The marks that everybody knows who is there.
    fn ripe<'m>(&self, marks: &'m [(Id, Mark)], report: &mut Pruned) -> Result<Vec<&'m (Id, Mark)>> {
        let (others, now) = self.lease.others()?;
        let ids: Vec<Id> = marks.iter().map(|(id, _)| *id).collect();
        let hindrances = waiting::judge(&ids, &others, self.delay);
        self.bury(&hindrances.dead, now)?;
        report.waiting.extend(hindrances.strangers.iter().cloned());
        if !hindrances.strangers.is_empty() {
            return Ok(Vec::new());
        }
        let (mut ripe, mut blamed) = (Vec::new(), BTreeSet::new());
        for (mark, unaware) in marks.iter().zip(hindrances.unaware) {
            if unaware.is_empty() {
                ripe.push(mark);
            }
            blamed.extend(unaware);
        }
        report.waiting.extend(blamed);
        Ok(ripe)
    }

    /// Removes the locks of the dead, and then what they may have been about to publish: should one of them come to life again, it either
    /// sees that its lock is gone, or its upload is.
    fn bury(&self, dead: &[Id], now: Option<Timestamp>) -> Result<()> {
        let backend = &self.repository.core.backend;
        dead.iter().try_for_each(|id| backend.remove(FileKind::Lock, id))?;
        let last_sign = waiting::patience(self.delay) - STALE_AFTER / 2;
        match now.and_then(|now| now.checked_sub(last_sign).ok()).filter(|_| !dead.is_empty()) {
            Some(before) => backend.sweep(Some(before)),
            None => Ok(()),
        }
    }

    fn sweep(&self, ripe: &[&(Id, Mark)], report: &mut Pruned) -> Result<()> {
        // Whoever was there is gone: now everybody sees what they published.
        self.wait_for_others_caches()?;
        let mut leaving: BTreeSet<PackId> = ripe.iter().flat_map(|(_, mark)| &mark.packs).copied().collect();
        leaving.retain(|pack| !self.needed.contains(pack));
        self.keep_what_is_used_since(&mut leaving)?;
        let backend = &self.repository.core.backend;
        // A snapshot that somebody deleted must not come back after a power cut.
        backend.settle_all(FileKind::Snapshot)?;
        if !leaving.is_empty() {
            reindex::leave_out(self.repository, &leaving, self.lease)?;
            self.remove(&leaving, report)?;
            // Who begins now must not see the old index any more when the mark is gone.
            self.wait_for_others_caches()?;
        }
        for (id, _) in ripe {
            self.lease.check()?;
            backend.remove(FileKind::Mark, id)?;
        }
        backend.settle(FileKind::Mark)
    }

    /// The second look: what was published since the first one may use what nothing used then. Snapshots first, then the index.
    fn keep_what_is_used_since(&self, leaving: &mut BTreeSet<PackId>) -> Result<()> {
        let repository = self.repository;
        let listed = repository.core.backend.list(FileKind::Snapshot)?;
        repository.index.refresh()?;
        let mut later = Later { sweep: self, leaving, trees: HashSet::new(), sizes: HashMap::new(), scratch: Scratch::new()? };
        let new = listed.iter().map(|(id, _)| id).filter(|id| !self.usage.snapshots.contains(id));
        new.into_iter().try_for_each(|id| walk(repository, id, &mut later))
    }

    fn remove(&self, leaving: &BTreeSet<PackId>, report: &mut Pruned) -> Result<()> {
        let backend = &self.repository.core.backend;
        for (done, pack) in (0..).zip(leaving) {
            self.lease.check()?;
            let size = backend.size(FileKind::Pack, pack)?;
            backend.remove(FileKind::Pack, pack)?;
            report.removed_files += u64::from(size.is_some());
            report.removed_bytes += size.unwrap_or(0);
            self.monitor.progress(REMOVE, done, leaving.len() as u64);
        }
        self.monitor.finished(REMOVE);
        backend.settle(FileKind::Pack)
    }

    /// On a file server, what another host did may stay unseen here for a while, and what we did there.
    fn wait_for_others_caches(&self) -> Result<()> {
        let lag = self.repository.core.backend.lag();
        if !lag.is_zero() {
            self.monitor.note(&format!("waiting {} s until all hosts see the same files of the file server", lag.as_secs()));
        }
        let second = Duration::from_secs(1);
        let mut left = lag;
        while !left.is_zero() {
            if self.monitor.interrupted() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(left.min(second));
            left = left.saturating_sub(second);
        }
        Ok(())
    }
}

/// Keeps packs that are needed after all.
struct Later<'a> {
    sweep: &'a Sweep<'a>,
    leaving: &'a mut BTreeSet<PackId>,
    trees: HashSet<TreeId>,
    /// Bytes of packs that were looked for.
    sizes: HashMap<PackId, Option<u64>>,
    scratch: Scratch,
}

impl Later<'_> {
    fn keep(&mut self, id: &Id, kind: BlobKind) -> Result<()> {
        let places = self.sweep.repository.index.find(id, kind)?;
        if places.is_empty() {
            return Err(Error::Missing { kind: noun(kind), id: id.hex() });
        }
        let (leaving, staying): (Vec<&Place>, Vec<&Place>) = places.iter().partition(|place| self.leaving.contains(&place.pack));
        if leaving.is_empty() {
            return Ok(());
        }
        for place in staying {
            if self.is_good(place)? {
                return Ok(());
            }
        }
        self.leaving.retain(|pack| places.iter().all(|place| place.pack != *pack));
        Ok(())
    }

    /// Whether a place is there, long enough, and can be read.
    fn is_good(&mut self, place: &Place) -> Result<bool> {
        let core = &self.sweep.repository.core;
        let size = match self.sizes.get(&place.pack) {
            Some(size) => *size,
            None => *self.sizes.entry(place.pack).or_insert(core.backend.size(FileKind::Pack, &place.pack)?),
        };
        Ok(size.is_some_and(|size| place.entry.end() <= size) && core.read_blob(&place.pack, &place.entry, &mut self.scratch).is_ok())
    }
}

impl Visitor for Later<'_> {
    fn tree(&mut self, id: &TreeId) -> Result<bool> {
        if self.sweep.monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        if self.sweep.usage.has(id, BlobKind::Tree)? || !self.trees.insert(*id) {
            return Ok(false);
        }
        self.keep(id, BlobKind::Tree).map(|()| true)
    }

    fn chunk(&mut self, id: &ChunkId) -> Result<()> {
        if self.sweep.usage.has(id, BlobKind::Data)? { Ok(()) } else { self.keep(id, BlobKind::Data) }
    }
}
