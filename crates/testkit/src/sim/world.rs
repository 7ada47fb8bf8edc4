//! The simulated world: VMs, stores, one run of keepmark at most, the faults that await it, and what was seen to be wrong.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keepmark_model::manifest::{Kind, ManifestDisk};
use keepmark_model::seam::Result;
use keepmark_model::{CheckpointName, DiskName, Failure, FailureClass};

use super::event::Event;
use super::machine::{FrozenCopy, Machine};
use super::store::StoreState;

/// The world, as its parts share it.
pub type Shared = Arc<Mutex<World>>;

/// Takes the world.
pub fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A rule of a driver, a store or the surroundings that can be broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Bitmaps start after the frozen point, not with it.
    PointThenBitmap,
    /// Only the active image's bitmap is read.
    TopLayerOnly,
    /// What was judged before the point is not judged again at the point.
    NoSecondLook,
    /// What cannot be read is taken for zeros.
    ReadErrorsAreZeros,
    /// The manifest is published before the chunks are durable.
    PublishBeforeSync,
    /// Chunks that a dead run stored are taken for durable.
    TrustUnsynced,
    /// Nobody gives the guest back what a dead keepmark took.
    NoWatchdog,
    /// Names of checkpoints come again.
    ReuseNames,
    /// What a dead run left is not removed.
    NoCleanUp,
    /// The base's checkpoint is removed before its successor is published.
    BaseGoesFirst,
    /// The base's bitmap is merged into the delta before the filters are there, not after.
    MergeFirst,
    /// The images are not looked at again after the moment.
    NoLastLook,
    /// A device gets back the node that was noted, whatever it uses by then.
    BlindRelease,
    /// A disk with somebody else's mirror is not refused.
    IgnoreJobs,
    /// What another keepmark has in QEMU is taken for a dead run's.
    OtherLocks,
    /// Another's server of exports is stopped with ours.
    StopsOthersServer,
    /// File systems that another has frozen are thawed.
    ThawsOthers,
    /// A guest that another paused is resumed.
    ResumesOthers,
    /// Somebody who lets the guest run while the disks get their filters goes unseen.
    TornMoment,
}

/// Every one of them, with its words.
pub const BREAKS: [(Break, &str); 19] = [
    (Break::PointThenBitmap, "start the bitmap after the frozen point"),
    (Break::TopLayerOnly, "ignore the bitmaps of lower layers"),
    (Break::NoSecondLook, "do not judge the bitmaps again at the point"),
    (Break::ReadErrorsAreZeros, "go on after a read error, with zeros"),
    (Break::PublishBeforeSync, "publish before sync"),
    (Break::TrustUnsynced, "take a dead run's chunks for durable"),
    (Break::NoWatchdog, "no watchdog for a stopped guest"),
    (Break::ReuseNames, "reuse a checkpoint's name"),
    (Break::NoCleanUp, "leave what a dead run left"),
    (Break::BaseGoesFirst, "remove the base's checkpoint before publication"),
    (Break::MergeFirst, "merge the base's bitmap before the moment"),
    (Break::NoLastLook, "do not look at the images after the moment"),
    (Break::BlindRelease, "give a device back what was noted"),
    (Break::IgnoreJobs, "freeze a disk that somebody mirrors"),
    (Break::OtherLocks, "do not see another keepmark's lock"),
    (Break::StopsOthersServer, "stop another's server of exports"),
    (Break::ThawsOthers, "thaw what another has frozen"),
    (Break::ResumesOthers, "resume what another has paused"),
    (Break::TornMoment, "do not see that the guest ran meanwhile"),
];

/// What befalls a run of keepmark at one of its effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The effect fails, and nothing of it happened.
    Refuse,
    /// keepmark is killed before the effect, which is after the one before.
    Kill,
    /// Something happens meanwhile.
    Happen(Event),
}

/// A run of keepmark.
#[derive(Debug, Default)]
pub struct Run {
    /// The VM it works on.
    pub machine: usize,
    /// The store it works for.
    pub store: usize,
    /// The effects it had so far.
    pub effect: u32,
    /// What awaits it, by effect.
    pub faults: Vec<(u32, Fault)>,
    /// The instants it had so far: effects, and the steps within them.
    pub instant: u32,
    /// What others do meanwhile, by instant.
    pub others: Vec<(u32, Fault)>,
    /// Whether it was killed: nothing that it still does reaches the world.
    pub dead: bool,
    /// Whether something refused, or changed under it, so that it may fail.
    pub disturbed: bool,
    /// Whether it looks at the end of clean data only, so that holes of foreign tools go unseen.
    pub unaudited: bool,
    /// The truth of the moment that it fixed.
    pub moment: Option<Arc<Vec<FrozenCopy>>>,
    /// Whether a guest wrote while its disks were frozen one after the other.
    pub torn: bool,
    /// The checkpoint that it starts.
    pub own: Option<CheckpointName>,
    /// Whether its backup exists.
    pub published: bool,
    /// Whether it removed a checkpoint before there was a successor.
    pub condemned: bool,
    /// The checkpoints since which its deltas are.
    pub since: Vec<(DiskName, CheckpointName)>,
}

/// What happened in one or many histories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Steps.
    pub steps: u64,
    /// Runs of keepmark.
    pub runs: u64,
    /// Effects of all runs.
    pub effects: u64,
    /// Runs that were killed.
    pub killed: u64,
    /// Runs that failed.
    pub failed: u64,
    /// Runs that took a VM back in place.
    pub reverted: u64,
    /// Disks captured in full.
    pub full: u64,
    /// Disks captured differentially.
    pub differential: u64,
    /// Disks captured incrementally.
    pub incremental: u64,
    /// Disks resynced.
    pub resync: u64,
    /// Resyncs that an audit caused.
    pub contradicted: u64,
    /// Disks of backups that differ from the truth by a silent edit that only the audit could have found.
    pub audit_only: u64,
    /// Comparisons of a listed backup's disk with the truth.
    pub compared: u64,
}

impl Stats {
    /// Counts a published disk.
    pub fn count(&mut self, disk: &ManifestDisk) {
        match disk.kind {
            Kind::Full => self.full += 1,
            Kind::Differential => self.differential += 1,
            Kind::Incremental => self.incremental += 1,
            Kind::Resync => self.resync += 1,
        }
        self.contradicted += u64::from(disk.reason.contains("contradicts"));
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.runs += other.runs;
        self.effects += other.effects;
        self.killed += other.killed;
        self.failed += other.failed;
        self.reverted += other.reverted;
        self.full += other.full;
        self.differential += other.differential;
        self.incremental += other.incremental;
        self.resync += other.resync;
        self.contradicted += other.contradicted;
        self.audit_only += other.audit_only;
        self.compared += other.compared;
    }
}

/// The simulated world.
#[derive(Debug)]
pub struct World {
    /// VMs: one, or it and its clone.
    pub machines: Vec<Machine>,
    /// Stores.
    pub stores: Vec<StoreState>,
    /// The run that is going on.
    pub run: Option<Run>,
    /// Seconds since the beginning of the history.
    pub clock: i64,
    /// Whether the clock was ever set back.
    pub set_back: bool,
    /// Whether there are two stores of one id.
    pub twins: bool,
    /// Which rule is broken on purpose.
    pub broken: Option<Break>,
    /// What happened.
    pub stats: Stats,
    /// What was first seen to be wrong.
    pub violation: Option<String>,
    counter: u32,
    story: Option<Vec<String>>,
}

impl World {
    /// A world; `telling` writes its story down.
    #[must_use]
    pub fn new(machine: Machine, stores: Vec<StoreState>, broken: Option<Break>, telling: bool) -> Self {
        Self {
            machines: vec![machine],
            stores,
            run: None,
            clock: 0,
            set_back: false,
            twins: false,
            broken,
            stats: Stats::default(),
            violation: None,
            counter: 0,
            story: telling.then(Vec::new),
        }
    }

    /// A number that was never given before.
    pub fn fresh(&mut self) -> u32 {
        self.counter += 1;
        self.counter
    }

    /// Whether a rule is broken on purpose.
    #[must_use]
    pub fn breaks(&self, rule: Break) -> bool {
        self.broken == Some(rule)
    }

    /// Whether the story is wanted.
    #[must_use]
    pub fn is_telling(&self) -> bool {
        self.story.is_some()
    }

    /// Adds a sentence to the story.
    pub fn tell(&mut self, sentence: String) {
        if let Some(story) = &mut self.story {
            let during = self.run.as_ref().map(|run| format!("  at effect {}: ", run.effect.saturating_sub(1))).unwrap_or_default();
            story.push(during + &sentence);
        }
    }

    /// The story so far.
    #[must_use]
    pub fn story(&self) -> &[String] {
        self.story.as_deref().unwrap_or_default()
    }

    /// Notes what is wrong; the first counts.
    pub fn wrong(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    /// The run has its next effect; what awaits it there befalls it first.
    ///
    /// # Errors
    /// When it is refused, or the run is dead.
    pub fn effect(&mut self) -> Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if run.dead {
            return dead();
        }
        let number = run.effect;
        run.effect += 1;
        self.stats.effects += 1;
        let due: Vec<Fault> = run.faults.iter().filter(|(when, _)| *when == number).map(|(_, fault)| *fault).collect();
        self.meet(due)?;
        self.instant()
    }

    /// A step within an effect: others act at any instant, and keepmark may die at any.
    ///
    /// # Errors
    /// When it is refused, or the run is dead.
    pub fn instant(&mut self) -> Result<()> {
        let Some(run) = &mut self.run else { return Ok(()) };
        if run.dead {
            return dead();
        }
        let number = run.instant;
        run.instant += 1;
        let due: Vec<Fault> = run.others.iter().filter(|(when, _)| *when == number).map(|(_, fault)| *fault).collect();
        self.meet(due)
    }

    fn meet(&mut self, due: Vec<Fault>) -> Result<()> {
        let refused = due.contains(&Fault::Refuse);
        for fault in due {
            match fault {
                Fault::Refuse => {}
                Fault::Kill => self.kill_keepmark(),
                Fault::Happen(event) => self.interfere(event),
            }
        }
        if self.run.as_ref().is_some_and(|run| run.dead) {
            return dead();
        }
        if refused {
            self.tell("is refused".to_owned());
            self.run.iter_mut().for_each(|run| run.disturbed = true);
            return Err(Failure::new(FailureClass::Failed, "the simulation refuses"));
        }
        Ok(())
    }

    fn interfere(&mut self, event: Event) {
        if self.happen(event) && !event.kind.is_harmless() {
            self.run.iter_mut().for_each(|run| run.disturbed = true);
        }
    }

    fn kill_keepmark(&mut self) {
        self.tell("keepmark is killed".to_owned());
        let machine = self.run.as_ref().map_or(0, |run| run.machine);
        self.keepmark_dies(machine);
    }

    /// If keepmark works on this VM, it is dead now.
    pub fn keepmark_dies(&mut self, machine: usize) {
        let watchdog = !self.breaks(Break::NoWatchdog);
        let Some(run) = self.run.as_mut().filter(|run| run.machine == machine && !run.dead) else { return };
        run.dead = true;
        let in_order = run.effect.is_multiple_of(2);
        self.stats.killed += 1;
        self.machines[machine].keepmark_died(watchdog, in_order);
    }

    /// Whether the run that is going on is alive.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.run.as_ref().is_none_or(|run| !run.dead)
    }
}

fn dead() -> Result<()> {
    Err(Failure::new(FailureClass::Interrupted, "keepmark is dead"))
}
