//! Disks that change their size or their place: grown, shrunk, cut and grown back, added, removed, replaced, exchanged, mirrored.

use keepmark_testkit::Disk;
use keepmark_testkit::image::{self, Format};
use serde_json::json;

use crate::stage::{MIB, SIZE, Stage, caught, is, job};

fn resize(vm: &mut crate::stage::Vm, size: u64) {
    vm.qemu.qmp("block_resize", json!({"node-name": "node-vda", "size": size}));
}

#[test]
fn a_disk_that_grew_is_read_behind_its_old_end() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    resize(&mut vm, SIZE + 100 * 1024);
    vm.qemu.write("vda", 7, SIZE + 4096, 4096);
    stage.live(&mut vm, is("incremental", &["grew by 102400 bytes"]));
    // The end lies inside a chunk now.
    resize(&mut vm, SIZE + 2 * MIB);
    vm.qemu.write("vda", 8, SIZE + 110 * 1024, 4096);
    stage.live(&mut vm, is("incremental", &["grew"]));
}

#[test]
fn a_disk_that_shrank_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    resize(&mut vm, 5 * MIB + 512);
    stage.live(&mut vm, is("resync", &["shrank from 16777216 to 5243392 bytes"]));
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn a_disk_that_was_cut_and_grown_back_lost_what_the_bitmap_calls_clean() {
    for cut in [4 * MIB, 4 * MIB + 512, 9 * MIB - 64 * 1024] {
        let stage = Stage::new();
        let mut vm = stage.backed_up();
        resize(&mut vm, cut);
        resize(&mut vm, SIZE);
        stage.live(&mut vm, caught(&["cut and grown again"]));
        stage.live(&mut vm, is("incremental", &[]));
    }
}

/// QEMU gives whole clusters back: what lies behind a cut inside the last one comes back with it.
#[test]
fn a_cut_inside_the_last_cluster_is_restored_as_the_guest_sees_it() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    resize(&mut vm, 9 * MIB - 512);
    resize(&mut vm, SIZE);
    stage.live(&mut vm, is("incremental", &[]));
}

/// The cluster has what was written, the bitmap forgot that it was: neither is the base's last data touched, nor did anything become zero.
#[test]
fn a_cut_inside_a_cluster_of_several_bits_is_seen_although_what_was_written_comes_back() {
    let stage = Stage::new();
    let mut vm = stage.start(stage.vm(&[stage.disk_with("vda", "cluster_size=2M")]));
    stage.live(&mut vm, is("full", &["first backup"]));
    vm.qemu.write("vda", 7, 12 * MIB + 512 * 1024, 64 * 1024);
    resize(&mut vm, 12 * MIB + 64 * 1024);
    resize(&mut vm, SIZE);
    vm.qemu.expect_pattern("vda", 7, 12 * MIB + 512 * 1024, 64 * 1024);
    let keepmark = stage.keepmark.clone();
    stage.live_in(&keepmark, &mut vm, &["--audit", "off"], caught(&["cut and grown again"]));
}

#[test]
fn a_disk_that_was_cut_inside_a_chunk_and_written_behind_is_seen() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    resize(&mut vm, 4 * MIB + 64 * 1024);
    resize(&mut vm, SIZE);
    // All whole chunks behind the cut are changed, so that only the chunk of the cut is called clean and is not.
    vm.qemu.write("vda", 9, 4 * MIB + 256 * 1024, SIZE - 4 * MIB - 256 * 1024);
    stage.live(&mut vm, caught(&["cut and grown again"]));
}

#[test]
fn a_disk_that_was_cut_and_grown_further_is_seen_without_any_audit() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    resize(&mut vm, 9 * MIB - 65_536);
    resize(&mut vm, SIZE + MIB);
    let keepmark = stage.keepmark.clone();
    stage.live_in(&keepmark, &mut vm, &["--audit", "off"], caught(&["cut and grown again"]));
}

#[test]
fn a_cut_behind_all_data_harms_nothing() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    resize(&mut vm, 9 * MIB);
    resize(&mut vm, SIZE);
    vm.qemu.write("vda", 7, 12 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn a_cut_of_a_preallocated_image_that_is_off_is_seen() {
    for preallocation in ["off", "metadata", "full"] {
        let stage = Stage::new();
        let disk = stage.disk_with("vda", &format!("preallocation={preallocation}"));
        let disks = [disk];
        stage.off(&disks, is("full", &[]));
        let file = &disks[0].file;
        for size in [4 * MIB + 65_536, SIZE] {
            // The size stands behind the file.
            let size = size.to_string();
            let mut arguments = vec!["resize", "-q", "--shrink"];
            let preallocated = format!("--preallocation={preallocation}");
            if size == SIZE.to_string() {
                arguments = vec!["resize", "-q", &preallocated];
            }
            let mut command = std::process::Command::new("qemu-img");
            keepmark_testkit::process::run(command.args(arguments).arg(file).arg(size));
        }
        stage.off(&disks, caught(&["cut and grown again"]));
        stage.off(&disks, is("incremental", &[]));
    }
}

#[test]
fn a_disk_that_was_added_is_read_whole_and_one_that_was_removed_is_left_out() {
    let stage = Stage::new();
    let (vda, vdb) = (stage.disk("vda"), stage.disk("vdb"));
    let builder = stage.start(stage.vm(std::slice::from_ref(&vda)));
    let mut vm = builder;
    stage.live(&mut vm, is("full", &[]));
    drop(vm.qemu.quit());
    let mut vm = stage.start(stage.vm(&[vda, vdb.clone()]));
    stage.live(&mut vm, is("incremental", &["vdb: full: first backup of this disk"]));
    drop(vm.qemu.quit());
    let mut vm = stage.start(stage.vm(&[vdb]));
    vm.qemu.write("vdb", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn a_disk_that_was_replaced_by_another_file_is_read_whole() {
    let stage = Stage::new();
    let vm = stage.backed_up();
    drop(vm.qemu.quit());
    let mut vm = stage.start(stage.vm(&[Disk::qcow2("vda", &stage.disk("other").file)]));
    stage.live(&mut vm, is("resync", &["image was replaced"]));
}

#[test]
fn disks_whose_images_were_exchanged_are_read_whole() {
    let stage = Stage::new();
    let (vda, vdb) = (stage.disk("vda"), stage.disk("vdbb"));
    let mut vm = stage.start(stage.vm(&[vda.clone(), vdb.clone()]));
    stage.live(&mut vm, is("full", &[]));
    drop(vm.qemu.quit());
    let exchanged = [Disk::qcow2("vda", &vdb.file), Disk::qcow2("vdbb", &vda.file)];
    let mut vm = stage.start(stage.vm(&exchanged));
    stage.live(&mut vm, is("resync", &["the image was that of disk vdbb", "the image was that of disk vda"]));
}

/// The files' names are as before, so that only the files themselves tell.
#[test]
fn images_that_were_exchanged_by_renaming_are_read_whole() {
    let stage = Stage::new();
    let disks = [stage.disk("vda"), stage.disk("vdbb")];
    stage.off(&disks, is("full", &[]));
    let aside = stage.path("aside");
    std::fs::rename(&disks[0].file, &aside).unwrap();
    std::fs::rename(&disks[1].file, &disks[0].file).unwrap();
    std::fs::rename(&aside, &disks[1].file).unwrap();
    stage.off(&disks, is("resync", &["is another file"]));
}

#[test]
fn a_disk_that_was_mirrored_to_another_file_is_read_whole() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let target = stage.path("moved.qcow2");
    image::create(&target, Format::Qcow2, SIZE);
    let file = json!({"driver": "file", "filename": target});
    vm.qemu.qmp("blockdev-add", json!({"driver": "qcow2", "node-name": "moved", "file": file}));
    job(&mut vm.qemu, "blockdev-mirror", json!({"device": "node-vda", "target": "moved", "sync": "full"}));
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("resync", &["bitmap is gone"]));
    vm.qemu.write("vda", 8, 3 * MIB, MIB);
    stage.live(&mut vm, is("incremental", &[]));
}

#[test]
fn an_image_that_was_moved_or_renamed_goes_on_and_a_copy_of_it_is_read_whole() {
    let stage = Stage::new();
    let disk = stage.backed_up_off();
    std::fs::create_dir(stage.path("elsewhere")).unwrap();
    let moved = Disk::qcow2("vda", &stage.path("elsewhere/vda.qcow2"));
    std::fs::rename(&disk.file, &moved.file).unwrap();
    image::fill(&moved.file, Format::Qcow2, 7, 3 * MIB, MIB);
    let moved = [moved];
    stage.off(&moved, is("incremental", &[]));
    let renamed = [Disk::qcow2("vda", &stage.path("elsewhere/new-name.qcow2"))];
    std::fs::rename(&moved[0].file, &renamed[0].file).unwrap();
    stage.off(&renamed, is("incremental", &[]));
    std::fs::copy(&renamed[0].file, &moved[0].file).unwrap();
    stage.off(&moved, is("resync", &["the file was copied"]));
}
