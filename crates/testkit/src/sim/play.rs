//! Playing a history: step by step, with every listed backup compared with the truth after each, and each run judged.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use keepmark_model::audit::AuditWish;
use keepmark_model::choice::DiskChoice;
use keepmark_model::facts::Power;
use keepmark_model::manifest::{Kind, Manifest, ManifestDisk, StoredBackup};
use keepmark_model::plan::{Request, WantedKind};
use keepmark_model::seam::{Hypervisor, Result, Store};
use keepmark_model::{CheckpointName, ChunkSize, DiskName, StoreId, VmIdentity};

use super::history::{Order, Step};
use super::hypervisor::SimVm;
use super::image::{ATOMS_MAX, Format, Layer, SimDisk, mask};
use super::machine::{FIRST_IMAGE, Freezer, Machine};
use super::rng::Rng;
use super::store::{Published, SimStore, StoreState};
use super::world::{Break, Run, Shared, Stats, World, lock};

/// What the engine gets besides a VM and a store.
pub struct Senses<'a> {
    /// The time.
    pub now: &'a (dyn Fn() -> Timestamp + Sync),
    /// Time since some moment.
    pub elapsed: &'a (dyn Fn() -> Duration + Sync),
    /// Random bits.
    pub random: &'a (dyn Fn() -> u32 + Sync),
}

/// keepmark's backup: the engine under test, passed in, since nothing here may depend on it.
pub type Backup<'a> = dyn Fn(&mut dyn Hypervisor, &dyn Store, &Request, AuditWish, &Senses<'_>) -> Result<()> + Sync + 'a;
/// Its revert of all disks, without a backup before it.
pub type Revert<'a> = dyn Fn(&mut dyn Hypervisor, &dyn Store, &StoredBackup, &Senses<'_>) -> Result<()> + Sync + 'a;

/// The engine under test.
#[derive(Clone, Copy)]
pub struct Program<'a> {
    /// Its backup.
    pub backup: &'a Backup<'a>,
    /// Its revert.
    pub revert: &'a Revert<'a>,
}

/// How a history ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What happened.
    pub stats: Stats,
    /// What was wrong, and after how many steps.
    pub violation: Option<(usize, String)>,
    /// The story, if it was wanted.
    pub story: Vec<String>,
}

/// Plays the steps in the world of a seed.
#[must_use]
pub fn play(seed: u64, steps: &[Step], program: Program<'_>, broken: Option<Break>, telling: bool) -> Outcome {
    let world = Arc::new(Mutex::new(genesis(seed, broken, telling)));
    let mut violation = None;
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Happen(event) => drop(lock(&world).happen(*event)),
            Step::Backup(order) => run(&world, seed, order, program),
        }
        let mut world = lock(&world);
        world.clock += 60;
        world.stats.steps += 1;
        world.check();
        if let Some(what) = world.violation.take() {
            violation = Some((number + 1, what));
            break;
        }
    }
    let world = lock(&world);
    Outcome { stats: world.stats, violation, story: world.story().to_vec() }
}

/// A VM of one to three disks and two stores, all drawn from the seed.
fn genesis(seed: u64, broken: Option<Break>, telling: bool) -> World {
    let mut rng = Rng::new(!seed);
    let chunks = [4096_u32, 8192].map(|bytes| ChunkSize::try_from(bytes).unwrap_or(ChunkSize::DEFAULT));
    let stores = ["a", "b"].map(|id| StoreState::new(id, chunks[rng.below(2) as usize]));
    let count = 1 + rng.below(3);
    let disks = (0..count).map(|number| disk(&mut rng, number)).collect();
    World::new(Machine::new(disks, stores.len()), stores.into(), broken, telling)
}

fn disk(rng: &mut Rng, number: u32) -> SimDisk {
    let atoms = 8 + rng.below(40) as usize;
    let format = if rng.one_in(6) { Format::Raw } else { Format::Qcow2 };
    let cluster = 1 << rng.below(3);
    let names = ["vda", "vdb", "vdc"];
    let name = names.get(number as usize).and_then(|name| DiskName::new(name).ok());
    let layers = vec![Layer::new(FIRST_IMAGE + number, format, cluster, atoms.min(ATOMS_MAX))];
    let mut disk = SimDisk::new(name.unwrap_or_else(unreachable_name), layers, 1 << rng.below(5));
    // Few different values: disks that were made alike hold the same in many places.
    for _ in 0..rng.below(4) {
        let start = rng.below(32) as usize % disk.atoms();
        disk.write(start, start + 1 + rng.below(12) as usize, 2_000_000 + rng.below(3));
    }
    disk
}

fn unreachable_name() -> DiskName {
    crate::fail("the simulation has names for three disks")
}

/// One run of keepmark, and the judgement of it.
fn run(world: &Shared, seed: u64, order: &Order, program: Program<'_>) {
    let before = Before::start(world, order);
    let request = Request { kind: order.kind.clone(), checkpoint: order.checkpoint, disks: before.disks.clone() };
    let (reuse, clock, start) = {
        let world = lock(world);
        (world.breaks(Break::ReuseNames), world.clock, world.stats.runs)
    };
    let counter = Mutex::new(Rng::new(seed ^ start << 32));
    let random = || {
        let mut counter = counter.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = counter.below(u32::MAX);
        if reuse { number % 3 } else { number }
    };
    let now = || Timestamp::from_second(if reuse { 1_700_000_000 } else { 1_700_000_000 + clock }).unwrap_or_default();
    let senses = Senses { now: &now, elapsed: &|| Duration::ZERO, random: &random };
    let store = SimStore::new(world, before.store);
    let mut vm = SimVm::connect(world, before.machine);
    if let Some(target) = before.target(world, order) {
        let reverted = (program.revert)(&mut vm, &store, &target.backup, &senses);
        before.judge_revert(&mut lock(world), &target, &reverted);
    }
    let result = (program.backup)(&mut vm, &store, &request, order.audit, &senses);
    let closed = Box::new(vm).close();
    before.judge(&mut lock(world), order, &result.and(closed));
}

/// What was before a run, to judge it by.
struct Before {
    machine: usize,
    store: usize,
    disks: DiskChoice,
    power: Power,
    foreign: Vec<String>,
    smooth: Vec<DiskName>,
    anchored: Vec<DiskName>,
    published: u64,
    // Whether somebody's job or server stands in the way: keepmark may refuse.
    hindered: bool,
}

impl Before {
    fn start(world: &Shared, order: &Order) -> Self {
        let mut world = lock(world);
        let place = usize::from(order.machine) % world.machines.len();
        let store = usize::from(order.store) % world.stores.len();
        let machine = &world.machines[place];
        let names: Vec<DiskName> = machine.attached().map(|disk| disk.name.clone()).collect();
        let chosen = order.only.map(|number| names[usize::from(number) % names.len()].clone());
        let disks = chosen.map_or(DiskChoice::All, |name| DiskChoice::Only(vec![name]));
        let before = Self {
            machine: place,
            store,
            disks,
            power: machine.power,
            foreign: foreign(machine),
            smooth: machine.smooth[store].clone(),
            anchored: machine.anchored[store].clone(),
            published: world.stores[store].published,
            hindered: machine.others_server || machine.attached().any(|disk| disk.device.mirror.is_some()),
        };
        world.stats.runs += 1;
        if world.is_telling() {
            world.tell(Step::Backup(Order { machine: order.machine % 2, store: order.store % 2, ..order.clone() }).to_string());
        }
        world.run = Some(Run {
            machine: place,
            store,
            faults: order.faults.clone(),
            others: order.others.clone(),
            unaudited: order.audit == AuditWish::Off,
            ..Run::default()
        });
        before
    }

    /// The backup to which a powered-off VM goes back first.
    fn target(&self, world: &Shared, order: &Order) -> Option<Published> {
        let world = lock(world);
        let backups = &world.stores[self.store].backups;
        let number = usize::from(order.back?).checked_rem(backups.len())?;
        (self.power == Power::Off).then(|| backups[number].clone())
    }

    /// What went back holds what the backup restores to, but for silent edits, which no bitmap can show. That a backup does not fit
    /// the VM any more is no fault.
    fn judge_revert(&self, world: &mut World, target: &Published, result: &Result<()>) {
        if result.is_err() || world.run.as_ref().is_none_or(|run| run.dead || run.disturbed) {
            return;
        }
        world.stats.reverted += 1;
        let (store, machine) = (&world.stores[self.store], &world.machines[self.machine]);
        let is_wrong = |disk: &&SimDisk| {
            let wanted = target.disks.iter().find(|stored| stored.name == disk.name).and_then(|stored| store.content(stored));
            let missed = disk.layers.iter().flat_map(|layer| &layer.bitmaps).fold(0, |all, bitmap| all | bitmap.missed);
            let hidden = missed | store.excused(&disk.name);
            let differs = |(atom, (now, then)): (usize, ((u32, bool), u32))| now.0 != then && hidden & mask(atom, atom + 1) == 0;
            wanted.is_some_and(|wanted| disk.content().into_iter().zip(wanted).enumerate().any(differs))
        };
        let wrong = machine.attached().find(is_wrong).map(|disk| disk.name.clone());
        if let Some(name) = wrong {
            world.wrong(|| format!("disk {name} does not hold what backup {} restores to, although it went back", target.backup.id));
        }
    }

    fn judge(&self, world: &mut World, order: &Order, result: &Result<()>) {
        let Some(run) = world.run.take() else { return };
        if let Err(failure) = result {
            world.stats.failed += u64::from(!run.dead);
            if world.is_telling() {
                world.tell(format!("  it fails: {failure}"));
            }
        }
        let machine = &world.machines[self.machine];
        if run.dead && machine.leftovers.paused {
            world.wrong(|| "keepmark died and the guest stands still".to_owned());
        }
        if world.machines[self.machine].freezer == Some(Freezer::Us) {
            world.wrong(|| "keepmark ended and the guest's file systems are frozen".to_owned());
        }
        let published = world.stores[self.store].published > self.published;
        world.follow(self, order, &run, published && result.is_ok());
        if run.dead || run.disturbed {
            return;
        }
        let machine = &world.machines[self.machine];
        let wrong = match result {
            Err(_) if self.hindered => None,
            Err(failure) => Some(format!("nothing stood in the way, but the backup failed: {failure}")),
            Ok(()) if machine.leftovers.any() => Some("keepmark left something in the VM".to_owned()),
            Ok(()) if machine.power != self.power => Some("keepmark changed the VM's power state".to_owned()),
            Ok(()) if foreign(machine) != self.foreign => Some("keepmark touched another's bitmaps".to_owned()),
            Ok(()) => {
                let lost = || if run.condemned { None } else { self.lost_increment(world, order) };
                self.surplus(world).or_else(lost).or_else(|| self.seen_too_late(world))
            }
        };
        if let Some(wrong) = wrong {
            world.wrong(|| wrong);
        }
    }

    /// A checkpoint that nothing needs, where keepmark could have removed it.
    fn surplus(&self, world: &World) -> Option<String> {
        if world.twins {
            return None;
        }
        let (machine, store) = (&world.machines[self.machine], &world.stores[self.store]);
        if machine.bitmaps().any(|bitmap| bitmap.busy) {
            return None;
        }
        let vm = VmIdentity { name: machine.name.to_owned(), uuid: None }.id();
        let needed: Vec<&str> = machine.attached().flat_map(|disk| store.needed_checkpoints(&vm, &disk.name)).collect();
        let mut active = machine.attached().flat_map(|disk| &disk.layers[0].bitmaps);
        let surplus = active.find(|bitmap| is_for(&bitmap.name, &store.id) && !needed.contains(&bitmap.name.as_str()))?;
        Some(format!("checkpoint {} is needed by nothing and still there", surplus.name))
    }

    /// Nothing happened that could cost a bitmap, and still a disk was not captured by what changed.
    fn lost_increment(&self, world: &World, order: &Order) -> Option<String> {
        // Two stores of one id remove each other's checkpoints.
        if world.twins {
            return None;
        }
        let newest = world.stores[self.store].backups.last()?;
        // A clock that was set back makes an older bitmap look younger: a doubt, and a resync that nothing needed.
        // And a checkpoint is one of all disks: when one disk's bitmap is contradicted, none can build on it.
        let is_shared = |disk: &ManifestDisk| disk.reason.contains("the checkpoint that they share");
        let excused = |disk: &&ManifestDisk| is_shared(disk) || world.set_back && disk.reason.contains("cleared or paused");
        let provable = match order.kind {
            WantedKind::Full | WantedKind::Auto(_) => return None,
            WantedKind::Differential => &self.anchored,
            WantedKind::Incremental => &self.smooth,
        };
        let mut disks = newest.backup.manifest.disks.iter().filter(|disk| !excused(disk));
        let lost = disks.find(|disk| disk.base.is_none() && provable.contains(&disk.name))?;
        Some(format!("disk {} could have been captured by what changed, but: {}", lost.name, lost.reason))
    }

    /// A disk is smaller than in every earlier backup, or has an image that was another's in all of them: the plan must know,
    /// without any luck in reading.
    fn seen_too_late(&self, world: &World) -> Option<String> {
        let (newest, earlier) = world.stores[self.store].backups.split_last()?;
        let vm = newest.backup.manifest.vm_id();
        let earlier: Vec<&Manifest> =
            earlier.iter().map(|published| &published.backup.manifest).filter(|then| then.vm_id() == vm).collect();
        let mut disks = newest.backup.manifest.disks.iter().filter(|disk| disk.reason.contains("the audit contradicts"));
        let late = disks.find(|disk| !earlier.is_empty() && earlier.iter().all(|then| is_another(disk, then)))?;
        Some(format!("disk {} shrank or was exchanged, and only its audit noticed: {}", late.name, late.reason))
    }
}

/// Whether a disk cannot be the one that a backup has under its name.
fn is_another(disk: &ManifestDisk, then: &Manifest) -> bool {
    let shrank = then.disks.iter().any(|then| then.name == disk.name && then.size > disk.size);
    let (own, others): (Vec<_>, Vec<_>) =
        then.disks.iter().filter(|then| then.image == disk.image).partition(|then| then.name == disk.name);
    shrank || (own.is_empty() && !others.is_empty())
}

fn foreign(machine: &Machine) -> Vec<String> {
    machine.bitmaps().filter(|bitmap| !bitmap.name.starts_with("km1")).map(|bitmap| bitmap.name.clone()).collect()
}

fn is_for(name: &str, store: &StoreId) -> bool {
    CheckpointName::parse(name).is_ok_and(|name| name.is_for(store))
}

/// The disks of a backup, whether each is exactly the truth, and whether all of it was read.
fn captured(published: &Published) -> Vec<(DiskName, bool, bool)> {
    let whole = |name| published.backup.manifest.disk(name).is_some_and(|disk| matches!(disk.kind, Kind::Full | Kind::Resync));
    published.disks.iter().map(|disk| (disk.name.clone(), disk.is_exact(), whole(&disk.name))).collect()
}

impl World {
    /// What the run means for the next one of this VM and store.
    fn follow(&mut self, before: &Before, order: &Order, run: &Run, published: bool) {
        let store = before.store;
        let exists = self.stores[store].published > before.published;
        if exists {
            for place in (0..self.machines.len()).filter(|place| *place != before.machine) {
                self.machines[place].smooth[store].clear();
                self.machines[place].anchored[store].clear();
            }
        }
        let machine = &mut self.machines[before.machine];
        if order.checkpoint && exists && !(published && !run.disturbed && !run.dead) {
            // It exists, but what became of its checkpoint was not seen.
            machine.smooth[store].clear();
            machine.anchored[store].clear();
        }
        if published && order.checkpoint && !run.disturbed && !run.dead {
            let captured: Vec<(DiskName, bool, bool)> = self.stores[store].backups.last().map(captured).unwrap_or_default();
            let lasting = |name: &DiskName| {
                machine.power != Power::Off || machine.disks.iter().any(|disk| disk.name == *name && disk.layers[0].format == Format::Qcow2)
            };
            let fresh = |(name, exact, _): &&(DiskName, bool, bool)| *exact && lasting(name);
            let fresh: Vec<(DiskName, bool, bool)> = captured.iter().filter(fresh).cloned().collect();
            machine.smooth[store].retain(|name| !captured.iter().any(|(other, ..)| other == name));
            machine.smooth[store].extend(fresh.iter().map(|(name, ..)| name.clone()));
            machine.anchored[store].retain(|name| !captured.iter().any(|(other, _, whole)| *whole && other == name));
            machine.anchored[store].extend(fresh.iter().filter(|(.., whole)| *whole).map(|(name, ..)| name.clone()));
        }
    }

    /// Compares all listed backups with the truth.
    fn check(&mut self) {
        let checks: Vec<(Option<String>, u64)> = self.stores.iter().map(StoreState::check).collect();
        for (wrong, compared) in checks {
            self.stats.compared += compared;
            if let Some(wrong) = wrong {
                self.wrong(|| wrong);
            }
        }
    }
}
