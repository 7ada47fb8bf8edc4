//! Histories: what one seed makes happen, as steps that fit every state, so that any of them can be left out.

use std::fmt;

use keepmark_model::audit::AuditWish;
use keepmark_model::plan::WantedKind;

use super::event::{EVENTS, Event, EventKind};
use super::others::{BESIDE, MEANWHILE};
use super::rng::Rng;
use super::world::Fault;

/// Steps of a history.
pub const STEPS: usize = 200;
/// Effects of a run among which faults are spread; most runs have fewer.
const EFFECTS: u32 = 48;

/// A run of keepmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Which VM, modulo how many there are.
    pub machine: u8,
    /// To which store, modulo how many there are.
    pub store: u8,
    /// Which kind.
    pub kind: WantedKind,
    /// Whether a checkpoint is started.
    pub checkpoint: bool,
    /// Only the disk of this number, modulo how many there are.
    pub only: Option<u8>,
    /// How much is audited.
    pub audit: AuditWish,
    /// Before it, a powered-off VM is taken back in place to the backup of this number, modulo how many there are.
    pub back: Option<u8>,
    /// What befalls it, by effect.
    pub faults: Vec<(u32, Fault)>,
    /// What others do meanwhile, by instant: effects, and the steps within them.
    pub others: Vec<(u32, Fault)>,
}

/// One step of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Something happens.
    Happen(Event),
    /// keepmark backs up.
    Backup(Order),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Happen(event) => f.write_str(event.kind.words()),
            Self::Backup(order) => {
                if let Some(number) = order.back {
                    write!(f, "VM {} goes back to backup {number} if it is off, then ", order.machine)?;
                }
                let checkpoint = if order.checkpoint { "" } else { ", without a checkpoint" };
                let only = order.only.map(|disk| format!(", disk {disk} only")).unwrap_or_default();
                write!(
                    f,
                    "keepmark backs VM {} up to store {} ({:?}{checkpoint}{only}, audit {:?})",
                    order.machine, order.store, order.kind, order.audit
                )
            }
        }
    }
}

/// Which kinds of backups a history has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinds {
    /// Fulls and incrementals, as seeds that were found before there were differentials had.
    NoDifferentials,
    /// All.
    All,
}

/// The history of a seed.
#[must_use]
pub fn history(seed: u64, kinds: Kinds) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    // Some histories are quiet, so that long sequences of incrementals come about; some are wild.
    let quiet = rng.below(4);
    let mut steps: Vec<Step> = (0..STEPS).map(|_| step(&mut rng, quiet)).collect();
    set_trap(&mut steps, &mut Rng::new(seed.rotate_left(32)));
    if kinds == Kinds::All {
        add_differentials(&mut steps, &mut Rng::new(seed.rotate_left(16)));
        add_reverts(&mut steps, &mut Rng::new(seed.rotate_left(53)));
        let mut rng = Rng::new(seed.rotate_left(41));
        add_others(&mut steps, &mut rng);
        set_trap_of_others(&mut steps, &mut rng);
    }
    steps
}

/// In one history of four, VMs go back in place now and then.
fn add_reverts(steps: &mut [Step], rng: &mut Rng) {
    if !rng.one_in(4) {
        return;
    }
    for step in steps {
        if let Step::Backup(order) = step {
            order.back = rng.one_in(3).then(|| rng.byte());
        }
    }
}

/// A step of a trap.
#[derive(Clone, Copy)]
enum Trap {
    Event(EventKind),
    Backup(AuditWish),
}

/// What chance alone hardly ever brings about: images that look like the one in which a bitmap began, zeros that are kept as data, a
/// mirror beside a moment.
const TRAPS: [&[Trap]; 5] = {
    use AuditWish::{Default, Off};
    use EventKind::{
        BeginMirror, ConvertOlder, ConvertOver, Copy, ManagedSnapshot, Pivot, PowerOff, PowerOn, Push, ShrinkAndGrow, SnapshotAlike,
        Stream, Write, WriteZeros,
    };
    use Trap::{Backup, Event};
    [
        &[
            Event(PowerOn),
            Backup(Default),
            Event(Write),
            Event(ManagedSnapshot),
            Event(Write),
            Event(PowerOff),
            Event(ConvertOver),
            Backup(Off),
        ],
        &[Event(PowerOn), Event(Write), Event(Copy), Event(Write), Backup(Default), Event(PowerOff), Event(ConvertOlder), Backup(Off)],
        &[Event(PowerOn), Backup(Default), Event(Write), Event(SnapshotAlike), Event(Write), Event(Stream), Backup(Off)],
        &[Event(Push), Event(PowerOn), Event(Write), Event(WriteZeros), Backup(Default), Event(ShrinkAndGrow), Backup(Off)],
        &[Event(PowerOn), Event(BeginMirror), Backup(Default), Event(Write), Event(Pivot)],
    ]
};

fn set_trap_of_others(steps: &mut [Step], rng: &mut Rng) {
    if !rng.one_in(12) {
        return;
    }
    let (start, disk) = (rng.below(100) as usize, rng.byte());
    let trap = TRAPS[rng.below(5) as usize];
    for (step, set) in steps[start..].iter_mut().zip(trap) {
        *step = match *set {
            Trap::Event(kind) => Step::Happen(Event { kind, machine: 0, disk, a: rng.byte(), b: rng.byte() | 1 }),
            Trap::Backup(audit) => Step::Backup(plain(disk, audit)),
        };
    }
}

fn plain(store: u8, audit: AuditWish) -> Order {
    let kind = WantedKind::Incremental;
    Order { machine: 0, store, kind, checkpoint: true, only: None, audit, back: None, faults: Vec::new(), others: Vec::new() }
}

/// In three histories of four, others act: between runs, and at any instant of one.
fn add_others(steps: &mut [Step], rng: &mut Rng) {
    let share = rng.below(4);
    for step in steps.iter_mut() {
        let drawn = rng.below(24) < share;
        match step {
            Step::Backup(order) => order.others = if rng.below(6) < share { meanwhile(rng) } else { Vec::new() },
            Step::Happen(event) if drawn => *event = other(rng, BESIDE),
            Step::Happen(_) => {}
        }
    }
}

/// What others do at instants of a run: mostly near its frozen moment, often with a guest's write right after.
fn meanwhile(rng: &mut Rng) -> Vec<(u32, Fault)> {
    let mut others = Vec::new();
    for _ in 0..=rng.below(2) {
        let when = instant(rng);
        let kinds = if rng.one_in(3) { BESIDE } else { MEANWHILE };
        let event = other(rng, kinds);
        others.push((when, Fault::Happen(event)));
        for later in 0..rng.below(3) {
            let kind =
                [EventKind::Write, EventKind::Write, EventKind::WriteZeros, EventKind::Pivot, EventKind::Pause][rng.below(5) as usize];
            others.push((when + later * rng.below(3), Fault::Happen(Event { kind, a: rng.byte(), b: rng.byte(), ..event })));
        }
    }
    if rng.one_in(8) {
        others.push((instant(rng), if rng.one_in(2) { Fault::Kill } else { Fault::Refuse }));
    }
    others
}

fn instant(rng: &mut Rng) -> u32 {
    // The moment is mostly fixed within these.
    if rng.one_in(3) { rng.below(EFFECTS) } else { 6 + rng.below(14) }
}

fn other(rng: &mut Rng, kinds: &[EventKind]) -> Event {
    let kind = kinds[rng.below(u32::try_from(kinds.len()).unwrap_or(1)) as usize];
    Event { kind, machine: u8::from(rng.one_in(5)), disk: rng.byte(), a: rng.byte(), b: rng.byte() }
}

/// Makes differentials of some incrementals: of none in one history of four, of many in others.
fn add_differentials(steps: &mut [Step], rng: &mut Rng) {
    let share = rng.below(4);
    for step in steps {
        let drawn = rng.below(6) < share;
        match step {
            Step::Backup(order) if drawn && order.kind == WantedKind::Incremental => order.kind = WantedKind::Differential,
            Step::Backup(_) | Step::Happen(_) => {}
        }
    }
}

/// What chance alone hardly ever brings about, laid into one history of sixteen: two overlays with bitmaps of the same names, and
/// the one in the middle loses its bitmap.
fn set_trap(steps: &mut [Step], rng: &mut Rng) {
    use EventKind::{ManagedSnapshot, PowerOff, PowerOn, RemoveOurs, Write};
    if !rng.one_in(16) {
        return;
    }
    let (start, disk, store) = (rng.below(100) as usize, rng.byte(), rng.byte());
    let backup = |audit| Step::Backup(plain(store, audit));
    let kinds = [PowerOn, Write, ManagedSnapshot, Write, Write, ManagedSnapshot, PowerOff, RemoveOurs];
    let events = kinds.map(|kind| Step::Happen(Event { kind, machine: 0, disk, a: rng.byte(), b: rng.byte() | 1 }));
    let [power_on, others @ ..] = events;
    let trap = [power_on, backup(AuditWish::Default)].into_iter().chain(others).chain([backup(AuditWish::Off)]);
    steps[start..].iter_mut().zip(trap).for_each(|(step, set)| *step = set);
}

fn step(rng: &mut Rng, quiet: u32) -> Step {
    if rng.below(100) < 25 { Step::Backup(order(rng, quiet)) } else { Step::Happen(event(rng, quiet)) }
}

fn event(rng: &mut Rng, quiet: u32) -> Event {
    let total: u32 = EVENTS.iter().map(|(_, weight)| weight).sum();
    let mut left = rng.below(total);
    let chosen = EVENTS.iter().find(|(_, weight)| {
        let is_here = left < *weight;
        left = left.saturating_sub(*weight);
        is_here
    });
    let drawn = chosen.map_or(EventKind::Write, |(kind, _)| *kind);
    let is_calm = matches!(drawn, EventKind::Write | EventKind::WriteZeros | EventKind::Discard | EventKind::PowerOn | EventKind::PowerOff);
    let kind = if is_calm || rng.below(4) >= quiet { drawn } else { EventKind::Write };
    let machine = u8::from(rng.one_in(5));
    Event { kind, machine, disk: rng.byte(), a: rng.byte(), b: rng.byte() }
}

fn order(rng: &mut Rng, quiet: u32) -> Order {
    let mut faults = Vec::new();
    // A guest at work.
    for _ in 0..rng.below(4) {
        let kind = [EventKind::Write, EventKind::Write, EventKind::Write, EventKind::Discard][rng.below(4) as usize];
        faults.push((rng.below(EFFECTS), Fault::Happen(Event { kind, ..event(rng, 3) })));
    }
    if rng.below(8) >= quiet + 3 {
        let (when, event) = (near(rng), event(rng, 0));
        faults.push((when, Fault::Happen(event)));
        if rng.one_in(2) {
            faults.push((when, Fault::Happen(Event { kind: EventKind::Write, a: rng.byte(), ..event })));
        }
    }
    match rng.below(12) {
        0 | 1 => faults.push((near(rng), Fault::Kill)),
        2 => faults.push((near(rng), Fault::Refuse)),
        _ => {}
    }
    Order {
        machine: u8::from(rng.one_in(5)),
        store: rng.byte(),
        kind: if rng.one_in(20) { WantedKind::Full } else { WantedKind::Incremental },
        checkpoint: !rng.one_in(8),
        only: rng.one_in(10).then(|| rng.byte()),
        audit: match rng.below(6) {
            0 => AuditWish::Off,
            1 => AuditWish::Percent(50),
            _ => AuditWish::Default,
        },
        back: None,
        faults,
        others: Vec::new(),
    }
}

/// An effect; short runs have few, and the first ten lead to the frozen point, so early ones come more often.
fn near(rng: &mut Rng) -> u32 {
    let limit = if rng.one_in(2) { 10 } else { 1 + rng.below(EFFECTS) };
    rng.below(limit)
}
