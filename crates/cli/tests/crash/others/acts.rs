//! What others do to a running QEMU, at any instant, and what its devices must use afterwards.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_testkit::Qemu;
use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use serde_json::{Value, json};

use super::backup::{DRIVE_DISK, MIB, NODE_DISK};

const PATIENCE: Duration = Duration::from_secs(30);

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Lets the VM run and writes, whoever has paused it.
    ContAndWrite,
    /// Pauses the VM for good.
    Stop,
    /// Resets the VM.
    Reset,
    /// Grows a disk.
    Resize,
    /// Takes a snapshot of a device.
    SnapshotOfDevice,
    /// Takes a snapshot of a node.
    SnapshotOfNode,
    /// Begins a mirror, and ends it after the backup.
    Mirror,
    /// Mirrors, and lets the device go over at once.
    MirrorAndPivot,
    /// Takes a snapshot and commits it again at once.
    SnapshotAndCommit,
    /// Unplugs a disk and plugs another one in under its name.
    Replug,
    /// Removes our bitmaps.
    RemoveOurs,
    /// Merges a bitmap of its own into ours, and starts one of its own.
    MergeIntoOurs,
    /// Begins a backup job of its own.
    ForeignJob,
}

/// All there are.
pub const ACTS: [Act; 13] = [
    Act::ContAndWrite,
    Act::Stop,
    Act::Reset,
    Act::Resize,
    Act::SnapshotOfDevice,
    Act::SnapshotOfNode,
    Act::Mirror,
    Act::MirrorAndPivot,
    Act::SnapshotAndCommit,
    Act::Replug,
    Act::RemoveOurs,
    Act::MergeIntoOurs,
    Act::ForeignJob,
];

/// What is to be seen after an act that QEMU has not refused.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The node that the disk's device must use, by the disk's name.
    pub nodes: Vec<(&'static str, String)>,
    /// Jobs that go on until the test ends them.
    pub jobs: Vec<String>,
    /// A bitmap of somebody else's.
    pub bitmap: Option<(String, String)>,
    /// Images whose backing image must still be found by its format.
    pub overlays: Vec<PathBuf>,
    /// The run state, where the act decides it.
    pub status: Option<&'static str>,
}

impl Act {
    /// Does it. QEMU may refuse parts of it while keepmark works: what it has refused is not wanted.
    pub fn perform(self, qemu: &mut Qemu, dir: &Path) -> Wanted {
        match self {
            Self::ContAndWrite => cont_and_write(qemu),
            Self::Stop => {
                qemu.stop();
                Wanted { status: Some("paused"), ..Wanted::default() }
            }
            Self::Reset => {
                // The tests' QEMU would end instead.
                qemu.qmp("set-action", json!({ "reboot": "reset" }));
                qemu.qmp("system_reset", json!({}));
                Wanted::default()
            }
            Self::Resize => resize(qemu),
            Self::SnapshotOfDevice => snapshot(qemu, dir, DRIVE_DISK, json!({ "device": format!("drive-{DRIVE_DISK}") })),
            Self::SnapshotOfNode => snapshot(qemu, dir, NODE_DISK, json!({ "node-name": format!("node-{NODE_DISK}") })),
            Self::Mirror => mirror(qemu, dir).map_or_else(Wanted::default, |job| Wanted { jobs: vec![job], ..Wanted::default() }),
            Self::MirrorAndPivot => mirror(qemu, dir).map_or_else(Wanted::default, |job| pivot(qemu, &job)),
            Self::SnapshotAndCommit => commit(qemu, dir),
            Self::Replug => replug(qemu, dir),
            Self::RemoveOurs => remove_ours(qemu),
            Self::MergeIntoOurs => merge_into_ours(qemu),
            Self::ForeignJob => foreign_job(qemu, dir),
        }
    }
}

fn attempt(qemu: &mut Qemu, command: &str, arguments: Value) -> bool {
    qemu.control.try_execute(command, arguments).is_ok()
}

fn cont_and_write(qemu: &mut Qemu) -> Wanted {
    // A VM that waits for nobody may be running already.
    attempt(qemu, "cont", json!({}));
    for disk in [DRIVE_DISK, NODE_DISK] {
        qemu.write(disk, 0xc7, 5 * MIB, 128 << 10);
    }
    Wanted { status: Some("running"), ..Wanted::default() }
}

fn resize(qemu: &mut Qemu) -> Wanted {
    attempt(qemu, "block_resize", json!({ "node-name": format!("node-{NODE_DISK}"), "size": 12 * MIB }));
    Wanted::default()
}

fn snapshot(qemu: &mut Qemu, dir: &Path, disk: &'static str, of: Value) -> Wanted {
    let (file, node) = (dir.join(format!("snapshot-{disk}.qcow2")), format!("snapshot-{disk}"));
    let mut arguments = json!({ "snapshot-file": file, "snapshot-node-name": node, "format": "qcow2" });
    for (key, value) in of.as_object().into_iter().flatten() {
        arguments[key] = value.clone();
    }
    if attempt(qemu, "blockdev-snapshot-sync", arguments) {
        Wanted { nodes: vec![(disk, node)], overlays: vec![file], ..Wanted::default() }
    } else {
        Wanted::default()
    }
}

fn add_image(qemu: &mut Qemu, file: &Path, node: &str) {
    let storage = json!({ "driver": "file", "filename": file });
    qemu.qmp("blockdev-add", json!({ "driver": "qcow2", "node-name": node, "file": storage }));
}

fn mirror(qemu: &mut Qemu, dir: &Path) -> Option<String> {
    let file = dir.join("mirror.qcow2");
    let size = size_of(qemu, &format!("node-{NODE_DISK}"));
    image::create(&file, Format::Qcow2, size);
    add_image(qemu, &file, "mirror");
    let source = qemu.node_of(NODE_DISK);
    let job = json!({ "job-id": "mirror", "device": source, "target": "mirror", "sync": "full" });
    attempt(qemu, "blockdev-mirror", job).then(|| "mirror".to_owned())
}

/// Lets the mirror's device go over to its target.
pub fn pivot(qemu: &mut Qemu, job: &str) -> Wanted {
    let state = |qemu: &mut Qemu| job_status(qemu, job);
    wait_for("the mirror", PATIENCE, || ["ready", "null"].contains(&state(qemu).as_str()).then_some(()));
    if !attempt(qemu, "job-complete", json!({ "id": job })) {
        return Wanted::default();
    }
    wait_for("the mirror's end", PATIENCE, || (job_status(qemu, job) == "null").then_some(()));
    Wanted { nodes: vec![(NODE_DISK, "mirror".to_owned())], ..Wanted::default() }
}

/// `null` if it is gone.
fn job_status(qemu: &mut Qemu, job: &str) -> String {
    let jobs = qemu.qmp("query-jobs", json!({}));
    let found = jobs.as_array().into_iter().flatten().find(|one| one["id"] == job);
    found.and_then(|one| one["status"].as_str()).unwrap_or("null").to_owned()
}

fn commit(qemu: &mut Qemu, dir: &Path) -> Wanted {
    let taken = snapshot(qemu, dir, NODE_DISK, json!({ "node-name": format!("node-{NODE_DISK}") }));
    if taken.nodes.is_empty() {
        return taken;
    }
    qemu.write(NODE_DISK, 0xc8, 6 * MIB, 128 << 10);
    let arguments = json!({ "job-id": "commit", "device": format!("snapshot-{NODE_DISK}") });
    if !attempt(qemu, "block-commit", arguments) {
        return taken;
    }
    wait_for("the commit", PATIENCE, || ["ready", "null"].contains(&job_status(qemu, "commit").as_str()).then_some(()));
    if !attempt(qemu, "job-complete", json!({ "id": "commit" })) {
        return Wanted { jobs: vec!["commit".to_owned()], ..Wanted::default() };
    }
    wait_for("the commit's end", PATIENCE, || (job_status(qemu, "commit") == "null").then_some(()));
    Wanted { nodes: vec![(NODE_DISK, format!("node-{NODE_DISK}"))], ..Wanted::default() }
}

fn replug(qemu: &mut Qemu, dir: &Path) -> Wanted {
    let file = dir.join("another.qcow2");
    image::create(&file, Format::Qcow2, 8 * MIB);
    image::fill(&file, Format::Qcow2, 0x99, 0, MIB);
    add_image(qemu, &file, "another");
    if !attempt(qemu, "device_del", json!({ "id": NODE_DISK })) {
        return Wanted::default();
    }
    wait_for("the device to be gone", PATIENCE, || (!devices(qemu).contains(&NODE_DISK.to_owned())).then_some(()));
    let device = json!({ "driver": "scsi-hd", "bus": "scsi0.0", "id": NODE_DISK, "drive": "another" });
    qemu.qmp("device_add", device);
    Wanted { nodes: vec![(NODE_DISK, "another".to_owned())], ..Wanted::default() }
}

fn devices(qemu: &mut Qemu) -> Vec<String> {
    let blocks = qemu.qmp("query-block", json!({}));
    blocks.as_array().into_iter().flatten().filter_map(|block| block["qdev"].as_str().map(str::to_owned)).collect()
}

fn ours(qemu: &mut Qemu) -> Vec<(String, String)> {
    qemu.bitmaps().into_iter().filter(|(_, name)| name.starts_with("km1-")).collect()
}

fn remove_ours(qemu: &mut Qemu) -> Wanted {
    for (node, name) in ours(qemu) {
        attempt(qemu, "block-dirty-bitmap-remove", json!({ "node": node, "name": name }));
    }
    Wanted::default()
}

fn merge_into_ours(qemu: &mut Qemu) -> Wanted {
    let node = format!("node-{NODE_DISK}");
    qemu.qmp("block-dirty-bitmap-add", json!({ "node": node, "name": "theirs" }));
    qemu.write(NODE_DISK, 0xc9, 3 * MIB, 64 << 10);
    for (of, name) in ours(qemu) {
        if of == node {
            attempt(qemu, "block-dirty-bitmap-merge", json!({ "node": node, "target": name, "bitmaps": ["theirs"] }));
        }
    }
    Wanted { bitmap: Some((node, "theirs".to_owned())), ..Wanted::default() }
}

fn foreign_job(qemu: &mut Qemu, dir: &Path) -> Wanted {
    let file = dir.join("theirs.qcow2");
    let source = qemu.node_of(DRIVE_DISK);
    image::create(&file, Format::Qcow2, 24 * MIB);
    add_image(qemu, &file, "theirs-target");
    let job = json!({ "job-id": "theirs", "device": source, "target": "theirs-target", "sync": "full", "speed": MIB });
    let begun = attempt(qemu, "blockdev-backup", job);
    Wanted { jobs: if begun { vec!["theirs".to_owned()] } else { Vec::new() }, ..Wanted::default() }
}

fn size_of(qemu: &mut Qemu, node: &str) -> u64 {
    let nodes = qemu.qmp("query-named-block-nodes", json!({ "flat": true }));
    let found = nodes.as_array().into_iter().flatten().find(|one| one["node-name"] == node);
    found.and_then(|one| one["image"]["virtual-size"].as_u64()).unwrap()
}
