//! Locks against stock restic: it must not prune while we write, and we must not write while it prunes.

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

fn signal(child: &std::process::Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().is_ok_and(|status| status.success()));
}

#[test]
fn we_refuse_while_restic_prunes_and_go_on_after_it() {
    let place = Place::new();
    let repository = place.init();
    let mut prune = Command::new("restic")
        .args(["--no-cache", "-r"])
        .arg(place.repository())
        .arg("prune")
        .env("RESTIC_PASSWORD", PASSWORD)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("stock restic must be installed (make deps)");
    let start = Instant::now();
    // A lock counts when it has its name; restic writes it under a longer one.
    while !place.files("locks").iter().any(|path| path.file_name().is_some_and(|name| name.len() == 64)) {
        assert!(start.elapsed() < Duration::from_secs(60), "restic took no lock");
        std::thread::sleep(Duration::from_millis(1));
    }
    // restic waits 0.2 s after it wrote its lock: it is stopped while it holds it.
    signal(&prune, "-STOP");
    let failure = repository.begin(&vm().id(), EVENING.parse().unwrap()).map(drop).unwrap_err();
    assert_eq!(failure.class(), FailureClass::Locked);
    assert!(failure.to_string().contains(&format!("locked by process {}", prune.id())), "{failure}");
    assert_eq!(place.files("locks").len(), 1, "ours is gone again");
    signal(&prune, "-CONT");
    assert!(prune.wait().unwrap().success());
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
