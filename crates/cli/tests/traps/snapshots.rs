//! External snapshots taken, merged, streamed, thrown away or lost in a crash, bitmaps of one name along the chain; internal snapshots.

use std::path::PathBuf;

use keepmark_testkit::Disk;
use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::output;
use serde_json::json;

use crate::stage::{MIB, SIZE, Stage, Vm, bitmap, checkpoints, is, job, qemu_img};

/// Takes an external snapshot of a running disk; the new active image.
fn snapshot(stage: &Stage, vm: &mut Vm) -> PathBuf {
    let overlay = stage.path("overlay.qcow2");
    let arguments = json!({"node-name": "node-vda", "snapshot-file": overlay, "snapshot-node-name": "overlay"});
    vm.qemu.qmp("blockdev-snapshot-sync", arguments);
    overlay
}

/// The same as libvirt does it: a bitmap of each name goes on in the new image.
fn snapshot_with_bitmaps(stage: &Stage, vm: &mut Vm) -> PathBuf {
    let names = checkpoints(&mut vm.qemu);
    vm.qemu.stop();
    let overlay = snapshot(stage, vm);
    for name in names {
        vm.qemu.qmp("block-dirty-bitmap-add", json!({"node": "overlay", "name": name, "persistent": true}));
    }
    vm.qemu.cont();
    overlay
}

fn commit(vm: &mut Vm) {
    job(&mut vm.qemu, "block-commit", json!({"device": "overlay"}));
    assert_eq!(vm.qemu.node_of("vda"), "node-vda");
}

#[test]
fn an_external_snapshot_without_our_bitmap_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    snapshot(&stage, &mut vm);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    stage.live(&mut vm, is("resync", &["external snapshot was taken"]));
    vm.qemu.write("vda", 9, 6 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn bitmaps_of_one_name_along_the_chain_are_united() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    snapshot_with_bitmaps(&stage, &mut vm);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    let finished = stage.live(&mut vm, is("incremental", &[]));
    assert_eq!(crate::stage::of_disk(&finished, "vda")["dirty_bytes"], 2 * MIB);
    vm.qemu.write("vda", 9, 6 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn images_of_different_size_along_the_chain_are_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    snapshot_with_bitmaps(&stage, &mut vm);
    vm.qemu.qmp("block_resize", json!({"node-name": "overlay", "size": SIZE + MIB}));
    vm.qemu.write("vda", 8, SIZE + 4096, 4096);
    stage.live(&mut vm, is("incremental", &["grew"]));
}

#[test]
fn an_overlay_whose_bitmap_was_lost_in_a_crash_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    let overlay = snapshot_with_bitmaps(&stage, &mut vm);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    vm.qemu.qemu_io("vda", "flush");
    drop(vm.qemu.kill9());
    // The base's bitmap was stored when the snapshot was taken and is whole; the overlay's is in no file.
    assert_eq!(image::bitmaps(&stage.path("vda.qcow2")).len(), 1);
    assert!(image::bitmaps(&overlay).is_empty());
    stage.off(&[Disk::qcow2("vda", &overlay)], is("resync", &["the new image has no bitmap"]));
}

#[test]
fn a_snapshot_that_was_merged_back_goes_on_because_commit_is_recorded() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    snapshot(&stage, &mut vm);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    commit(&mut vm);
    vm.qemu.write("vda", 9, 6 * MIB, MIB);
    let finished = stage.live(&mut vm, is("incremental", &[]));
    assert_eq!(crate::stage::of_disk(&finished, "vda")["dirty_bytes"], 3 * MIB);
}

#[test]
fn a_snapshot_that_was_backed_up_and_merged_back_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    snapshot(&stage, &mut vm);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    stage.live(&mut vm, is("resync", &["external snapshot"]));
    commit(&mut vm);
    vm.qemu.write("vda", 9, 6 * MIB, MIB);
    stage.live(&mut vm, is("resync", &["bitmap is gone"]));
    assert_eq!(checkpoints(&mut vm.qemu).len(), 1, "the base's old checkpoint can be removed again");
}

#[test]
fn a_base_that_was_streamed_into_the_overlay_goes_on() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    snapshot(&stage, &mut vm);
    stage.live(&mut vm, is("resync", &["external snapshot"]));
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    job(&mut vm.qemu, "block-stream", json!({"device": "overlay"}));
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn a_base_that_was_streamed_while_its_bitmap_was_needed_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    // The overlay's bitmap goes on, but the base, whose bitmap knows of the first write, leaves the chain.
    snapshot_with_bitmaps(&stage, &mut vm);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    job(&mut vm.qemu, "block-stream", json!({"device": "overlay"}));
    stage.live(&mut vm, is("resync", &["began in", "images were merged"]));
}

#[test]
fn a_snapshot_that_was_thrown_away_goes_on_or_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    snapshot(&stage, &mut vm);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    drop(vm.qemu.quit());
    let base = [Disk::qcow2("vda", &stage.path("vda.qcow2"))];
    stage.off(&base, is("incremental", &[]));
    let overlay = [Disk::qcow2("vda", &stage.path("overlay.qcow2"))];
    stage.off(&overlay, is("resync", &["the new image has no bitmap"]));
    stage.off(&base, is("resync", &[]));
}

#[test]
fn a_layer_in_between_without_the_bitmap_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    snapshot(&stage, &mut vm);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    let arguments = json!({"node-name": "overlay", "snapshot-file": stage.path("top.qcow2"), "snapshot-node-name": "top"});
    vm.qemu.qmp("blockdev-snapshot-sync", arguments);
    vm.qemu.qmp("block-dirty-bitmap-add", json!({"node": "top", "name": name, "persistent": true}));
    vm.qemu.write("vda", 9, 6 * MIB, MIB);
    stage.live(&mut vm, is("resync", &["in the middle of the backing chain"]));
}

#[test]
fn internal_snapshots_are_taken_beside_us_and_refused_to_go_back_to() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    vm.qemu.qmp("blockdev-snapshot-internal-sync", json!({"device": "node-vda", "name": "s1"}));
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
    let disks = vm.qemu.disks().to_vec();
    drop(vm.qemu.quit());
    let file = disks[0].file.to_str().unwrap();
    // QEMU refuses while any bitmap is there; whoever removes ours to get there is seen.
    let back = || output(std::process::Command::new("qemu-img").args(["snapshot", "-a", "s1", file]));
    assert!(!back().status.success());
    for name in image::bitmaps(&disks[0].file) {
        let arguments = ["bitmap", "--remove", file, &name];
        keepmark_testkit::process::run(std::process::Command::new("qemu-img").args(arguments));
    }
    assert!(back().status.success());
    stage.off(&disks, is("resync", &["bitmap is gone"]));
}

#[test]
fn an_overlay_merged_while_the_vm_is_off_goes_on() {
    let stage = Stage::new();
    let base = stage.backed_up_off();
    let overlay = stage.path("overlay.qcow2");
    image::create_overlay(&overlay, &base.file, Format::Qcow2);
    image::fill(&overlay, Format::Qcow2, 8, 5 * MIB, MIB);
    qemu_img(&["commit", "-q"], &overlay);
    stage.off(&[base], is("incremental", &[]));
}

#[test]
fn a_frozen_base_that_was_disabled_is_not_believed() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    snapshot_with_bitmaps(&stage, &mut vm);
    bitmap(&mut vm.qemu, "disable", "node-vda", &name);
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    stage.live(&mut vm, is("resync", &["disabled"]));
}
