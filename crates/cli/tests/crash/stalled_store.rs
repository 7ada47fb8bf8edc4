//! The store stops answering while a real guest is backed up: the guest does not wait for it, whatever becomes of the backup.

use std::time::Duration;

use keepmark_testkit::mount::{Mount, Small, Stopped};

use crate::guest;
use crate::held::{Held, Method};
use crate::lab::{Lab, MIB};
use crate::scratch::{assert_fits, assert_unharmed, pulse};
use crate::tracer::{Cut, Fate, Moment};

/// How long the store is silent.
const SILENCE: Duration = Duration::from_secs(8);
/// Shorter than that.
const WAIT_MAX: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn a_store_that_stalls_delays_the_backup_and_not_the_guest() {
    let lab = Lab::new();
    let store = lab.path("store");
    let _mount = Mount::new(lab.path("store.img"), store.clone());
    let mut rig = guest::rig_in(lab, 24 * MIB);
    rig.qemu.serial.wait_writes(20, PATIENCE);
    let counts = |effect: &str| effect == "write store/tmp";
    let pulse = pulse(&rig);
    let cut = Cut { number: 0, moment: Moment::Before };
    let mut waking = None;
    let trace = rig.struck_backup(&[], counts, Some(cut), &mut |_| {
        waking = Some(wake_later(Stopped::new(&store)));
        Fate::Spared
    });
    assert!(trace.struck.is_some() && trace.code == Some(0), "{trace:?} {}", rig.lab.printed());
    waking.unwrap().join().unwrap();
    assert_fits("store stalled", pulse.longest(), WAIT_MAX);
    let truth = rig.through().take();
    assert!(rig.lab.look(Some(truth)));
    assert_unharmed(&mut rig);
    rig.lab.compare_all();
    drop(rig);
}

fn wake_later(stopped: Stopped) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(SILENCE);
        drop(stopped);
    })
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
