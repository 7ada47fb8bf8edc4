//! Pruning: frees what no backup needs, never anything else, whoever is there and whatever fails; stock restic finds everything clean.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod common;

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::failing::{State, open_failing};
use common::{EVENING, MORNING, Place, Told, backup, extents, full, noise, put_all, restore, vm, write_disk};
use keepmark_model::seam::{Monitor, PruneRequest, Pruned, Store as _};
use keepmark_model::{BackupId, FailureClass};
use keepmark_store::Repository;

/// Files of ours that stay: the mark of the place.
const PLACE: usize = 1;

/// Remembers what was found.
#[derive(Default)]
struct Quiet {
    interrupted: AtomicBool,
    findings: std::sync::Mutex<Vec<String>>,
}

impl Monitor for Quiet {
    fn progress(&self, _: &str, _: u64, _: u64) {}
    fn finished(&self, _: &str) {}
    fn finding(&self, text: &str) {
        self.findings.lock().unwrap().push(text.to_owned());
    }
    fn note(&self, _: &str) {}
    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

fn request() -> PruneRequest {
    PruneRequest { dry_run: false, unused_max_percent: 5.0, repack_max: None, delay: Duration::from_hours(24) }
}

fn prune(repository: &Repository) -> Pruned {
    repository.prune(&request(), &Quiet::default()).unwrap()
}

fn delete(repository: &Repository, ids: &[&BackupId]) {
    repository.delete(&ids.iter().copied().cloned().collect::<Vec<_>>(), &Quiet::default()).unwrap();
}

fn data_bytes(place: &Place) -> u64 {
    place.files("data").iter().map(|path| fs::metadata(path).unwrap().len()).sum()
}

/// Two backups that share half of their disks, and those disks.
fn halves(repository: &Repository) -> [(BackupId, Vec<u8>); 2] {
    let first = noise(1, 1_024_000);
    let mut second = first.clone();
    second[..512_000].copy_from_slice(&noise(2, 512_000));
    let told = Told { put: extents(&[(0, 512_000)]), zero: extents(&[]) };
    let one = full(repository, &first);
    let two = backup(repository, EVENING, &second, Some(&one), &told).unwrap();
    [(one, first), (two, second)]
}

#[test]
fn what_a_deleted_backup_alone_needed_goes_and_the_rest_stays() {
    let place = Place::new();
    let repository = place.init();
    let [(one, first), (two, second)] = halves(&repository);
    let nothing = prune(&repository);
    assert_eq!((nothing.removed_files, nothing.repacked_bytes, nothing.waiting.len()), (0, 0, 0), "{nothing:?}");
    let before = data_bytes(&place);
    delete(&repository, &[&one]);
    let planned = repository.prune(&PruneRequest { dry_run: true, ..request() }, &Quiet::default()).unwrap();
    assert_eq!(data_bytes(&place), before, "a dry run changes nothing");
    let done = prune(&repository);
    assert!(planned.removed_files == done.removed_files && planned.repacked_bytes == done.repacked_bytes, "{planned:?} {done:?}");
    // Half of the first backup's disk is the second's, too: its pack was repacked.
    assert!(done.repacked_bytes > 500_000 && done.removed_bytes > 1_000_000 && done.marked_bytes == 0, "{done:?}");
    assert!(before - data_bytes(&place) > 500_000);
    assert!(place.files("keepmark").len() == PLACE && place.files("locks").is_empty());
    assert_eq!(restore(&repository, &two, "vda", second.len()).unwrap(), second);
    place.check_with_restic();
    // What was first is gone, and stored anew.
    let again = full(&repository, &first);
    assert_eq!(restore(&place.open(), &again, "vda", first.len()).unwrap(), first);
    delete(&repository, &[&two, &again]);
    prune(&repository);
    assert_eq!(data_bytes(&place), 0);
    place.check_with_restic();
}

#[test]
fn copying_is_bounded_and_little_waste_is_left_alone() {
    let place = Place::new();
    let repository = place.init();
    let [(one, _), (two, second)] = halves(&repository);
    delete(&repository, &[&one]);
    let wasteful = PruneRequest { unused_max_percent: 60.0, ..request() };
    let pruned = repository.prune(&wasteful, &Quiet::default()).unwrap();
    assert!(pruned.repacked_bytes == 0 && pruned.unused_bytes > 500_000, "{pruned:?}");
    let bounded = PruneRequest { repack_max: Some(100_000), ..request() };
    assert_eq!(repository.prune(&bounded, &Quiet::default()).unwrap().repacked_bytes, 0);
    assert_eq!(restore(&repository, &two, "vda", second.len()).unwrap(), second);
    place.check_with_restic();
}

#[test]
fn a_writer_who_does_not_know_the_mark_is_waited_for_and_what_it_uses_stays() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 600_000);
    let one = full(&repository, &disk);
    delete(&repository, &[&one]);
    // It finds all of the deleted backup's chunks and stores none.
    let other = place.open();
    let mut writer = other.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    let stored = write_disk(&mut *writer, "vda", &disk, None, &put_all(&disk)).unwrap();
    assert_eq!(stored.chunks_new, 0);
    let pruned = prune(&repository);
    assert!(pruned.removed_files == 0 && pruned.marked_bytes > 600_000, "{pruned:?}");
    assert!(pruned.waiting[0].contains(&format!("process {} on testhost", std::process::id())), "{pruned:?}");
    let id = writer.publish(&common::manifest(EVENING, &[("vda", 600_000)], None), &[]).unwrap();
    assert_eq!(restore(&place.open(), &id, "vda", disk.len()).unwrap(), disk);
    place.check_with_restic();
    let pruned = prune(&repository);
    assert!(pruned.waiting.is_empty() && pruned.marked_bytes == 0, "{pruned:?}");
    assert_eq!(restore(&place.open(), &id, "vda", disk.len()).unwrap(), disk);
    place.check_with_restic();
}

#[test]
fn a_writer_who_knows_the_mark_stores_anew_and_is_not_waited_for() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 600_000);
    let one = full(&repository, &disk);
    delete(&repository, &[&one]);
    let first = place.open();
    let early = first.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    prune(&repository);
    let second = place.open();
    let mut late = second.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    let stored = write_disk(&mut *late, "vda", &disk, None, &put_all(&disk)).unwrap();
    assert_eq!(stored.chunks_known, 0, "what is marked is as good as gone");
    drop(early);
    let pruned = prune(&repository);
    assert!(pruned.removed_files > 0 && pruned.waiting.is_empty(), "{pruned:?}");
    let id = late.publish(&common::manifest(EVENING, &[("vda", 600_000)], None), &[]).unwrap();
    assert_eq!(restore(&place.open(), &id, "vda", disk.len()).unwrap(), disk);
    place.check_with_restic();
}

#[test]
fn what_a_running_backup_has_stored_so_far_is_not_marked() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 40 << 20);
    let mut writer = repository.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    write_disk(&mut *writer, "vda", &disk, None, &put_all(&disk)).unwrap();
    assert!(data_bytes(&place) > 16 << 20, "whole packs are there, and in no index");
    let pruned = prune(&place.open());
    assert!(pruned.marked_bytes == 0 && pruned.waiting.is_empty(), "{pruned:?}");
    drop(writer);
    assert!(prune(&place.open()).removed_bytes > 16 << 20);
    place.check_with_restic();
}

#[test]
fn a_reader_is_waited_for() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 600_000);
    let one = full(&repository, &disk);
    let reading = place.open();
    let reader = reading.open_backup(&one).unwrap();
    delete(&repository, &[&one]);
    assert!(prune(&repository).removed_files == 0);
    // Marked or not: who only reads does without knowing.
    let later = place.open();
    let another = later.open_backup(&one).map(drop).unwrap_err();
    assert!(another.to_string().contains("there is no backup"), "{another}");
    reader.walk("vda", None, &mut |_| Ok(())).unwrap();
    drop(reader);
    assert!(prune(&repository).removed_files > 0);
    place.check_with_restic();
}

#[test]
fn a_backup_whose_lock_was_removed_is_not_published() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 60_000);
    let mut writer = repository.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    write_disk(&mut *writer, "vda", &disk, None, &put_all(&disk)).unwrap();
    place.restic_ok(&["unlock", "--remove-all"]);
    let failure = writer.publish(&common::manifest(EVENING, &[("vda", 60_000)], None), &[]).unwrap_err();
    assert!(failure.to_string().contains("our lock on the repository was removed"), "{failure}");
    assert!(repository.backups(None).unwrap().0.is_empty() && place.files("locks").is_empty() && place.files("tmp").is_empty());
}

#[test]
fn two_prunes_exclude_each_other_and_a_dead_one_does_not() {
    let place = Place::new();
    let repository = place.init();
    let one = full(&repository, &noise(1, 60_000));
    delete(&repository, &[&one]);
    let lease = |is_alive: fn(u32) -> bool| {
        let mut options = place.options();
        options.environment.pid += 1;
        options.environment.is_alive = is_alive;
        Repository::open(&place.repository(), common::PASSWORD, options).unwrap()
    };
    struct Inside<'a>(&'a Repository, std::sync::Mutex<Option<FailureClass>>);
    impl Monitor for Inside<'_> {
        fn progress(&self, _: &str, _: u64, _: u64) {
            if let Err(failure) = self.0.prune(&request(), &Quiet::default()) {
                self.1.lock().unwrap().replace(failure.class());
            }
        }
        fn finished(&self, _: &str) {}
        fn finding(&self, _: &str) {}
        fn note(&self, _: &str) {}
        fn interrupted(&self) -> bool {
            false
        }
    }
    let second = lease(|_| true);
    let inside = Inside(&second, std::sync::Mutex::default());
    repository.prune(&request(), &inside).unwrap();
    assert_eq!(*inside.1.lock().unwrap(), Some(FailureClass::Locked));
    let one = full(&repository, &noise(2, 60_000));
    delete(&repository, &[&one]);
    let second = lease(|_| false);
    let inside = Inside(&second, std::sync::Mutex::default());
    let failure = repository.prune(&request(), &inside).map(drop);
    assert_eq!(*inside.1.lock().unwrap(), None, "the first one's process is dead");
    assert!(failure.is_err(), "and should it live, it sees that its lock is gone");
}

#[test]
fn while_another_program_is_there_nothing_goes() {
    let place = Place::new();
    let repository = place.init();
    let one = full(&repository, &noise(1, 600_000));
    delete(&repository, &[&one]);
    let mut restic = Command::new("restic");
    restic.args(["--no-cache", "-q", "-r"]).arg(place.repository()).args(["backup", "--stdin"]).env("RESTIC_PASSWORD", common::PASSWORD);
    let mut restic = restic.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    // A lock counts when it has its name; restic writes it under a longer one.
    while !place.files("locks").iter().any(|path| path.file_name().is_some_and(|name| name.len() == 64)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pruned = prune(&repository);
    assert!(pruned.removed_files == 0 && pruned.waiting[0].contains("another program"), "{pruned:?}");
    std::io::Write::write_all(&mut restic.stdin.take().unwrap(), b"something").unwrap();
    assert!(restic.wait().unwrap().success());
    assert!(prune(&repository).removed_files > 0);
    place.check_with_restic();
}

#[test]
fn an_interrupted_prune_leaves_everything_whole() {
    let place = Place::new();
    let repository = place.init();
    let [(one, _), (two, second)] = halves(&repository);
    delete(&repository, &[&one]);
    let monitor = Quiet { interrupted: true.into(), ..Quiet::default() };
    assert_eq!(repository.prune(&request(), &monitor).unwrap_err().class(), FailureClass::Interrupted);
    assert!(place.files("locks").is_empty());
    assert_eq!(restore(&repository, &two, "vda", second.len()).unwrap(), second);
}

#[test]
fn failing_at_every_single_write_harms_nothing_and_the_next_prune_ends_it() {
    let template = Place::in_memory();
    let repository = template.init();
    let [(one, _), (two, second)] = halves(&repository);
    delete(&repository, &[&one]);
    drop(repository);
    for at in 0.. {
        let place = template.copy();
        let state = State::new(at, at % 2 == 1);
        let repository = open_failing(&place, &state);
        let outcome = repository.prune(&request(), &Quiet::default());
        let is_over = state.operations.load(Ordering::SeqCst) <= at;
        drop(repository);
        let repository = place.open();
        assert_eq!(restore(&repository, &two, "vda", second.len()).unwrap(), second, "write {at}");
        if at % 5 == 0 {
            place.check_with_restic();
        }
        if is_over {
            outcome.unwrap();
            assert!(at > 25, "only {at} writes");
            break;
        }
        prune(&repository);
        assert!(place.files("keepmark").len() == PLACE, "write {at}");
        assert_eq!(restore(&repository, &two, "vda", second.len()).unwrap(), second, "write {at}");
        let left = data_bytes(&place);
        assert!(left < 1_100_000, "{left} bytes are left after write {at}");
        if at % 5 == 2 {
            place.check_with_restic();
        }
    }
}

#[test]
fn what_cannot_be_read_ends_it_before_anything_goes() {
    let template = Place::new();
    let repository = template.init();
    let [(one, _), (two, _)] = halves(&repository);
    delete(&repository, &[&one]);
    drop(repository);
    for folder in ["index", "snapshots", "data"] {
        for file in template.files(folder) {
            let place = template.copy();
            let file = place.repository().join(file.strip_prefix(template.repository()).unwrap());
            fs::write(&file, b"rubbish").unwrap();
            let before: Vec<_> = ["data", "index", "snapshots"].map(|folder| place.files(folder)).concat();
            fs::remove_dir_all(place.cache()).unwrap();
            let repository = place.open();
            let outcome = repository.prune(&request(), &Quiet::default());
            let after = ["data", "index", "snapshots"].map(|folder| place.files(folder)).concat();
            // A pack that only the deleted backup needed may go, damaged or not.
            assert!(outcome.is_ok() || before == after, "{}", file.display());
            if let Err(failure) = outcome {
                assert!(failure.to_string().contains("damaged"), "{failure}");
            }
        }
    }
    let repository = template.open();
    assert!(restore(&repository, &two, "vda", 1_024_000).is_ok());
}

#[test]
fn a_damaged_mark_stops_backups_and_is_removed_by_the_next_prune() {
    let place = Place::new();
    let repository = place.init();
    let disk = noise(1, 600_000);
    let one = full(&repository, &disk);
    delete(&repository, &[&one]);
    let writing = place.open();
    let writer = writing.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    prune(&repository);
    drop(writer);
    let mark = place.files("keepmark/marks").remove(0);
    fs::write(&mark, b"rubbish").unwrap();
    let failure = writing.begin(&vm().id(), EVENING.parse().unwrap()).map(drop).unwrap_err();
    assert!(failure.to_string().contains("mark") && failure.hint().is_some_and(|hint| hint.contains("keepmark prune")), "{failure}");
    assert!(place.files("locks").is_empty());
    let monitor = Quiet::default();
    repository.prune(&request(), &monitor).unwrap();
    assert_eq!(monitor.findings.lock().unwrap().len(), 1);
    assert!(data_bytes(&place) == 0 && place.files("keepmark").len() == PLACE);
    let id = backup(&writing, MORNING, &disk, None, &put_all(&disk)).unwrap();
    assert_eq!(restore(&writing, &id, "vda", disk.len()).unwrap(), disk);
    place.check_with_restic();
}

#[test]
fn many_small_packs_become_few() {
    let place = Place::new();
    let repository = place.init();
    let mut disk = noise(1, 409_600);
    let mut base = full(&repository, &disk);
    for day in 0..20 {
        let now = noise(day + 10, 4096);
        disk[4096..8192].copy_from_slice(&now);
        let told = Told { put: extents(&[(4096, 8192)]), zero: extents(&[]) };
        base = backup(&repository, &format!("2026-11-{:02}T08:00:00Z", day + 1), &disk, Some(&base), &told).unwrap();
    }
    let before = place.files("data").len();
    let pruned = prune(&repository);
    assert!(before > 40 && place.files("data").len() <= 3 && place.files("index").len() <= 2, "{before} {pruned:?}");
    assert_eq!(restore(&place.open(), &base, "vda", disk.len()).unwrap(), disk);
    place.check_with_restic();
    assert_eq!(prune(&repository).repacked_bytes, 0, "they are not copied again");
}

/// A backup whose chunks lie in two packs, one of them damaged: host A found the damage, and its next backup stored all of it again.
struct TwoHosts {
    a: Place,
    /// Another host: the same repository, a cache of its own.
    b: Place,
    disk: Vec<u8>,
    ids: Vec<BackupId>,
}

impl TwoHosts {
    fn new() -> Self {
        let (a, b) = (Place::new(), Place::new());
        std::os::unix::fs::symlink(a.repository(), b.repository()).unwrap();
        let disk = noise(1, 600_000);
        let first = full(&a.init(), &disk);
        let mut packs = a.files("data");
        packs.sort_by_key(|path| fs::metadata(path).unwrap().len());
        flip_middle(packs.last().unwrap());
        assert_eq!(a.open().verify(&[], true, &|_, _| {}).unwrap().good, []);
        let again = backup(&a.open(), EVENING, &disk, None, &put_all(&disk)).unwrap();
        Self { a, b, disk, ids: vec![first, again] }
    }

    fn check(&self, of: &str) {
        for (host, place) in [("a", &self.a), ("b", &self.b)] {
            let repository = place.open();
            for id in &self.ids {
                assert_eq!(restore(&repository, id, "vda", self.disk.len()).unwrap(), self.disk, "{of}, on host {host}");
            }
        }
    }
}

fn flip_middle(path: &std::path::Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Also if it is a host that knows of the damage from the store only, or knows nothing.
#[test]
fn the_good_copy_of_a_damaged_pack_stays_whoever_prunes() {
    // Which of two packs that are used alike would stay follows from their names, which are others each time.
    for noted in [true, false, false] {
        let mut hosts = TwoHosts::new();
        hosts.check("before");
        assert_eq!(hosts.a.files("keepmark/damaged").len(), 1, "the damage stands in the store");
        if !noted {
            fs::remove_dir_all(hosts.a.repository().join("keepmark/damaged")).unwrap();
        }
        for round in 0..3 {
            let quiet = Quiet::default();
            hosts.b.open().prune(&PruneRequest { unused_max_percent: 0.0, ..request() }, &quiet).unwrap();
            hosts.check(&format!("noted {noted}, after prune {round}"));
        }
        // What only the first backup needs lies in the damaged pack alone: it goes with it, and so does the note.
        let first = hosts.ids.remove(0);
        delete(&hosts.b.open(), &[&first]);
        for _ in 0..3 {
            prune(&hosts.b.open());
        }
        hosts.check("without the first");
        assert!(hosts.b.files("keepmark").len() == PLACE);
        hosts.a.check_with_restic();
    }
}

/// Neither does a mark that somebody made without a look: nothing that it names goes before the copy that stays was read.
#[test]
fn what_is_marked_stays_if_the_other_copy_cannot_be_read() {
    let mut hosts = TwoHosts::new();
    let first = hosts.ids.remove(0);
    delete(&hosts.a.open(), &[&first]);
    let mut packs = hosts.a.files("data");
    packs.sort_by_key(|path| fs::metadata(path).unwrap().len());
    let reader = hosts.a.open();
    let waiting = reader.begin(&vm().id(), EVENING.parse().unwrap()).unwrap();
    prune(&hosts.a.open());
    assert_eq!(hosts.a.files("keepmark/marks").len(), 1);
    hosts.check("marked");
    // The copy that was sound when the mark was made is damaged since.
    let sound = packs.iter().rev().take(2).find(|pack| {
        let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
        keepmark_store::repository::id::Id::of(&fs::read(pack).unwrap()).hex() == name
    });
    let (sound, bytes) = (sound.unwrap(), fs::read(sound.unwrap()).unwrap());
    flip_middle(sound);
    drop(waiting);
    let before = hosts.a.files("data");
    let quiet = Quiet::default();
    hosts.b.open().prune(&request(), &quiet).unwrap();
    assert_eq!(hosts.a.files("data"), before, "nothing went");
    assert!(quiet.findings.lock().unwrap()[0].contains("damaged"), "{:?}", quiet.findings);
    fs::write(sound, bytes).unwrap();
    hosts.check("mended");
}

/// A note goes when a verification finds the pack whole again.
#[test]
fn damage_that_was_mended_is_forgotten() {
    let place = Place::new();
    let disk = noise(1, 600_000);
    full(&place.init(), &disk);
    let mut packs = place.files("data");
    packs.sort_by_key(|path| fs::metadata(path).unwrap().len());
    let bytes = fs::read(packs.last().unwrap()).unwrap();
    flip_middle(packs.last().unwrap());
    place.open().verify(&[], true, &|_, _| {}).unwrap();
    assert_eq!(place.files("keepmark/damaged").len(), 1);
    place.open().verify(&[], true, &|_, _| {}).unwrap();
    assert_eq!(place.files("keepmark/damaged").len(), 1, "it is noted once");
    place.restic_ok(&["snapshots"]);
    fs::write(packs.last().unwrap(), bytes).unwrap();
    place.open().verify(&[], false, &|_, _| {}).unwrap();
    assert_eq!(place.files("keepmark/damaged").len(), 1, "nobody looked");
    place.open().verify(&[], true, &|_, _| {}).unwrap();
    assert_eq!(place.files("keepmark/damaged").len(), 0);
}
