//! A write that fails at any point: nothing is published, old backups are intact, and the next run goes on where this one ended.

mod common;

use std::sync::atomic::Ordering;

use common::failing::{State, open_failing};
use common::{EVENING, MORNING, Place, Told, backup, extents, full, noise, put_all, restore, vm, write_disk};
use keepmark_model::seam::Store as _;

fn changed(disk: &[u8]) -> (Vec<u8>, Told) {
    let mut disk = disk.to_vec();
    disk[40_960..200_000].copy_from_slice(&noise(99, 159_040));
    (disk, Told { put: extents(&[(40_960, 200_704)]), zero: extents(&[]) })
}

#[test]
fn failing_at_every_single_write_publishes_nothing_and_harms_nothing() {
    let template = Place::new();
    let disk = noise(1, 600_000);
    let first = full(&template.init(), &disk);
    let (next, told) = changed(&disk);
    for at in 0.. {
        let place = template.copy();
        let state = State::new(at, at % 2 == 1);
        let repository = open_failing(&place, &state);
        let outcome = backup(&repository, EVENING, &next, Some(&first), &told);
        let (listed, problems) = repository.backups(None).unwrap();
        assert_eq!(problems, Vec::<String>::new());
        if state.operations.load(Ordering::SeqCst) <= at {
            assert_eq!(restore(&repository, &outcome.unwrap(), "vda", next.len()).unwrap(), next);
            assert!(at > 20, "only {at} writes");
            break;
        }
        assert_eq!(listed.len(), 1, "write {at} failed");
        let failure = outcome.unwrap_err();
        assert!(
            std::error::Error::source(&failure).is_some_and(|source| source.to_string().contains("no storage space")),
            "{failure} at {at}"
        );
        drop(repository);
        let repository = place.open();
        assert_eq!(restore(&repository, &first, "vda", disk.len()).unwrap(), disk);
        let second = backup(&repository, EVENING, &next, Some(&first), &told).unwrap();
        assert_eq!(restore(&repository, &second, "vda", next.len()).unwrap(), next);
        drop(repository);
        if at % 8 == 0 {
            place.check_with_restic();
        }
    }
}

#[test]
fn after_a_failure_everything_is_refused() {
    let place = Place::new();
    let first_disk = noise(1, 100_000);
    full(&place.init(), &first_disk);
    let state = State::new(u64::MAX, false);
    let repository = open_failing(&place, &state);
    let mut writer = repository.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    state.fail_from.store(0, Ordering::SeqCst);
    let disk = noise(5, 3_000_000);
    assert!(write_disk(&mut *writer, "vda", &disk, None, &put_all(&disk)).is_err());
    state.fail_from.store(u64::MAX, Ordering::SeqCst);
    let small = noise(6, 4096);
    assert!(write_disk(&mut *writer, "vdb", &small, None, &put_all(&small)).is_err());
    assert!(writer.publish(&common::manifest(EVENING, &[], None), &[]).is_err());
    assert_eq!(repository.backups(None).unwrap().0.len(), 1);
}

#[test]
fn an_interrupted_backup_costs_only_what_it_had_not_stored() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(3, 2_000_000);
    let mut writer = repository.begin(&vm().id(), MORNING.parse().unwrap()).unwrap();
    write_disk(&mut *writer, "vda", &disk, None, &put_all(&disk)).unwrap();
    drop(writer);
    assert!(repository.backups(None).unwrap().0.is_empty());
    drop(repository);
    let repository = place.open();
    let mut writer = repository.begin(&vm().id(), MORNING.parse().unwrap()).unwrap();
    let stored = write_disk(&mut *writer, "vda", &disk, None, &put_all(&disk)).unwrap();
    assert_eq!((stored.chunks_new, stored.stored_bytes), (0, 0));
    let id = writer.publish(&common::manifest(MORNING, &[("vda", 2_000_000)], None), &[]).unwrap();
    assert_eq!(restore(&repository, &id, "vda", disk.len()).unwrap(), disk);
    drop(repository);
    place.check_with_restic();
}

#[test]
fn leftovers_of_a_killed_run_are_swept_when_nobody_else_is_there() {
    let place = Place::new();
    let repository = place.init();
    let leftover = place.repository().join("tmp").join("km1tmp-killed");
    std::fs::write(&leftover, b"half a pack").unwrap();
    full(&repository, &noise(1, 5000));
    assert!(!leftover.exists());
}

#[test]
fn a_caller_who_breaks_the_rules_is_told() {
    let place = Place::new();
    let repository = place.init();
    let mut writer = repository.begin(&vm().id(), MORNING.parse().unwrap()).unwrap();
    let content = keepmark_model::seam::DiskContent {
        name: common::disk_name("vda"),
        size: keepmark_model::Size(10_000),
        chunk_size: common::chunk_size(),
        base: None,
        compare: None,
        put: extents(&[(0, 10_000)]),
        zero: extents(&[]),
    };
    let mut disk = writer.disk(&content).unwrap();
    for (chunk, length) in [(0, 4095), (2, 4096), (3, 4096), (u64::MAX, 0)] {
        assert!(disk.put(keepmark_model::ChunkIndex(chunk), vec![1; length], &common::recycler()).is_err(), "{chunk}");
    }
    disk.put(keepmark_model::ChunkIndex(1), vec![1; 4096], &common::recycler()).unwrap();
    let failure = disk.finish().unwrap_err();
    assert!(failure.to_string().contains("chunk 0 was never put"), "{failure}");
}
