//! The store stops answering while a real guest is backed up: the guest does not wait for it, whatever becomes of the backup.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use keepmark_testkit::mount::{Mount, Small, Stopped};

use crate::guest;
use crate::held::{Held, Method};
use crate::lab::{Lab, MIB};
use crate::live::Rig;
use crate::scratch::{assert_fits, assert_unharmed, pulse};
use crate::tracer::{Cut, Fate, Moment, Trace};

/// How long the store is silent.
const SILENCE: Duration = Duration::from_secs(8);
/// Shorter than that.
const WAIT_MAX: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(90);
const PUSH: [&str; 4] = ["--mode", "push", "--kind", "full"];

/// A guest that writes, and a store on a file system of its own, which has to stay mounted longer.
fn rig(size: u64, init: fn(&Lab)) -> (Mount, Rig) {
    let lab = Lab::new();
    let mount = Mount::new(lab.path("store.img"), lab.path("store"));
    init(&lab);
    let rig = guest::rig_in(lab, size);
    rig.qemu.serial.wait_writes(20, PATIENCE);
    (mount, rig)
}

/// A backup whose store falls silent at an effect of it, or soon afterwards: it ends well, and the guest has noticed nothing.
fn stalled(rig: &mut Rig, arguments: &[&str], counts: fn(&str) -> bool, number: usize, delay: Duration) {
    let trace = silenced(rig, arguments, counts, Cut { number, moment: Moment::Before }, delay, Fate::Spared);
    assert_eq!(trace.code, Some(0), "{trace:?} {}", rig.lab.printed());
    let truth = rig.through().take();
    assert!(rig.lab.look(Some(truth)));
    assert_unharmed(rig);
}

/// The guest has not noticed that the store fell silent.
fn silenced(rig: &mut Rig, arguments: &[&str], counts: fn(&str) -> bool, cut: Cut, delay: Duration, fate: Fate) -> Trace {
    let (pulse, store) = (pulse(rig), rig.lab.path("store"));
    let mut waking = None;
    let trace = rig.struck_backup(arguments, counts, Some(cut), &mut |_| {
        waking = Some(silence(store.clone(), delay));
        fate
    });
    assert!(trace.struck.is_some(), "{trace:?} {}", rig.lab.printed());
    waking.unwrap().join().unwrap();
    assert_fits(&format!("store stalled at {:?}", trace.struck), pulse.longest(), WAIT_MAX);
    trace
}

/// At once, or in the background.
fn silence(store: PathBuf, delay: Duration) -> JoinHandle<()> {
    let stopped = delay.is_zero().then(|| Stopped::new(&store));
    std::thread::spawn(move || {
        std::thread::sleep(delay);
        let stopped = stopped.unwrap_or_else(|| Stopped::new(&store));
        std::thread::sleep(SILENCE);
        drop(stopped);
    })
}

#[test]
fn a_store_that_stalls_delays_the_backup_and_not_the_guest() {
    let (_mount, mut rig) = rig(24 * MIB, Lab::init_if_bare);
    stalled(&mut rig, &[], |effect| effect == "write store/tmp", 0, Duration::ZERO);
    rig.lab.compare_all();
}

/// QEMU writes there itself: a job waits, and so do we before QEMU closes its image and before the next job begins.
#[test]
fn a_store_that_stalls_while_qemu_writes_to_it_delays_the_backup_and_not_the_guest() {
    let (_mount, mut rig) = rig(256 * MIB, Lab::init_images);
    let counts = |effect: &str| effect.starts_with("qmp blockdev-backup") || effect.starts_with("sync store");
    let effects = rig.effects(&PUSH, counts);
    let first = effects.iter().position(|effect| effect.starts_with("qmp")).unwrap();
    for number in first..first + 3 {
        stalled(&mut rig, &PUSH, counts, number, Duration::ZERO);
    }
    // In the middle of copying.
    rig.qemu.guest("dd if=/dev/urandom of=/mnt/vda/data bs=1M count=160 conv=fsync");
    stalled(&mut rig, &PUSH, counts, first, Duration::from_millis(50));
    rig.lab.compare_all();
}

/// Nobody watches then; the watchdog cannot end a job that waits, but does when it no longer waits.
#[test]
fn a_kill_while_qemu_waits_for_the_store_harms_no_guest() {
    let (_mount, mut rig) = rig(24 * MIB, Lab::init_images);
    let counts = |effect: &str| effect.starts_with("qmp blockdev-backup");
    for moment in [Moment::Before, Moment::After] {
        silenced(&mut rig, &PUSH, counts, Cut { number: 0, moment }, Duration::ZERO, Fate::Killed);
        assert_unharmed(&mut rig);
    }
    rig.lab.compare_all();
}

fn until_the_scratch_is_full(method: Method, size: &str) {
    let lab = Lab::new();
    let store = lab.path("store");
    let _mount = Mount::new(lab.path("store.img"), store.clone());
    let scratch = Small::new(&lab.path("scratch"), size);
    let mut rig = guest::rig_in(lab, 256 * MIB);
    rig.qemu.serial.wait_writes(70, PATIENCE);
    // More than keepmark takes in while it cannot store, and nothing that the store has already.
    rig.qemu.guest("dd if=/dev/urandom of=/mnt/vda/data bs=1M count=160 conv=fsync");
    let pulse = pulse(&rig);
    let held = Held::start(&mut rig, method);
    let stopped = Stopped::new(&store);
    held.open();
    rig.qemu.serial.wait_writes(70, PATIENCE);
    assert_eq!(rig.qemu.status(), "running");
    drop(stopped);
    let run = held.end();
    assert!(run.code == Some(1) && run.stderr.contains("Hint:") && run.stderr.contains("scratch"), "{run:?}");
    rig.assert_clean();
    assert_fits("store stalled, scratch full", pulse.longest(), WAIT_MAX);
    scratch.make_room();
    assert_unharmed(&mut rig);
    drop(rig);
}

#[test]
fn a_store_that_stalls_until_the_scratch_is_full_breaks_the_backup_and_not_the_guest() {
    until_the_scratch_is_full(Method::Filters, "1m");
}

#[test]
fn a_store_that_stalls_until_the_scratch_is_full_breaks_the_backup_and_not_the_guest_on_an_older_qemu() {
    until_the_scratch_is_full(Method::Jobs, "258m");
}
