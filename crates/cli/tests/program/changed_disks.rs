//! Disks that come, go, grow, shrink or are replaced between two backups.

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Witness};
use serde_json::json;

use crate::lab::{Lab, MIB, UUID, disk, id, image_vm};

#[test]
fn a_hot_added_disk_is_full_while_the_others_go_on() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let added = lab.qcow2("added", 16 * MIB);
    image::fill(&added, Format::Qcow2, 6, MIB, MIB);
    qemu.qmp("blockdev-add", json!({"driver": "qcow2", "node-name": "node-new", "file": {"driver": "file", "filename": added}}));
    qemu.qmp("device_add", json!({"driver": "virtio-blk-pci", "drive": "node-new", "id": "vdb"}));
    qemu.write("vda", 5, 0, MIB);
    let next = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!((disk(&next, "vda")["kind"].as_str(), disk(&next, "vdb")["kind"].as_str()), (Some("incremental"), Some("full")));
    let reason = next["reason"].as_str().unwrap();
    assert!(reason.contains("vdb: full"), "{reason}");
    let third = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(disk(&third, "vdb")["kind"], "incremental");
    drop(qemu.quit());
    let to = lab.restore(id(&third), "out");
    image::assert_same(&to.join("vdb.raw"), Format::Raw, &added, Format::Qcow2);
    image::assert_same(&to.join("vda.raw"), Format::Raw, &lab.path("vda.qcow2"), Format::Qcow2);
}

#[test]
fn a_disk_that_is_gone_is_not_in_the_next_backup_and_stays_in_the_earlier_one() {
    let lab = Lab::new();
    let (vda, vdb) = (lab.qcow2("a", 16 * MIB), lab.qcow2("b", 16 * MIB));
    image::fill(&vdb, Format::Qcow2, 7, 0, MIB);
    let qemu = lab.vm().disk(Disk::qcow2("vda", &vda)).disk(Disk::qcow2("vdb", &vdb)).start();
    let both = lab.keepmark.backup(&qemu.vm(), &[]);
    drop(qemu.quit());
    let qemu = lab.vm().disk(Disk::qcow2("vda", &vda)).start();
    let one = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!((one["kind"].as_str(), one["disks"].as_array().unwrap().len()), (Some("incremental"), 1));
    drop(qemu.quit());
    image::assert_same(&lab.restore(id(&both), "both").join("vdb.raw"), Format::Raw, &vdb, Format::Qcow2);
    assert!(!lab.restore(id(&one), "one").join("vdb.raw").exists());
    let qemu = lab.vm().disk(Disk::qcow2("vda", &vda)).disk(Disk::qcow2("vdb", &vdb)).start();
    let back = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(disk(&back, "vda")["kind"], "incremental");
    assert!(matches!(disk(&back, "vdb")["kind"].as_str(), Some("incremental" | "resync")), "{back}");
    drop(qemu.quit());
    image::assert_same(&lab.restore(id(&back), "back").join("vdb.raw"), Format::Raw, &vdb, Format::Qcow2);
}

#[test]
fn what_a_disk_has_grown_by_is_in_the_incremental() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.qmp("block_resize", json!({"node-name": "node-vda", "size": 80 * MIB + 512}));
    qemu.write("vda", 5, 70 * MIB, MIB);
    let through = lab.witness(&qemu);
    let grown = lab.keepmark.backup(&through.vm(), &[]);
    assert_eq!((grown["kind"].as_str(), disk(&grown, "vda")["size"].as_u64()), (Some("incremental"), Some(80 * MIB + 512)));
    assert!(grown["reason"].as_str().unwrap().contains("grew"), "{grown}");
    through.take().assert_restored(&lab.restore(id(&grown), "out"), Format::Raw);
}

#[test]
fn a_disk_that_shrank_is_read_whole_and_says_why() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    drop(qemu.quit());
    let image = lab.path("vda.qcow2");
    keepmark_testkit::process::run(std::process::Command::new("qemu-img").args(["resize", "-q", "--shrink"]).arg(&image).arg("8M"));
    let shrunk = lab.keepmark.backup(&image_vm("vda", &image), &["--uuid", UUID]);
    assert_eq!(shrunk["kind"], "resync");
    assert!(shrunk["reason"].as_str().unwrap().contains("shrank from"), "{shrunk}");
    image::assert_same(&lab.restore(id(&shrunk), "out").join("vda.raw"), Format::Raw, &image, Format::Qcow2);
    lab.restic().check();
}

#[test]
fn an_image_that_was_rolled_back_is_read_whole() {
    let lab = Lab::new();
    let image = lab.qcow2("vda", 16 * MIB);
    image::fill(&image, Format::Qcow2, 1, 0, 4 * MIB);
    let vm = image_vm("vda", &image);
    lab.keepmark.backup(&vm, &["--uuid", UUID]);
    let copy = lab.path("copy.qcow2");
    std::fs::copy(&image, &copy).unwrap();
    image::fill(&image, Format::Qcow2, 2, 0, MIB);
    lab.keepmark.backup(&vm, &["--uuid", UUID]);
    std::fs::copy(&copy, &image).unwrap();
    let after = lab.keepmark.backup(&vm, &["--uuid", UUID]);
    assert_eq!(after["kind"], "resync", "{after}");
    image::assert_same(&lab.restore(id(&after), "out").join("vda.raw"), Format::Raw, &image, Format::Qcow2);
}

#[test]
fn an_external_snapshot_is_noticed() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let overlay = lab.path("overlay.qcow2");
    qemu.qmp(
        "blockdev-snapshot-sync",
        json!({"node-name": "node-vda", "snapshot-node-name": "top", "snapshot-file": overlay, "format": "qcow2"}),
    );
    qemu.write("vda", 8, 0, MIB);
    let witness = Witness::hold(&mut qemu, &lab.path("w"));
    let after = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(after["kind"], "resync");
    assert!(after["reason"].as_str().unwrap().contains("snapshot"), "{after}");
    witness.release(&mut qemu);
    witness.assert_restored(&lab.restore(id(&after), "out"), Format::Raw);
}
