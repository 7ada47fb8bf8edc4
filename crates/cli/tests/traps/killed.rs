//! QEMU or keepmark dies: bitmaps that are inconsistent, absent or orphaned, and what a dead run leaves behind.

use std::sync::mpsc::channel;
use std::time::Duration;

use keepmark_testkit::process::wait_for;
use keepmark_testkit::{QmpProxy, Verdict};

use crate::stage::{MIB, Stage, assert_clean, bitmap, checkpoint, checkpoints, is};

#[test]
fn qemu_killed_leaves_the_bitmap_inconsistent() {
    let stage = Stage::new();
    let vm = stage.backed_up();
    // Stored by the clean end, marked in use by the new start, lost by the kill.
    let mut vm = stage.start(vm.qemu.quit());
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    let mut vm = stage.start(vm.qemu.kill9());
    stage.live(&mut vm, is("resync", &["QEMU was killed", "inconsistent"]));
    assert_eq!(checkpoints(&mut vm.qemu).len(), 1, "the worthless one is removed: it would block a resize");
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn qemu_killed_before_the_bitmap_was_stored_leaves_none() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    let disks = vm.qemu.disks().to_vec();
    drop(vm.qemu.kill9());
    stage.off(&disks, is("resync", &["bitmap is gone"]));
}

#[test]
fn qemu_killed_and_its_image_backed_up_powered_off() {
    let stage = Stage::new();
    let mut vm = stage.start(stage.backed_up().qemu.quit());
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    let disks = vm.qemu.disks().to_vec();
    drop(vm.qemu.kill9());
    stage.off(&disks, is("resync", &["inconsistent"]));
    stage.off(&disks, is("incremental", &[]));
}

/// Kills keepmark when it is about to give this command.
fn kill_before(stage: &Stage, qemu: &keepmark_testkit::Qemu, command: &'static str) {
    let (reached, at) = channel();
    let (open, opened) = channel::<()>();
    let proxy = QmpProxy::start(&stage.fresh("proxy"), &qemu.qmp_socket(), move |message| {
        if message["execute"] == command && reached.send(()).is_ok() {
            opened.recv_timeout(Duration::from_secs(60)).ok();
            return Verdict::HangUp;
        }
        Verdict::Forward
    });
    let mut running = stage.keepmark.spawn(&["backup", &proxy.vm()]);
    at.recv_timeout(Duration::from_secs(60)).unwrap();
    running.process.kill9();
    drop(at);
    drop(open);
    // What watches over the pause comes through the proxy too.
    std::thread::sleep(Duration::from_millis(500));
}

#[test]
fn a_checkpoint_that_was_made_and_never_published_is_removed() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let published = checkpoints(&mut vm.qemu);
    kill_before(&stage, &vm.qemu, "block-export-del");
    let orphan: Vec<String> = checkpoints(&mut vm.qemu).into_iter().filter(|name| !published.contains(name)).collect();
    assert!(orphan.iter().any(|name| !name.starts_with("km1tmp")), "{orphan:?}");
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    let finished = stage.live(&mut vm, is("incremental", &[&published[0]]));
    assert_eq!(checkpoints(&mut vm.qemu), [&published[0], checkpoint(&finished)]);
}

#[test]
fn filters_exports_bitmaps_and_scratch_of_a_dead_run_are_removed() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    kill_before(&stage, &vm.qemu, "block-export-del");
    let nodes = vm.qemu.qmp("query-named-block-nodes", serde_json::json!({"flat": true})).to_string();
    assert!(nodes.contains("km1tmp"), "nothing was left: {nodes}");
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
    for folder in ["scratch", "run"] {
        let left: Vec<_> = std::fs::read_dir(stage.path(folder)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("km1tmp")), "{left:?}");
    }
}

#[test]
fn a_guest_that_a_dead_run_paused_goes_on() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    kill_before(&stage, &vm.qemu, "cont");
    wait_for("the watchdog", Duration::from_secs(60), || (vm.qemu.status() == "running").then_some(()));
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn a_mark_of_a_pause_that_nobody_watches_over_ends_it() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    // As left by keepmark and watchdog both dead: the VM paused, and the mark that says by whom.
    let node = vm.qemu.node_of("vda");
    let mark = serde_json::json!({"node": node, "name": "km1tmp-paused-00000001", "persistent": false, "disabled": true});
    vm.qemu.qmp("block-dirty-bitmap-add", mark);
    vm.qemu.stop();
    stage.live(&mut vm, is("incremental", &[]));
    assert_clean(&mut vm.qemu);
}

#[test]
fn a_bitmap_that_somebody_removed_is_missed() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    bitmap(&mut vm.qemu, "remove", "node-vda", &name);
    stage.live(&mut vm, is("resync", &["bitmap is gone"]));
}
