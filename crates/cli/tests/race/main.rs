//! Three writers, a pruner and a deleter work on one repository and are killed at random: whenever all stand still, every listed backup is
//! what its disk was and stock restic finds the repository clean.
//!
//! A minute in `make test`; `make race` (`KEEPMARK_RACE_SECONDS=600`) takes ten.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Disk, Keepmark, KeepmarkRun, Restic, Witness, tmp};
use rand::Rng as _;

const MIB: u64 = 1 << 20;
const WRITERS: usize = 3;
/// The deleter leaves so many backups at least.
const BACKUPS_MIN: usize = 6;
/// All stand still and everything is looked at so often.
const LOOK_EVERY: Duration = Duration::from_secs(15);

struct Race {
    keepmark: Keepmark,
    folder: PathBuf,
    end: Instant,
    /// Held while a process works; whoever has it for writing knows that nobody does.
    at_work: RwLock<()>,
    /// Every listed backup, its VM and its disk.
    truths: Mutex<BTreeMap<String, (String, Witness)>>,
    counts: [AtomicU64; COUNTS.len()],
}

const COUNTS: [&str; 8] =
    ["backups", "backups killed", "killed and published", "bases deleted meanwhile", "prunes", "prunes killed", "deletions", "looks"];

fn chance(percent: u32) -> bool {
    rand::rng().random_range(0..100) < percent
}

impl Race {
    fn new(seconds: u64, folder: &Path) -> Self {
        let keepmark = Keepmark::new(folder);
        keepmark.ok(&["init"]);
        let end = Instant::now() + Duration::from_secs(seconds);
        let folder = folder.to_owned();
        Self { keepmark, folder, end, at_work: RwLock::default(), truths: Mutex::default(), counts: Default::default() }
    }

    fn count(&self, what: &str) {
        let place = COUNTS.iter().position(|known| *known == what).unwrap();
        self.counts[place].fetch_add(1, Ordering::Relaxed);
    }

    fn goes_on(&self) -> bool {
        Instant::now() < self.end
    }

    /// Runs the program; `killed_within` milliseconds, if it has to die. No exit code: it died.
    fn run(&self, arguments: &[&str], killed_within: Option<u64>) -> KeepmarkRun {
        let mut command = self.keepmark.command(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(most) = killed_within {
            std::thread::sleep(Duration::from_millis(rand::rng().random_range(0..most)));
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        KeepmarkRun { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    fn listed(&self, vm: &str) -> BTreeSet<String> {
        let run = self.run(&["list", vm, "--json"], None);
        // A usage failure: there is none of that name yet.
        assert!(matches!(run.code, Some(0 | 2)), "{run:?}");
        run.json().iter().filter_map(|backup| backup["id"].as_str()).map(str::to_owned).collect()
    }

    /// Changes a disk and backs it up, again and again. All VMs write the same few contents: what was deleted comes again.
    fn write(&self, number: usize) {
        let vm = format!("vm{number}");
        let disk = Disk::qcow2("vda", &self.folder.join(format!("{vm}.qcow2")));
        image::create(&disk.file, Format::Qcow2, 8 * MIB);
        let mut seen = BTreeSet::new();
        while self.goes_on() {
            let _at_work = self.at_work.read().unwrap();
            let (content, place) = (rand::rng().random_range(0..6), rand::rng().random_range(0..7));
            image::fill_random(&disk.file, disk.format, content, place * MIB, 768 << 10);
            let copies = tempfile::Builder::new().prefix("truth").tempdir_in(&self.folder).unwrap().keep();
            let truth = Witness::of_images(std::slice::from_ref(&disk), &copies);
            let killed = chance(50).then_some(1500);
            let run = self.run(&["backup", &format!("image:vda={}", disk.file.display()), "--name", &vm, "--json"], killed);
            wait_for("the image to be free", Duration::from_secs(20), || is_free(&disk.file).then_some(()));
            self.count(if run.code.is_none() { "backups killed" } else { "backups" });
            if run.code == Some(1) && run.stderr.contains("there is no backup") {
                self.count("bases deleted meanwhile");
            } else {
                assert!(matches!(run.code, None | Some(0 | 3)), "{run:?}");
            }
            let fresh: Vec<String> = self.listed(&vm).into_iter().filter(|id| seen.insert(id.clone())).collect();
            assert!(fresh.len() <= 1, "{fresh:?}");
            if let Some(id) = fresh.into_iter().next() {
                if run.code.is_none() {
                    self.count("killed and published");
                }
                self.truths.lock().unwrap().insert(id, (vm.clone(), truth));
            } else {
                assert!(run.code != Some(0), "{run:?}");
                std::fs::remove_dir_all(copies).unwrap();
            }
        }
    }

    fn prune(&self) {
        while self.goes_on() {
            let _at_work = self.at_work.read().unwrap();
            let run = self.run(&["prune", "--max-unused", "0%", "--delay", "1h"], chance(60).then_some(700));
            self.count(if run.code.is_none() { "prunes killed" } else { "prunes" });
            assert!(matches!(run.code, None | Some(0)), "{run:?}");
        }
    }

    fn delete(&self) {
        while self.goes_on() {
            std::thread::sleep(Duration::from_millis(300));
            let _at_work = self.at_work.read().unwrap();
            let ids: Vec<String> = self.truths.lock().unwrap().keys().cloned().collect();
            if ids.len() > BACKUPS_MIN {
                let id = &ids[rand::rng().random_range(0..ids.len())];
                self.truths.lock().unwrap().remove(id);
                let run = self.run(&["delete", id, "--yes-the-last"], None);
                assert_eq!(run.code, Some(0), "{run:?}");
                self.count("deletions");
            }
        }
    }

    /// Looks at everything, now and then, while nobody works; the dead have left what they left.
    fn look(&self) {
        while self.goes_on() {
            std::thread::sleep(LOOK_EVERY.min(self.end.saturating_duration_since(Instant::now())));
            let _nobody = self.at_work.write().unwrap();
            self.compare();
        }
    }

    fn compare(&self) {
        Restic::new(&self.folder.join("store"), "password").run(&["check", "--read-data", "--no-lock"]);
        for (id, (vm, truth)) in self.truths.lock().unwrap().iter() {
            let to = self.folder.join("restored");
            let run = self.run(&["restore", id, "--to", to.to_str().unwrap()], None);
            assert_eq!(run.code, Some(0), "{vm}: {run:?}");
            truth.assert_restored(&to, Format::Raw);
            std::fs::remove_dir_all(to).unwrap();
        }
        self.count("looks");
    }
}

fn is_free(image: &Path) -> bool {
    Command::new("qemu-img").args(["info", "-f", "qcow2"]).arg(image).output().is_ok_and(|output| output.status.success())
}

#[test]
fn writers_a_pruner_and_a_deleter_killed_at_random_lose_nothing() {
    let seconds = std::env::var("KEEPMARK_RACE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let folder = tmp();
    let race = Race::new(seconds, folder.path());
    std::thread::scope(|scope| {
        for number in 0..WRITERS {
            let race = &race;
            scope.spawn(move || race.write(number));
        }
        scope.spawn(|| race.prune());
        scope.spawn(|| race.delete());
        scope.spawn(|| race.look());
    });
    race.compare();
    // With nobody else there, one prune ends all that was begun.
    let last = race.run(&["prune", "--max-unused", "0%", "--json"], None);
    assert_eq!(last.code, Some(0), "{last:?}");
    let done = last.event("finished");
    assert!(done["marked_bytes"] == 0 && done["waiting"].as_array().unwrap().is_empty(), "{done}");
    race.compare();
    race.keepmark.ok(&["verify", "--read-data"]);
    let listed: usize = (0..WRITERS).map(|number| race.listed(&format!("vm{number}")).len()).sum();
    assert_eq!(listed, race.truths.lock().unwrap().len());
    for folder in ["locks", "tmp", "keepmark/marks"] {
        let left = std::fs::read_dir(race.folder.join("store").join(folder)).into_iter().flatten().count();
        assert_eq!(left, 0, "left over in {folder}");
    }
    let counts: Vec<String> =
        COUNTS.iter().zip(&race.counts).map(|(what, count)| format!("{} {what}", count.load(Ordering::Relaxed))).collect();
    println!("{seconds} s: {}; {listed} backups are listed in the end", counts.join(", "));
}
