//! Damage is found and named, hostile images are refused, and what a dead writer left goes.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;

use keepmark_model::BackupId;
use keepmark_model::seam::Store as _;

use crate::common::{self, noise};
use crate::shelf::{CHUNK, Lab, On, run};

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

/// A chain of three of which each changes another cluster.
fn chain(lab: &mut Lab) -> [BackupId; 3] {
    let mut content = noise(1, 8 * CHUNK);
    let full = lab.backup(&content, On::Nothing).unwrap();
    content[..CHUNK].copy_from_slice(&noise(2, CHUNK));
    let middle = lab.backup(&content, On::Base(&full)).unwrap();
    content[CHUNK..2 * CHUNK].copy_from_slice(&noise(3, CHUNK));
    let newest = lab.backup(&content, On::Base(&middle)).unwrap();
    [full, middle, newest]
}

fn damaged(lab: &Lab, read_data: bool) -> Vec<(Vec<BackupId>, String)> {
    let found = lab.store.verify(&[], read_data, &|_, _| {}).unwrap();
    found.damages.into_iter().map(|damage| (damage.backups, damage.problem)).collect()
}

#[test]
fn a_flipped_bit_hits_all_that_lie_on_it() {
    let mut lab = Lab::new();
    let [_, middle, newest] = chain(&mut lab);
    let end = std::fs::metadata(lab.image(&middle)).unwrap().len();
    overwrite(&lab.image(&middle), end - 100, b"X");
    assert_eq!(damaged(&lab, false), []);
    let found = damaged(&lab, true);
    assert_eq!(found.len(), 1);
    let mut hit = [middle, newest];
    hit.sort();
    assert_eq!(found[0].0, hit);
    assert!(found[0].1.contains("another hash"), "{}", found[0].1);
}

#[test]
fn a_missing_image_costs_those_that_need_it_and_a_missing_manifest_its_own() {
    let mut lab = Lab::new();
    let [full, middle, newest] = chain(&mut lab);
    std::fs::remove_file(lab.vm_folder().join(newest.as_str()).join("manifest.json")).unwrap();
    assert!(lab.store.backups(None).unwrap().1[0].contains("no manifest"));
    assert_eq!(damaged(&lab, false), [(vec![newest], "it has no manifest".to_owned())]);
    std::fs::remove_file(lab.image(&full)).unwrap();
    assert!(lab.restored(&middle).unwrap_err().to_string().contains("not there"));
    assert_eq!(lab.store.verify(&[], false, &|_, _| {}).unwrap().good, []);
}

#[test]
fn an_image_that_lies_on_something_foreign_is_refused_and_nobody_follows() {
    let mut lab = Lab::new();
    let [full, middle, newest] = chain(&mut lab);
    let secret = lab.folder.path().join("secret.qcow2");
    std::fs::copy(lab.image(&full), &secret).unwrap();
    for hostile in [secret.to_str().unwrap(), "json:{\"driver\":\"null-co\"}", "../../../secret.qcow2", &format!("../{newest}/vda.qcow2")] {
        run("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", hostile, lab.image(&middle).to_str().unwrap()]);
        let refused = lab.restored(&newest).unwrap_err().to_string();
        assert!(refused.contains("lies on") || refused.contains("no end"), "{refused}");
        assert!(!damaged(&lab, false).is_empty());
        let content = lab.truth[&newest].clone();
        lab.backup(&content, On::Compared(&newest)).unwrap_err();
    }
    assert!(lab.restored(&full).is_ok());
}

#[test]
fn what_a_dead_writer_left_goes_with_the_next_backup_and_a_living_one_s_stays() {
    let mut lab = Lab::new();
    let [full, ..] = chain(&mut lab);
    let dead = lab.vm_folder().join(".km1tmp-0123");
    std::fs::create_dir(&dead).unwrap();
    std::fs::write(dead.join("vda.qcow2"), "x").unwrap();
    std::fs::write(lab.vm_folder().join(full.as_str()).join(".km1tmp-4567"), "x").unwrap();
    let time = "2026-11-30T00:00:00Z".parse().unwrap();
    let living = lab.store.begin(&common::vm().id(), time).unwrap();
    assert!(!dead.exists() && !lab.vm_folder().join(full.as_str()).join(".km1tmp-4567").exists());
    let other = lab.store.begin(&common::vm().id(), time).unwrap();
    let left = || {
        std::fs::read_dir(lab.vm_folder())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with(".km1tmp"))
            .count()
    };
    assert_eq!(left(), 2);
    drop((living, other));
    assert_eq!(left(), 0);
}

#[test]
fn a_moved_folder_is_the_same_store() {
    let mut lab = Lab::new();
    let ids = chain(&mut lab);
    let moved = lab.folder.path().join("elsewhere");
    assert!(Command::new("mv").arg(lab.folder.path().join("store")).arg(&moved).status().unwrap().success());
    lab.store = keepmark_store::ImageStore::open(&moved, crate::shelf::options(lab.folder.path(), false)).unwrap();
    lab.check(&ids);
    let image = moved.join(common::vm().id().as_str()).join(ids[2].as_str()).join("vda.qcow2");
    let raw = lab.folder.path().join("out.raw");
    run("qemu-img", &["convert", "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
    assert!(std::fs::read(&raw).unwrap() == lab.truth[&ids[2]]);
}
