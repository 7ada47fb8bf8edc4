//! The scratch is full, or its file system does not answer, while a real guest is backed up: the guest goes on, the backup
//! fails and says why, and nothing is left.

use std::time::Duration;

use keepmark_testkit::mount::{Mount, Small, Stopped};
use keepmark_testkit::process::wait_for;
use serde_json::json;

use crate::guest;
use crate::held::{Held, Method};
use crate::lab::{Lab, MIB};
use crate::live::Rig;
use crate::pulse::Pulse;

/// Longest that a write may wait that nothing holds up: this machine is shared, the guest emulated.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// The same where a copy into the scratch has to be given up first, after 10 s (`cbw-timeout`).
const GIVING_UP_MAX: Duration = Duration::from_secs(16);
const PATIENCE: Duration = Duration::from_secs(90);

/// A guest whose writer has written all its files once: from now on it overwrites.
pub fn overwriting(lab: Lab) -> Rig {
    let rig = guest::rig_in(lab, 24 * MIB);
    rig.qemu.serial.wait_writes(70, PATIENCE);
    rig
}

pub fn pulse(rig: &Rig) -> Pulse {
    Pulse::of(rig.lab.path("vm/serial"))
}

/// The guest writes on, nothing is left of the backup, the next one is right.
#[track_caller]
pub fn assert_unharmed(rig: &mut Rig) {
    rig.qemu.serial.wait_writes(5, PATIENCE);
    rig.recover();
    rig.qemu.assert_guest_unharmed();
}

#[track_caller]
pub fn assert_fits(what: &str, longest: Duration, limit: Duration) {
    println!("{what}: the guest's longest wait was {longest:?}");
    assert!(longest < limit, "{what}: a write took {longest:?}");
}

fn full(method: Method, size: &str) {
    let lab = Lab::new();
    let scratch = Small::new(&lab.path("scratch"), size);
    let mut rig = overwriting(lab);
    let pulse = pulse(&rig);
    let held = Held::start(&mut rig, method);
    rig.qemu.serial.wait_writes(70, PATIENCE);
    held.open();
    let run = held.end();
    assert!(run.code == Some(1) && run.stderr.contains("Hint:") && run.stderr.contains("scratch"), "{run:?}");
    rig.assert_clean();
    rig.qemu.serial.wait_writes(5, PATIENCE);
    assert_fits("scratch full", pulse.longest(), WAIT_MAX);
    scratch.make_room();
    assert_unharmed(&mut rig);
}

#[test]
fn a_full_scratch_breaks_the_backup_and_not_the_guest() {
    full(Method::Filters, "1m");
}

/// keepmark gives up while there are still 256 MiB free, however busy it is otherwise.
#[test]
fn a_full_scratch_breaks_the_backup_and_not_the_guest_on_an_older_qemu() {
    full(Method::Jobs, "258m");
}

/// Nobody watches the space any more, and these QEMUs would fail the guest's writes.
#[test]
fn a_killed_backup_s_jobs_are_ended_at_once() {
    let lab = Lab::new();
    let scratch = Small::new(&lab.path("scratch"), "258m");
    let mut rig = overwriting(lab);
    let pulse = pulse(&rig);
    let mut held = Held::start(&mut rig, Method::Jobs);
    held.kill();
    wait_for("the jobs to end", WAIT_MAX, || (rig.qemu.qmp("query-jobs", json!({})) == json!([])).then_some(()));
    rig.qemu.serial.wait_writes(70, PATIENCE);
    assert_fits("killed, older QEMU", pulse.longest(), WAIT_MAX);
    scratch.make_room();
    assert_unharmed(&mut rig);
}

#[test]
fn a_scratch_that_does_not_answer_breaks_the_backup_and_not_the_guest() {
    let lab = Lab::new();
    let scratch = lab.path("scratch");
    let _mount = Mount::new(lab.path("scratch.img"), scratch.clone());
    let mut rig = overwriting(lab);
    let pulse = pulse(&rig);
    let held = Held::start(&mut rig, Method::Filters);
    held.stop();
    let stopped = Stopped::new(&scratch);
    rig.qemu.serial.wait_writes(20, PATIENCE);
    held.go_on();
    let run = held.end();
    assert!(run.code == Some(1) && run.stderr.contains("does not answer"), "{run:?}");
    // Taking the filter away would wait for the scratch, and the guest with it. It stays until the scratch answers again.
    rig.qemu.serial.wait_writes(20, PATIENCE);
    let again = rig.lab.keepmark.exits(&["backup", &rig.qemu.vm()], 1);
    assert!(again.stderr.contains("does not answer") && again.stderr.contains("Hint:"), "{again:?}");
    rig.qemu.serial.wait_writes(20, PATIENCE);
    assert_fits("scratch stopped", pulse.longest(), GIVING_UP_MAX);
    drop(stopped);
    assert_unharmed(&mut rig);
}

/// These QEMUs have no time-out for a copy: the guest's write waits as long as the scratch does, and gets no error.
#[test]
fn a_scratch_that_does_not_answer_delays_the_guest_on_an_older_qemu() {
    let lab = Lab::new();
    let scratch = lab.path("scratch");
    let _mount = Mount::new(lab.path("scratch.img"), scratch.clone());
    let mut rig = overwriting(lab);
    let pulse = pulse(&rig);
    let held = Held::start(&mut rig, Method::Jobs);
    let stopped = Stopped::new(&scratch);
    std::thread::sleep(Duration::from_secs(4));
    drop(stopped);
    rig.qemu.serial.wait_writes(5, PATIENCE);
    held.open();
    let run = held.end();
    assert_eq!(run.code, Some(0), "{run:?}");
    assert_fits("scratch stopped for 4 s, older QEMU", pulse.longest(), WAIT_MAX + Duration::from_secs(4));
    assert!(rig.lab.ok(&["list", "--json"]).json().len() == 2);
    rig.qemu.assert_guest_unharmed();
}
