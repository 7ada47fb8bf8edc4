//! One machine is one sequence, running or powered off, and what each request makes of it.

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, PauseWitness, Qemu};
use serde_json::Value;

use crate::lab::{Lab, MIB, UUID, assert_clean, disk, id, image_vm, our_bitmaps};

fn kind(finished: &Value) -> &str {
    finished["kind"].as_str().unwrap()
}

#[test]
fn running_and_powered_off_are_one_sequence_by_uuid() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("vda", 3, 0, MIB);
    let builder = qemu.quit();
    let image = lab.path("vda.qcow2");
    let off = lab.keepmark.backup(&image_vm("vda", &image), &["--uuid", UUID, "--name", "test-vm"]);
    assert_eq!(
        (kind(&off), disk(&off, "vda")["dirty_bytes"].as_u64(), off["consistency"].as_str()),
        ("incremental", Some(MIB), Some("application"))
    );
    image::assert_same(&lab.restore(id(&off), "off").join("vda.raw"), Format::Raw, &image, Format::Qcow2);
    let mut qemu: Qemu = builder.start();
    qemu.write("vda", 4, 2 * MIB, MIB);
    let on = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!((kind(&on), disk(&on, "vda")["dirty_bytes"].as_u64()), ("incremental", Some(MIB)));
    assert_eq!(lab.keepmark.ok(&["list", "test-vm", "--json"]).json().len(), 3);
}

#[test]
fn without_a_uuid_the_name_makes_the_sequence() {
    let lab = Lab::new();
    let image = lab.qcow2("a", 16 * MIB);
    let vm = image_vm("vda", &image);
    lab.keepmark.backup(&vm, &["--name", "web"]);
    assert_eq!(kind(&lab.keepmark.backup(&vm, &["--name", "web"])), "incremental");
    assert_eq!(kind(&lab.keepmark.backup(&vm, &["--name", "db"])), "full");
}

#[test]
fn a_disk_without_label_is_called_by_its_files_stem() {
    let lab = Lab::new();
    let image = lab.qcow2("root", 16 * MIB);
    let done = lab.keepmark.backup(&format!("image:{}", image.display()), &[]);
    assert_eq!((done["vm"].as_str(), done["disks"][0]["name"].as_str()), (Some("root"), Some("root")));
}

#[test]
fn qemu_killed_means_a_resync_that_stores_next_to_nothing_and_says_why() {
    let lab = Lab::new();
    let qemu = lab.two_disks();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let qemu = qemu.kill9().start();
    let through = lab.witness(&qemu);
    let resync = lab.keepmark.backup(&through.vm(), &[]);
    assert_eq!(kind(&resync), "resync");
    for name in ["vda", "sdb"] {
        assert!(disk(&resync, name)["reason"].as_str().unwrap().contains("QEMU was killed"), "{resync}");
    }
    through.take().assert_restored(&lab.restore(id(&resync), "out"), Format::Raw);
    assert_eq!(kind(&lab.keepmark.backup(&qemu.vm(), &[])), "incremental");
}

#[test]
fn a_backup_without_checkpoint_leaves_the_sequence_as_it_was() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let before = our_bitmaps(&mut qemu);
    qemu.write("vda", 3, 0, MIB);
    let without = lab.keepmark.backup(&qemu.vm(), &["--no-checkpoint"]);
    assert_eq!((kind(&without), without["checkpoint"].is_null()), ("incremental", true));
    assert_eq!(our_bitmaps(&mut qemu), before);
    let next = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!((kind(&next), disk(&next, "vda")["dirty_bytes"].as_u64()), ("incremental", Some(MIB)));
}

#[test]
fn a_full_backup_can_be_asked_for_and_stores_nothing_twice() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let full = lab.keepmark.backup(&qemu.vm(), &["--kind", "full"]);
    assert_eq!((kind(&full), disk(&full, "vda")["read_bytes"].as_u64()), ("full", Some(9 * MIB)));
    assert!(disk(&full, "vda")["stored_bytes"].as_u64().unwrap() < 64 << 10);
}

#[test]
fn a_differential_holds_what_changed_since_the_last_full_and_the_next_incremental_since_that() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let mut changed = |offset| {
        qemu.write("vda", 3, offset * MIB, MIB);
        let through = PauseWitness::attach(&qemu, &lab.path(&format!("witness{offset}")));
        (through.vm(), through)
    };
    let mut made = Vec::new();
    for (offset, asked, dirty) in
        [(1, "incremental", 1), (3, "incremental", 1), (5, "differential", 3), (7, "incremental", 1), (9, "differential", 5)]
    {
        let (vm, through) = changed(offset);
        let done = lab.keepmark.backup(&vm, &["--kind", asked]);
        assert_eq!((kind(&done), disk(&done, "vda")["dirty_bytes"].as_u64()), (asked, Some(dirty * MIB)), "{done}");
        assert_eq!(done["wanted"], asked);
        made.push((done, through.take()));
    }
    for (number, (done, truth)) in made.iter().enumerate() {
        truth.assert_restored(&lab.restore(id(done), &format!("out{number}")), Format::Raw);
    }
    let full = lab.list()[0]["id"].clone();
    let shown = lab.keepmark.ok(&["show", id(&made[4].0), "--json"]).json();
    assert_eq!(shown[0]["disks"][0]["base"], full);
    assert_eq!(our_bitmaps(&mut qemu), lab.keepmark.needed_checkpoints(None));
}

#[test]
fn a_differential_whose_full_lost_its_bitmap_is_a_resync_and_then_goes_on_from_there() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let full = lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("vda", 3, 0, MIB);
    lab.keepmark.backup(&qemu.vm(), &[]);
    lab.keepmark.ok(&["checkpoint", "delete", &qemu.vm(), full["checkpoint"].as_str().unwrap()]);
    let resync = lab.keepmark.backup(&qemu.vm(), &["--kind", "differential"]);
    assert_eq!((kind(&resync), resync["wanted"].as_str()), ("resync", Some("differential")));
    assert_eq!(our_bitmaps(&mut qemu), [resync["checkpoint"].as_str().unwrap()]);
    qemu.write("vda", 4, 2 * MIB, MIB);
    lab.keepmark.backup(&qemu.vm(), &[]);
    let next = lab.keepmark.backup(&qemu.vm(), &["--kind", "differential"]);
    assert_eq!((kind(&next), disk(&next, "vda")["dirty_bytes"].as_u64()), ("differential", Some(MIB)));
}

#[test]
fn backups_of_single_disks_keep_each_disks_base() {
    let lab = Lab::new();
    let mut qemu = lab.two_disks();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("sdb", 5, 8 * MIB, MIB);
    qemu.write("vda", 5, 16 * MIB, MIB);
    let one = lab.keepmark.backup(&qemu.vm(), &["--disk", "vda"]);
    assert_eq!((one["disks"].as_array().unwrap().len(), kind(&one)), (1, "incremental"));
    let through = lab.witness(&qemu);
    let both = lab.keepmark.backup(&through.vm(), &[]);
    assert_eq!((disk(&both, "vda")["dirty_bytes"].as_u64(), disk(&both, "sdb")["dirty_bytes"].as_u64()), (Some(0), Some(MIB)));
    through.take().assert_restored(&lab.restore(id(&both), "out"), Format::Raw);
    lab.keepmark.exits(&["backup", &qemu.vm(), "--disk", "vdz"], 2);
}

#[test]
fn only_the_checkpoints_that_something_builds_on_stay() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    for _ in 0..3 {
        lab.keepmark.backup(&qemu.vm(), &[]);
    }
    let [full, _, last] = lab.list().try_into().unwrap();
    let mut needed = [full["checkpoint"].as_str().unwrap(), last["checkpoint"].as_str().unwrap()];
    needed.sort_unstable();
    assert_eq!(our_bitmaps(&mut qemu), needed);
    let listed = lab.keepmark.ok(&["checkpoint", "list", &qemu.vm(), "--json"]).json();
    assert_eq!((&listed[0]["checkpoint"], &listed[1]["checkpoint"]), (&needed[0].into(), &needed[1].into()));
    lab.keepmark.ok(&["checkpoint", "delete", &qemu.vm(), last["checkpoint"].as_str().unwrap()]);
    assert_eq!(kind(&lab.keepmark.backup(&qemu.vm(), &[])), "resync");
}

#[test]
fn two_stores_do_not_disturb_each_other() {
    let lab = Lab::new();
    let second = lab.keepmark.clone().store(&lab.path("second"));
    second.ok(&["init"]);
    let mut qemu = lab.vm().disk(Disk::qcow2("vda", &lab.qcow2("vda", 16 * MIB))).start();
    lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(kind(&second.backup(&qemu.vm(), &[])), "full");
    qemu.write("vda", 1, 0, MIB);
    assert_eq!(kind(&lab.keepmark.backup(&qemu.vm(), &[])), "incremental");
    let other = second.backup(&qemu.vm(), &[]);
    assert_eq!((kind(&other), disk(&other, "vda")["dirty_bytes"].as_u64()), ("incremental", Some(MIB)));
}

#[test]
fn a_plan_tells_what_the_backup_then_does_and_changes_nothing() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("vda", 1, 0, MIB);
    let before = our_bitmaps(&mut qemu);
    let plan = lab.keepmark.ok(&["plan", &qemu.vm(), "--json"]).event("plan");
    assert_eq!((kind(&plan), plan["disks"][0]["dirty_bytes"].as_u64()), ("incremental", Some(MIB)));
    assert_eq!((our_bitmaps(&mut qemu), lab.list().len()), (before, 1));
    let done = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!((&plan["kind"], &plan["reason"]), (&done["kind"], &done["reason"]));
}

#[test]
fn a_checkpoint_of_its_own_counts_changes_and_no_backup_touches_it() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let created = lab.keepmark.ok(&["checkpoint", "create", &qemu.vm(), "--json"]).event("created");
    let name = created["checkpoint"].as_str().unwrap();
    qemu.write("vda", 7, 3 * MIB, MIB);
    for _ in 0..2 {
        assert_eq!(kind(&lab.keepmark.backup(&qemu.vm(), &[])), "incremental");
    }
    let listed = lab.keepmark.ok(&["checkpoint", "list", &qemu.vm(), "--json"]).json();
    let ours = listed.iter().find(|checkpoint| checkpoint["checkpoint"] == name).unwrap();
    assert_eq!((listed.len(), &ours["disks"][0]["dirty_bytes"]), (3, &MIB.into()), "{listed:?}");
    lab.keepmark.ok(&["checkpoint", "delete", &qemu.vm(), name]);
    assert_eq!(kind(&lab.keepmark.backup(&qemu.vm(), &[])), "incremental");
    assert_clean(&mut qemu);
}
