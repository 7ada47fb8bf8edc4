//! What an administrator does with virsh between backups: it works as without us, and the next backup is right.

use keepmark_testkit::Domain;

use crate::stage::{MIB, SIZE, Stage, checkpoint, of_disk};

#[test]
fn checkpoints_are_listed_and_shown() {
    let stage = Stage::new();
    let domain = stage.domain();
    assert_eq!(domain.checkpoints(), [] as [&str; 0]);
    let finished = stage.judge(&domain, "full", &[]);
    let name = checkpoint(&finished);
    assert_eq!(domain.virsh("checkpoint-list", &["--tree"]).trim(), name);
    assert!(domain.virsh("checkpoint-dumpxml", &[name]).contains(name));
    assert!(domain.virsh("domjobinfo", &[]).contains("None"));
}

#[test]
fn a_checkpoint_deleted_by_hand_is_missed() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.virsh("checkpoint-delete", &[&domain.checkpoints()[0]]);
    stage.judge(&domain, "resync", &["bitmap is gone"]);
}

#[test]
fn a_checkpoint_whose_metadata_was_deleted_by_hand_goes_on() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.virsh("checkpoint-delete", &["--metadata", &domain.checkpoints()[0]]);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_grown_disk_is_read_behind_its_old_end() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.virsh("blockresize", &["vda", &format!("{}B", SIZE + MIB)]);
    domain.write("vda", 7, SIZE + 4096, 4096);
    stage.judge(&domain, "incremental", &["grew by 1048576 bytes"]);
}

#[test]
fn a_disk_is_resized_after_qemu_was_killed() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.kill_qemu();
    domain.start();
    stage.judge(&domain, "resync", &[]);
    // A broken bitmap of ours would forbid it.
    domain.virsh("blockresize", &["vda", &format!("{}B", SIZE + MIB)]);
    stage.judge(&domain, "incremental", &["grew"]);
}

/// Merges the active images of both disks back, as after a snapshot that is no longer needed.
fn commit(domain: &Domain<'_>) {
    for disk in ["vda", "sda"] {
        domain.virsh("blockcommit", &[disk, "--active", "--pivot", "--wait"]);
    }
}

#[test]
fn an_external_snapshot_taken_and_committed_between_backups_goes_on() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.virsh("snapshot-create-as", &["s1", "--disk-only", "--no-metadata"]);
    domain.write("vda", 8, 5 * MIB, MIB);
    commit(&domain);
    domain.write("vda", 9, 7 * MIB, MIB);
    let finished = stage.judge(&domain, "incremental", &[]);
    assert_eq!(of_disk(&finished, "vda")["dirty_bytes"], 3 * MIB);
}

#[test]
fn an_external_snapshot_that_was_backed_up_and_committed_is_read_whole_once() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.virsh("snapshot-create-as", &["s1", "--disk-only", "--no-metadata"]);
    domain.write("vda", 8, 5 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
    domain.write("vda", 9, 6 * MIB, MIB);
    commit(&domain);
    domain.write("vda", 10, 7 * MIB, MIB);
    // libvirt moves the bitmap along; who else merges images does not, and the result looks the same.
    stage.judge(&domain, "resync", &["renamed, or images were merged"]);
    domain.write("vda", 11, 8 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_disk_that_was_copied_to_another_file_is_read_whole_once() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    let copy = stage.path("copy.qcow2");
    domain.virsh("blockcopy", &["vda", copy.to_str().unwrap(), "--pivot", "--wait", "--transient-job"]);
    domain.write("vda", 8, 5 * MIB, MIB);
    assert_eq!(domain.source("vda"), copy);
    stage.judge(&domain, "resync", &["renamed, or images were merged"]);
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_domain_is_saved_and_restored() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.virsh("managedsave", &[]);
    assert_eq!(domain.state(), "shut off");
    domain.start();
    domain.write("vda", 8, 5 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_domain_is_undefined_and_defined_again() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    let xml = domain.virsh("dumpxml", &["--inactive"]);
    domain.destroy();
    domain.virsh("undefine", &["--checkpoints-metadata"]);
    stage.host.define(&xml);
    domain.start();
    domain.write("vda", 8, 5 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}
