//! Images that were rolled back or copied by the host: their bitmaps are true of the copy, not of what became of the original.

use keepmark_testkit::Disk;
use keepmark_testkit::image::{self, Format};

use crate::stage::{MIB, SIZE, Stage, UUID, checkpoint, checkpoints, is};

#[test]
fn a_rollback_behind_the_last_backup_is_read_whole() {
    let stage = Stage::new();
    let disk = stage.backed_up_off();
    let copy = stage.path("copy");
    std::fs::copy(&disk.file, &copy).unwrap();
    let disks = [disk];
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    stage.off(&disks, is("incremental", &[]));
    std::fs::copy(&copy, &disks[0].file).unwrap();
    let finished = stage.off(&disks, is("resync", &["rolled back"]));
    assert_eq!(image::bitmaps(&disks[0].file), [checkpoint(&finished)], "the stale checkpoint of the copy is gone");
}

#[test]
fn a_rollback_to_after_the_last_backup_goes_on() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    let copy = stage.path("copy");
    std::fs::copy(&disks[0].file, &copy).unwrap();
    image::fill(&disks[0].file, Format::Qcow2, 8, 5 * MIB, MIB);
    std::fs::copy(&copy, &disks[0].file).unwrap();
    stage.off(&disks, is("incremental", &[]));
}

#[test]
fn a_rollback_to_a_copy_of_the_running_image_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.start(stage.backed_up().qemu.quit());
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    vm.qemu.qemu_io("vda", "flush");
    let disk = vm.qemu.disks()[0].clone();
    let copy = stage.path("copy");
    std::fs::copy(&disk.file, &copy).unwrap();
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    drop(vm.qemu.quit());
    std::fs::copy(&copy, &disk.file).unwrap();
    stage.off(&[disk], is("resync", &["inconsistent"]));
}

#[test]
fn a_copy_of_the_running_image_made_before_its_bitmap_was_stored_has_none() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    vm.qemu.qemu_io("vda", "flush");
    let disk = vm.qemu.disks()[0].clone();
    let copy = stage.path("copy");
    std::fs::copy(&disk.file, &copy).unwrap();
    drop(vm.qemu.quit());
    std::fs::copy(&copy, &disk.file).unwrap();
    stage.off(&[disk], is("resync", &["bitmap is gone"]));
}

#[test]
fn a_clone_beside_its_origin_with_our_bitmap_in_it_is_another_vm() {
    let stage = Stage::new();
    let origin = stage.backed_up();
    let builder = origin.qemu.quit();
    let file = stage.path("clone.qcow2");
    std::fs::copy(stage.path("vda.qcow2"), &file).unwrap();
    let other = "7e1a8d4c-0000-4000-8000-00000000abce";
    let mut origin = stage.start(builder);
    let mut clone = stage.start(stage.bare_vm("clone").uuid(other).disk(Disk::qcow2("vda", &file)));
    let carried = checkpoints(&mut clone.qemu);
    origin.qemu.write("vda", 7, 3 * MIB, MIB);
    clone.qemu.write("vda", 8, 5 * MIB, MIB);
    let finished = stage.live(&mut clone, is("full", &["first backup"]));
    assert_eq!(checkpoints(&mut clone.qemu), [checkpoint(&finished)], "the origin's checkpoint is no use to the clone");
    assert_eq!(checkpoints(&mut origin.qemu), carried, "and stays where it is");
    stage.live(&mut origin, is("incremental", &[]));
    clone.qemu.write("vda", 9, 6 * MIB, MIB);
    stage.live(&mut clone, is("incremental", &[]));
}

/// Without a UUID, two machines of one name are one sequence: each change of sides is a resync, and never a wrong delta.
#[test]
fn a_clone_of_the_same_name_is_never_built_upon_wrongly() {
    let stage = Stage::new();
    let identity = ["--name", "twin"];
    let a = [stage.disk("vda")];
    stage.off_with(&a, &identity, &[], is("full", &[]));
    std::fs::create_dir(stage.path("clone")).unwrap();
    let b = [Disk::qcow2("vda", &stage.path("clone/vda.qcow2"))];
    std::fs::copy(&a[0].file, &b[0].file).unwrap();
    image::fill(&a[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    image::fill(&b[0].file, Format::Qcow2, 8, 5 * MIB, MIB);
    // What the copy's bitmap says is true of the copy, but nothing tells a copy from what was converted.
    stage.off_with(&b, &identity, &[], is("resync", &["is another file"]));
    stage.off_with(&a, &identity, &[], is("resync", &["bitmap is gone"]));
    stage.off_with(&b, &identity, &[], is("resync", &["bitmap is gone"]));
    stage.off_with(&b, &identity, &[], is("incremental", &[]));
}

#[test]
fn a_vm_that_keeps_its_uuid_under_another_name_goes_on() {
    let stage = Stage::new();
    let disks = [stage.backed_up_off()];
    image::fill(&disks[0].file, Format::Qcow2, 7, 3 * MIB, MIB);
    stage.off_with(&disks, &["--name", "renamed", "--uuid", UUID], &[], is("incremental", &[]));
    assert_eq!(image::virtual_size(&disks[0].file, Format::Qcow2), SIZE);
}
