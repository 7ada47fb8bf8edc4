//! A folder of a test with a store, a home of its own for the program, and images.

use std::path::{Path, PathBuf};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, Keepmark, KeepmarkRun, PauseWitness, Qemu, QemuBuilder, Restic, tmp};
use serde_json::Value;
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
pub const UUID: &str = "6e1a8d4c-0000-4000-8000-00000000abcd";

/// A folder of a test. Nothing outside of it is written.
pub struct Lab {
    dir: TempDir,
    /// The program with this lab's store, password and folders.
    pub keepmark: Keepmark,
}

impl Lab {
    /// With a new, empty store.
    pub fn new() -> Self {
        let lab = Self::without_store();
        lab.keepmark.ok(&["init"]);
        lab
    }

    /// The store's folder does not exist yet.
    pub fn without_store() -> Self {
        let dir = tmp();
        Self { keepmark: Keepmark::new(dir.path()), dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    pub fn restic(&self) -> Restic {
        Restic::new(&self.store(), "password")
    }

    /// Makes an empty qcow2 image.
    pub fn qcow2(&self, name: &str, size: u64) -> PathBuf {
        self.image(name, Format::Qcow2, size)
    }

    pub fn image(&self, name: &str, format: Format, size: u64) -> PathBuf {
        let path = self.path(&format!("{name}.{}", format.name()));
        image::create(&path, format, size);
        path
    }

    /// A VM with a UUID whose sockets lie in folder `vm`.
    pub fn vm(&self) -> QemuBuilder {
        self.other_vm("vm").uuid(UUID)
    }

    /// A VM whose sockets lie in this folder.
    pub fn other_vm(&self, folder: &str) -> QemuBuilder {
        std::fs::create_dir_all(self.path(folder)).unwrap();
        QemuBuilder::new(&self.path(folder))
    }

    /// A running VM with `vda` (virtio, 64 MiB) and `sdb` (SCSI, 32 MiB), both qcow2 and with some data.
    pub fn two_disks(&self) -> Qemu {
        let mut qemu = self
            .vm()
            .disk(Disk::qcow2("vda", &self.qcow2("vda", 64 * MIB)))
            .disk(Disk::qcow2("sdb", &self.qcow2("sdb", 32 * MIB)).attach(Attach::Scsi))
            .start();
        qemu.write("vda", 1, MIB, 9 * MIB);
        qemu.write("sdb", 2, 0, 3 * MIB);
        qemu
    }

    /// A running VM with `vda` only.
    pub fn one_disk(&self) -> Qemu {
        let mut qemu = self.vm().disk(Disk::qcow2("vda", &self.qcow2("vda", 64 * MIB))).start();
        qemu.write("vda", 1, MIB, 9 * MIB);
        qemu
    }

    /// What `keepmark list --json` tells.
    #[track_caller]
    pub fn list(&self) -> Vec<Value> {
        self.keepmark.ok(&["list", "--json"]).json()
    }

    /// Restores into a new folder of this name.
    #[track_caller]
    pub fn restore(&self, backup: &str, name: &str) -> PathBuf {
        let to = self.path(name);
        self.keepmark.ok(&["restore", backup, "--to", text(&to)]);
        to
    }

    /// Backs up through a witness that copies the disks at the backup's moment.
    #[track_caller]
    pub fn witness(&self, qemu: &Qemu) -> PauseWitness {
        PauseWitness::attach(qemu, &self.path("witness"))
    }

    /// The store's files of a kind, largest first.
    pub fn files(&self, kind: &str) -> Vec<PathBuf> {
        let mut files = keepmark_testkit::damage::files(&self.store().join(kind));
        files.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).unwrap().len()));
        files
    }
}

/// `image:vda=FILE`.
pub fn image_vm(label: &str, file: &Path) -> String {
    format!("image:{label}={}", file.display())
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The id of a backup that has just finished.
#[track_caller]
pub fn id(finished: &Value) -> &str {
    finished["backup"].as_str().unwrap()
}

#[track_caller]
pub fn disk<'a>(finished: &'a Value, name: &str) -> &'a Value {
    finished["disks"].as_array().unwrap().iter().find(|disk| disk["name"] == name).unwrap_or_else(|| panic!("no disk {name} in {finished}"))
}

/// Fails the test unless what went to stderr has all these words.
#[track_caller]
pub fn assert_says(run: &KeepmarkRun, words: &[&str]) {
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is not said:\n{}", run.stderr);
    }
}

/// Checkpoints of keepmark and whatever it leaves for a while: names of bitmaps that begin with `km1`, sorted.
#[track_caller]
pub fn our_bitmaps(qemu: &mut Qemu) -> Vec<String> {
    let mut names: Vec<String> = qemu.bitmaps().into_iter().map(|(_, name)| name).filter(|name| name.starts_with("km1")).collect();
    names.sort();
    names
}

/// Fails the test if keepmark left anything in QEMU except checkpoints.
#[track_caller]
pub fn assert_clean(qemu: &mut Qemu) {
    let leftovers: Vec<String> = our_bitmaps(qemu).into_iter().filter(|name| name.starts_with("km1tmp")).collect();
    assert!(leftovers.is_empty(), "{leftovers:?}");
    let nodes = qemu.qmp("query-named-block-nodes", serde_json::json!({"flat": true})).to_string();
    assert!(!nodes.contains("km1tmp"), "{nodes}");
    assert_eq!(qemu.qmp("query-block-exports", serde_json::json!({})), serde_json::json!([]));
    assert_eq!(qemu.qmp("query-jobs", serde_json::json!({})), serde_json::json!([]));
}
