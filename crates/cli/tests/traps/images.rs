//! Work on the powered-off image: by qemu-img, which records it or drops the bitmap, and by tools that know no bitmaps.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use keepmark_testkit::Disk;
use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::{output, run};

use crate::stage::{MIB, SIZE, Stage, caught, is, qemu_img};

fn on_bitmap(action: &str, file: &Path) {
    for name in image::bitmaps(file) {
        run(Command::new("qemu-img").args(["bitmap", action]).arg(file).arg(name));
    }
}

#[test]
fn qemu_io_and_qemu_nbd_write_with_the_bitmap() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    image::io(&disks[0].file, Format::Qcow2, &["write -P 7 3M 1M", "discard 5M 1M", "write -z 7M 64k"]);
    stage.off(&disks, is("incremental", &[]));
}

#[test]
fn qemu_img_resize_grows_with_the_bitmap() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    run(Command::new("qemu-img").args(["resize", "-q"]).arg(&disks[0].file).arg((SIZE + MIB).to_string()));
    image::fill(&disks[0].file, Format::Qcow2, 7, SIZE, 4096);
    stage.off(&disks, is("incremental", &["grew by 1048576 bytes"]));
}

#[test]
fn qemu_img_resize_shrinks_and_is_seen() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    run(Command::new("qemu-img").args(["resize", "-q", "--shrink"]).arg(&disks[0].file).arg((4 * MIB).to_string()));
    stage.off(&disks, is("resync", &["shrank"]));
}

#[test]
fn qemu_img_rebase_keeps_what_the_guest_sees_and_records_what_it_writes() {
    let stage = Stage::new();
    let (base, other) = (stage.disk("base"), stage.disk("other-base"));
    let overlay = Disk::qcow2("vda", &stage.path("vda.qcow2"));
    image::create_overlay(&overlay.file, &base.file, Format::Qcow2);
    let disks = [overlay];
    stage.off_trusting(&disks, is("full", &[]));
    // The backup remembers the chain.
    stage.off(&disks, is("incremental", &[]));
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    run(Command::new("qemu-img").args(["rebase", "-q", "-F", "qcow2", "-b"]).arg(&other.file).arg(&disks[0].file));
    stage.off_trusting(&disks, is("incremental", &[]));
}

/// An unsafe rebase says that the new base is the same; where it is not, only the content tells.
#[test]
fn qemu_img_rebase_unsafe_to_another_base_is_caught_by_the_audit() {
    let stage = Stage::new();
    let (base, other) = (stage.disk("base"), stage.disk("other-base"));
    let overlay = Disk::qcow2("vda", &stage.path("vda.qcow2"));
    image::create_overlay(&overlay.file, &base.file, Format::Qcow2);
    let disks = [overlay];
    stage.off_trusting(&disks, is("full", &[]));
    run(Command::new("qemu-img").args(["rebase", "-u", "-F", "qcow2", "-b"]).arg(&other.file).arg(&disks[0].file));
    stage.off_trusting(&disks, caught(&["audit contradicts"]));
}

#[test]
fn qemu_img_convert_drops_the_bitmap_or_takes_it_along_into_another_file() {
    for (option, words) in [(None, "bitmap is gone"), (Some("--bitmaps"), "is another file")] {
        let stage = Stage::new();
        let disks = [stage.backed_up_off()];
        image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
        let new = stage.path("new.qcow2");
        run(Command::new("qemu-img").arg("convert").args(option).args(["-O", "qcow2"]).arg(&disks[0].file).arg(&new));
        std::fs::rename(&new, &disks[0].file).unwrap();
        stage.off(&disks, is("resync", &[words]));
    }
}

#[test]
fn qemu_img_amend_to_version_2_drops_the_bitmap_or_is_refused() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    let amended = output(Command::new("qemu-img").args(["amend", "-o", "compat=0.10"]).arg(&disks[0].file));
    let kept = !image::bitmaps(&disks[0].file).is_empty();
    assert_eq!(amended.status.success(), !kept, "{amended:?}");
    stage.off(&disks, is(if kept { "incremental" } else { "resync" }, &[]));
}

#[test]
fn qemu_img_amend_of_what_does_not_matter_goes_on() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    qemu_img(&["amend", "-o", "lazy_refcounts=on"], &disks[0].file);
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    stage.off(&disks, is("incremental", &[]));
}

#[test]
fn qemu_img_bitmap_remove_is_missed() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    on_bitmap("--remove", &disks[0].file);
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    stage.off(&disks, is("resync", &["bitmap is gone"]));
}

#[test]
fn qemu_img_bitmap_disable_is_seen() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    on_bitmap("--disable", &disks[0].file);
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    stage.off(&disks, is("resync", &["disabled"]));
}

/// Nothing in a bitmap tells that it was cleared, or disabled and enabled again: what was missed is found by the audit or not at all.
#[test]
fn qemu_img_bitmap_clear_or_pause_is_found_by_the_audit_alone() {
    for actions in [&["--clear"][..], &["--disable", "--enable"][..]] {
        let stage = Stage::new();
        let disks = [stage.backed_up_off()];
        if actions.len() == 2 {
            on_bitmap(actions[0], &disks[0].file);
        }
        image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
        on_bitmap(actions[actions.len() - 1], &disks[0].file);
        let identity = ["--name", "test-vm", "--uuid", crate::stage::UUID];
        stage.off_with(&disks, &identity, &["--audit", "100%"], caught(&["called clean, but differ"]));
    }
}

#[test]
fn qemu_img_check_with_repair_keeps_good_bitmaps_and_does_not_heal_lost_ones() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    qemu_img(&["check", "-q", "-r", "all"], &disks[0].file);
    stage.off(&disks, is("incremental", &[]));
    let mut vm = stage.vm(&disks).start();
    vm.write("vda", 8, 5 * MIB, MIB);
    drop(vm.kill9());
    output(Command::new("qemu-img").args(["check", "-q", "-r", "all"]).arg(&disks[0].file));
    stage.off(&disks, is("resync", &["inconsistent"]));
}

/// A byte of a data cluster changed in place, as by a tool that mounts the file itself. The bitmap cannot know.
#[test]
fn an_edit_by_a_tool_that_knows_no_bitmaps_is_found_by_the_audit_alone() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    let map = qemu_img(&["map", "--output=json"], &disks[0].file);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let data = map.as_array().unwrap().iter().find(|part| part["data"] == true).unwrap();
    let mut file = std::fs::File::options().write(true).open(&disks[0].file).unwrap();
    file.seek(SeekFrom::Start(data["offset"].as_u64().unwrap() + 12_345)).unwrap();
    file.write_all(b"changed behind QEMU's back").unwrap();
    drop(file);
    let identity = ["--name", "test-vm", "--uuid", crate::stage::UUID];
    stage.off_with(&disks, &identity, &["--audit", "100%"], caught(&["called clean, but differ"]));
}
