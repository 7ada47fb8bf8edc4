//! Others at work on the same VM: a second keepmark, and backup tools with bitmaps of their own.

use std::time::Duration;

use keepmark_testkit::{QmpProxy, Verdict};
use serde_json::json;

use crate::stage::{MIB, Stage, bitmap, checkpoint, checkpoints, is};

#[test]
fn of_two_keepmarks_at_once_one_waits_outside() {
    let stage = Stage::new();
    let another = stage.path("another-monitor");
    let monitor = format!("unix:{},server=on,wait=off", another.display());
    let mut vm = stage.start(stage.vm(&[stage.disk("vda")]).args(&["-qmp", &monitor]));
    stage.live(&mut vm, is("full", &[]));
    let (reached, at) = std::sync::mpsc::channel();
    let (open, opened) = std::sync::mpsc::channel::<()>();
    let proxy = QmpProxy::start(&stage.fresh("proxy"), &vm.qemu.qmp_socket(), move |message| {
        if message["execute"] == "block-export-add" && reached.send(()).is_ok() {
            opened.recv_timeout(Duration::from_secs(60)).ok();
        }
        Verdict::Forward
    });
    let first = stage.keepmark.spawn(&["backup", &proxy.vm(), "--json"]);
    at.recv_timeout(Duration::from_secs(60)).unwrap();
    drop(at);
    // The same VM by another of its monitors.
    let second = stage.keepmark.run(&["backup", &format!("qmp:{}", another.display())]);
    assert_eq!(second.code, Some(11), "{}", second.stderr);
    drop(open);
    let first = first.wait(Duration::from_secs(60));
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let finished = first.event("finished");
    assert!(checkpoints(&mut vm.qemu).contains(&checkpoint(&finished).to_owned()));
    assert_eq!(checkpoints(&mut vm.qemu), stage.keepmark.needed_checkpoints(None));
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn bitmaps_of_another_tool_work_beside_ours_and_are_left_alone() {
    let stage = Stage::new();
    let mut vm = stage.start(stage.vm(&[stage.disk("vda")]));
    for name in ["virtnbdbackup.0", "qmpbackup-vda-1", "km2-20261122T180000Z-3f9a1c0d7be2", "mine"] {
        vm.qemu.qmp("block-dirty-bitmap-add", json!({"node": "node-vda", "name": name, "persistent": true}));
    }
    bitmap(&mut vm.qemu, "disable", "node-vda", "virtnbdbackup.0");
    stage.live(&mut vm, is("full", &[]));
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
    // The other tool makes its own incremental of its own bitmap.
    vm.qemu.qmp("blockdev-add", json!({"driver": "null-co", "node-name": "theirs", "size": crate::stage::SIZE}));
    crate::stage::job(
        &mut vm.qemu,
        "blockdev-backup",
        json!({"device": "node-vda", "target": "theirs", "sync": "incremental", "bitmap": "mine"}),
    );
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
    let mut vm = stage.start(vm.qemu.quit());
    vm.qemu.write("vda", 9, 6 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn lost_bitmaps_of_another_tool_are_left_alone_too() {
    let stage = Stage::new();
    let mut vm = stage.start(stage.vm(&[stage.disk("vda")]));
    vm.qemu.qmp("block-dirty-bitmap-add", json!({"node": "node-vda", "name": "mine", "persistent": true}));
    stage.live(&mut vm, is("full", &[]));
    let vm = stage.start(vm.qemu.quit());
    let mut vm = stage.start(vm.qemu.kill9());
    stage.live(&mut vm, is("resync", &["inconsistent"]));
    assert!(vm.qemu.bitmaps().iter().any(|(_, name)| name == "mine"));
}
