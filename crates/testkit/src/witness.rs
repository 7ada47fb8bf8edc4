//! An independent copy of a VM's disks at one moment, made by QEMU itself, to compare restored disks with byte for byte.
//!
//! The moment must be that of the backup under test. There are three ways to that:
//! - [`Witness::of_images`]: nobody has the images open; they are read.
//! - [`Witness::hold`]: the test stops the VM and QEMU copies the disks; then the backup is started, finds the VM stopped and
//!   leaves it so. [`Witness::release`] lets the VM run again, [`Witness::release_when_taken`] as soon as the backup has fixed
//!   its point. Exact, but the program under test never sees a running VM.
//! - [`PauseWitness`]: the program under test is connected through a proxy. It stops the running VM, fixes its point and says
//!   `cont`; the proxy holds that back until QEMU has copied the disks. Exact too, and everything happens as in real life except
//!   that the pause is longer. It needs a program that does pause.
//!
//! The copies are finished while the VM stands still, so no job of ours is left beside what the backup makes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::image::{self, Format};
use crate::process::wait_for;
use crate::proxy::name;
use crate::{Disk, OrFail, Qemu, Qmp, QmpProxy, Verdict, fail};

const COPY_TIMEOUT: Duration = Duration::from_secs(300);

/// Raw copies of all disks of a moment, in a folder of their own.
#[derive(Clone, Debug)]
pub struct Witness {
    dir: PathBuf,
    disks: Vec<String>,
    was_running: bool,
    bitmaps_before: Vec<(String, String)>,
}

impl Witness {
    /// Copies the images of a powered-off VM into `dir`, which is made.
    #[must_use]
    #[track_caller]
    pub fn of_images(disks: &[Disk], dir: &Path) -> Self {
        let witness = Self::empty(disks, dir);
        for disk in disks {
            image::convert(&disk.file, disk.format, &witness.image(&disk.name), Format::Raw);
        }
        witness
    }

    /// Copies the images of a running VM in which nobody writes, and whose QEMU has flushed all disks, into `dir`, which is made.
    #[must_use]
    #[track_caller]
    pub fn of_flushed_images(disks: &[Disk], dir: &Path) -> Self {
        Self::by(disks, dir, |disk, copy| image::convert_shared(&disk.file, disk.format, copy))
    }

    /// Takes the raw files of a folder into which a backup was restored for the truth.
    #[must_use]
    #[track_caller]
    pub fn of_restored(dir: &Path) -> Self {
        let files = std::fs::read_dir(dir).or_fail(format_args!("reading {}", dir.display())).flatten();
        let disks = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".raw")?.to_owned())).collect();
        Self { dir: dir.to_owned(), disks, was_running: false, bitmaps_before: Vec::new() }
    }

    /// Has `copy` make a raw copy of each disk in `dir`, which is made.
    #[track_caller]
    pub(crate) fn by(disks: &[Disk], dir: &Path, copy: impl Fn(&Disk, &Path)) -> Self {
        let witness = Self::empty(disks, dir);
        disks.iter().for_each(|disk| copy(disk, &witness.image(&disk.name)));
        witness
    }

    /// Stops the VM, if it runs, and copies its disks into `dir`, which is made. The VM stays stopped until it is released.
    #[must_use]
    #[track_caller]
    pub fn hold(qemu: &mut Qemu, dir: &Path) -> Self {
        let mut witness = Self::empty(qemu.disks(), dir);
        witness.was_running = qemu.status() == "running";
        if witness.was_running {
            qemu.stop();
        }
        witness.bitmaps_before = qemu.bitmaps();
        let sources = qemu.sources();
        copy(&mut qemu.control, &sources, &witness);
        witness
    }

    /// Lets the VM run again, if it ran before.
    #[track_caller]
    pub fn release(&self, qemu: &mut Qemu) {
        if self.was_running {
            qemu.cont();
        }
    }

    /// Waits until somebody has fixed a point (a new bitmap or an export is there), then lets the VM run again.
    #[track_caller]
    pub fn release_when_taken(&self, qemu: &mut Qemu, timeout: Duration) {
        wait_for("the backup's point in time", timeout, || {
            let exports = qemu.qmp("query-block-exports", json!({}));
            let exported = exports.as_array().is_some_and(|list| !list.is_empty());
            let new_bitmap = qemu.bitmaps().iter().any(|bitmap| !self.bitmaps_before.contains(bitmap));
            (exported || new_bitmap).then_some(())
        });
        self.release(qemu);
    }

    /// The raw copy of a disk.
    #[must_use]
    pub fn image(&self, disk: &str) -> PathBuf {
        self.dir.join(format!("{disk}.raw"))
    }

    /// Fails the test unless a restored image has this disk's size and bytes.
    #[track_caller]
    pub fn assert_same(&self, disk: &str, restored: &Path, format: Format) {
        image::assert_same(&self.image(disk), Format::Raw, restored, format);
    }

    /// Fails the test unless `DIR/<disk>.<format>` is the same for all disks, as `keepmark restore --to DIR` writes them.
    #[track_caller]
    pub fn assert_restored(&self, dir: &Path, format: Format) {
        for disk in &self.disks {
            self.assert_same(disk, &dir.join(format!("{disk}.{}", format.name())), format);
        }
    }

    fn empty(disks: &[Disk], dir: &Path) -> Self {
        std::fs::create_dir_all(dir).or_fail(format_args!("making {}", dir.display()));
        let disks = disks.iter().map(|disk| disk.name.clone()).collect();
        Self { dir: dir.to_owned(), disks, was_running: false, bitmaps_before: Vec::new() }
    }
}

/// A proxy in front of a VM's first monitor that copies the disks each time the pause of a backup is about to end.
#[derive(Debug)]
pub struct PauseWitness {
    proxy: QmpProxy,
    taken: Arc<Mutex<Option<Witness>>>,
}

impl PauseWitness {
    /// Connect the program under test to [`Self::vm`]. Copies go into numbered folders in `dir`, which is made.
    #[must_use]
    #[track_caller]
    pub fn attach(qemu: &Qemu, dir: &Path) -> Self {
        std::fs::create_dir_all(dir).or_fail(format_args!("making {}", dir.display()));
        let mut monitor = Qmp::try_connect(&qemu.witness_socket()).or_fail("the witness' monitor is taken already");
        let (taken, dir, disks) = (Arc::new(Mutex::new(None)), dir.to_owned(), qemu.disk_devices());
        let last = Arc::clone(&taken);
        let (socket, mut point_fixed, mut count) = (dir.join("qmp"), false, 0);
        let proxy = QmpProxy::start(&socket, &qemu.qmp_socket(), move |message| {
            match name(message) {
                "transaction" => point_fixed = true,
                "cont" if point_fixed => {
                    point_fixed = false;
                    count += 1;
                    let witness = copy_paused(&mut monitor, &disks, &dir.join(count.to_string()));
                    last.lock().or_fail("an earlier copy failed").replace(witness);
                }
                _ => {}
            }
            Verdict::Forward
        });
        Self { proxy, taken }
    }

    /// How the VM behind the proxy is named on keepmark's command line.
    #[must_use]
    pub fn vm(&self) -> String {
        self.proxy.vm()
    }

    /// The copy of the last pause, once. Fails the test if there was none since the last call.
    #[must_use]
    #[track_caller]
    pub fn take(&self) -> Witness {
        self.take_if_any().or_fail("nobody fixed a point in a pause: no `transaction` followed by `cont` came through the proxy")
    }

    /// The same where it is not known whether the backup came that far.
    #[must_use]
    #[track_caller]
    pub fn take_if_any(&self) -> Option<Witness> {
        self.taken.lock().or_fail("copying failed").take()
    }
}

fn copy_paused(monitor: &mut Qmp, disks: &[(Disk, Option<String>)], dir: &Path) -> Witness {
    let state = monitor.execute("query-status", json!({}));
    if state["running"] != false {
        fail("the VM runs although `cont` has not come yet: its point is not exact");
    }
    let names: Vec<Disk> = disks.iter().map(|(disk, _)| disk.clone()).collect();
    let witness = Witness::empty(&names, dir);
    let sources = sources(monitor, disks);
    copy(monitor, &sources, &witness);
    witness
}

/// Each disk's name with the node at the top of its device.
pub(crate) fn sources(monitor: &mut Qmp, disks: &[(Disk, Option<String>)]) -> Vec<(String, String)> {
    let blocks = monitor.execute("query-block", json!({}));
    disks.iter().map(|(disk, device)| (disk.name.clone(), top_node(&blocks, disk, device.as_deref()))).collect()
}

/// The node at the top of a disk's device, or the disk's own where it has none.
pub(crate) fn top_node(blocks: &Value, disk: &Disk, device: Option<&str>) -> String {
    let Some(device) = device else {
        return disk.node().or_fail("a disk has a device or a node");
    };
    let mut found = blocks.as_array().into_iter().flatten().filter(|block| block["qdev"] == device);
    let node = found.next().and_then(|block| block["inserted"]["node-name"].as_str());
    node.or_fail(format_args!("disk {} has no medium", disk.name)).to_owned()
}

/// Has QEMU copy all sources, from one moment, and waits for the end.
fn copy(monitor: &mut Qmp, sources: &[(String, String)], witness: &Witness) {
    let mut actions = Vec::new();
    for (disk, node) in sources {
        let target = format!("witness-{disk}");
        image::sparse(&witness.image(disk), size_of(monitor, node));
        let file = json!({"driver": "file", "filename": witness.image(disk), "discard": "unmap"});
        let add = json!({"driver": "raw", "node-name": target, "discard": "unmap", "detect-zeroes": "unmap", "file": file});
        monitor.execute("blockdev-add", add);
        let job = json!({"job-id": target, "device": node, "target": target, "sync": "full", "auto-dismiss": false});
        actions.push(json!({"type": "blockdev-backup", "data": job}));
    }
    monitor.execute("transaction", json!({"actions": actions}));
    for (disk, _) in sources {
        finish(monitor, &format!("witness-{disk}"));
    }
}

fn size_of(monitor: &mut Qmp, node: &str) -> u64 {
    let nodes = monitor.execute("query-named-block-nodes", json!({"flat": true}));
    let mut found = nodes.as_array().into_iter().flatten().filter(|one| one["node-name"] == node);
    let size = found.next().and_then(|one| one["image"]["virtual-size"].as_u64());
    size.or_fail(format_args!("QEMU does not know the size of node {node}"))
}

fn finish(monitor: &mut Qmp, job: &str) {
    let error = wait_for("the witness' copy", COPY_TIMEOUT, || {
        let jobs = monitor.execute("query-jobs", json!({}));
        let mut ours = jobs.as_array().into_iter().flatten().filter(|one| one["id"] == job);
        let state = ours.next().or_fail("the witness' job has vanished");
        (state["status"] == "concluded").then(|| state["error"].clone())
    });
    if !error.is_null() {
        fail(format_args!("the witness' copy failed: {error}"));
    }
    monitor.execute("job-dismiss", json!({"id": job}));
    monitor.execute("blockdev-del", json!({"node-name": job}));
}
