//! What proves that a bitmap is complete: the last clean content of a disk that was cut, and the file in which the bitmap began.

use std::path::Path;
use std::process::Command;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::run;
use keepmark_testkit::{Disk, QmpProxy, Verdict};
use serde_json::json;

use crate::stage::{MIB, Stage, UUID, address, bitmap, caught, checkpoints, is, job, qemu_img};

const THICK: u64 = 48 * MIB;
const IDENTITY: [&str; 4] = ["--name", "test-vm", "--uuid", UUID];

fn both_kinds_of_store() -> [Stage; 2] {
    [Stage::new(), Stage::of_images()]
}

/// A qcow2 image with 8 MiB of content from 1 MiB on, and nothing behind.
fn long_disk(stage: &Stage) -> Disk {
    let file = stage.path("vda.qcow2");
    image::create(&file, Format::Qcow2, THICK);
    image::fill_random(&file, Format::Qcow2, 3, MIB, 8 << 20);
    Disk::qcow2("vda", &file)
}

fn resize(file: &Path, more: &[&str], size: u64) {
    run(Command::new("qemu-img").args(["resize", "-q"]).args(more).arg(file).arg(size.to_string()));
}

/// More chunks hold data behind the last clean content than are compared there: the one that proves is compared all the same.
#[test]
fn a_cut_is_seen_however_much_holds_data_behind_it() {
    for stage in both_kinds_of_store() {
        let disks = [long_disk(&stage)];
        stage.off(&disks, is("full", &[]));
        resize(&disks[0].file, &["--shrink"], 8 * MIB);
        resize(&disks[0].file, &["--preallocation=full"], THICK);
        stage.off_with(&disks, &IDENTITY, &["--audit", "off"], caught(&["cut and grown again"]));
        stage.off(&disks, is("incremental", &[]));
    }
}

/// QEMU writes zeros that the guest wrote into a store's image as data, and a cut leaves zeros: they prove nothing.
#[test]
fn zeros_that_were_written_are_no_proof_that_nothing_was_cut() {
    for stage in both_kinds_of_store() {
        let mut vm = stage.start(stage.vm(&[long_disk(&stage)]));
        vm.qemu.write("vda", 0, 40 * MIB, MIB);
        stage.live(&mut vm, is("full", &[]));
        for size in [8 * MIB, THICK] {
            vm.qemu.qmp("block_resize", json!({"node-name": "node-vda", "size": size}));
        }
        let keepmark = stage.keepmark.clone();
        stage.live_in(&keepmark, &mut vm, &["--audit", "off"], caught(&["cut and grown again"]));
        stage.live(&mut vm, is("incremental", &[]));
    }
}

/// Zeros of the base that are a hole now are what they were.
#[test]
fn zeros_that_became_a_hole_contradict_nothing() {
    for stage in both_kinds_of_store() {
        let mut vm = stage.start(stage.vm(&[long_disk(&stage)]));
        vm.qemu.write("vda", 0, 40 * MIB, MIB);
        stage.live(&mut vm, is("full", &[]));
        for size in [20 * MIB, THICK] {
            vm.qemu.qmp("block_resize", json!({"node-name": "node-vda", "size": size}));
        }
        stage.live(&mut vm, is("incremental", &[]));
    }
}

/// The converted image has the overlay's bitmap under the name of the base's, and what the base's recorded is lost.
#[test]
fn an_overlay_that_was_converted_with_its_bitmaps_is_another_file() {
    for stage in both_kinds_of_store() {
        let disks = [stage.backed_up_off()];
        let (file, overlay, new) = (&disks[0].file, stage.path("overlay.qcow2"), stage.path("new.qcow2"));
        image::fill(file, Format::Qcow2, 7, 3 * MIB, MIB);
        image::create_overlay(&overlay, file, Format::Qcow2);
        for name in image::bitmaps(file) {
            run(Command::new("qemu-img").args(["bitmap", "--add"]).arg(&overlay).arg(name));
        }
        image::fill(&overlay, Format::Qcow2, 8, 5 * MIB, MIB);
        run(Command::new("qemu-img").args(["convert", "--bitmaps", "-O", "qcow2"]).args([&overlay, &new]));
        std::fs::rename(&new, file).unwrap();
        stage.off(&disks, is("resync", &["is another file"]));
        stage.off(&disks, is("incremental", &[]));
    }
}

/// The content is the snapshot's, the bitmaps are those of the content that went on.
#[test]
fn an_internal_snapshot_that_was_converted_with_bitmaps_is_another_file() {
    let stage = Stage::new();
    let disk = stage.disk("vda");
    qemu_img(&["snapshot", "-c", "s1"], &disk.file);
    image::fill(&disk.file, Format::Qcow2, 7, 3 * MIB, MIB);
    let disks = [disk];
    stage.off(&disks, is("full", &[]));
    let new = stage.path("new.qcow2");
    run(Command::new("qemu-img").args(["convert", "--bitmaps", "-l", "s1", "-O", "qcow2"]).args([&disks[0].file, &new]));
    std::fs::rename(&new, &disks[0].file).unwrap();
    stage.off(&disks, is("resync", &["is another file"]));
}

/// The overlay is called like its base, so that only the file itself tells that the base's bitmap left the chain.
#[test]
fn a_base_that_was_streamed_into_an_overlay_of_its_name_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    let name = checkpoints(&mut vm.qemu).remove(0);
    std::fs::create_dir(stage.path("other")).unwrap();
    let overlay = stage.path("other/vda.qcow2");
    let snapshot = json!({"node-name": "node-vda", "snapshot-file": overlay, "snapshot-node-name": "overlay"});
    vm.qemu.stop();
    vm.qemu.qmp("blockdev-snapshot-sync", snapshot);
    vm.qemu.qmp("block-dirty-bitmap-add", json!({"node": "overlay", "name": name, "persistent": true}));
    vm.qemu.cont();
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    job(&mut vm.qemu, "block-stream", json!({"device": "overlay"}));
    stage.live(&mut vm, is("resync", &["is another file"]));
}

/// Whoever sees that a bitmap lies may get no further, and whoever comes next may look less.
#[test]
fn a_contradiction_outlives_the_backup_that_saw_it() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let name = checkpoints(&mut vm.qemu).remove(0);
    vm.qemu.write("vda", 7, 2 * MIB, MIB);
    bitmap(&mut vm.qemu, "clear", "node-vda", &name);
    // The moment at which all is to be read is never fixed.
    let mut moments = 0;
    let proxy = QmpProxy::start(&stage.fresh("proxy"), &vm.qemu.qmp_socket(), move |message| {
        let text = message.to_string();
        let fixes = message["execute"] == "transaction" && text.contains("block-dirty-bitmap-add") && text.contains("km1-");
        moments += u32::from(fixes);
        if fixes && moments == 2 { Verdict::HangUp } else { Verdict::Forward }
    });
    let run = stage.keepmark.run(&["backup", &proxy.vm(), "--audit", "100%"]);
    assert!(run.code != Some(0) && run.code != Some(3), "{}", run.stderr);
    assert!(run.stderr.contains("cannot be believed"), "{}", run.stderr);
    assert!(!checkpoints(&mut vm.qemu).contains(&name), "{}", run.stderr);
    drop(proxy);
    let keepmark = stage.keepmark.clone();
    stage.live_in(&keepmark, &mut vm, &["--audit", "off"], is("resync", &["bitmap is gone"]));
}

#[test]
fn a_contradiction_outlives_the_dry_run_that_saw_it() {
    for stage in both_kinds_of_store() {
        let mut vm = stage.backed_up();
        let name = checkpoints(&mut vm.qemu).remove(0);
        vm.qemu.qemu_io("vda", "write -z 3M 2M");
        bitmap(&mut vm.qemu, "clear", "node-vda", &name);
        let told = stage.keepmark.exits(&["revert", &vm.qemu.vm(), "test-vm@latest", "--dry-run"], 3);
        assert!(told.stderr.contains("held data in the last backup, but are a hole now"), "{}", told.stderr);
        let keepmark = stage.keepmark.clone();
        stage.live_in(&keepmark, &mut vm, &["--audit", "off"], is("resync", &["bitmap is gone"]));
    }
}

/// A backup of one disk takes neither the name nor the place of one that has all.
#[test]
fn a_backup_of_one_disk_is_not_the_latest() {
    let stage = Stage::new();
    let disks = [stage.disk("vda"), stage.disk("vdbb")];
    let first = stage.off(&disks, is("full", &[]));
    let backup = ["backup", &address(&disks), "--name", "test-vm", "--uuid", UUID, "--json", "--disk", "vdbb"];
    let second = stage.keepmark.ok(&backup).event("finished");
    let shown = |text: &str| stage.keepmark.ok(&["show", text, "--json"]).json().pop().unwrap();
    assert_eq!(shown("test-vm@latest")["id"], first["backup"]);
    let partial = shown("test-vm@latest-partial");
    assert_eq!((&partial["id"], &partial["left_out"]), (&second["backup"], &json!(["vda"])));
    assert!(stage.keepmark.ok(&["list"]).stdout.contains("partial: vdbb"));
    let forgotten = stage.keepmark.ok(&["forget", "test-vm", "--keep-last", "1", "--dry-run", "--json"]).stdout;
    assert!(!forgotten.contains("\"reasons\":[]"), "both are the last of their kind: {forgotten}");
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    stage.off(&disks, is("incremental", &[]));
}
