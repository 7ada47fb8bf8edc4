//! A write that fails at any point: nothing is published, old backups are intact, and the next run goes on where this one ended.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{EVENING, MORNING, PASSWORD, Place, Told, backup, extents, full, noise, put_all, restore, vm, write_disk};
use keepmark_model::seam::Store as _;
use keepmark_store::repository::backend::{Backend, FileKind, Upload};
use keepmark_store::repository::folder::Folder;
use keepmark_store::repository::id::Id;
use keepmark_store::{Error, Repository, Result};

/// Counts what changes the repository, and fails from the N-th on, as a full disk does.
struct Failing {
    inner: Folder,
    state: Arc<State>,
}

struct State {
    operations: AtomicU64,
    fail_from: AtomicU64,
    /// Whether only one operation fails and those after it work again.
    once: bool,
}

impl State {
    fn new(fail_from: u64, once: bool) -> Arc<Self> {
        Arc::new(Self { operations: AtomicU64::new(0), fail_from: AtomicU64::new(fail_from), once })
    }

    fn step(&self) -> Result<()> {
        let number = self.operations.fetch_add(1, Ordering::SeqCst);
        let from = self.fail_from.load(Ordering::SeqCst);
        let fails = if self.once { number == from } else { number >= from };
        let error = || Error::Io { action: "write", path: "injected".into(), source: io::Error::from(io::ErrorKind::StorageFull) };
        if fails { Err(error()) } else { Ok(()) }
    }
}

impl Backend for Failing {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>> {
        self.inner.list(kind)
    }

    fn size(&self, kind: FileKind, id: &Id) -> Result<Option<u64>> {
        self.inner.size(kind, id)
    }

    fn read(&self, kind: FileKind, id: &Id) -> Result<Vec<u8>> {
        self.inner.read(kind, id)
    }

    fn read_at(&self, kind: FileKind, id: &Id, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.inner.read_at(kind, id, offset, buffer)
    }

    fn upload(&self) -> Result<Box<dyn Upload>> {
        self.state.step()?;
        Ok(Box::new(FailingUpload { inner: self.inner.upload()?, state: Arc::clone(&self.state) }))
    }

    fn settle(&self, kind: FileKind) -> Result<()> {
        self.state.step()?;
        self.inner.settle(kind)
    }

    fn remove(&self, kind: FileKind, id: &Id) -> Result<()> {
        self.inner.remove(kind, id)
    }

    fn sweep(&self) -> Result<()> {
        self.inner.sweep()
    }
}

struct FailingUpload {
    inner: Box<dyn Upload>,
    state: Arc<State>,
}

impl Upload for FailingUpload {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.state.step()?;
        self.inner.append(bytes)
    }

    fn publish(self: Box<Self>, kind: FileKind, id: &Id) -> Result<()> {
        self.state.step()?;
        self.inner.publish(kind, id)
    }
}

fn open_failing(place: &Place, state: &Arc<State>) -> Repository {
    let backend = Failing { inner: Folder::new(&place.repository()), state: Arc::clone(state) };
    Repository::open_at(Arc::new(backend), PASSWORD, place.options()).unwrap()
}

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
