//! Damaged repositories: verify names the damage and exactly the backups it hits, the others restore, and the next backup is whole.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{EVENING, MORNING, PASSWORD, Place, Told, backup, extents, noise, put_all, restore};
use keepmark_model::seam::Store as _;
use keepmark_model::{BackupId, FailureClass};
use keepmark_store::{Error, Repository};

struct Two {
    place: Place,
    first: (BackupId, Vec<u8>),
    second: (BackupId, Vec<u8>),
    /// Packs, index and snapshot that came with the first, and with the second.
    files: [Vec<PathBuf>; 2],
}

/// Two backups of which the second shares most with the first.
fn two() -> Two {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 1_500_000);
    let first = backup(&repository, MORNING, &disk, None, &put_all(&disk)).unwrap();
    let all = |place: &Place| ["data", "index", "snapshots"].iter().flat_map(|folder| place.files(folder)).collect::<Vec<_>>();
    let old = all(&place);
    let mut next = disk.clone();
    next[8192..12_288].copy_from_slice(&noise(77, 4096));
    let told = Told { put: extents(&[(8192, 12_288)]), zero: extents(&[]) };
    let second = backup(&repository, EVENING, &next, Some(&first), &told).unwrap();
    let new = all(&place).into_iter().filter(|path| !old.contains(path)).collect();
    Two { place, first: (first, disk), second: (second, next), files: [old, new] }
}

impl Two {
    fn file(&self, of: usize, folder: &str, largest: bool) -> PathBuf {
        let mut found: Vec<PathBuf> =
            self.files[of].iter().filter(|path| path.strip_prefix(self.place.repository()).unwrap().starts_with(folder)).cloned().collect();
        found.sort_by_key(|path| fs::metadata(path).unwrap().len());
        if largest { found.pop().unwrap() } else { found.remove(0) }
    }

    fn flip(path: &Path, at: usize) {
        let mut bytes = fs::read(path).unwrap();
        let at = at.min(bytes.len() - 1);
        bytes[at] ^= 0x10;
        fs::write(path, bytes).unwrap();
    }

    fn name(path: &Path) -> String {
        path.file_name().unwrap().to_string_lossy().into_owned()
    }

    /// What verify says: the subjects, and who is hit.
    fn verify(&self, read_data: bool) -> (Vec<BackupId>, Vec<(String, Vec<BackupId>)>) {
        let result = self.place.open().verify(&[], read_data, &|_, _| {}).unwrap();
        (result.good, result.damages.into_iter().map(|damage| (damage.subject, damage.backups)).collect())
    }

    fn both(&self) -> Vec<BackupId> {
        let mut both = vec![self.first.0.clone(), self.second.0.clone()];
        both.sort();
        both
    }
}

fn restores(repository: &Repository, backup: &(BackupId, Vec<u8>)) -> bool {
    restore(repository, &backup.0, "vda", backup.1.len()).is_ok_and(|content| content == backup.1)
}

#[test]
fn an_undamaged_repository_is_good() {
    let two = two();
    for read_data in [false, true] {
        let (mut good, damages) = two.verify(read_data);
        good.sort();
        assert_eq!((good, damages), (two.both(), vec![]));
    }
    two.place.check_with_restic();
}

#[test]
fn a_flipped_bit_in_shared_data_hits_both() {
    let two = two();
    let pack = two.file(0, "data", true);
    Two::flip(&pack, 500_000);
    assert_eq!(two.verify(true), (vec![], vec![(format!("pack {}", Two::name(&pack)), two.both())]));
    let mut good = two.verify(false).0;
    good.sort();
    assert_eq!(good, two.both());
    let failure = restore(&two.place.open(), &two.first.0, "vda", two.first.1.len()).unwrap_err();
    assert!(failure.to_string().contains(&Two::name(&pack)), "{failure}");
}

#[test]
fn data_that_only_one_needs_hits_only_that_one() {
    let two = two();
    let pack = two.file(1, "data", false);
    Two::flip(&pack, 40);
    let (good, damages) = two.verify(true);
    assert_eq!(
        damages
            .iter()
            .map(|(subject, hit)| (subject.starts_with("pack") || subject.starts_with("snapshot"), hit.clone()))
            .collect::<Vec<_>>(),
        [(true, vec![two.second.0.clone()])]
    );
    assert_eq!(good, std::slice::from_ref(&two.first.0));
    assert!(restores(&two.place.open(), &two.first));
}

#[test]
fn a_pack_that_is_gone_or_cut_is_seen_without_reading() {
    for cut in [None, Some(700_000)] {
        let two = two();
        let pack = two.file(0, "data", true);
        match cut {
            None => fs::remove_file(&pack).unwrap(),
            Some(length) => fs::OpenOptions::new().write(true).open(&pack).unwrap().set_len(length).unwrap(),
        }
        let (good, damages) = two.verify(false);
        assert_eq!((good, damages), (vec![], vec![(format!("pack {}", Two::name(&pack)), two.both())]));
    }
}

#[test]
fn a_backup_after_a_pack_is_gone_is_whole_again() {
    let two = two();
    fs::remove_file(two.file(0, "data", true)).unwrap();
    let repository = two.place.open();
    let third = backup(&repository, "2026-11-23T08:00:00Z", &two.first.1, None, &put_all(&two.first.1)).unwrap();
    assert!(restores(&repository, &(third, two.first.1.clone())));
    assert!(restores(&repository, &two.second), "an old one finds the chunks again");
}

#[test]
fn a_damaged_index_hits_those_that_need_it_and_not_the_next_backup() {
    let two = two();
    let index = two.file(1, "index", true);
    Two::flip(&index, 60);
    let (good, damages) = two.verify(false);
    assert_eq!(good, std::slice::from_ref(&two.first.0));
    assert!(
        damages.contains(&(format!("index {}", Two::name(&index)), vec![]))
            || damages.iter().any(|(subject, _)| subject.contains(&Two::name(&index))),
        "{damages:?}"
    );
    assert!(damages.iter().any(|(_, hit)| *hit == [two.second.0.clone()]), "{damages:?}");
    let repository = two.place.open();
    assert!(restores(&repository, &two.first));
    let third = backup(&repository, "2026-11-23T08:00:00Z", &two.second.1, None, &put_all(&two.second.1)).unwrap();
    assert!(restores(&repository, &(third, two.second.1.clone())));
}

#[test]
fn a_damaged_snapshot_hits_itself() {
    let two = two();
    let snapshot = two.file(1, "snapshots", true);
    Two::flip(&snapshot, 60);
    fs::remove_dir_all(two.place.cache()).unwrap();
    let (listed, problems) = two.place.open().backups(None).unwrap();
    assert_eq!(listed.into_iter().map(|backup| backup.id).collect::<Vec<_>>(), std::slice::from_ref(&two.first.0));
    assert!(problems[0].contains(&Two::name(&snapshot)), "{problems:?}");
    let (good, damages) = two.verify(true);
    assert_eq!(
        (good, damages),
        (vec![two.first.0.clone()], vec![(format!("snapshot {}", Two::name(&snapshot)), vec![two.second.0.clone()])])
    );
}

#[test]
fn a_damaged_cache_costs_time_and_nothing_else() {
    let two = two();
    for byte in [10, 4000, 5000] {
        for entry in walk(&two.place.cache()) {
            if fs::metadata(&entry).unwrap().len() > 0 {
                Two::flip(&entry, byte);
            }
        }
        let repository = two.place.open();
        assert_eq!(repository.backups(None).unwrap().0.len(), 2);
        assert!(restores(&repository, &two.first) && restores(&repository, &two.second), "byte {byte}");
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path) } else { vec![path] }
        })
        .collect()
}

#[test]
fn what_is_no_store_is_told_apart() {
    let place = Place::new();
    let open = |password: &str| Repository::open(&place.repository(), password, place.options());
    assert!(matches!(open(PASSWORD), Err(Error::NoStore { .. })));
    fs::create_dir(place.repository()).unwrap();
    assert!(matches!(open(PASSWORD), Err(Error::NotAStore { .. })));
    fs::write(place.repository().join("a file"), "x").unwrap();
    let init = || Repository::init(&place.repository(), PASSWORD, common::chunk_size(), place.options());
    assert!(matches!(init(), Err(Error::NotEmpty { .. })));
    fs::remove_file(place.repository().join("a file")).unwrap();
    drop(init().unwrap());
    assert!(matches!(init(), Err(Error::NotEmpty { .. })));
    assert!(matches!(open("wrong"), Err(Error::WrongPassword { .. })));
    assert_eq!(place.open().chunk_size(), common::chunk_size());
    let missing = place.open().open_backup(&BackupId::new("ab".repeat(32))).map(drop).unwrap_err();
    assert_eq!(missing.class(), FailureClass::Usage);
}
