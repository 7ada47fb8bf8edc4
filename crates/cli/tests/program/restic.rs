//! Getting data back without keepmark: what the documents say, done by stock restic and a shell.

use std::process::Command;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::run;

use crate::lab::{Lab, MIB, UUID, id, text};

#[test]
fn restic_and_cat_give_the_same_bytes_as_restore() {
    let lab = Lab::new();
    let mut qemu = lab.two_disks();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("vda", 7, 40 * MIB, 3 * MIB);
    let last = lab.keepmark.backup(&qemu.vm(), &[]);
    let ours = lab.restore(id(&last), "ours");
    lab.restic().check();
    lab.restic().restore(id(&last), &lab.path("out"));
    for disk in ["vda", "sdb"] {
        let joined = lab.path(&format!("{disk}.joined"));
        let line = format!("cat {}/{UUID}/{disk}/*/*/* > {}", text(&lab.path("out")), text(&joined));
        run(Command::new("sh").args(["-c", &line]));
        image::assert_same(&joined, Format::Raw, &ours.join(format!("{disk}.raw")), Format::Raw);
    }
}

#[test]
fn restic_lists_the_backups_by_their_tag_and_ids() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    let ids: Vec<String> = (0..2).map(|_| id(&lab.keepmark.backup(&qemu.vm(), &[])).to_owned()).collect();
    let tagged = lab.restic().run(&["snapshots", "--tag", "keepmark", "--json"]);
    let found: Vec<serde_json::Value> = serde_json::from_str(&tagged).unwrap();
    assert_eq!(found.iter().map(|one| one["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
}

#[test]
fn a_backup_forgotten_by_restic_is_gone_and_the_others_restore_after_a_prune() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let first = lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("vda", 9, 0, MIB);
    let through = lab.witness(&qemu);
    let second = lab.keepmark.backup(&through.vm(), &[]);
    lab.restic().run(&["forget", id(&first), "--prune"]);
    assert_eq!(lab.list().len(), 1);
    through.take().assert_restored(&lab.restore(id(&second), "out"), Format::Raw);
    qemu.write("vda", 10, MIB, MIB);
    assert_eq!(lab.keepmark.backup(&through.vm(), &[])["kind"], "incremental");
    through.take().assert_restored(&lab.restore("test-vm@latest", "out2"), Format::Raw);
    lab.restic().check();
}
