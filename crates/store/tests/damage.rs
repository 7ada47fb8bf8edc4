//! Damage that is not a cell of the matrix (see `damage_matrix`): what is shared, what is remembered, caches, locks, keys.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{EVENING, MORNING, PASSWORD, Place, Told, backup, backup_of, extents, noise, put_all, put_data, restore};
use keepmark_model::seam::Store as _;
use keepmark_model::{BackupId, FailureClass, VmIdentity};
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
fn a_backup_after_a_pack_is_gone_is_whole_again() {
    let two = two();
    fs::remove_file(two.file(0, "data", true)).unwrap();
    let repository = two.place.open();
    let third = backup(&repository, "2026-11-23T08:00:00Z", &two.first.1, None, &put_all(&two.first.1)).unwrap();
    assert!(restores(&repository, &(third, two.first.1.clone())));
    assert!(restores(&repository, &two.second), "an old one finds the chunks again");
}

/// A disk of zeros only, and one of another VM that shares them.
fn zeros_that_are_shared() -> (Place, [PathBuf; 1], BackupId, (BackupId, Vec<u8>)) {
    let place = Place::new();
    let repository = place.init();
    let zeros = vec![0; 3 << 20];
    let empty = backup(&repository, MORNING, &zeros, None, &put_data(&zeros)).unwrap();
    let packs = place.files("data");
    let data = packs.into_iter().find(|path| is_data(&place, path)).unwrap();
    let mut disk = noise(1, 100_000);
    disk.resize(3 << 20, 0);
    let db = VmIdentity::new("db", None).unwrap();
    let other = backup_of(&db, &repository, EVENING, &disk, None, &put_data(&disk)).unwrap();
    (place, [data], empty, (other, disk))
}

/// Whether restic lists a blob of data in a pack: it names packs in its index only.
fn is_data(place: &Place, pack: &Path) -> bool {
    let index = place.files("index").remove(0);
    let listed = place.restic_ok(&["cat", "index", &Two::name(&index)]);
    let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap();
    let packs = listed["packs"].as_array().unwrap();
    packs.iter().any(|listed| listed["id"] == Two::name(pack).as_str() && listed["blobs"][0]["type"] == "data")
}

#[test]
fn lost_zeros_hit_no_backup_and_the_next_one_stores_them_again() {
    let (place, [pack], empty, (other, disk)) = zeros_that_are_shared();
    fs::remove_file(&pack).unwrap();
    let repository = place.open();
    assert_eq!(restore(&repository, &other, "vda", disk.len()).unwrap(), disk);
    let found = repository.verify(&[], false, &|_, _| {}).unwrap();
    assert_eq!(found.good, std::slice::from_ref(&other), "the other has lost its manifest");
    let subjects: Vec<_> =
        found.damages.iter().map(|damage| (damage.subject.split(' ').next().unwrap(), damage.backups.as_slice())).collect();
    assert_eq!(subjects, [("chunk", [].as_slice()), ("pack", &[empty])]);
    assert!(!place.restic(&["check"]).status.success());

    let db = VmIdentity::new("db", None).unwrap();
    let nothing = Told { put: extents(&[]), zero: extents(&[]) };
    let next = backup_of(&db, &repository, "2026-11-23T08:00:00Z", &disk, Some(&other), &nothing).unwrap();
    let found = repository.verify(&[], true, &|_, _| {}).unwrap();
    assert!(found.damages.iter().all(|damage| damage.subject.starts_with("pack")), "{:?}", found.damages);
    // The index still names the lost pack first, and restic looks nowhere else.
    place.restic_ok(&["rebuild-index"]);
    for (id, folder) in [(&other, "then"), (&next, "now")] {
        let to = place.folder.path().join(folder);
        place.restic_ok(&["restore", id.as_str(), "--target", &to.display().to_string()]);
    }
}

#[test]
fn a_base_is_looked_through_when_nothing_is_remembered_of_it() {
    for remembered in [true, false] {
        for lost in [false, true] {
            let two = two();
            if lost {
                fs::remove_file(two.file(0, "data", true)).unwrap();
            }
            if !remembered {
                fs::remove_dir_all(two.place.cache()).unwrap();
            }
            let nothing = Told { put: extents(&[]), zero: extents(&[]) };
            let next = backup(&two.place.open(), "2026-11-23T08:00:00Z", &two.second.1, Some(&two.second.0), &nothing);
            assert_eq!(next.is_err(), lost, "remembered {remembered}");
            if let Err(failure) = next {
                assert!(matches!(failure.get(), Some(Error::Damaged { kind: "pack", .. })), "{failure}");
            }
        }
    }
}

#[test]
fn where_no_cache_can_be_written_everything_works_all_the_same() {
    let place = Place::new();
    fs::write(place.cache(), "a file where the folder should be").unwrap();
    let repository = place.init();
    let disk = noise(1, 500_000);
    let first = backup(&repository, MORNING, &disk, None, &put_all(&disk)).unwrap();
    assert!(repository.cache_problem().unwrap().contains("cache"));
    let nothing = Told { put: extents(&[]), zero: extents(&[]) };
    let second = backup(&place.open(), EVENING, &disk, Some(&first), &nothing).unwrap();
    let later = place.open();
    assert_eq!(later.backups(None).unwrap().0.len(), 2);
    assert_eq!(later.verify(&[], true, &|_, _| {}).unwrap().good.len(), 2);
    for id in [first, second] {
        assert_eq!(restore(&repository, &id, "vda", disk.len()).unwrap(), disk);
        assert_eq!(restore(&later, &id, "vda", disk.len()).unwrap(), disk);
    }
    assert_eq!(Place::new().init().cache_problem(), None);
}

#[test]
fn a_cache_that_goes_away_in_the_middle_costs_nothing() {
    let place = Place::new();
    let repository = place.init();
    fs::remove_dir_all(place.cache()).unwrap();
    fs::write(place.cache(), "a file where the folder was").unwrap();
    let disk = noise(1, 500_000);
    let first = backup(&repository, MORNING, &disk, None, &put_all(&disk)).unwrap();
    assert_eq!(restore(&repository, &first, "vda", disk.len()).unwrap(), disk);
}

#[test]
fn a_damaged_lock_blocks_writers_for_half_an_hour_and_readers_never() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 100_000);
    let first = backup(&repository, MORNING, &disk, None, &put_all(&disk)).unwrap();
    let lock = place.repository().join("locks").join("ab".repeat(32));
    fs::write(&lock, "rubbish").unwrap();
    let refused = repository.begin(&common::vm().id(), EVENING.parse().unwrap()).map(drop).unwrap_err();
    assert_eq!(refused.class(), FailureClass::Locked);
    assert!(refused.hint().unwrap().contains("unlock"), "{refused}");
    assert!(restores(&repository, &(first.clone(), disk.clone())));
    let found = repository.verify(&[], false, &|_, _| {}).unwrap();
    assert_eq!((found.good.len(), found.damages[0].subject.clone()), (1, format!("lock {}", "ab".repeat(32))));
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(31 * 60);
    fs::File::options().write(true).open(&lock).unwrap().set_modified(old).unwrap();
    assert!(repository.begin(&common::vm().id(), EVENING.parse().unwrap()).is_ok(), "nobody refreshes it");
}

/// restic restores a backup and backs it up again: the same files, in chunks of its own.
#[test]
fn a_disk_whose_folders_have_another_shape_is_not_called_good() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 300_000);
    let db = VmIdentity::new("db", None).unwrap();
    let id = backup_of(&db, &repository, MORNING, &disk, None, &put_data(&disk)).unwrap();
    let to = place.folder.path().join("restored");
    place.restic_ok(&["restore", id.as_str(), "--target", &to.display().to_string()]);
    let again = std::process::Command::new("restic")
        .args(["--no-cache", "-q", "-r", &place.repository().display().to_string(), "backup", "--tag", "keepmark", "db"])
        .env("RESTIC_PASSWORD", PASSWORD)
        .current_dir(&to)
        .status();
    assert!(again.unwrap().success());
    let found = place.open().verify(&[], true, &|_, _| {}).unwrap();
    assert_eq!(found.good, std::slice::from_ref(&id));
    let damage = found.damages.iter().find(|damage| !damage.backups.is_empty()).unwrap();
    assert!(damage.subject.starts_with("tree") && damage.problem.contains("chunks of a disk"), "{damage:?}");
    assert!(restore(&place.open(), &damage.backups[0], "vda", disk.len()).is_err(), "a restore says the same");
}

#[test]
fn a_damaged_key_is_told_from_a_wrong_password() {
    let place = Place::new();
    drop(place.init());
    let key = place.files("keys").remove(0);
    let second = place.folder.path().join("second password");
    fs::write(&second, "another").unwrap();
    place.restic_ok(&["key", "add", "--new-password-file", &second.display().to_string()]);
    let open = |password| Repository::open(&place.repository(), password, place.options());
    let whole = fs::read(&key).unwrap();
    Two::flip(&key, whole.len() / 2);
    assert!(matches!(open(PASSWORD), Err(Error::WrongPassword { .. })), "there is another key");
    let found = open("another").unwrap().verify(&[], false, &|_, _| {}).unwrap();
    assert_eq!(found.damages.iter().map(|damage| damage.subject.clone()).collect::<Vec<_>>(), [format!("key {}", Two::name(&key))]);
    for other in place.files("keys").into_iter().filter(|path| *path != key) {
        fs::remove_file(other).unwrap();
    }
    let error = open(PASSWORD).unwrap_err();
    assert!(matches!(error, Error::NoKey { .. }) && error.to_string().contains(&Two::name(&key)), "{error}");
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
