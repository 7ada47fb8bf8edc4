//! Pruning: what no snapshot uses is found, wasteful packs are copied together, both are marked, and what everybody knows to be marked goes.
//!
//! In reading order: `usage` and `tally` (what is used, and where), `keepmark_model::prune` (what is done about it), `proof`, `copy`, then
//! `sweep` with `waiting` and `reindex`. Each step can be the last one: the next prune derives everything anew.
//!
//! Why nothing goes that a backup needs, beside backups on any number of hosts: `docs/decisions/0006-how-pruning-beside-backups-is-safe.md`.

mod copy;
mod proof;
mod reindex;
mod sweep;
mod tally;
mod usage;
mod waiting;

use std::collections::{BTreeSet, HashSet};

use jiff::{SignedDuration, Timestamp};
use keepmark_model::prune::{Limits, choose};
use keepmark_model::seam::{Monitor, PruneRequest, Pruned};

use crate::error::Result;
use crate::repository::backend::FileKind;
use crate::repository::id::{Id, PackId};
use crate::repository::lock::file::Verdict;
use crate::repository::lock::{Lease, Purpose};
use crate::repository::mark::Mark;
use crate::repository::pack::PACK_BYTES;
use crate::repository::prune::copy::{Copied, copy};
use crate::repository::prune::sweep::Sweep;
use crate::repository::prune::tally::{Pack, Tally};
use crate::repository::prune::usage::Usage;
use crate::repository::{Repository, damaged_packs};

/// What is there, and what to do about it.
struct Plan {
    usage: Usage,
    tally: Tally,
    marks: Vec<(Id, Mark)>,
    /// Packs in marks that something needs.
    needed: HashSet<PackId>,
    /// Nothing in them is needed.
    unused: BTreeSet<PackId>,
    /// What is needed in them is to be copied.
    wasteful: BTreeSet<PackId>,
    /// Unused bytes that stay.
    left_unused_bytes: u64,
    /// Whether a further round would find more to copy.
    is_cut: bool,
    /// Whether packs stay because they may be of work that goes on.
    is_held: bool,
}

/// The work that goes on beside a prune.
#[derive(Default)]
struct Work {
    /// When the oldest of it began, by the place's clock: what was written since may be that work's.
    since: Option<Timestamp>,
    /// Whose it is, in words.
    whose: Vec<String>,
}

impl Repository {
    /// Frees the space of what no snapshot uses. Beside anything; what somebody may still use goes by a later run.
    ///
    /// # Errors
    /// [`crate::Error::Locked`] when somebody else prunes; when anything cannot be read or written. Nothing that a backup needs is ever
    /// gone.
    pub fn prune_packs(&self, request: &PruneRequest, monitor: &dyn Monitor) -> Result<Pruned> {
        let mut report = Pruned::default();
        if request.dry_run {
            let _lease = self.reading_lease()?;
            self.plan(request, &Work::default(), monitor)?.tell(&mut report);
            return Ok(report);
        }
        let lease = Lease::take(&self.core, &self.environment, Purpose::Prune)?;
        if lease.alone {
            self.core.backend.sweep(None)?;
        }
        while self.prune_once(&lease, request, monitor, &mut report)? {}
        Ok(report)
    }

    /// One round; says whether another one would find more to do.
    fn prune_once(&self, lease: &Lease, request: &PruneRequest, monitor: &dyn Monitor, report: &mut Pruned) -> Result<bool> {
        let delay = SignedDuration::try_from(request.delay).unwrap_or(SignedDuration::MAX);
        let work = self.work(lease, delay)?;
        let mut plan = self.plan(request, &work, monitor)?;
        let unproved = proof::unproved(self, &plan, monitor)?;
        plan.keep(&unproved);
        plan.tell_use(report);
        report.waiting.clear();
        report.waiting.extend(work.whose.into_iter().filter(|_| plan.is_held));
        let copied = copy(self, lease, &plan.tally.contents(&plan.usage.run, &plan.wasteful)?, monitor)?;
        report.repacked_bytes += copied.bytes;
        let again = plan.is_cut && !copied.packs.is_empty();
        self.mark(lease, &mut plan, copied)?;
        if !plan.marks.is_empty() {
            let Plan { usage, needed, marks, .. } = &plan;
            Sweep { repository: self, lease, usage, needed, delay, monitor }.run(marks, report)?;
        }
        report.marked_bytes = Mark::all(&self.core)?.iter().map(|(_, mark)| mark.bytes).sum();
        Ok(again && report.waiting.is_empty())
    }

    /// Who works beside us. Locks of others who pruned and are gone are removed: should they come to life again, they see it.
    fn work(&self, lease: &Lease, delay: SignedDuration) -> Result<Work> {
        let (others, now) = lease.others()?;
        let mut work = Work::default();
        for other in others {
            if other.lock.prunes() && other.verdict != Verdict::Held {
                self.core.backend.remove(FileKind::Lock, &other.id)?;
                continue;
            }
            // Another program's lock does not say when it was taken.
            let began = match &other.lock.keepmark {
                Some(holder) => holder.born.or(other.written),
                None => now.and_then(|now| now.checked_sub(delay).ok()),
            };
            work.whose.push(other.lock.words());
            work.since = work.since.into_iter().chain(began).min();
        }
        Ok(work)
    }

    fn plan(&self, request: &PruneRequest, work: &Work, monitor: &dyn Monitor) -> Result<Plan> {
        let (marks, damaged) = Mark::all_readable(&self.core)?;
        for (id, error) in damaged {
            monitor.finding(&error.to_string());
            if !request.dry_run {
                // Nothing goes by it, and without it its packs are as any others.
                self.core.backend.remove(FileKind::Mark, &id)?;
            }
        }
        let usage = Usage::find(self, monitor)?;
        let marked: BTreeSet<PackId> = marks.iter().flat_map(|(_, mark)| &mark.packs).copied().collect();
        if !request.dry_run {
            // Only notes: they are tidied up another time.
            drop(damaged_packs::tidy(self, false));
        }
        let damaged = damaged_packs::known(self)?;
        let tally = Tally::count(&usage, &*self.core.backend, &marked, &damaged)?;
        let needed = tally.packs.iter().filter(|pack| pack.bytes.used_bytes > 0 && marked.contains(&pack.id)).map(|pack| pack.id).collect();
        let mut free = Vec::new();
        let mut plan = Plan {
            unused: self.unknown(&tally, &marked, work.since)?,
            wasteful: BTreeSet::new(),
            left_unused_bytes: 0,
            is_cut: false,
            is_held: false,
            usage,
            tally,
            needed,
            marks,
        };
        for pack in &plan.tally.packs {
            let is_fixed = marked.contains(&pack.id) || (pack.bytes.used_bytes > 0 && damaged.contains(&pack.id));
            let may_be_needed = pack.bytes.used_bytes == 0 && self.is_written_since(&pack.id, work.since)?;
            plan.is_held |= may_be_needed;
            if may_be_needed || (is_fixed && !marked.contains(&pack.id)) {
                plan.left_unused_bytes += pack.bytes.blob_bytes - pack.bytes.used_bytes;
            }
            if !is_fixed && !may_be_needed {
                free.push(*pack);
            }
        }
        plan.choose(request, &free);
        Ok(plan)
    }

    /// Packs that are in no index and nobody's.
    fn unknown(&self, tally: &Tally, marked: &BTreeSet<PackId>, since: Option<Timestamp>) -> Result<BTreeSet<PackId>> {
        let mut unknown = BTreeSet::new();
        if tally.unknown.is_empty() {
            return Ok(unknown);
        }
        let of_rustic = reindex::marked_by_rustic(self)?;
        for (pack, _) in &tally.unknown {
            if !marked.contains(pack) && !of_rustic.contains(pack) && !self.is_written_since(pack, since)? {
                unknown.insert(*pack);
            }
        }
        Ok(unknown)
    }

    fn is_written_since(&self, pack: &PackId, since: Option<Timestamp>) -> Result<bool> {
        let Some(since) = since else { return Ok(false) };
        Ok(self.core.backend.written(FileKind::Pack, pack)?.is_some_and(|written| written >= since))
    }

    /// Marks what nothing needs any more, after copies of the rest are durable.
    fn mark(&self, lease: &Lease, plan: &mut Plan, copied: Copied) -> Result<()> {
        let packs: BTreeSet<PackId> = plan.unused.union(&copied.packs).copied().collect();
        if packs.is_empty() {
            return Ok(());
        }
        lease.check()?;
        let bytes = plan.tally.bytes_of(&packs);
        let mark = Mark::new((self.environment.now)(), &self.environment.hostname, packs.into_iter().collect(), bytes, copied.bytes);
        plan.marks.push((mark.write(&self.core)?, mark));
        Ok(())
    }
}

impl Plan {
    fn choose(&mut self, request: &PruneRequest, free: &[Pack]) {
        // What waits in marks takes its space twice, too.
        let twice: u64 = self.marks.iter().map(|(_, mark)| mark.copied_bytes).sum();
        let limits = Limits {
            unused_max_percent: request.unused_max_percent,
            copy_max: request.repack_max.map(|most| most.saturating_sub(twice)),
            small_below: PACK_BYTES / 4,
        };
        let choice = choose(&free.iter().map(|pack| pack.bytes).collect::<Vec<_>>(), &limits);
        let ids = |places: Vec<usize>| places.into_iter().filter_map(|place| free.get(place)).map(|pack| pack.id).collect::<Vec<_>>();
        self.unused.extend(ids(choice.unused));
        self.wasteful.extend(ids(choice.copied));
        self.left_unused_bytes += choice.left_unused_bytes;
        self.is_cut = choice.is_cut;
    }

    /// Packs that go unless something keeps them.
    fn leaving(&self) -> BTreeSet<PackId> {
        let marked = self.marks.iter().flat_map(|(_, mark)| &mark.packs).filter(|pack| !self.needed.contains(*pack));
        self.unused.iter().chain(&self.wasteful).chain(marked).copied().collect()
    }

    /// These stay after all.
    fn keep(&mut self, packs: &BTreeSet<PackId>) {
        self.unused.retain(|pack| !packs.contains(pack));
        self.wasteful.retain(|pack| !packs.contains(pack));
        self.needed.extend(packs);
    }

    /// Says what a prune would do.
    fn tell(&self, report: &mut Pruned) {
        let leaving = self.leaving();
        report.removed_files = leaving.len() as u64;
        report.removed_bytes = self.tally.bytes_of(&leaving);
        report.repacked_bytes =
            self.tally.packs.iter().filter(|pack| self.wasteful.contains(&pack.id)).map(|pack| pack.bytes.used_bytes).sum();
        self.tell_use(report);
    }

    fn tell_use(&self, report: &mut Pruned) {
        report.used_bytes = self.tally.packs.iter().map(|pack| pack.bytes.used_bytes).sum();
        report.unused_bytes = self.left_unused_bytes;
    }
}
