//! Deleting and pinning: what goes is gone at once, what stays restores, and stock restic is content with what is left.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod common;

use common::{Place, backup, diff, full, noise, restore};
use keepmark_model::BackupId;
use keepmark_model::seam::{Silent, Store as _};

fn listed(place: &Place) -> Vec<(String, bool)> {
    let (backups, problems) = place.open().backups(None).unwrap();
    assert!(problems.is_empty(), "{problems:?}");
    backups.into_iter().map(|backup| (backup.id.to_string(), backup.pinned)).collect()
}

#[test]
fn a_deleted_backup_is_gone_and_its_successor_restores() {
    let place = Place::new();
    let repository = place.init();
    let (then, mut now) = (noise(1, 1 << 20), noise(1, 1 << 20));
    let first = full(&repository, &then);
    now[5000..9000].fill(7);
    let second = backup(&repository, "2026-11-23T18:00:00Z", &now, Some(&first), &diff(&then, &now)).unwrap();
    repository.delete(std::slice::from_ref(&first), &Silent).unwrap();
    assert_eq!(listed(&place), [(second.to_string(), false)]);
    assert_eq!(restore(&place.open(), &second, "vda", now.len()).unwrap(), now);
    place.check_with_restic();
}

#[test]
fn a_pinned_backup_stays_until_it_is_unpinned() {
    let place = Place::new();
    let repository = place.init();
    let id = full(&repository, &noise(1, 1 << 20));
    repository.pin(&id, true).unwrap();
    assert_eq!(listed(&place), [(id.to_string(), true)]);
    place.check_with_restic();
    assert!(repository.delete(std::slice::from_ref(&id), &Silent).unwrap_err().to_string().contains("is pinned"));
    repository.pin(&id, true).unwrap();
    repository.pin(&id, false).unwrap();
    repository.pin(&id, false).unwrap();
    assert_eq!(listed(&place), [(id.to_string(), false)]);
    repository.delete(std::slice::from_ref(&id), &Silent).unwrap();
    assert!(listed(&place).is_empty());
}

#[test]
fn of_several_none_goes_when_one_is_not_there() {
    let place = Place::new();
    let repository = place.init();
    let id = full(&repository, &noise(1, 1 << 20));
    for strange in ["nonsense", &"0".repeat(64)] {
        let failure = repository.delete(&[id.clone(), BackupId::new(strange)], &Silent).unwrap_err();
        assert!(failure.to_string().contains(strange), "{failure}");
        assert!(repository.pin(&BackupId::new(strange), true).is_err());
    }
    assert_eq!(listed(&place).len(), 1);
}
