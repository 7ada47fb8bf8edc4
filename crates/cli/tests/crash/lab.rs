//! What a campaign works on: a folder with a store, the program, and the truth about every backup.

use std::path::{Path, PathBuf};

use keepmark_testkit::image::Format;
use keepmark_testkit::{Keepmark, KeepmarkRun, Restic, Witness, damage, fail, tmp};
use serde_json::Value;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// A folder of a campaign. Nothing outside of it is written.
pub struct Lab {
    dir: TempDir,
    /// The program with this lab's store, password and folders.
    pub keepmark: Keepmark,
    /// Every backup that was ever listed, oldest first, with the bytes of its moment.
    truths: Vec<(String, Witness)>,
}

impl Lab {
    /// The store has to be made yet.
    pub fn new() -> Self {
        let dir = tmp();
        Self { keepmark: Keepmark::new(dir.path()), dir, truths: Vec::new() }
    }

    /// Makes a store of images.
    pub fn init_images(&self) {
        self.ok(&["init", &format!("images:{}", self.path("store").display())]);
    }

    /// Makes a repository, unless there is a store already.
    pub fn init_if_bare(&self) {
        let has_store = std::fs::read_dir(self.path("store")).is_ok_and(|mut entries| entries.next().is_some());
        if !has_store {
            self.ok(&["init"]);
        }
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// What the last traced run printed to stdout and stderr.
    pub fn printed(&self) -> String {
        ["stdout", "stderr"].map(|name| std::fs::read_to_string(self.path(name)).unwrap_or_default()).concat()
    }

    /// Notes a backup that is finished, and its truth.
    pub fn published(&mut self, finished: &Value, truth: Witness) {
        self.truths.push((finished["backup"].as_str().unwrap().to_owned(), truth));
    }

    /// Notes a listed backup with the bytes that it has, which it must keep from now on; gives them.
    pub fn adopt(&mut self, id: &str) -> Witness {
        let folder = tempfile::Builder::new().prefix("adopted").tempdir_in(self.root()).unwrap().keep();
        self.ok(&["restore", id, "--to", folder.to_str().unwrap()]);
        let truth = Witness::of_restored(&folder);
        self.truths.push((id.to_owned(), truth.clone()));
        truth
    }

    /// Looks at the list after somebody died: nothing may be missing, and what is new was published by the dead run, whose
    /// moment's bytes are given. Says whether there was one.
    #[track_caller]
    pub fn look(&mut self, of_the_dead: Option<Witness>) -> bool {
        let listed: Vec<String> =
            self.ok(&["list", "--json"]).json().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect();
        let lost: Vec<_> = self.truths.iter().map(|(id, _)| id).filter(|id| !listed.contains(id)).collect();
        assert!(lost.is_empty(), "no longer listed: {lost:?}");
        let fresh: Vec<_> = listed.into_iter().filter(|id| self.truths.iter().all(|(known, _)| known != id)).collect();
        match (fresh.as_slice(), of_the_dead) {
            ([], _) => false,
            ([id], Some(truth)) => {
                self.truths.push((id.clone(), truth));
                true
            }
            (fresh, truth) => fail(format_args!("{fresh:?} were published, with the truth {truth:?}")),
        }
    }

    /// Restores the newest backups and compares them byte for byte.
    #[track_caller]
    pub fn compare_newest(&self, count: usize) {
        for (id, truth) in self.truths.iter().rev().take(count) {
            let to = self.path("restored");
            self.ok(&["restore", id, "--to", to.to_str().unwrap()]);
            truth.assert_restored(&to, Format::Raw);
            std::fs::remove_dir_all(to).unwrap();
        }
    }

    /// Compares every backup that was ever listed, and has the store checked by us and by restic.
    #[track_caller]
    pub fn compare_all(&self) {
        self.compare_newest(usize::MAX);
        self.ok(&["verify", "--read-data"]);
        if !self.has_images() {
            Restic::new(&self.path("store"), "password").check();
        }
    }

    fn has_images(&self) -> bool {
        self.path("store/keepmark-images.json").exists()
    }

    /// Names of the bitmaps that so many disks must have in the end, sorted.
    #[track_caller]
    pub fn needed_bitmaps(&self, disks: usize) -> Vec<String> {
        self.keepmark.needed_checkpoints(None).into_iter().flat_map(|name| vec![name; disks]).collect()
    }

    /// Runs the program, which must succeed.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> KeepmarkRun {
        self.keepmark.ok(arguments)
    }

    /// Fails the test if a run that has ended left a file where files live only as long as a run.
    #[track_caller]
    pub fn assert_no_leftovers(&self) {
        for folder in ["run", "scratch", "store/tmp", "store/locks"] {
            // A folder that nobody has needed yet is as good as an empty one.
            let left: Vec<PathBuf> =
                std::fs::read_dir(self.path(folder)).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "left over: {left:?}");
        }
        if self.has_images() {
            let files = damage::files(&self.path("store"));
            let left: Vec<PathBuf> = files.into_iter().filter(|path| path.to_string_lossy().contains("km1tmp")).collect();
            assert!(left.is_empty(), "unpublished: {left:?}");
        }
    }
}

/// How a backup was made, for the table.
pub fn kind(finished: &Value) -> String {
    let reason = finished["reason"].as_str().unwrap_or_default();
    let kind = finished["kind"].as_str().unwrap_or("?");
    if std::env::var_os("KEEPMARK_CRASH_REASONS").is_some() { format!("{kind} ({reason})") } else { kind.to_owned() }
}
