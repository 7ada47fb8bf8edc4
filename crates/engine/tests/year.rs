//! A year of the default scheme on the simulation, in both kinds of store: after every day all that is listed is the truth, what is kept and
//! what is drawn are what plain restatements of the rules give.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::civil::{Date, Weekday, date};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use keepmark_engine::Surroundings;
use keepmark_engine::backup::{BackupJob, backup};
use keepmark_engine::push::Mode;
use keepmark_model::audit::AuditWish;
use keepmark_model::choice::DiskChoice;
use keepmark_model::manifest::{Kind, StoredBackup};
use keepmark_model::plan::{Request, WantedKind};
use keepmark_model::retention::{Beyond, Keep, Policy, Style, judge};
use keepmark_model::scheme::Scheme;
use keepmark_model::seam::{Freeze, Hypervisor, Silent, Store};
use keepmark_model::{BackupId, ChunkSize, DiskName};
use keepmark_testkit::OrFail;
use keepmark_testkit::sim::event::{Event, EventKind};
use keepmark_testkit::sim::hypervisor::SimVm;
use keepmark_testkit::sim::image::{Format, Layer, SimDisk};
use keepmark_testkit::sim::machine::{FIRST_IMAGE, Machine};
use keepmark_testkit::sim::store::{SimStore, StoreState};
use keepmark_testkit::sim::world::{Fault, Run, Shared, World, lock};

/// The first day, a first Monday, and how many follow.
const FIRST: Date = date(2026, 1, 5);
const DAYS: i64 = 365;
/// Grandfather, father, son: days, weeks and months that are kept.
const KEEP: [(usize, &str); 3] = [(7, "%Y-%m-%d"), (5, "%G-%V"), (12, "%Y-%m")];

/// Days without a run: a Monday, a first Monday, and some more.
const MISSED: [Date; 6] = [date(2026, 3, 9), date(2026, 5, 4), date(2026, 5, 5), date(2026, 7, 15), date(2026, 8, 10), date(2026, 8, 11)];
/// Runs that fail, and how: refused at an effect, or killed there. One is a first Monday, one the day that clocks go forward.
const FAILED: [(Date, u32, Fault); 4] = [
    (date(2026, 3, 29), 6, Fault::Refuse),
    (date(2026, 4, 6), 9, Fault::Kill),
    (date(2026, 6, 17), 4, Fault::Kill),
    (date(2026, 9, 14), 12, Fault::Refuse),
];
/// Days before whose run an old backup is written back into the VM, by the number of it among those that are listed.
const RESTORED: [(Date, u8); 3] = [(date(2026, 4, 15), 2), (date(2026, 8, 19), 0), (date(2026, 11, 25), 9)];
const QEMU_KILLED: [Date; 2] = [date(2026, 6, 24), date(2026, 10, 19)];
const GROWN: Date = date(2026, 9, 2);

/// A backup as the plain restatement has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    day: Date,
    letter: char,
    wanted: char,
}

struct Year {
    world: Shared,
    scheme: Scheme,
    policy: Policy,
    /// What should be listed.
    expected: Vec<Expected>,
    /// All that there ever were.
    made: Vec<Expected>,
    /// Their letters, with what is there for days without.
    drawn: String,
    lost: bool,
    numbers: Mutex<u32>,
}

fn disk(number: u32, name: &str) -> SimDisk {
    let layers = vec![Layer::new(FIRST_IMAGE + number, Format::Qcow2, 1, 40)];
    SimDisk::new(DiskName::new(name).or_fail("a name"), layers, 1)
}

impl Year {
    fn new(chained: bool) -> Self {
        let berlin = TimeZone::get("Europe/Berlin").or_fail("a zone");
        let mut store = StoreState::new("a", ChunkSize::try_from(4096_u32).or_fail("a size"));
        store.chained = chained;
        let machine = Machine::new(vec![disk(0, "vda"), disk(1, "vdb")], 1);
        let mut policy = Policy::new(Style::Restic, berlin.clone());
        (policy.counts[2], policy.counts[3], policy.counts[4]) = (Keep::Number(7), Keep::Number(5), Keep::Number(12));
        let world = Arc::new(Mutex::new(World::new(machine, vec![store], None, false)));
        lock(&world).happen(event(EventKind::PowerOn, 0, 0));
        let scheme = Scheme::gfs(berlin).or_fail("a scheme");
        Self { world, scheme, policy, expected: Vec::new(), made: Vec::new(), drawn: String::new(), lost: false, numbers: Mutex::new(0) }
    }

    /// Four in the morning, by the clock on the wall.
    fn moment(&self, day: Date) -> Timestamp {
        day.at(4, 0, 0, 0).to_zoned(self.scheme.zone.clone()).or_fail("a moment").timestamp()
    }

    fn happen(&self, event: Event) {
        assert!(lock(&self.world).happen(event), "{event:?}");
    }

    /// What befalls the VM before a day's run.
    fn live(&mut self, day: Date) {
        let number = u8::try_from(day.day_of_year() % 251).or_fail("a number");
        for disk in 0..2 {
            self.happen(Event { disk, ..event(EventKind::Write, number.wrapping_mul(7), number) });
            self.happen(Event { disk, ..event(EventKind::Discard, number.wrapping_mul(11), 1) });
        }
        if let Some((_, which)) = RESTORED.iter().find(|(restored, _)| *restored == day) {
            (0..2).for_each(|disk| self.happen(Event { disk, ..event(EventKind::Restore, *which, 0) }));
        }
        if QEMU_KILLED.contains(&day) {
            self.happen(event(EventKind::KillQemu, 0, 0));
            self.happen(event(EventKind::PowerOn, 0, 0));
            self.lost = true;
        }
        if day == GROWN {
            // To 8 + 44 atoms.
            self.happen(event(EventKind::Resize, 44, 0));
        }
    }

    /// The day's run. Gives whether there is a new backup.
    fn back_up(&self, day: Date) -> bool {
        let faults = FAILED.iter().filter(|(failed, ..)| *failed == day).map(|(_, effect, fault)| (*effect, *fault)).collect();
        lock(&self.world).run = Some(Run { faults, ..Run::default() });
        let (store, mut vm) = (SimStore::new(&self.world, 0), SimVm::connect(&self.world, 0));
        let job = BackupJob {
            request: Request { kind: WantedKind::Auto(Box::new(self.scheme.clone())), checkpoint: true, disks: DiskChoice::All },
            freeze: Freeze::Never,
            mode: Mode::Pull,
            audit: AuditWish::Default,
            hold_checkpoints: Some(Duration::from_hours(24 * 35)),
            tags: Vec::new(),
            program: "year".to_owned(),
        };
        let random = || {
            let mut number = self.numbers.lock().or_fail("a number");
            *number = number.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            *number
        };
        let now = self.moment(day);
        let world = Surroundings { now: &|| now, elapsed: &|| Duration::ZERO, random: &random };
        let done = backup(&mut vm, &store, &job, world, &Silent);
        drop(Box::new(vm).close());
        let run = lock(&self.world).run.take().or_fail("the run");
        assert_eq!(done.is_ok(), run.faults.is_empty(), "{day}: {done:?}");
        done.is_ok()
    }

    /// The same rules, said plainly: a new one of these letters is expected.
    fn expect(&mut self, day: Date) {
        let newest = |letters: &str| self.made.iter().filter(|made| letters.contains(made.wanted)).map(|made| made.day).max();
        let monday = (0..7).map(|back| day - back.days()).find(|day| day.weekday() == Weekday::Monday).or_fail("a Monday");
        let is_first = |day: &Date| day.weekday() == Weekday::Monday && day.day() <= 7;
        let first = (0..40).map(|back| day - back.days()).find(is_first).or_fail("a first Monday");
        let wanted = match (newest("F"), newest("FD")) {
            (full, _) if full.is_none_or(|full| full < first) => 'F',
            (_, greater) if greater.is_none_or(|greater| greater < monday) => 'D',
            _ => 'I',
        };
        let letter = if self.lost && wanted != 'F' { 'R' } else { wanted };
        self.lost = false;
        self.drawn.push(letter);
        self.made.push(Expected { day, letter, wanted });
        self.expected.push(Expected { day, letter, wanted });
    }

    /// The same rules of retention, said plainly.
    fn forget_plainly(&mut self) {
        let mut kept: BTreeSet<Date> = BTreeSet::new();
        let days: Vec<Date> = self.expected.iter().rev().map(|expected| expected.day).collect();
        for (count, form) in KEEP {
            let mut periods: Vec<String> = Vec::new();
            for day in &days {
                let period = day.strftime(form).to_string();
                if periods.len() < count && !periods.contains(&period) {
                    periods.push(period);
                    kept.insert(*day);
                }
            }
            kept.extend(days.last().filter(|_| periods.len() < count));
        }
        kept.extend(days.first());
        kept.extend(self.expected.iter().rev().find(|expected| "FR".contains(expected.letter)).map(|expected| expected.day));
        self.expected.retain(|expected| kept.contains(&expected.day));
    }

    fn forget(&self, day: Date) {
        let store = SimStore::new(&self.world, 0);
        let (sequence, _) = store.backups(None).or_fail("listing");
        let now = self.moment(day).checked_add(SignedDuration::from_mins(30)).or_fail("a moment");
        let verdicts = judge(&sequence, &self.policy, Beyond { bases: true, the_last: true }, now);
        let gone: Vec<BackupId> =
            verdicts.iter().filter(|verdict| verdict.reasons.is_empty()).map(|verdict| verdict.backup.id.clone()).collect();
        store.delete(&gone, &Silent).or_fail("deleting");
    }

    fn listed(&self) -> Vec<StoredBackup> {
        SimStore::new(&self.world, 0).backups(None).or_fail("listing").0
    }

    /// All that is listed is the truth, and is what the plain rules say.
    fn check(&self, day: Date) -> u64 {
        let listed = self.listed();
        let seen = |backup: &StoredBackup| {
            let day = backup.manifest.time.to_zoned(self.scheme.zone.clone()).date();
            Expected { day, letter: backup.manifest.kind.letter(), wanted: backup.manifest.role().word().to_uppercase().remove(0) }
        };
        assert_eq!(listed.iter().map(seen).collect::<Vec<_>>(), self.expected, "on {day}");
        let world = lock(&self.world);
        assert_eq!(world.violation, None, "on {day}");
        let (wrong, compared) = world.stores[0].check();
        assert_eq!(wrong, None, "on {day}");
        compared
    }

    /// A differential builds on the newest that read everything, an incremental on the backup before it.
    fn check_base(&self, day: Date) {
        let listed = self.listed();
        let Some((new, before)) = listed.split_last() else { return };
        let whole = |backup: &&StoredBackup| matches!(backup.manifest.kind, Kind::Full | Kind::Resync);
        let expected = match new.manifest.kind {
            Kind::Full | Kind::Resync => None,
            Kind::Differential => before.iter().rfind(whole),
            Kind::Incremental => before.last(),
        };
        let expected = expected.map(|backup| backup.id.clone());
        assert!(new.manifest.disks.iter().all(|disk| disk.base == expected), "on {day}");
        let chained = lock(&self.world).stores[0].chained;
        assert_eq!(new.builds_on, if chained { Vec::from_iter(expected) } else { Vec::new() }, "on {day}");
    }
}

fn event(kind: EventKind, a: u8, b: u8) -> Event {
    Event { kind, machine: 0, disk: 0, a, b }
}

/// Plays the year; gives the year's letters and how many comparisons with the truth there were.
fn play(chained: bool) -> (String, u64, u64) {
    let mut year = Year::new(chained);
    let mut compared = 0;
    for day in (0..DAYS).map(|number| FIRST + number.days()) {
        year.live(day);
        if MISSED.contains(&day) {
            year.drawn.push('.');
        } else if year.back_up(day) {
            year.check_base(day);
            year.expect(day);
            compared += year.check(day);
        } else {
            year.drawn.push('x');
        }
        year.forget(day);
        year.forget_plainly();
        compared += year.check(day);
    }
    let merged = lock(&year.world).stores[0].merged;
    (year.drawn, compared, merged)
}

/// The year as it is drawn, a month of Mondays to the line; `.` is a day without a run, `x` one whose run failed.
const DRAWN: [&str; 12] = [
    "FIIIIIIDIIIIIIDIIIIIIDIIIIII",
    "FIIIIIIDIIIIIIDIIIIIIDIIIIII",
    "FIIIIII.DIIIIIDIIIIIIDIIIIIxDIIIIII",
    "xFIIIIIDIIIIIIDIIIIIIDIIIIII",
    "..FIIIIDIIIIIIDIIIIIIDIIIIII",
    "FIIIIIIDIIIIIIDIxIIIIDIRIIIIDIIIIII",
    "FIIIIIIDI.IIIIDIIIIIIDIIIIII",
    "FIIIIII..DIIIIDIIIIIIDIIIIIIDIIIIII",
    "FIIIIIIxDIIIIIDIIIIIIDIIIIII",
    "FIIIIIIDIIIIIIRIIIIIIDIIIIII",
    "FIIIIIIDIIIIIIDIIIIIIDIIIIIIDIIIIII",
    "FIIIIIIDIIIIIIDIIIIIIDIIIIII",
];

#[test]
fn a_year_of_the_default_scheme_in_a_store_whose_backups_are_complete() {
    let (drawn, compared, merged) = play(false);
    assert_drawn(&drawn);
    assert!(compared > 20_000 && merged == 0, "{compared} {merged}");
}

#[test]
fn a_year_of_the_default_scheme_in_a_store_of_chains() {
    let (drawn, compared, merged) = play(true);
    assert_drawn(&drawn);
    assert!(compared > 20_000 && merged > 300, "{compared} {merged}");
}

#[track_caller]
fn assert_drawn(drawn: &str) {
    let expected = DRAWN.concat();
    assert_eq!(drawn[..expected.len().min(drawn.len())], expected[..drawn.len().min(expected.len())]);
    assert_eq!(drawn.len(), usize::try_from(DAYS).or_fail("a number"));
}
