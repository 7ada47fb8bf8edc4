//! Bitmaps that are there but cannot be believed: on some disks only, disabled, busy, cleared, twice; and other granularities.

use keepmark_testkit::Disk;
use keepmark_testkit::image::{self, Format};
use serde_json::json;

use crate::stage::{MIB, SIZE, Stage, bitmap, caught, checkpoint, checkpoints, is, of_disk};

#[test]
fn a_bitmap_on_some_disks_only_is_believed_there_only() {
    let stage = Stage::new();
    let mut vm = stage.start(stage.vm(&[stage.disk("vda"), stage.disk("vdb2")]));
    stage.live(&mut vm, is("full", &[]));
    let name = checkpoints(&mut vm.qemu).remove(0);
    bitmap(&mut vm.qemu, "remove", "node-vdb2", &name);
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    vm.qemu.write("vdb2", 8, 4 * MIB, MIB);
    let finished = stage.live(&mut vm, is("resync", &["vda: incremental", "vdb2: resync", "bitmap is gone"]));
    assert_eq!(of_disk(&finished, "vda")["read_bytes"], MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn a_disabled_bitmap_has_missed_writes() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    bitmap(&mut vm.qemu, "disable", "node-vda", &name);
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("resync", &["disabled"]));
}

#[test]
fn a_bitmap_that_a_job_holds_cannot_be_read() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    vm.qemu.write("vda", 7, 3 * MIB, 2 * MIB);
    vm.qemu.qmp("blockdev-add", json!({"driver": "null-co", "node-name": "theirs", "size": SIZE}));
    let slow = json!({"job-id": "theirs", "device": "node-vda", "target": "theirs", "sync": "incremental", "bitmap": name, "speed": 1});
    vm.qemu.qmp("blockdev-backup", slow);
    // It cannot be removed either, which is a finding, and is tried again by the next run.
    let busy = crate::stage::Expect { code: 3, ..is("resync", &["holds the last backup's bitmap"]) };
    stage.live(&mut vm, busy);
    assert!(checkpoints(&mut vm.qemu).contains(&name));
    vm.qemu.qmp("block-job-cancel", json!({"device": "theirs", "force": true}));
    keepmark_testkit::process::wait_for("the job's end", std::time::Duration::from_secs(30), || {
        (vm.qemu.qmp("query-jobs", json!({})) == json!([])).then_some(())
    });
    let finished = stage.live(&mut vm, is("incremental", &[]));
    assert_eq!(checkpoints(&mut vm.qemu), stage.keepmark.needed_checkpoints(None));
    assert!(checkpoints(&mut vm.qemu).contains(&checkpoint(&finished).to_owned()));
}

#[test]
fn one_name_is_there_once_per_image_and_may_be_on_two_images() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    let again = vm.qemu.control.try_execute("block-dirty-bitmap-add", json!({"node": "node-vda", "name": name}));
    assert!(again.unwrap_err().to_string().contains("already exists"));
    // A second disk that came with a copy of the first one's image has its checkpoint's name too, but no backup.
    let copy = stage.path("copy.qcow2");
    let first = vm.qemu.disks()[0].clone();
    drop(vm.qemu.quit());
    std::fs::copy(&first.file, &copy).unwrap();
    let mut vm = stage.start(stage.vm(&[first, Disk::qcow2("vdb", &copy)]));
    vm.qemu.write("vdb", 9, 3 * MIB, MIB);
    let finished = stage.live(&mut vm, is("incremental", &["vdb: full: first backup of this disk"]));
    assert_eq!(checkpoints(&mut vm.qemu), stage.keepmark.needed_checkpoints(None));
    assert!(checkpoints(&mut vm.qemu).contains(&checkpoint(&finished).to_owned()));
}

#[test]
fn a_bitmap_that_another_manager_cleared_shows_beside_a_younger_one() {
    let stage = Stage::new();
    let other = stage.other_store("second");
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    stage.live_in(&other, &mut vm, &[], is("full", &[]));
    bitmap(&mut vm.qemu, "clear", "node-vda", &name);
    // What only the other store's bitmap knows of now.
    vm.qemu.write("vda", 7, 5 * MIB, MIB);
    bitmap(&mut vm.qemu, "clear", "node-vda", &name);
    stage.live(&mut vm, is("resync", &["cleared or paused by somebody else"]));
    stage.live_in(&other, &mut vm, &[], is("incremental", &[]));
}

/// A bitmap does not tell that it was cleared: without a younger one beside it, only the audit can find what it missed.
#[test]
fn a_bitmap_that_another_manager_cleared_is_found_by_the_audit_alone() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    vm.qemu.write("vda", 7, 2 * MIB, MIB);
    bitmap(&mut vm.qemu, "clear", "node-vda", &name);
    vm.qemu.write("vda", 8, 12 * MIB, MIB);
    let keepmark = stage.keepmark.clone();
    stage.live_in(&keepmark, &mut vm, &["--audit", "100%"], caught(&["audit contradicts the bitmap"]));
}

#[test]
fn bitmaps_finer_than_a_chunk() {
    let stage = Stage::new();
    let mut vm = stage.start(stage.vm(&[stage.disk_with("vda", "cluster_size=4k")]));
    stage.live(&mut vm, is("full", &[]));
    vm.qemu.write("vda", 7, 3 * MIB + 512, 512);
    vm.qemu.write("vda", 8, 5 * MIB - 512, 1024);
    let finished = stage.live(&mut vm, is("incremental", &[]));
    assert_eq!(of_disk(&finished, "vda")["dirty_bytes"], 3 * 4096);
}

#[test]
fn bitmaps_coarser_than_a_chunk_along_the_chain() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    vm.qemu.write("vda", 7, 2 * MIB, 4096);
    let overlay = stage.path("overlay.qcow2");
    let snapshot = json!({"node-name": "node-vda", "snapshot-file": overlay, "snapshot-node-name": "overlay"});
    vm.qemu.stop();
    vm.qemu.qmp("blockdev-snapshot-sync", snapshot);
    vm.qemu.qmp("block-dirty-bitmap-add", json!({"node": "overlay", "name": name, "persistent": true, "granularity": 4 * MIB}));
    vm.qemu.cont();
    vm.qemu.write("vda", 8, 9 * MIB, 4096);
    let finished = stage.live(&mut vm, is("incremental", &[]));
    // The coarse bit is there down to its ends.
    assert_eq!(of_disk(&finished, "vda")["dirty_bytes"], 4 * MIB + 65_536);
}

#[test]
fn images_that_hold_no_bitmaps_resync_after_each_start() {
    let stage = Stage::new();
    let raw = Disk::raw("vda", &stage.path("vda.raw"));
    image::create(&raw.file, Format::Raw, SIZE);
    image::fill_random(&raw.file, Format::Raw, 5, MIB, 4 << 20);
    let old = stage.disk_with("vdb", "compat=0.10");
    let mut vm = stage.start(stage.vm(&[raw, old]));
    stage.live(&mut vm, is("full", &[]));
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    vm.qemu.write("vdb", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
    let mut vm = stage.start(vm.qemu.quit());
    vm.qemu.write("vda", 8, 2 * MIB, MIB);
    stage.live(&mut vm, is("resync", &["raw images cannot hold bitmaps", "version 2"]));
    vm.qemu.write("vda", 9, 2 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}
