//! Where traps are set: a folder with a store and VMs, and the judgement of a backup.

use std::path::{Path, PathBuf};
use std::process::Command;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::run;
use keepmark_testkit::{Disk, Keepmark, PauseWitness, Qemu, QemuBuilder, Witness, fresh, tmp};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
pub const UUID: &str = "6e1a8d4c-0000-4000-8000-00000000abcd";
pub const SIZE: u64 = 16 * MIB;

/// A folder of a test with a store. Nothing outside of it is written.
pub struct Stage {
    dir: TempDir,
    /// The program with the store `store`.
    pub keepmark: Keepmark,
}

/// A running VM whose backups are witnessed.
pub struct Vm {
    /// The VM.
    pub qemu: Qemu,
    through: PauseWitness,
}

/// What a backup is expected to be.
#[derive(Clone, Copy)]
pub struct Expect<'a> {
    /// Kind in the plan.
    pub planned: &'a str,
    /// Kind in the end.
    pub done: &'a str,
    /// Words of the reason in the end.
    pub words: &'a [&'a str],
    /// Exit code of the backup.
    pub code: i32,
}

/// Planned and done as this kind, for a reason with these words.
pub fn is<'a>(kind: &'a str, words: &'a [&'a str]) -> Expect<'a> {
    Expect { planned: kind, done: kind, words, code: 0 }
}

/// Planned as an incremental, turned into a resync by the audit, and reported as a finding.
pub fn caught<'a>(words: &'a [&'a str]) -> Expect<'a> {
    Expect { planned: "incremental", done: "resync", words, code: 3 }
}

impl Stage {
    pub fn new() -> Self {
        let dir = tmp();
        let keepmark = Keepmark::new(dir.path());
        keepmark.ok(&["init"]);
        Self { dir, keepmark }
    }

    /// The same with an image store.
    pub fn of_images() -> Self {
        let dir = tmp();
        let store = format!("images:{}", dir.path().join("store").display());
        let keepmark = Keepmark::new(dir.path()).store(Path::new(&store));
        keepmark.ok(&["init"]);
        Self { dir, keepmark }
    }

    /// The program with another store, which is made.
    pub fn other_store(&self, name: &str) -> Keepmark {
        let other = self.keepmark.clone().store(&self.path(name));
        other.ok(&["init"]);
        other
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path that nobody had yet.
    pub fn fresh(&self, kind: &str) -> PathBuf {
        fresh(self.dir.path(), kind)
    }

    /// A qcow2 image with 8 MiB of data from 1 MiB on.
    pub fn disk(&self, name: &str) -> Disk {
        self.disk_with(name, "compat=1.1")
    }

    /// The same with creation options.
    pub fn disk_with(&self, name: &str, options: &str) -> Disk {
        let file = self.path(&format!("{name}.qcow2"));
        image::create_with(&file, Format::Qcow2, SIZE, options);
        image::fill_random(&file, Format::Qcow2, name.len() as u64, MIB, 8 << 20);
        Disk::qcow2(name, &file)
    }

    /// A VM with the test's UUID and these disks, not started.
    pub fn vm(&self, disks: &[Disk]) -> QemuBuilder {
        let builder = self.bare_vm("vm").uuid(UUID);
        disks.iter().cloned().fold(builder, QemuBuilder::disk)
    }

    /// A VM without UUID whose sockets lie in this folder.
    pub fn bare_vm(&self, folder: &str) -> QemuBuilder {
        std::fs::create_dir_all(self.path(folder)).unwrap();
        QemuBuilder::new(&self.path(folder)).memory_mib(32)
    }

    /// Starts a VM and puts a witness beside it.
    pub fn start(&self, builder: QemuBuilder) -> Vm {
        let qemu = builder.start();
        let through = PauseWitness::attach(&qemu, &self.fresh("witness"));
        Vm { qemu, through }
    }

    /// A running VM with one disk `vda`, backed up once.
    pub fn backed_up(&self) -> Vm {
        let mut vm = self.start(self.vm(&[self.disk("vda")]));
        self.live(&mut vm, is("full", &["first backup"]));
        vm
    }

    /// A powered-off disk `vda`, backed up once.
    pub fn backed_up_off(&self) -> Disk {
        let disk = self.disk("vda");
        self.off(std::slice::from_ref(&disk), is("full", &["first backup"]));
        disk
    }

    /// Plans and backs up a running VM and judges both.
    #[track_caller]
    pub fn live(&self, vm: &mut Vm, expect: Expect<'_>) -> Value {
        self.live_in(&self.keepmark, vm, &[], expect)
    }

    /// The same with another store or more arguments of `backup`.
    #[track_caller]
    pub fn live_in(&self, keepmark: &Keepmark, vm: &mut Vm, arguments: &[&str], expect: Expect<'_>) -> Value {
        let foreign = foreign(&vm.qemu.bitmaps());
        let address = vm.through.vm();
        let finished = run_both(keepmark, &address, arguments, expect);
        let witness = vm.through.take();
        witness.assert_restored(&self.restore(keepmark, &finished), Format::Raw);
        assert_eq!(self::foreign(&vm.qemu.bitmaps()), foreign, "bitmaps of others");
        assert_clean(&mut vm.qemu);
        finished
    }

    /// Plans and backs up powered-off images and judges both.
    #[track_caller]
    pub fn off(&self, disks: &[Disk], expect: Expect<'_>) -> Value {
        self.off_with(disks, &["--name", "test-vm", "--uuid", UUID], &[], expect)
    }

    /// The same with images that lie on others, of which the user says that it is so.
    #[track_caller]
    pub fn off_trusting(&self, disks: &[Disk], expect: Expect<'_>) -> Value {
        self.off_with(disks, &["--name", "test-vm", "--uuid", UUID, "--trust-chain"], &[], expect)
    }

    /// The same with another identity or more arguments of `backup`.
    #[track_caller]
    pub fn off_with(&self, disks: &[Disk], identity: &[&str], arguments: &[&str], expect: Expect<'_>) -> Value {
        let stored = || -> Vec<(String, String)> {
            let named = |disk: &Disk| image::bitmaps(&disk.file).into_iter().map(|name| (disk.name.clone(), name)).collect::<Vec<_>>();
            disks.iter().filter(|disk| disk.format == Format::Qcow2).flat_map(named).collect()
        };
        let before = foreign(&stored());
        let address = address(disks);
        let mut all = identity.to_vec();
        let plan = self.keepmark.ok(&[&["plan", &address, "--json"], identity].concat()).event("plan");
        assert_eq!(plan["kind"], expect.planned, "{plan}");
        all.extend(arguments);
        let finished = backup(&self.keepmark, &address, &all, expect);
        let witness = Witness::of_images(disks, &self.fresh("witness"));
        witness.assert_restored(&self.restore(&self.keepmark, &finished), Format::Raw);
        assert_eq!(foreign(&stored()), before, "bitmaps of others");
        finished
    }

    fn restore(&self, keepmark: &Keepmark, finished: &Value) -> PathBuf {
        let to = self.fresh("out");
        keepmark.ok(&["restore", finished["backup"].as_str().unwrap(), "--to", to.to_str().unwrap()]);
        to
    }
}

/// The disks as keepmark's `image:` address.
pub fn address(disks: &[Disk]) -> String {
    let parts: Vec<String> = disks.iter().map(|disk| format!("{}={}", disk.name, disk.file.display())).collect();
    format!("image:{}", parts.join(","))
}

#[track_caller]
fn run_both(keepmark: &Keepmark, address: &str, arguments: &[&str], expect: Expect<'_>) -> Value {
    let plan = keepmark.ok(&["plan", address, "--json"]).event("plan");
    assert_eq!(plan["kind"], expect.planned, "{plan}");
    if expect.planned == expect.done {
        assert_words(&plan["reason"], expect.words);
    }
    backup(keepmark, address, arguments, expect)
}

#[track_caller]
fn backup(keepmark: &Keepmark, address: &str, arguments: &[&str], expect: Expect<'_>) -> Value {
    let finished = keepmark.exits(&[&["backup", address, "--json"], arguments].concat(), expect.code).event("finished");
    assert_eq!(finished["kind"], expect.done, "{finished}");
    assert_words(&finished["reason"], expect.words);
    finished
}

#[track_caller]
fn assert_words(reason: &Value, words: &[&str]) {
    let reason = reason.as_str().unwrap();
    for word in words {
        assert!(reason.contains(word), "{word:?} is not said: {reason}");
    }
}

fn foreign(bitmaps: &[(String, String)]) -> Vec<(String, String)> {
    bitmaps.iter().filter(|(_, name)| !name.starts_with("km1")).cloned().collect()
}

/// Names of keepmark's bitmaps in a running VM, each once, sorted.
#[track_caller]
pub fn checkpoints(qemu: &mut Qemu) -> Vec<String> {
    let mut names: Vec<String> = qemu.bitmaps().into_iter().map(|(_, name)| name).filter(|name| name.starts_with("km1")).collect();
    names.sort();
    names.dedup();
    names
}

/// Fails the test if keepmark left anything in QEMU except checkpoints.
#[track_caller]
pub fn assert_clean(qemu: &mut Qemu) {
    assert!(!checkpoints(qemu).iter().any(|name| name.starts_with("km1tmp")), "{:?}", checkpoints(qemu));
    for query in ["query-named-block-nodes", "query-block-exports", "query-jobs"] {
        let answer = qemu.qmp(query, json!({})).to_string();
        assert!(!answer.contains("km1tmp"), "{answer}");
    }
    assert_eq!(qemu.status(), "running");
}

/// The checkpoint of a finished backup.
#[track_caller]
pub fn checkpoint(finished: &Value) -> &str {
    finished["checkpoint"].as_str().unwrap()
}

/// What a finished backup says of a disk.
#[track_caller]
pub fn of_disk<'a>(finished: &'a Value, name: &str) -> &'a Value {
    finished["disks"].as_array().unwrap().iter().find(|disk| disk["name"] == name).unwrap()
}

/// Runs `qemu-img`.
#[track_caller]
pub fn qemu_img(arguments: &[&str], file: &Path) -> String {
    run(Command::new("qemu-img").args(arguments).arg(file))
}

/// Does something to a bitmap of a running VM's disk.
#[track_caller]
pub fn bitmap(qemu: &mut Qemu, action: &str, node: &str, name: &str) {
    qemu.qmp(&format!("block-dirty-bitmap-{action}"), json!({"node": node, "name": name}));
}

/// Starts a job and waits until QEMU says that it is ready or over.
#[track_caller]
pub fn job(qemu: &mut Qemu, command: &str, mut arguments: Value) {
    arguments["job-id"] = "test-job".into();
    qemu.qmp(command, arguments);
    let state = keepmark_testkit::process::wait_for("a job", std::time::Duration::from_secs(60), || {
        let jobs = qemu.qmp("query-jobs", json!({}));
        let state = jobs.as_array().unwrap().iter().find(|job| job["id"] == "test-job").map(|job| job["status"].clone());
        (!matches!(state.as_ref().and_then(Value::as_str), Some("running" | "created"))).then_some(state)
    });
    if state == Some("ready".into()) {
        qemu.qmp("job-complete", json!({"id": "test-job"}));
        keepmark_testkit::process::wait_for("a job's end", std::time::Duration::from_secs(60), || {
            (qemu.qmp("query-jobs", json!({})) == json!([])).then_some(())
        });
    }
}
