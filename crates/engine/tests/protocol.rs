//! Every interleaving of a guest, QEMU's ends, two keepmarks without any lock between them, and their deaths, within a small scope.
//!
//! The moment is fixed in steps, with writes in between; the order that had a gap is checked too, and the checker must find the gap.
//! What a keepmark decides is decided by `model` itself. The classic protocol, in which a manager's file and QEMU hold halves of
//! the truth, is checked in the same way: the checker must find the backup that it corrupts.

use jiff::Timestamp;
use keepmark_model::facts::{BitmapFacts, DiskFacts, LayerFacts, Persistence, Power, VmFacts};
use keepmark_model::manifest::{Consistency, Kind, MANIFEST_VERSION, Manifest, ManifestDisk, StoredBackup};
use keepmark_model::moment::{MomentStep, steps};
use keepmark_model::plan::{Hold, obsolete_checkpoints};
use keepmark_model::trust::{Verdict, judge};
use keepmark_model::{BackupId, CheckpointName, ChunkSize, DiskName, Size, StoreId, VmIdentity};
use keepmark_testkit::OrFail;
use stateright::{Checker, Model, Property};

/// Blocks of the disk.
const BLOCKS: u8 = 2;
/// Bytes of a block.
const BLOCK: u64 = 65_536;

/// What is allowed to happen, and how often.
#[derive(Clone)]
struct Scope {
    classic: bool,
    /// How the moment is fixed, step by step; the classic protocol takes one transaction.
    order: [MomentStep; 3],
    keepmarks: u8,
    writes: u8,
    ends: u8,
    deaths: u8,
    runs: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Bitmap {
    name: u8,
    dirty: u8,
    recording: bool,
    stored: bool,
    inconsistent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Backup {
    checkpoint: u8,
    content: [u8; 2],
    truth: [u8; 2],
}

/// Where a keepmark is: each step is one effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Run {
    Idle,
    /// It has looked and decided; nothing has happened.
    Planned {
        base: Option<usize>,
    },
    /// The moment is being fixed: this many steps are done, and the guest may write between them.
    Fixing {
        base: Option<usize>,
        done: usize,
        checkpoint: u8,
        frozen: [u8; 2],
    },
    /// The point is fixed and its checkpoint recording.
    Fixed {
        base: Option<usize>,
        checkpoint: u8,
        delta: u8,
        frozen: [u8; 2],
    },
    /// The backup exists; what nothing needs is still there.
    Published {
        listed: Vec<usize>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    disk: [u8; 2],
    bitmaps: Vec<Bitmap>,
    backups: Vec<Backup>,
    runs: Vec<Run>,
    names: u8,
    writes: u8,
    ends: u8,
    deaths: u8,
    started: u8,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Write(u8),
    CloseQemu,
    KillQemu,
    Step(usize),
    Die(usize),
}

fn store() -> StoreId {
    StoreId::new("s")
}

fn name(number: u8) -> CheckpointName {
    CheckpointName::make(time(number), &store(), u32::from(number))
}

fn time(number: u8) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + i64::from(number)).or_fail("a time")
}

fn disk_facts(world: &World) -> DiskFacts {
    let bitmap = |bitmap: &Bitmap| BitmapFacts {
        name: name(bitmap.name).as_str().to_owned(),
        recording: bitmap.recording,
        busy: false,
        inconsistent: bitmap.inconsistent,
        persistent: true,
        granularity: BLOCK,
        dirty: Size(u64::from(bitmap.dirty.count_ones()) * BLOCK),
    };
    let layer = LayerFacts { image: "/a.qcow2".into(), id: None, bitmaps: world.bitmaps.iter().map(bitmap).collect() };
    DiskFacts {
        name: DiskName::new("vda").or_fail("a name"),
        size: Size(u64::from(BLOCKS) * BLOCK),
        format: "qcow2".into(),
        cluster_size: None,
        image: "/a.qcow2".into(),
        persistence: Persistence::Stored,
        layers: vec![layer],
    }
}

fn stored(place: usize, backup: &Backup) -> StoredBackup {
    let disk = ManifestDisk {
        name: DiskName::new("vda").or_fail("a name"),
        size: Size(u64::from(BLOCKS) * BLOCK),
        kind: Kind::Full,
        reason: String::new(),
        format: "qcow2".into(),
        cluster_size: None,
        image: "/a.qcow2".into(),
        image_id: None,
        backing: Vec::new(),
        chunk_size: ChunkSize::DEFAULT,
        checkpointed: true,
        base: None,
        dirty_bytes: 0,
        read_bytes: 0,
        stored_bytes: 0,
        audited_bytes: 0,
        audit: None,
    };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        program: String::new(),
        vm: VmIdentity { name: "vm".into(), uuid: None },
        number: 0,
        time: time(backup.checkpoint),
        kind: Kind::Full,
        wanted: None,
        standing: Default::default(),
        tags: Vec::new(),
        reason: String::new(),
        checkpoint: Some(name(backup.checkpoint)),
        consistency: Consistency::Crash,
        pause_ms: 0,
        freeze_ms: None,
        duration_ms: 0,
        power: Power::Running,
        hypervisor: String::new(),
        disks: vec![disk],
        left_out: vec![],
        skipped: vec![],
        findings: vec![],
    };
    StoredBackup::new(BackupId::new(place.to_string()), manifest)
}

/// The backups that a keepmark has seen, in the order in which a store lists them.
fn sequence(world: &World, listed: &[usize]) -> Vec<StoredBackup> {
    let mut sequence: Vec<StoredBackup> = listed.iter().map(|place| stored(*place, &world.backups[*place])).collect();
    sequence.sort_by_key(|backup| backup.manifest.time);
    sequence
}

impl World {
    fn write(&mut self, block: u8) {
        self.writes += 1;
        self.disk[usize::from(block)] = self.writes;
        let recording = self.bitmaps.iter_mut().filter(|bitmap| bitmap.recording && !bitmap.inconsistent);
        recording.for_each(|bitmap| bitmap.dirty |= 1 << block);
    }

    fn close(&mut self) {
        self.bitmaps.iter_mut().for_each(|bitmap| bitmap.stored = true);
        self.lose_points();
    }

    fn kill(&mut self) {
        self.bitmaps.retain(|bitmap| bitmap.stored);
        for bitmap in &mut self.bitmaps {
            (bitmap.inconsistent, bitmap.recording, bitmap.dirty) = (true, false, 0);
        }
        self.lose_points();
    }

    /// A point that is not read to its end is gone with QEMU; the run fails.
    fn lose_points(&mut self) {
        self.ends += 1;
        for run in &mut self.runs {
            if matches!(run, Run::Fixed { .. } | Run::Fixing { .. } | Run::Planned { .. }) {
                *run = Run::Idle;
            }
        }
    }

    fn all(&self) -> Vec<usize> {
        (0..self.backups.len()).collect()
    }

    fn plan(&self, classic: bool) -> Run {
        let newest = self.backups.len().checked_sub(1);
        if classic {
            return Run::Planned { base: newest };
        }
        let base = match judge(&disk_facts(self), &sequence(self, &self.all())) {
            Verdict::Trusted(base) => base.backup.as_str().parse().ok(),
            Verdict::Doubtful { .. } | Verdict::Unknown => None,
        };
        Run::Planned { base }
    }

    /// What the base's bitmap has recorded; none if it cannot be believed any more. Without a base everything is read.
    fn recorded_since(&self, base: Option<usize>) -> Option<u8> {
        let Some(place) = base else { return Some((1 << BLOCKS) - 1) };
        let since = self.backups[place].checkpoint;
        self.bitmaps.iter().find(|bitmap| bitmap.name == since && !bitmap.inconsistent).map(|bitmap| bitmap.dirty)
    }

    fn start_bitmap(&mut self) -> u8 {
        self.names += 1;
        self.bitmaps.push(Bitmap { name: self.names, dirty: 0, recording: true, stored: false, inconsistent: false });
        self.names
    }

    /// One transaction: the delta is read, the new bitmap takes over from whichever records, the moment is fixed.
    fn fix_at_once(&mut self, base: Option<usize>) -> Run {
        let Some(delta) = self.recorded_since(base) else { return Run::Idle };
        self.bitmaps.iter_mut().for_each(|bitmap| bitmap.recording = false);
        Run::Fixed { base, checkpoint: self.start_bitmap(), delta, frozen: self.disk }
    }

    /// One step towards the moment. It fails if the base's bitmap is gone.
    fn fix(&mut self, order: &[MomentStep; 3], base: Option<usize>, done: usize, checkpoint: u8, frozen: [u8; 2]) -> Run {
        let done_next = done + 1;
        match order[done] {
            MomentStep::NewBitmaps => Run::Fixing { base, done: done_next, checkpoint: self.start_bitmap(), frozen },
            MomentStep::Filters => Run::Fixing { base, done: done_next, checkpoint, frozen: self.disk },
            MomentStep::Merge => match self.recorded_since(base) {
                Some(delta) => Run::Fixed { base, checkpoint, delta, frozen },
                None => Run::Idle,
            },
        }
    }

    fn publish(&mut self, base: Option<usize>, checkpoint: u8, delta: u8, frozen: [u8; 2]) -> Run {
        let mut content = base.map_or(frozen, |place| self.backups[place].content);
        (0..BLOCKS).filter(|block| delta & 1 << block != 0).map(usize::from).for_each(|block| content[block] = frozen[block]);
        self.backups.push(Backup { checkpoint, content, truth: frozen });
        Run::Published { listed: self.all() }
    }

    fn remove_obsolete(&mut self, listed: &[usize]) {
        let facts = VmFacts {
            identity: VmIdentity { name: "vm".into(), uuid: None },
            power: Power::Running,
            hypervisor: String::new(),
            disks: vec![disk_facts(self)],
            skipped: vec![],
            agent: false,
        };
        let hold = Hold { now: time(0), longest: None };
        let obsolete = obsolete_checkpoints(&facts, &store(), &sequence(self, listed), &hold);
        self.bitmaps.retain(|bitmap| !obsolete.contains(&name(bitmap.name)));
    }

    fn step(&mut self, place: usize, scope: &Scope) {
        let classic = scope.classic;
        let next = match self.runs[place].clone() {
            Run::Idle => {
                self.started += 1;
                self.plan(classic)
            }
            Run::Planned { base } if classic => self.fix_at_once(base),
            Run::Planned { base } => self.fix(&scope.order, base, 0, 0, [0; 2]),
            Run::Fixing { base, done, checkpoint, frozen } => self.fix(&scope.order, base, done, checkpoint, frozen),
            Run::Fixed { base, checkpoint, delta, frozen } => self.publish(base, checkpoint, delta, frozen),
            Run::Published { listed } => {
                if !classic {
                    self.remove_obsolete(&listed);
                }
                Run::Idle
            }
        };
        self.runs[place] = next;
    }
}

impl Model for Scope {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let runs = vec![Run::Idle; usize::from(self.keepmarks)];
        vec![World { disk: [0; 2], bitmaps: vec![], backups: vec![], runs, names: 0, writes: 0, ends: 0, deaths: 0, started: 0 }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.writes < self.writes {
            actions.extend((0..BLOCKS).map(Action::Write));
        }
        if world.ends < self.ends {
            actions.extend([Action::CloseQemu, Action::KillQemu]);
        }
        for (place, run) in world.runs.iter().enumerate() {
            if *run != Run::Idle || world.started < self.runs {
                actions.push(Action::Step(place));
            }
            if *run != Run::Idle && world.deaths < self.deaths {
                actions.push(Action::Die(place));
            }
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        match action {
            Action::Write(block) => next.write(block),
            Action::CloseQemu => next.close(),
            Action::KillQemu => next.kill(),
            Action::Step(place) => next.step(place, self),
            Action::Die(place) => {
                next.deaths += 1;
                next.runs[place] = Run::Idle;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every listed backup is as the disk was", |_: &Self, world: &World| {
                world.backups.iter().all(|backup| backup.content == backup.truth)
            }),
            Property::sometimes("an incremental saves something", |_: &Self, world: &World| {
                world.runs.iter().any(|run| matches!(run, Run::Fixed { base: Some(_), delta, .. } if *delta != 3))
            }),
        ]
    }
}

#[test]
fn no_interleaving_corrupts_a_backup() {
    let scope = Scope { classic: false, order: steps(), keepmarks: 2, writes: 3, ends: 1, deaths: 1, runs: 3 };
    let checker = scope.checker().threads(2).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 10_000, "the scope is not that small");
}

// As it was until December 2026: somebody resumes a paused VM between the filters and the transaction, and the guest writes.
#[test]
fn the_checker_finds_the_gap_when_the_filters_come_first() {
    let small = Scope { classic: false, order: steps(), keepmarks: 1, writes: 1, ends: 0, deaths: 0, runs: 2 };
    let scope = Scope { order: [MomentStep::Filters, MomentStep::NewBitmaps, MomentStep::Merge], ..small.clone() };
    let checker = scope.checker().spawn_bfs().join();
    let path = checker.discovery("every listed backup is as the disk was").expect("a write behind the filters is lost");
    let actions = path.into_actions();
    println!("{actions:?}");
    let write = actions.iter().position(|action| matches!(action, Action::Write(_))).unwrap_or_default();
    // It plans, puts the filters in, and has not started the bitmap yet.
    assert_eq!((&actions[..2], write), (&[Action::Step(0), Action::Step(0)][..], 2), "{actions:?}");
    small.checker().spawn_bfs().join().assert_no_discovery("every listed backup is as the disk was");
}

#[test]
fn the_checker_finds_what_the_classic_protocol_corrupts() {
    let scope = Scope { classic: true, order: steps(), keepmarks: 1, writes: 2, ends: 0, deaths: 1, runs: 3 };
    let checker = scope.checker().spawn_bfs().join();
    let path = checker.discovery("every listed backup is as the disk was").expect("the classic protocol loses a delta");
    let actions = path.into_actions();
    println!("{actions:?}");
    assert!(actions.contains(&Action::Die(0)), "the update that is lost is the dead manager's: {actions:?}");
}
