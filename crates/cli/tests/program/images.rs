//! An image store through the program: pushed by QEMU or pulled, used without keepmark, full, grown out of, and consolidated.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::{run, wait_for};
use keepmark_testkit::{Disk, Guest, Qemu, QmpProxy, Verdict};
use serde_json::{Value, json};

use crate::lab::{Lab, MIB, assert_clean, assert_says, disk, id, image_vm, our_bitmaps, text};
use crate::small_disk::SmallDisk;

/// A lab whose store is one of images.
fn lab() -> Lab {
    let lab = Lab::without_store();
    init(&lab);
    lab
}

fn init(lab: &Lab) {
    lab.keepmark.ok(&["init", &format!("images:{}", lab.store().display())]);
}

fn image_of(lab: &Lab, backup: &str, disk: &str) -> PathBuf {
    let vm = std::fs::read_dir(lab.store()).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    vm.join(backup).join(format!("{disk}.qcow2"))
}

fn was_pushed(finished: &Value, name: &str) -> bool {
    disk(finished, name)["reason"].as_str().unwrap().contains("written by the hypervisor")
}

#[test]
fn what_qemu_pushes_is_each_moments_content() {
    let lab = lab();
    let mut qemu = lab.two_disks();
    let through = lab.witness(&qemu);
    let full = lab.keepmark.backup(&through.vm(), &["--mode", "push"]);
    let first = through.take();
    qemu.write("vda", 7, 20 * MIB, 2 * MIB);
    qemu.qemu_io("vda", &format!("write -z {} {}", 2 * MIB, MIB));
    qemu.qemu_io("vda", &format!("discard {} {}", 4 * MIB, MIB));
    qemu.write("sdb", 8, MIB, 100 << 10);
    let next = lab.keepmark.backup(&through.vm(), &[]);
    let second = through.take();
    qemu.write("vda", 9, 3 * MIB, MIB);
    let compressed = lab.keepmark.backup(&through.vm(), &["--compress"]);
    let third = through.take();
    assert_eq!(
        (full["kind"].as_str(), next["kind"].as_str(), compressed["kind"].as_str()),
        (Some("full"), Some("incremental"), Some("incremental"))
    );
    for name in ["vda", "sdb"] {
        assert!(was_pushed(&full, name) && was_pushed(&next, name) && was_pushed(&compressed, name), "{next}");
    }
    assert!(disk(&next, "vda")["audited_bytes"].as_u64().unwrap() > 0, "{next}");
    assert!(disk(&next, "vda")["stored_bytes"].as_u64().unwrap() < 3 * MIB, "{next}");
    assert_clean(&mut qemu);
    for (backup, truth, place) in [(&full, first, "1"), (&next, second, "2"), (&compressed, third, "3")] {
        truth.assert_restored(&lab.restore(id(backup), place), Format::Raw);
        for name in ["vda", "sdb"] {
            truth.assert_same(name, &image_of(&lab, id(backup), name), Format::Qcow2);
        }
    }
    lab.keepmark.ok(&["verify", "--read-data"]);
}

#[test]
fn a_push_goes_on_while_the_guest_overwrites_what_it_copies() {
    let lab = lab();
    let mut qemu = lab.one_disk();
    let through = lab.witness(&qemu);
    let running = lab.keepmark.spawn(&["backup", &through.vm(), "--json"]);
    // A guest does not write while it stands still, and the witness is copied then. The new bitmap is there before.
    let is_fixed = |qemu: &mut Qemu| qemu.node_of("vda").starts_with("km1tmp-") && qemu.status() == "running";
    wait_for("the moment to be fixed", Duration::from_secs(30), || is_fixed(&mut qemu).then_some(()));
    for turn in 0..60 {
        qemu.write("vda", 20 + turn, MIB + u64::from(turn) * 128 * 1024, 64 << 10);
    }
    let done = running.wait(Duration::from_secs(60));
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    through.take().assert_restored(&lab.restore(id(&done.event("finished")), "out"), Format::Raw);
}

#[test]
fn a_grown_disk_and_a_doubtful_bitmap_are_pulled_and_right() {
    let lab = lab();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.qmp("block_resize", json!({"node-name": "node-vda", "size": 80 * MIB + 512}));
    qemu.write("vda", 5, 70 * MIB, MIB);
    let through = lab.witness(&qemu);
    let grown = lab.keepmark.backup(&through.vm(), &[]);
    assert!(grown["kind"] == "incremental" && !was_pushed(&grown, "vda"), "{grown}");
    through.take().assert_restored(&lab.restore(id(&grown), "grown"), Format::Raw);
    drop(through);
    let qemu = qemu.kill9().start();
    let through = lab.witness(&qemu);
    let resync = lab.keepmark.backup(&through.vm(), &[]);
    assert!(resync["kind"] == "resync" && disk(&resync, "vda")["stored_bytes"].as_u64().unwrap() < MIB, "{resync}");
    through.take().assert_restored(&lab.restore(id(&resync), "resync"), Format::Raw);
    drop(through);
    let next = lab.keepmark.backup(&qemu.vm(), &[]);
    assert!(next["kind"] == "incremental" && was_pushed(&next, "vda"), "{next}");
}

#[test]
fn a_disk_of_several_images_is_pushed_without_its_zeros() {
    let lab = lab();
    let (below, above) = (lab.qcow2("below", 64 * MIB), lab.path("above.qcow2"));
    image::fill(&below, Format::Qcow2, 3, MIB, 2 * MIB);
    image::create_overlay(&above, &below, Format::Qcow2);
    let mut qemu = lab.vm().disk(Disk::qcow2("vda", &above)).start();
    qemu.write("vda", 4, 8 * MIB, MIB);
    let through = lab.witness(&qemu);
    let full = lab.keepmark.backup(&through.vm(), &["--mode", "push"]);
    assert!(disk(&full, "vda")["stored_bytes"].as_u64().unwrap() < 4 * MIB, "{full}");
    through.take().assert_restored(&lab.restore(id(&full), "out"), Format::Raw);
}

/// Cut and grown again, a disk has zeros that its bitmap calls clean: what QEMU wrote of it goes, what it wrote of the other stays.
#[test]
fn what_the_audit_contradicts_is_read_after_all() {
    let lab = lab();
    let mut qemu = lab.two_disks();
    lab.keepmark.backup(&qemu.vm(), &[]);
    for size in [4 * MIB, 64 * MIB] {
        qemu.qmp("block_resize", json!({ "node-name": "node-vda", "size": size }));
    }
    qemu.write("vda", 7, 2 * MIB, MIB);
    qemu.write("sdb", 8, MIB, MIB);
    let through = lab.witness(&qemu);
    let run = lab.keepmark.exits(&["backup", &through.vm(), "--json"], 3);
    assert_says(&run, &["cannot be believed"]);
    let finished = run.event("finished");
    // They share the checkpoint, which goes.
    assert_eq!((was_pushed(&finished, "vda"), was_pushed(&finished, "sdb")), (false, false), "{finished}");
    assert_eq!((&disk(&finished, "vda")["kind"], &disk(&finished, "sdb")["kind"]), (&"resync".into(), &"resync".into()));
    through.take().assert_restored(&lab.restore(id(&finished), "out"), Format::Raw);
    assert_clean(&mut qemu);
    lab.keepmark.ok(&["verify", "--read-data"]);
    assert_eq!(lab.keepmark.backup(&qemu.vm(), &[])["kind"], "incremental");
}

#[test]
fn push_is_refused_where_it_cannot_be() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    let refused = lab.keepmark.exits(&["backup", &qemu.vm(), "--mode", "push"], 2);
    assert_says(&refused, &["cannot be pushed", "repository", "Hint"]);
    let images = self::lab();
    let image = images.qcow2("a", 8 * MIB);
    let refused = images.keepmark.exits(&["backup", &image_vm("vda", &image), "--mode", "push"], 2);
    assert_says(&refused, &["cannot be pushed"]);
    images.keepmark.backup(&image_vm("vda", &image), &[]);
}

#[test]
fn a_full_target_fails_the_backup_and_not_the_guest() {
    let lab = Lab::without_store();
    let small = SmallDisk::mount(&lab.path("small"), "16m");
    let keepmark = lab.keepmark.clone().store(&lab.path("small/store"));
    keepmark.ok(&["init", &format!("images:{}", lab.path("small/store").display())]);
    let mut qemu = lab.one_disk();
    let through = lab.witness(&qemu);
    let first = keepmark.backup(&through.vm(), &[]);
    let truth = through.take();
    qemu.write("vda", 7, 16 * MIB, 24 * MIB);
    let before = our_bitmaps(&mut qemu);
    let failed = keepmark.exits(&["backup", &qemu.vm(), "--mode", "push"], 1);
    assert_says(&failed, &["No space left"]);
    assert_clean(&mut qemu);
    assert_eq!((our_bitmaps(&mut qemu), qemu.status().as_str()), (before, "running"));
    qemu.write("vda", 8, 0, MIB);
    small.grow("96m");
    let next = keepmark.backup(&through.vm(), &[]);
    assert!(next["kind"] == "incremental" && was_pushed(&next, "vda"), "{next}");
    for (backup, truth, name) in [(&first, truth, "out1"), (&next, through.take(), "out2")] {
        let to = lab.path(name);
        keepmark.ok(&["restore", id(backup), "--to", text(&to)]);
        truth.assert_restored(&to, Format::Raw);
    }
    let left =
        keepmark_testkit::damage::files(&lab.path("small/store")).into_iter().filter(|path| path.to_string_lossy().contains("km1tmp"));
    assert_eq!(left.count(), 0);
}

/// The last that QEMU writes of an image are its tables. Nobody is told that it could not when it closes the image (as libvirt's pushes
/// do: then the image shows it), but when it is made read-only before.
#[test]
fn a_target_whose_last_tables_cannot_be_written_fails_the_backup() {
    let lab = lab();
    let mut qemu = lab.one_disk();
    for (is_told, says) in [(true, "No space left"), (false, "not whole")] {
        let proxy = QmpProxy::start(&lab.path("proxy"), &qemu.qmp_socket(), move |message| {
            let is_target = message["arguments"]["node-name"].as_str().is_some_and(|node| node.ends_with("-u0"));
            match message["execute"].as_str() {
                Some("blockdev-add") if is_target => Verdict::Instead(failing(message)),
                Some("blockdev-reopen") if !is_told => Verdict::Answer(json!({ "return": {} })),
                _ => Verdict::Forward,
            }
        });
        let failed = lab.keepmark.exits(&["backup", &proxy.vm(), "--mode", "push"], 1);
        assert_says(&failed, &[says]);
        drop(proxy);
        assert_clean(&mut qemu);
        assert!(lab.list().is_empty());
    }
    let backup = lab.keepmark.backup(&qemu.vm(), &[]);
    assert!(was_pushed(&backup, "vda"), "{backup}");
}

/// The same file, but the second time a table of clusters is written the disk is full; the first is when it is begun.
fn failing(add: &Value) -> Value {
    let mut file = add["arguments"].clone();
    let node = file.as_object_mut().unwrap().remove("node-name").unwrap();
    let states = json!([{ "event": "l2_update", "state": 1, "new_state": 2 }]);
    let errors = json!([{ "event": "l2_update", "state": 2, "errno": 28 }]);
    let arguments = json!({ "driver": "blkdebug", "node-name": node, "image": file, "set-state": states, "inject-error": errors });
    json!({ "execute": "blockdev-add", "id": add["id"], "arguments": arguments })
}

/// The store is moved, and used by `qemu-img` and QEMU alone: a guest boots with a disk on a backup's image.
#[test]
fn the_folder_is_moved_and_used_without_keepmark() {
    let lab = lab();
    let root = lab.path("root.qcow2");
    image::mkfs_ext4(&root, Format::Qcow2, 64 * MIB, None);
    let vm = image_vm("vda", &root);
    lab.keepmark.backup(&vm, &["--name", "web"]);
    image::fill(&root, Format::Qcow2, 5, 60 * MIB, MIB);
    let next = lab.keepmark.backup(&vm, &["--name", "web"]);
    assert_eq!(next["kind"], "incremental");
    let moved = lab.path("moved");
    std::fs::rename(lab.store(), &moved).unwrap();
    let image = moved.join("web").join(id(&next)).join("vda.qcow2");
    let raw = lab.path("converted.raw");
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(&image).arg(&raw));
    image::assert_same(&raw, Format::Raw, &root, Format::Qcow2);
    let layer = lab.path("layer.qcow2");
    image::create_overlay(&layer, &image, Format::Qcow2);
    let mut guest = lab.vm().guest(&Guest::build()).mount(&["vda"]).disk(Disk::qcow2("vda", &layer)).start();
    guest.wait_ready();
    assert!(guest.guest("df /mnt/vda").contains("/dev/vda"));
    guest.power_off();
    let keepmark = lab.keepmark.clone().store(&moved);
    keepmark.ok(&["verify", "--read-data"]);
    assert_eq!(keepmark.ok(&["list", "--json"]).json().len(), 2);
}

#[test]
fn a_consolidated_backup_is_a_full_and_the_sequence_goes_on() {
    let lab = lab();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("vda", 7, 20 * MIB, MIB);
    let through = lab.witness(&qemu);
    let second = lab.keepmark.backup(&through.vm(), &[]);
    let truth = through.take();
    lab.keepmark.ok(&["consolidate", id(&second)]);
    let alone = image::info(&image_of(&lab, id(&second), "vda"), Format::Qcow2);
    assert!(alone["backing-filename"].is_null(), "{alone}");
    qemu.write("vda", 8, 30 * MIB, MIB);
    let third = lab.keepmark.backup(&through.vm(), &[]);
    assert_eq!(third["kind"], "incremental");
    truth.assert_restored(&lab.restore(id(&second), "second"), Format::Raw);
    through.take().assert_restored(&lab.restore(id(&third), "third"), Format::Raw);
    let repository = Lab::new();
    repository.keepmark.backup(&image_vm("vda", &repository.qcow2("a", 8 * MIB)), &["--name", "web"]);
    repository.keepmark.ok(&["consolidate", "web@latest"]);
}
