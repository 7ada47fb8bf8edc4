//! A store, a VM of one powered-off image, a folder that nobody may touch, and what every try must leave as it is.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Keepmark, tmp};
use tempfile::TempDir;

use crate::mutation::Dice;

/// No command on something so small may take longer, whatever it is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything of one try.
pub struct Lab {
    dir: TempDir,
    pub keepmark: Keepmark,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tmp();
        let lab = Self { keepmark: Keepmark::new(dir.path()), dir };
        std::fs::create_dir(lab.path("outside")).unwrap();
        std::fs::write(lab.path("outside/canary"), "nobody's").unwrap();
        let disk = lab.disk();
        image::create(&disk, Format::Qcow2, 4 << 20);
        image::fill_random(&disk, Format::Qcow2, 7, 1 << 20, 1 << 20);
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn outside(&self) -> String {
        self.path("outside").display().to_string()
    }

    pub fn disk(&self) -> PathBuf {
        self.path("vda.qcow2")
    }

    pub fn vm(&self) -> String {
        format!("image:vda={}", self.disk().display())
    }

    /// The newest backup's id, if any is listed.
    pub fn newest(&self) -> Option<String> {
        let listed = self.keepmark.run(&["list", "--json"]);
        let last = listed.stdout.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()).next_back()?;
        Some(last["id"].as_str()?.to_owned())
    }

    /// Lets some commands loose. None may panic, hang, or touch what it was not told to.
    #[track_caller]
    pub fn let_loose(&self, dice: &mut Dice, told: &str) {
        let id = self.newest().unwrap_or_else(|| "web@latest".into());
        let (vm, to) = (self.vm(), self.path("restored").display().to_string());
        let commands: [&[&str]; 17] = [
            &["list"],
            &["show", &id],
            &["restore", &id, "--to", &to, "--force"],
            &["restore", &id, "--to", &to, "--force"],
            &["restore", "web@latest", "--to", &to, "--format", "qcow2"],
            &["verify"],
            &["verify", "--read-data"],
            &["plan", &vm, "--name", "web"],
            &["backup", &vm, "--name", "web"],
            &["revert", &vm, &id, "--name", "web", "--dry-run"],
            &["delete", &id],
            &["forget", "web", "--keep-last", "1"],
            &["consolidate", &id],
            &["pin", &id],
            &["prune"],
            &["status"],
            &["doctor"],
        ];
        let before = self.untouchable();
        for _ in 0..3 {
            let command = *dice.pick(&commands);
            self.run(command, told);
            let after = self.untouchable();
            assert_eq!(before, after, "{command:?} touched what it must not: {told}");
        }
    }

    /// Runs one command: an exit code that is written down, within its time.
    #[track_caller]
    pub fn run(&self, command: &[&str], told: &str) {
        // One that hangs fails the test.
        let run = self.keepmark.spawn(command).wait(PATIENCE);
        let is_known = run.code.is_some_and(|code| [0, 1, 2, 3, 10, 11, 12, 13].contains(&code));
        assert!(is_known && !run.stderr.contains("panicked"), "{command:?} ended with {:?}: {}{} {told}", run.code, run.stdout, run.stderr);
        let escapes = |text: &str| text.contains('\u{1b}');
        assert!(!escapes(&run.stdout) && !escapes(&run.stderr), "{command:?} let an escape sequence through: {told}");
    }

    /// All files of the lab that no command was told to write: name, mode, owner, size, content's time.
    fn untouchable(&self) -> BTreeMap<PathBuf, (u32, u32, u64, i64)> {
        let own = ["store", "restored", "run", "scratch", "cache", "home", "vda.qcow2", "vm.qmp"];
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(self.dir.path()).unwrap().flatten() {
            if !own.contains(&entry.file_name().to_string_lossy().as_ref()) {
                note(&entry.path(), &mut found);
            }
        }
        found
    }
}

fn note(path: &Path, found: &mut BTreeMap<PathBuf, (u32, u32, u64, i64)>) {
    let about = std::fs::symlink_metadata(path).unwrap();
    found.insert(path.to_owned(), (about.mode(), about.uid(), about.size(), about.mtime_nsec()));
    if about.is_dir() {
        std::fs::read_dir(path).unwrap().flatten().for_each(|entry| note(&entry.path(), found));
    }
}

/// The seeds of a kind's tries: all that were asked for, or a share that is another one each time.
pub fn seeds(share: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let first = number("KEEPMARK_ATTACK_SEED").unwrap_or(now * 1000);
    let seeds = first..first + number("KEEPMARK_ATTACK").unwrap_or(share);
    println!("KEEPMARK_ATTACK_SEED={first}, {} tries", seeds.end - seeds.start);
    seeds
}
