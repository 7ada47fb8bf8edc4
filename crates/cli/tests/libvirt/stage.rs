//! A libvirt host with a store, and the judgement of a backup.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Disk, Domain, Keepmark, KeepmarkRun, LibvirtHost, Restic, RunningKeepmark, Witness, fresh, tmp};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
pub const SIZE: u64 = 16 * MIB;
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// A folder of a test with a libvirt host and a store. Nothing outside of it is written.
pub struct Stage {
    /// The host; it ends before its folder goes.
    pub host: LibvirtHost,
    /// The program with the store `store`, which finds the host by itself.
    pub keepmark: Keepmark,
    dir: TempDir,
}

/// A keepmark that stands still while libvirt serves it a frozen moment.
pub struct Midway {
    running: RunningKeepmark,
}

impl Stage {
    pub fn new() -> Self {
        Self::on(LibvirtHost::start)
    }

    /// With a store of images, into which QEMU can write.
    pub fn with_images() -> Self {
        Self::on_with(LibvirtHost::start, init_images)
    }

    /// On a host that this starts, whose folder stands beside all others.
    pub fn on(host: impl FnOnce(&Path) -> LibvirtHost) -> Self {
        Self::on_with(host, |keepmark, _| drop(keepmark.ok(&["init"])))
    }

    /// The same with a store that `init` makes at this path.
    pub fn on_with(host: impl FnOnce(&Path) -> LibvirtHost, init: impl FnOnce(&Keepmark, &Path)) -> Self {
        let dir = tmp();
        // QEMU may be of a user that has to get through.
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let host = host(&dir.path().join("host"));
        let keepmark = Keepmark::new(dir.path()).env("LIBVIRT_DEFAULT_URI", &host.uri());
        init(&keepmark, &dir.path().join("store"));
        Self { host, keepmark, dir }
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
        let file = self.path(&format!("{name}.qcow2"));
        image::create(&file, Format::Qcow2, SIZE);
        image::fill_random(&file, Format::Qcow2, name.len() as u64, MIB, 8 << 20);
        Disk::qcow2(name, &file)
    }

    /// A qcow2 image of 4 MiB with 1 MiB of data, for the disk `disk` of one of many domains.
    pub fn small_disk(&self, domain: &str, disk: &str) -> Disk {
        let file = self.path(&format!("{domain}-{disk}.qcow2"));
        image::create(&file, Format::Qcow2, 4 * MIB);
        image::fill_random(&file, Format::Qcow2, domain.bytes().map(u64::from).sum(), MIB, 1 << 20);
        Disk::qcow2(disk, &file)
    }

    /// The running domain `vm` with the disks `vda` and `sda`.
    pub fn domain(&self) -> Domain<'_> {
        self.host.domain("vm").monitor().disk(self.disk("vda")).disk(self.disk("sda")).start()
    }

    /// The same, backed up once.
    pub fn backed_up(&self) -> Domain<'_> {
        let domain = self.domain();
        self.judge(&domain, "full", &["first backup"]);
        domain
    }

    /// Plans and backs up a domain in which nobody writes, and judges both: the kind, words of the reason, and what is restored.
    #[track_caller]
    pub fn judge(&self, domain: &Domain<'_>, kind: &str, words: &[&str]) -> Value {
        let finished = self.judge_held(domain, kind, words);
        self.assert_clean(domain);
        finished
    }

    /// The same where a dead job of libvirt's may hold the domain.
    #[track_caller]
    pub fn judge_held(&self, domain: &Domain<'_>, kind: &str, words: &[&str]) -> Value {
        let (others, state) = (Marks::of_others(domain), domain.state());
        let plan = self.keepmark.ok(&["plan", domain.name(), "--json"]).event("plan");
        assert_eq!(plan["kind"], kind, "{plan}");
        let finished = self.backup(domain, &[]);
        assert_eq!(finished["kind"], kind, "{finished}");
        let reason = finished["reason"].as_str().unwrap();
        assert!(words.iter().all(|word| reason.contains(word)), "{words:?} are not said: {reason}");
        self.compare(&finished, &self.witness(domain));
        assert_eq!((Marks::of_others(domain), domain.state()), (others, state));
        self.assert_nothing_left(domain);
        finished
    }

    /// Backs up where libvirt is to forget our checkpoints, and judges the kind, what is restored and what libvirt knows.
    #[track_caller]
    pub fn judge_hidden(&self, domain: &Domain<'_>, kind: &str) {
        let others = Marks::of_others(domain);
        let plan = self.keepmark.ok(&["plan", domain.name(), "--json"]).event("plan");
        let finished = self.backup(domain, &[]);
        assert_eq!((&plan["kind"], &finished["kind"]), (&kind.into(), &kind.into()), "{finished}");
        self.compare(&finished, &self.witness(domain));
        let ours = Marks::of_ours(domain);
        let needed: BTreeSet<String> = self.keepmark.needed_checkpoints(None).into_iter().collect();
        assert!(needed.contains(checkpoint(&finished)));
        assert_eq!((ours.in_libvirt, ours.in_qemu), (BTreeSet::new(), needed));
        assert_eq!(Marks::of_others(domain), others);
    }

    /// Backs up and gives the object `finished`.
    #[track_caller]
    pub fn backup(&self, domain: &Domain<'_>, arguments: &[&str]) -> Value {
        self.keepmark.backup(domain.name(), arguments)
    }

    /// The disks as they are now.
    #[track_caller]
    pub fn witness(&self, domain: &Domain<'_>) -> Witness {
        domain.witness(&self.fresh("witness"))
    }

    /// Restores a backup, as it finished or is listed, and compares it byte for byte.
    #[track_caller]
    pub fn compare(&self, backup: &Value, witness: &Witness) {
        let to = self.fresh("out");
        let id = backup["backup"].as_str().or_else(|| backup["id"].as_str()).unwrap();
        self.keepmark.ok(&["restore", id, "--to", to.to_str().unwrap()]);
        witness.assert_restored(&to, Format::Raw);
        std::fs::remove_dir_all(to).unwrap();
    }

    /// Fails the test if keepmark left anything but checkpoints on which libvirt and QEMU agree, or a job runs.
    #[track_caller]
    pub fn assert_clean(&self, domain: &Domain<'_>) {
        self.assert_nothing_left(domain);
        let job = if domain.state() == "shut off" { "None".to_owned() } else { domain.virsh("domjobinfo", &[]) };
        assert!(job.contains("None"), "{job}");
    }

    /// The same, whatever job runs.
    #[track_caller]
    pub fn assert_nothing_left(&self, domain: &Domain<'_>) {
        let ours = Marks::of_ours(domain);
        assert_eq!(ours.in_libvirt, ours.in_qemu);
        assert!(!ours.in_qemu.iter().any(|name| name.starts_with("km1tmp")), "{ours:?}");
        // That of the last backup, and for each of the two disks that of the last one which read all of it: a differential builds on it.
        assert!(ours.in_libvirt.len() <= 3, "a checkpoint that nothing builds on was kept: {ours:?}");
        if domain.state() != "shut off" {
            assert_eq!(domain.qmp("query-jobs", json!({})), json!([]));
            assert_eq!(domain.qmp("query-block-exports", json!({})), json!([]));
            let nodes = domain.qmp("query-named-block-nodes", json!({"flat": true})).to_string();
            assert!(!nodes.contains(self.path("scratch").to_str().unwrap()) && !nodes.contains("km1tmp"), "{nodes}");
            let server = domain.try_virsh("qemu-monitor-command", &[r#"{"execute": "nbd-server-stop"}"#]);
            assert!(server.is_ok_and(|answer| answer.contains("not running")), "an NBD server was left");
        }
        for folder in ["run", "scratch", "store/tmp", "store/locks"] {
            let left: Vec<PathBuf> =
                std::fs::read_dir(self.path(folder)).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "left over: {left:?}");
        }
    }

    /// Starts a backup and stops it when libvirt is about to serve a frozen moment.
    #[track_caller]
    pub fn midway(&self, domain: &Domain<'_>) -> Midway {
        let midway = self.midway_held(domain);
        wait_for("libvirt's backup job", TIMEOUT, || domain.backup_socket());
        midway
    }

    /// The same where QEMU is about to serve it without a backup job of libvirt's.
    #[track_caller]
    pub fn midway_held(&self, domain: &Domain<'_>) -> Midway {
        let mut running = self.keepmark.spawn(&["backup", domain.name(), "--json"]);
        // libvirtd answers first when everything is there; until then keepmark waits for it.
        wait_for("the socket of a frozen moment", TIMEOUT, || {
            assert!(running.process.ended().is_none(), "it has ended: {}", running.stderr());
            self.has_socket().then_some(())
        });
        running.process.signal(Signal::STOP);
        Midway { running }
    }

    /// Starts a full backup and stops it while it reads: something of the frozen moment is on its way into the store, and not all.
    #[track_caller]
    pub fn reading(&self, domain: &Domain<'_>) -> Midway {
        let midway = self.reading_held(domain);
        assert!(domain.backup_socket().is_some(), "all of it was read already");
        midway
    }

    /// The same where no backup job of libvirt's serves it.
    #[track_caller]
    pub fn reading_held(&self, domain: &Domain<'_>) -> Midway {
        let running = self.keepmark.spawn(&["backup", domain.name(), "--json", "--kind", "full"]);
        soon("data of a frozen moment in the store", || self.has_socket() && files(&self.path("store/tmp")).any(|bytes| bytes > 0));
        running.process.signal(Signal::STOP);
        Midway { running }
    }

    /// Whether libvirt has made a scratch image.
    pub fn has_scratch_image(&self) -> bool {
        let runs = std::fs::read_dir(self.path("scratch")).into_iter().flatten().flatten();
        runs.flat_map(|run| std::fs::read_dir(run.path()).into_iter().flatten().flatten())
            .any(|entry| entry.path().extension().is_some_and(|extension| extension == "qcow2"))
    }

    fn has_socket(&self) -> bool {
        ["run", "scratch"].iter().any(|name| holds_socket(&self.path(name)))
    }

    /// Ends the dead job that holds the domain `vm`, as `keepmark doctor` says for a VM that must go on.
    #[track_caller]
    pub fn end_dead_job(&self) {
        self.host.kill_libvirtd();
        let file = self.host.dir().join("run/qemu/vm.xml");
        let status = std::fs::read_to_string(&file).unwrap();
        let is_of_job = |line: &&str| line.contains("async='backup'");
        assert!(status.lines().any(|line| is_of_job(&line)), "there is no such line:\n{status}");
        let cured: String = status.lines().filter(|line| !is_of_job(line)).map(|line| format!("{line}\n")).collect();
        std::fs::write(file, cured).unwrap();
        self.host.restart_libvirtd();
    }

    pub fn restic(&self) -> Restic {
        Restic::new(&self.path("store"), "password")
    }
}

impl Midway {
    /// Lets it go on.
    pub fn wake(&self) {
        self.running.process.signal(Signal::CONT);
    }

    /// Lets it go on and waits for its end.
    #[track_caller]
    pub fn go_on(self) -> KeepmarkRun {
        self.wake();
        self.running.wait(TIMEOUT)
    }

    /// Kills it.
    pub fn kill9(mut self) {
        self.running.process.kill9();
    }
}

/// Makes a store of images.
pub fn init_images(keepmark: &Keepmark, store: &Path) {
    keepmark.ok(&["init", &format!("images:{}", store.display())]);
}

/// Names of checkpoints and bitmaps.
#[derive(Debug, PartialEq, Eq)]
pub struct Marks {
    /// Those that libvirt lists.
    pub in_libvirt: BTreeSet<String>,
    /// Those that are in QEMU, or in the images of a domain that is off.
    pub in_qemu: BTreeSet<String>,
}

impl Marks {
    pub fn of_ours(domain: &Domain<'_>) -> Self {
        Self::which(domain, |name| name.starts_with("km1"))
    }

    pub fn of_others(domain: &Domain<'_>) -> Self {
        Self::which(domain, |name| !name.starts_with("km1"))
    }

    fn which(domain: &Domain<'_>, wanted: impl Fn(&str) -> bool) -> Self {
        let bitmaps = if domain.state() == "shut off" {
            domain.disks().iter().flat_map(|disk| image::bitmaps(&domain.source(&disk.name))).collect()
        } else {
            domain.bitmaps().into_iter().map(|(_, name)| name).collect::<Vec<_>>()
        };
        let set = |names: Vec<String>| names.into_iter().filter(|name| wanted(name)).collect();
        Self { in_libvirt: set(domain.checkpoints()), in_qemu: set(bitmaps) }
    }
}

fn holds_socket(folder: &Path) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => holds_socket(&entry.path()),
        Ok(kind) => kind.is_socket(),
        Err(_) => false,
    })
}

/// Sizes of the files in a folder.
fn files(folder: &Path) -> impl Iterator<Item = u64> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|entry| Some(entry.metadata().ok()?.len()))
}

/// Waits for what lasts for milliseconds only.
#[track_caller]
pub fn soon(what: &str, mut is_there: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !is_there() {
        assert!(Instant::now() < end, "{what}: not within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// What a finished backup says of a disk.
#[track_caller]
pub fn of_disk<'a>(finished: &'a Value, name: &str) -> &'a Value {
    finished["disks"].as_array().unwrap().iter().find(|disk| disk["name"] == name).unwrap()
}

/// The checkpoint of a finished backup.
#[track_caller]
pub fn checkpoint(finished: &Value) -> &str {
    finished["checkpoint"].as_str().unwrap()
}
