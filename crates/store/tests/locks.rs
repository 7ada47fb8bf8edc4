//! Locks against stock restic: it must not prune while we write, and we must not write while it prunes.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod common;

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use common::{EVENING, MORNING, PASSWORD, Place, Told, backup, extents, full, noise, restore, vm};
use keepmark_model::FailureClass;
use keepmark_model::seam::Store as _;
use keepmark_store::Repository;

#[test]
fn restic_refuses_to_prune_while_a_backup_is_written() {
    let place = Place::new();
    let repository = place.init();
    let writer = repository.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    let output = place.restic(&["prune"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("testhost") && said.contains(&std::process::id().to_string()), "{said}");
    drop(writer);
    assert!(place.files("locks").is_empty());
    place.restic_ok(&["prune"]);
}

#[test]
fn we_refuse_while_restic_has_an_exclusive_lock_and_ignore_a_dead_one() {
    let place = Place::new();
    let repository = place.init();
    // restic holds its exclusive lock while it waits for a password that never comes.
    let mut child = Command::new("restic")
        .args(["--no-cache", "-r"])
        .arg(place.repository())
        .args(["key", "add", "--new-password-file", "/proc/self/fd/0"])
        .env("RESTIC_PASSWORD", PASSWORD)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("stock restic must be installed (make deps)");
    let mut waited = 0;
    while place.files("locks").is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(20));
        waited += 1;
        assert!(waited < 1000, "restic took no lock");
    }
    let outcome = repository.begin(&vm().id(), EVENING.parse().unwrap()).map(drop);
    child.stdin.take().unwrap().write_all(b"another\n").unwrap();
    child.wait().unwrap();
    if let Err(failure) = outcome {
        assert_eq!(failure.class(), FailureClass::Locked);
        assert!(failure.to_string().contains("locked by process"), "{failure}");
    }
    assert!(repository.begin(&vm().id(), EVENING.parse().unwrap()).is_ok());
}

#[test]
fn locks_of_a_killed_run_are_removed() {
    let place = Place::new();
    let repository = place.init();
    let writer = repository.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    let lock = place.files("locks").remove(0);
    let content = fs::read(&lock).unwrap();
    drop(writer);
    fs::write(&lock, content).unwrap();
    // Another process of this host, for which ours is dead.
    let mut options = place.options();
    options.environment.pid += 1;
    options.environment.is_alive = |_| false;
    let other = Repository::open(&place.repository(), PASSWORD, options).unwrap();
    drop(other.begin(&vm().id(), EVENING.parse().unwrap()).unwrap());
    assert!(place.files("locks").is_empty());
}

#[test]
fn backups_survive_forget_and_prune_by_restic_and_the_next_one_builds_on_what_is_left() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 1_000_000);
    let first = full(&repository, &disk);
    let mut next = disk.clone();
    next[..500_000].copy_from_slice(&noise(2, 500_000));
    let told = Told { put: extents(&[(0, 503_808)]), zero: extents(&[]) };
    let second = backup(&repository, EVENING, &next, Some(&first), &told).unwrap();
    place.restic_ok(&["forget", first.as_str(), "--prune", "--max-unused", "0"]);
    assert_eq!(restore(&repository, &second, "vda", next.len()).unwrap(), next);
    let third = backup(&repository, MORNING, &disk, None, &common::put_all(&disk)).unwrap();
    assert_eq!(restore(&repository, &third, "vda", disk.len()).unwrap(), disk);
    place.check_with_restic();
}

#[test]
fn a_repository_made_by_restic_is_used() {
    let place = Place::new();
    place.restic_ok(&["init", "--repository-version", "2"]);
    let repository = place.open();
    assert_eq!(repository.chunk_size(), keepmark_model::ChunkSize::DEFAULT);
    place.restic_ok(&["backup", "/etc/hostname"]);
    let disk = noise(1, 100_000);
    let id = full(&repository, &disk);
    assert_eq!(repository.backups(None).unwrap().0.len(), 1);
    assert_eq!(restore(&repository, &id, "vda", disk.len()).unwrap(), disk);
    place.check_with_restic();
}
