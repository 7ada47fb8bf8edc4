//! A dead job of libvirt's holds the domain, and nothing but the end of QEMU ends it: backups go around it, whoever dies meanwhile.

use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Disk, Domain, Guest};
use serde_json::json;

use crate::stage::{MIB, Marks, Stage, TIMEOUT, of_disk};

/// A held domain that was backed up once, and has changed.
fn held(stage: &Stage) -> Domain<'_> {
    let domain = stage.backed_up();
    domain.wedge();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.write("sda", 8, 5 * MIB, MIB);
    domain
}

#[test]
fn a_first_backup_is_possible_and_libvirt_goes_on_from_it() {
    let stage = Stage::new();
    let domain = stage.domain();
    domain.wedge();
    stage.judge_held(&domain, "full", &["first backup"]);
    domain.write("vda", 6, 2 * MIB, MIB);
    domain.destroy();
    stage.judge_held(&domain, "incremental", &[]);
    stage.host.restart_libvirtd();
    domain.start();
    domain.write("vda", 7, 3 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn checkpoints_are_made_listed_and_deleted_and_a_revert_is_refused() {
    let stage = Stage::new();
    let domain = held(&stage);
    let [before, qemu] = [Marks::of_ours(&domain).in_libvirt.len(), stage.host.qemu("vm").unwrap() as usize];
    let made = stage.keepmark.ok(&["checkpoint", "create", "vm", "--json"]).json();
    let name = made[0]["checkpoint"].as_str().unwrap().to_owned();
    let marks = Marks::of_ours(&domain);
    assert_eq!((marks.in_libvirt.len(), &marks.in_libvirt), (before + 1, &marks.in_qemu));
    stage.keepmark.ok(&["checkpoint", "delete", "vm", &name]);
    assert!(!Marks::of_ours(&domain).in_qemu.contains(&name));
    let listed = stage.keepmark.ok(&["list", "--json"]).json();
    let refused = stage.keepmark.exits(&["revert", "vm", listed[0]["id"].as_str().unwrap(), "--shutdown"], 1);
    assert!(refused.stderr.contains("is wedged") && refused.stderr.contains("Hint: "), "{}", refused.stderr);
    assert_eq!(stage.host.qemu("vm").unwrap() as usize, qemu, "the guest did not go on");
    stage.judge_held(&domain, "incremental", &[]);
}

/// As if libvirtd had been killed between QEMU's transaction and its own first note of it.
#[test]
fn what_the_dead_backup_left_in_qemu_is_ended() {
    let stage = Stage::new();
    let domain = held(&stage);
    let folder = stage.path("scratch/km1tmp-dead-scratch");
    std::fs::create_dir_all(&folder).unwrap();
    let scratch = folder.join("0.qcow2");
    image::create(&scratch, Format::Qcow2, 16 * MIB);
    let device = domain.qmp("query-block", json!({}))[0]["inserted"]["node-name"].clone();
    domain.qmp("blockdev-add", json!({ "node-name": "libvirt-77-storage", "driver": "file", "filename": scratch }));
    let overlay = json!({ "node-name": "libvirt-77-format", "driver": "qcow2", "file": "libvirt-77-storage", "backing": device });
    domain.qmp("blockdev-add", overlay);
    let socket = stage.path("nbd");
    domain.qmp("nbd-server-start", json!({ "addr": { "type": "unix", "data": { "path": socket } } }));
    let job = json!({ "job-id": "backup-vda-libvirt-77-format", "device": device, "target": "libvirt-77-format", "sync": "none", "auto-dismiss": false });
    domain.qmp("blockdev-backup", job);
    stage.judge_held(&domain, "incremental", &[]);
}

/// A held domain whose backup was killed while it was read.
fn killed(stage: &Stage) -> Domain<'_> {
    let domain = held(stage);
    stage.reading_held(&domain).kill9();
    // Nobody watches the scratch any more: without an end of the copying the guest's writes would fail when it is full.
    wait_for("the watchdog to end the copying", TIMEOUT, || (domain.qmp("query-jobs", json!({})) == json!([])).then_some(()));
    domain
}

#[test]
fn keepmark_dies_while_it_reads() {
    let stage = Stage::new();
    let domain = killed(&stage);
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge_held(&domain, "incremental", &[]);
}

#[test]
fn what_a_dead_keepmark_left_is_removed_when_libvirt_is_free_again() {
    let stage = Stage::new();
    let domain = killed(&stage);
    stage.end_dead_job();
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn libvirtd_dies_and_comes_back_while_it_is_read() {
    let stage = Stage::new();
    let domain = held(&stage);
    let truth = stage.witness(&domain);
    let reading = stage.reading_held(&domain);
    stage.host.kill_libvirtd();
    stage.host.restart_libvirtd();
    let run = reading.go_on();
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    stage.compare(&run.event("finished"), &truth);
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge_held(&domain, "incremental", &[]);
}

#[test]
fn libvirtd_dies_and_stays_away_while_it_is_read() {
    let stage = Stage::new();
    let domain = held(&stage);
    let reading = stage.reading_held(&domain);
    stage.host.kill_libvirtd();
    // What was read is whole, and stays a backup; what it left in QEMU is said, and removed by the next.
    let run = reading.go_on();
    assert_ne!(run.code, None, "{}", run.stderr);
    stage.host.restart_libvirtd();
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge_held(&domain, "incremental", &[]);
}

#[test]
fn a_guest_is_frozen_and_a_raw_disk_is_read_whole() {
    let stage = Stage::new();
    let (vda, vdb) = (stage.path("vda.qcow2"), stage.path("vdb.raw"));
    image::mkfs_ext4(&vda, Format::Qcow2, 64 * MIB, None);
    image::create(&vdb, Format::Raw, 4 * MIB);
    let builder = stage.host.domain("vm").agent().guest(&Guest::build()).mount(&["vda"]).writer("vda", 20);
    let domain = builder.disk(Disk::qcow2("vda", &vda)).disk(Disk::raw("vdb", &vdb)).start();
    let serial = domain.wait_ready();
    let asks = || domain.try_virsh("qemu-agent-command", &[r#"{"execute":"guest-fsfreeze-status"}"#]).ok();
    wait_for("the agent", TIMEOUT, asks);
    stage.backup(&domain, &[]);
    domain.wedge();
    wait_for("the agent", TIMEOUT, asks);
    for _ in 0..2 {
        serial.wait_writes(5, Duration::from_secs(60));
        let finished = stage.backup(&domain, &[]);
        assert_eq!(finished["consistency"], "application", "{finished}");
        assert_eq!((&of_disk(&finished, "vda")["kind"], &of_disk(&finished, "vdb")["kind"]), (&json!("incremental"), &json!("resync")));
    }
    serial.wait_writes(5, Duration::from_secs(60));
    serial.assert_unharmed();
    let marks = Marks::of_ours(&domain);
    assert_eq!(marks.in_libvirt, marks.in_qemu);
}
