//! libvirtd, QEMU or keepmark dies, and libvirt's memory is lost: the next backup succeeds without hands and is right.

use std::path::PathBuf;

use keepmark_testkit::Domain;
use keepmark_testkit::process::wait_for;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::stage::{MIB, Marks, Stage, TIMEOUT, checkpoint, soon};

/// Where libvirt keeps the checkpoints of `vm`, as seen by itself and by us.
const CHECKPOINTS: &str = "/var/lib/libvirt/qemu/checkpoint/vm";

fn checkpoints(stage: &Stage) -> PathBuf {
    stage.host.dir().join("lib/qemu/checkpoint/vm")
}

/// When libvirtd is started again after it died.
#[derive(Clone, Copy, PartialEq)]
enum Back {
    /// Before keepmark gives up.
    AtOnce,
    /// After keepmark has ended.
    Later,
}

/// Runs a backup during which libvirtd dies when it first touches `path`.
#[track_caller]
fn die_at(stage: &Stage, path: &str, back: Back) {
    let qemu = stage.host.qemu("vm");
    let strike = stage.host.kill_libvirtd_at(path);
    let run = stage.keepmark.spawn(&["backup", "vm", "--json"]);
    strike.wait(TIMEOUT);
    if back == Back::AtOnce {
        stage.host.restart_libvirtd();
    }
    let run = run.wait(TIMEOUT);
    assert_ne!(run.code, None, "keepmark was killed");
    if back == Back::Later {
        stage.host.restart_libvirtd();
    }
    assert_eq!(stage.host.qemu("vm"), qemu, "the guest did not go on");
}

/// A changed domain that was backed up once.
fn changed(stage: &Stage) -> Domain<'_> {
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.write("sda", 8, 5 * MIB, MIB);
    domain
}

#[test]
fn libvirtd_dies_between_qemus_transaction_and_its_own_note() {
    let stage = Stage::new();
    let domain = changed(&stage);
    die_at(&stage, CHECKPOINTS, Back::Later);
    let marks = Marks::of_ours(&domain);
    assert!(marks.in_qemu.len() > marks.in_libvirt.len(), "no orphan was made: {marks:?}");
    stage.judge(&domain, "incremental", &[]);
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn libvirtd_dies_after_a_bitmap_was_removed_and_before_its_note_was() {
    let stage = Stage::new();
    let domain = changed(&stage);
    let old = checkpoint(&stage.judge(&domain, "incremental", &[])).to_owned();
    domain.write("vda", 8, 5 * MIB, MIB);
    // The backup is published by then; its predecessor's checkpoint is what is removed.
    die_at(&stage, &format!("{CHECKPOINTS}/{old}.xml"), Back::Later);
    let marks = Marks::of_ours(&domain);
    assert!(marks.in_libvirt.contains(&old) && !marks.in_qemu.contains(&old), "no stale note was made: {marks:?}");
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn libvirtd_dies_at_either_moment_and_is_back_at_once() {
    let stage = Stage::new();
    let domain = changed(&stage);
    die_at(&stage, CHECKPOINTS, Back::AtOnce);
    domain.write("vda", 9, 6 * MIB, MIB);
    let old = checkpoint(&stage.judge(&domain, "incremental", &[])).to_owned();
    domain.write("vda", 10, 7 * MIB, MIB);
    die_at(&stage, &format!("{CHECKPOINTS}/{old}.xml"), Back::AtOnce);
    domain.write("vda", 11, 8 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

/// QEMU answers nothing from before libvirt's first command until libvirtd is dead: its transaction cannot have come.
#[test]
fn libvirtd_dies_while_it_prepares_a_backup() {
    let stage = Stage::new();
    let domain = changed(&stage);
    let mut monitor = domain.monitor();
    let mut bitmaps = || monitor.execute("query-named-block-nodes", json!({ "flat": true })).to_string().matches("km1-").count();
    let before = bitmaps();
    let qemu = Pid::from_raw(stage.host.qemu("vm").unwrap().cast_signed()).unwrap();
    let run = stage.keepmark.spawn(&["backup", "vm", "--json"]);
    soon("a scratch image", || stage.has_scratch_image());
    kill_process(qemu, Signal::STOP).unwrap();
    // The scratch images are there before libvirt is asked to begin.
    let status = stage.host.dir().join("run/qemu/vm.xml");
    soon("libvirt's backup job", || std::fs::read_to_string(&status).is_ok_and(|text| text.contains("async='backup'")));
    stage.host.kill_libvirtd();
    kill_process(qemu, Signal::CONT).unwrap();
    assert_eq!(bitmaps(), before, "QEMU's transaction had come already");
    let run = run.wait(TIMEOUT);
    assert_ne!(run.code, Some(0), "{}", run.stderr);
    stage.host.restart_libvirtd();
    assert!(domain.try_virsh("domjobinfo", &[]).unwrap_err().contains("job data missing"), "no dead job holds the domain");
    // No call of libvirt's ends that job: backups go around it, and what ends it is named.
    let doctor = stage.keepmark.exits(&["doctor", "vm"], 3);
    assert!(doctor.stdout.contains("is wedged") && doctor.stdout.contains("async='backup'"), "{}", doctor.stdout);
    for (pattern, offset) in [(9, 6 * MIB), (10, 7 * MIB)] {
        domain.write("vda", pattern, offset, MIB);
        domain.write("sda", pattern, offset + MIB, MIB);
        stage.judge_held(&domain, "incremental", &[]);
    }
    // What was made so is what libvirt goes on from.
    stage.end_dead_job();
    domain.write("vda", 12, 8 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
    assert_eq!(stage.host.qemu("vm").unwrap().cast_signed(), qemu.as_raw_nonzero().get(), "the guest did not go on");
}

#[test]
fn libvirtd_dies_and_comes_back_while_a_backup_is_read() {
    let stage = Stage::new();
    let domain = changed(&stage);
    let truth = stage.witness(&domain);
    let reading = stage.reading(&domain);
    stage.host.kill_libvirtd();
    stage.host.restart_libvirtd();
    let run = reading.go_on();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    stage.compare(&run.event("finished"), &truth);
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn libvirtd_dies_and_stays_away_while_a_backup_is_read() {
    let stage = Stage::new();
    let domain = changed(&stage);
    let reading = stage.reading(&domain);
    stage.host.kill_libvirtd();
    let run = reading.go_on();
    assert!(run.code.is_some_and(|code| code != 0), "{:?} {}", run.code, run.stderr);
    stage.host.restart_libvirtd();
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn keepmark_dies_while_it_reads() {
    let stage = Stage::new();
    let domain = changed(&stage);
    stage.midway(&domain).kill9();
    // Nobody watches the scratch any more: without an end of the backup the guest's writes would fail when it is full.
    wait_for("the watchdog to end the backup", TIMEOUT, || domain.backup_socket().is_none().then_some(()));
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn qemu_dies_while_a_backup_is_read() {
    let stage = Stage::new();
    let domain = changed(&stage);
    let midway = stage.midway(&domain);
    domain.kill_qemu();
    let run = midway.go_on();
    assert_ne!(run.code, Some(0), "{}", run.stderr);
    domain.start();
    stage.judge(&domain, "resync", &[]);
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn the_folder_of_checkpoints_cannot_be_written() {
    let stage = Stage::new();
    let domain = changed(&stage);
    let (folder, aside) = (checkpoints(&stage), stage.path("aside"));
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "not a folder").unwrap();
    let run = stage.keepmark.run(&["backup", "vm", "--json"]);
    assert_ne!(run.code, None, "{}", run.stderr);
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    stage.host.restart_libvirtd();
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn libvirts_memory_of_checkpoints_is_lost() {
    let stage = Stage::new();
    let domain = changed(&stage);
    stage.host.kill_libvirtd();
    std::fs::remove_dir_all(checkpoints(&stage)).unwrap();
    stage.host.restart_libvirtd();
    assert_eq!(domain.checkpoints(), [] as [&str; 0]);
    stage.judge(&domain, "incremental", &[]);
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_libvirtd_that_stands_still_is_given_up_and_the_next_backup_is_right() {
    let stage = Stage::new();
    let domain = changed(&stage);
    let midway = stage.midway(&domain);
    stage.host.pause_libvirtd();
    let failed = midway.go_on();
    assert!(failed.code.is_some_and(|code| code != 0), "{}", failed.stderr);
    let mute = stage.keepmark.exits(&["plan", "vm"], 13);
    assert!(mute.stderr.contains("has not answered"), "{}", mute.stderr);
    stage.host.resume_libvirtd();
    stage.judge(&domain, "incremental", &[]);
}
