//! Full, incremental, discarded, powered off and on again: what is restored is what was there.

use std::process::Command;
use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::{run, wait_for};
use keepmark_testkit::{Disk, DomainBuilder, Guest, LibvirtHost};

use crate::stage::{MIB, Stage, TIMEOUT, checkpoint, of_disk};

#[test]
fn every_backup_restores_to_its_moment() {
    let stage = Stage::new();
    let domain = stage.domain();
    let first_truth = stage.witness(&domain);
    let first = stage.judge(&domain, "full", &["first backup"]);
    assert_eq!((first["vm"].as_str(), first["consistency"].as_str()), (Some("vm"), Some("crash")));
    domain.write("vda", 7, 3 * MIB, 2 * MIB);
    domain.write("sda", 8, 5 * MIB, MIB);
    let second = stage.judge(&domain, "incremental", &[checkpoint(&first)]);
    assert_eq!((&of_disk(&second, "vda")["dirty_bytes"], &of_disk(&second, "sda")["dirty_bytes"]), (&(2 * MIB).into(), &MIB.into()));
    domain.qemu_io("vda", &format!("discard {} {}", 2 * MIB, 4 * MIB));
    let third = stage.judge(&domain, "incremental", &[]);
    assert_eq!(of_disk(&third, "vda")["read_bytes"], 0, "{third}");
    let fourth = stage.judge(&domain, "incremental", &[]);
    assert!(of_disk(&fourth, "vda")["stored_bytes"].as_u64().unwrap() < 64 << 10, "{fourth}");
    stage.compare(&first, &first_truth);
    stage.restic().check();
}

#[test]
fn a_domain_goes_on_shut_off_and_started_again() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.destroy();
    let off = stage.judge(&domain, "incremental", &[]);
    assert_eq!(of_disk(&off, "vda")["dirty_bytes"], MIB);
    domain.start();
    domain.write("vda", 8, 5 * MIB, MIB);
    let on = stage.judge(&domain, "incremental", &[checkpoint(&off)]);
    assert_eq!(of_disk(&on, "vda")["dirty_bytes"], MIB);
}

#[test]
fn a_qemu_of_another_user_is_backed_up_running_and_shut_off() {
    let stage = Stage::on(LibvirtHost::start_unprivileged);
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
    domain.write("vda", 8, 5 * MIB, MIB);
    domain.destroy();
    stage.judge(&domain, "incremental", &[]);
    domain.start();
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_domain_that_was_never_started_is_backed_up() {
    let stage = Stage::new();
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).define();
    let first = stage.judge(&domain, "full", &["first backup"]);
    stage.judge(&domain, "incremental", &[checkpoint(&first)]);
}

#[test]
fn a_paused_domain_stays_paused() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.virsh("suspend", &[]);
    stage.judge(&domain, "incremental", &[]);
    domain.virsh("resume", &[]);
}

#[test]
fn a_raw_disk_is_read_whole_each_time() {
    let stage = Stage::new();
    let raw = stage.path("vdb.raw");
    image::create(&raw, Format::Raw, 4 * MIB);
    image::fill(&raw, Format::Raw, 5, MIB, MIB);
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).disk(Disk::raw("vdb", &raw)).start();
    for write in [3 * MIB, 2 * MIB] {
        let finished = stage.backup(&domain, &[]);
        stage.compare(&finished, &stage.witness(&domain));
        domain.write("vda", 7, write, MIB);
        domain.write("vdb", 8, write, MIB);
    }
    let finished = stage.backup(&domain, &[]);
    assert_eq!(of_disk(&finished, "vda")["kind"], "incremental", "{finished}");
    stage.compare(&finished, &stage.witness(&domain));
}

/// A domain whose guest writes to `vda` all the time.
fn writing<'h>(stage: &'h Stage, builder: DomainBuilder<'h>) -> DomainBuilder<'h> {
    let file = stage.path("vda.qcow2");
    image::mkfs_ext4(&file, Format::Qcow2, 64 * MIB, None);
    builder.guest(&Guest::build()).mount(&["vda"]).writer("vda", 20).disk(Disk::qcow2("vda", &file))
}

#[test]
fn a_guest_that_writes_is_backed_up_at_one_moment() {
    let stage = Stage::new();
    let domain = writing(&stage, stage.host.domain("vm")).start();
    let serial = domain.wait_ready();
    for kind in ["full", "incremental", "incremental"] {
        serial.wait_writes(5, Duration::from_secs(60));
        let midway = stage.midway(&domain);
        let truth = domain.witness_of_backup(&stage.fresh("witness"));
        serial.wait_writes(5, Duration::from_secs(60));
        let run = midway.go_on();
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let finished = run.event("finished");
        assert_eq!((finished["kind"].as_str(), finished["consistency"].as_str()), (Some(kind), Some("crash")), "{}", run.stderr);
        stage.compare(&finished, &truth);
        stage.assert_clean(&domain);
    }
    serial.wait_writes(5, Duration::from_secs(60));
    serial.assert_unharmed();
}

#[test]
fn a_guest_with_an_agent_is_frozen_and_its_file_system_needs_no_repair() {
    let stage = Stage::new();
    let domain = writing(&stage, stage.host.domain("vm").agent()).start();
    let serial = domain.wait_ready();
    let asks = || domain.try_virsh("qemu-agent-command", &[r#"{"execute":"guest-fsfreeze-status"}"#]).ok();
    wait_for("the agent", TIMEOUT, asks);
    for kind in ["full", "incremental"] {
        serial.wait_writes(5, Duration::from_secs(60));
        let finished = stage.backup(&domain, &[]);
        assert_eq!((finished["kind"].as_str(), finished["consistency"].as_str()), (Some(kind), Some("application")), "{finished}");
        let to = stage.fresh("out");
        stage.keepmark.ok(&["restore", finished["backup"].as_str().unwrap(), "--to", to.to_str().unwrap()]);
        run(Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(to.join("vda.raw")));
        stage.assert_clean(&domain);
    }
    serial.wait_writes(5, Duration::from_secs(60));
    serial.assert_unharmed();
}
