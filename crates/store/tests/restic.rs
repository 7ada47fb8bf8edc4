//! Stock restic must find everything that we write clean, and give the same bytes as we do.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod common;

use common::{EVENING, Place, Told, backup, extents, full, manifest, noise, restore, vm, write_disk};
use keepmark_model::seam::Store as _;

/// The raw disk as a person without keepmark gets it: `restic restore`, then `cat`.
fn restic_disk(place: &Place, id: &str, disk: &str) -> Vec<u8> {
    let target = tempfile::tempdir().unwrap();
    place.restic_ok(&["restore", id, "--target", target.path().to_str().unwrap()]);
    let folder = target.path().join(vm().name).join(disk);
    let script = format!("cd '{}' && find . -type f | sort | xargs -r cat", folder.display());
    std::process::Command::new("sh").args(["-c", &script]).output().unwrap().stdout
}

#[test]
fn a_full_and_an_incremental_are_clean_and_equal() {
    let place = Place::new();
    let repository = place.init();
    let mut disk = noise(1, 5_000_000);
    disk[1_000_000..2_500_000].fill(0);
    let first = full(&repository, &disk);
    let before = disk.clone();
    disk[3_000_000..3_000_100].fill(7);
    disk[4_999_990..].fill(9);
    let told = Told {
        put: extents(&[(3_000_000 / 4096 * 4096, 3_000_000 / 4096 * 4096 + 4096), (4_999_990 / 4096 * 4096, 5_000_000)]),
        zero: extents(&[(0, 8192)]),
    };
    disk[..8192].fill(0);
    let second = backup(&repository, EVENING, &disk, Some(&first), &told).unwrap();
    place.check_with_restic();
    assert_eq!(restore(&repository, &first, "vda", before.len()).unwrap(), before);
    assert_eq!(restore(&repository, &second, "vda", disk.len()).unwrap(), disk);
    assert_eq!(restic_disk(&place, first.as_str(), "vda"), before);
    assert_eq!(restic_disk(&place, second.as_str(), "vda"), disk);
    let (listed, problems) = repository.backups(Some(&vm().id())).unwrap();
    assert_eq!(listed.iter().map(|backup| &backup.id).collect::<Vec<_>>(), [&first, &second]);
    assert!(problems.is_empty());
    let path = format!("/{}/domain.json", vm().name);
    let domain = format!(r#"{{"machine":"q35","name":{:?}}}"#, common::vm().name).into_bytes();
    assert_eq!(place.restic_ok(&["dump", second.as_str(), &path]), domain);
    assert_eq!(repository.open_backup(&second).unwrap().read_file("domain.json").unwrap(), domain);
}

#[test]
fn disks_of_every_awkward_size_are_clean_and_equal() {
    let place = Place::new();
    let repository = place.init();
    let disks: Vec<(String, Vec<u8>)> = [0, 1, 4095, 4096, 4097, 65_536, 65_537, 1 << 20, (1 << 20) + 5]
        .iter()
        .map(|size| (format!("d{size}"), noise(*size as u64, *size)))
        .collect();
    let mut writer = repository.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    for (name, content) in &disks {
        write_disk(&mut *writer, name, content, None, &common::put_all(content)).unwrap();
    }
    let sizes: Vec<(&str, u64)> = disks.iter().map(|(name, content)| (name.as_str(), content.len() as u64)).collect();
    let id = writer.publish(&manifest(EVENING, &sizes, None), &[]).unwrap();
    place.check_with_restic();
    for (name, content) in &disks {
        assert_eq!(restore(&repository, &id, name, content.len()).unwrap(), *content, "{name}");
        assert_eq!(restic_disk(&place, id.as_str(), name), *content, "{name}");
    }
}

/// restic opens no repository of version 1 any more in which one compressed file lies, be it a lock.
#[test]
fn a_repository_of_version_1_is_read_and_not_written() {
    let place = Place::new();
    place.restic_ok(&["init", "--repository-version", "1"]);
    let own = place.folder.path().join("own");
    std::fs::write(&own, "a letter").unwrap();
    place.restic_ok(&["backup", own.to_str().unwrap()]);
    let files = || ["", "data", "index", "keys", "locks", "snapshots"].map(|folder| place.files(folder).len());
    let before = files();
    let repository = place.open();
    let refused = repository.begin(&vm().id(), EVENING.parse().unwrap()).err().unwrap();
    assert!(refused.to_string().contains("version 1") && refused.hint().unwrap().contains("migrate upgrade_repo_v2"), "{refused:?}");
    assert_eq!(repository.backups(None).unwrap(), (vec![], vec![]));
    assert_eq!(repository.verify(&[], true, &|_, _| {}).unwrap().damages, []);
    let prune =
        keepmark_model::seam::PruneRequest { dry_run: false, unused_max_percent: 5.0, repack_max: None, delay: std::time::Duration::ZERO };
    assert!(repository.prune(&prune, &Nobody).is_err());
    drop(repository);
    assert_eq!(files(), before, "nothing was written");
    place.check_with_restic();
    place.restic_ok(&["migrate", "upgrade_repo_v2"]);
    let disk = noise(1, 100_000);
    let id = full(&place.open(), &disk);
    assert_eq!(restore(&place.open(), &id, "vda", disk.len()).unwrap(), disk);
    place.check_with_restic();
}

struct Nobody;

impl keepmark_model::seam::Monitor for Nobody {
    fn progress(&self, _: &str, _: u64, _: u64) {}
    fn finished(&self, _: &str) {}
    fn finding(&self, _: &str) {}
    fn note(&self, _: &str) {}
    fn interrupted(&self) -> bool {
        false
    }
}
