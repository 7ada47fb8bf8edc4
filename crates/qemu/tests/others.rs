//! Others who work on the VM while a moment is there: plug, mirror, snapshot and resume. No guest dies, stands still or gets another disk.

#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

mod common;

use std::path::Path;

use common::*;
use keepmark_model::seam::{Hypervisor, PointDisk};
use keepmark_model::writing::WriteRequest;
use keepmark_model::{BackupId, DiskName, Extent, Failure, FailureClass};
use keepmark_qemu::{Live, LiveOptions};
use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, Qemu, QemuBuilder, QmpProxy, Verdict};
use serde_json::{Value, json};

const VDA: &str = "/machine/peripheral/vda";

fn one_disk(place: &Place) -> Qemu {
    QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 8 * MIB))).start()
}

/// What another program does by a monitor of its own.
struct Other(keepmark_testkit::Qmp);

impl Other {
    fn of(place: &Place) -> Self {
        Self(keepmark_testkit::Qmp::try_connect(&place.path("witness")).unwrap())
    }

    fn write(&mut self, pattern: u8, offset: u64) {
        let line = format!("qemu-io -d {VDA}/virtio-backend \"write -P {pattern} {offset} 64k\"");
        self.0.execute("human-monitor-command", json!({ "command-line": line }));
    }

    fn mirror(&mut self, image: &Path) {
        image::create(image, Format::Qcow2, 8 * MIB);
        let target = json!({ "driver": "qcow2", "node-name": "moved", "file": { "driver": "file", "filename": image } });
        self.0.execute("blockdev-add", target);
        self.0.execute("blockdev-mirror", json!({ "job-id": "theirs", "device": "node-vda", "target": "moved", "sync": "full" }));
        self.0.wait_event("BLOCK_JOB_READY", std::time::Duration::from_secs(30)).unwrap();
    }
}

/// A keepmark whose commands pass by somebody who may act before QEMU gets them.
fn watched(place: &Place, qemu: &Qemu, hook: impl FnMut(&Value) -> Verdict + Send + 'static) -> (QmpProxy, Live) {
    let proxy = QmpProxy::start(&place.path("proxy"), &qemu.qmp_socket(), hook);
    let live = Live::connect(LiveOptions::new(place.path("proxy"), place.path("scratch"), place.path("run"))).unwrap();
    (proxy, live)
}

fn refusal(live: &mut Live, disks: &[(&str, Option<u32>)]) -> Failure {
    live.begin(&request(disks, Some(1))).map(drop).unwrap_err()
}

/// The guest reads by its device what it wrote, and nothing of keepmark's is left.
fn assert_unharmed(qemu: &mut Qemu, live: &mut Live, node: &str) {
    assert_eq!((qemu.status().as_str(), qemu.node_of("vda").as_str()), ("running", node));
    qemu.write("vda", 7, 0, MIB);
    qemu.expect_pattern("vda", 7, 0, MIB);
    assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
    assert!(qemu.bitmaps().iter().all(|(_, name)| !name.starts_with("km1tmp")), "{:?}", qemu.bitmaps());
}

// QEMU aborts when a device is given the node that it has.
#[test]
fn two_devices_on_one_image_are_refused_and_qemu_lives() {
    let place = Place::new();
    let file = place.image("vda", Format::Qcow2, 8 * MIB);
    let node = json!({ "driver": "qcow2", "node-name": "node-vda", "file": { "driver": "file", "filename": file } }).to_string();
    let device = |id: &str| format!("virtio-blk-pci,id={id},drive=node-vda,share-rw=on");
    let mut qemu =
        QemuBuilder::new(place.dir.path()).args(&["-blockdev", &node, "-device", &device("vda"), "-device", &device("vdb")]).start();
    let mut live = place.live(&qemu);
    for disks in [&[("vda", None), ("vdb", None)][..], &[("vda", None)]] {
        let failure = refusal(&mut live, disks);
        assert!(failure.to_string().contains("are one image"), "{failure}");
    }
    assert_eq!(qemu.status(), "running");
    assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
}

#[test]
fn a_filter_that_never_got_in_is_not_taken_out() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    let mut was_refused = false;
    let (_proxy, mut live) = watched(&place, &qemu, move |command| {
        if was_refused || command["execute"] != "qom-set" {
            return Verdict::Forward;
        }
        was_refused = true;
        Verdict::Answer(json!({ "error": { "class": "GenericError", "desc": "no" } }))
    });
    assert!(refusal(&mut live, &[("vda", None)]).to_string().contains("refused qom-set"));
    assert_unharmed(&mut qemu, &mut live, "node-vda");
}

#[test]
fn a_filter_that_another_s_clean_up_has_removed_is_not_removed_again() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    let mut live = place.live(&qemu);
    let point = live.begin(&request(&[("vda", None)], Some(1))).unwrap();
    for export in qemu.qmp("query-block-exports", json!({})).as_array().unwrap().clone() {
        qemu.qmp("block-export-del", json!({ "id": export["id"] }));
        qemu.control.wait_event("BLOCK_EXPORT_DELETED", std::time::Duration::from_secs(30)).unwrap();
    }
    qemu.qmp("blockdev-del", json!({ "node-name": "km1tmp-testrun1-a0" }));
    qemu.qmp("qom-set", json!({ "path": VDA, "property": "drive", "value": "node-vda" }));
    point.release().unwrap();
    assert_unharmed(&mut qemu, &mut live, "node-vda");
}

#[test]
fn a_device_that_was_plugged_again_keeps_its_new_disk() {
    let place = Place::new();
    let sc = Disk::qcow2("sc", &place.image("sc", Format::Qcow2, 8 * MIB)).attach(Attach::Scsi);
    let vda = Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 8 * MIB));
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(vda).disk(sc).start();
    let other = place.image("other", Format::Qcow2, 8 * MIB);
    let mut live = place.live(&qemu);
    let point = live.begin(&request(&[("sc", None), ("vda", None)], Some(1))).unwrap();
    qemu.qmp("device_del", json!({ "id": "sc" }));
    qemu.control.wait_event("DEVICE_DELETED", std::time::Duration::from_secs(30)).unwrap();
    qemu.qmp("blockdev-add", json!({ "driver": "qcow2", "node-name": "new", "file": { "driver": "file", "filename": other } }));
    qemu.qmp("device_add", json!({ "driver": "scsi-hd", "bus": "scsi0.0", "id": "sc", "drive": "new" }));
    point.release().unwrap();
    assert_eq!(qemu.node_of("sc"), "new");
    assert_unharmed(&mut qemu, &mut live, "node-vda");
}

#[test]
fn a_device_that_was_unplugged_stays_so() {
    let place = Place::new();
    let sc = Disk::qcow2("sc", &place.image("sc", Format::Qcow2, 8 * MIB)).attach(Attach::Scsi);
    let vda = Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 8 * MIB));
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(vda).disk(sc).start();
    let mut live = place.live(&qemu);
    let point = live.begin(&request(&[("sc", None), ("vda", None)], Some(1))).unwrap();
    qemu.qmp("device_del", json!({ "id": "sc" }));
    qemu.control.wait_event("DEVICE_DELETED", std::time::Duration::from_secs(30)).unwrap();
    point.release().unwrap();
    // The disk is nobody's again.
    qemu.qmp("device_add", json!({ "driver": "scsi-hd", "bus": "scsi0.0", "id": "sc", "drive": "node-sc" }));
    assert_unharmed(&mut qemu, &mut live, "node-vda");
}

/// The mirror's filter has no name of its own and hides from `query-block`.
#[test]
fn a_disk_with_a_mirror_is_refused_and_the_mirror_loses_nothing() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    let mut other = Other::of(&place);
    other.mirror(&place.path("moved.qcow2"));
    let mut live = place.live(&qemu);
    let failure = refusal(&mut live, &[("vda", None)]);
    assert_eq!((failure.class(), failure.to_string().as_str()), (FailureClass::Locked, "mirror job \"theirs\" works on disk vda"));
    assert!(failure.hint().unwrap().contains("block-job-complete"));
    pivot(&mut qemu, &mut other);
    assert_unharmed(&mut qemu, &mut live, "moved");
    take_checkpoint(&mut live, &["vda"], 2);
    assert_unharmed(&mut qemu, &mut live, "moved");
}

#[test]
fn a_mirror_that_begins_just_before_the_moment_keeps_its_device() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    let (mut other, image) = (Some(Other::of(&place)), place.path("moved.qcow2"));
    let (sender, receiver) = std::sync::mpsc::channel();
    let (_proxy, mut live) = watched(&place, &qemu, move |command| {
        if command["arguments"]["driver"] == "copy-before-write"
            && let Some(mut other) = other.take()
        {
            other.mirror(&image);
            sender.send(other).unwrap();
        }
        Verdict::Forward
    });
    let failure = refusal(&mut live, &[("vda", None)]);
    assert!(failure.to_string().contains("not as it was"), "{failure}");
    pivot(&mut qemu, &mut receiver.recv().unwrap());
    assert_unharmed(&mut qemu, &mut live, "moved");
}

fn pivot(qemu: &mut Qemu, other: &mut Other) {
    qemu.write("vda", 9, MIB, MIB);
    other.0.execute("block-job-complete", json!({ "device": "theirs" }));
    other.0.wait_event("BLOCK_JOB_COMPLETED", std::time::Duration::from_secs(30)).unwrap();
    qemu.expect_pattern("vda", 9, MIB, MIB);
}

// A foreign backup only reads the disk: our filter goes above its own, which may go while ours is there.
#[test]
fn a_foreign_backup_job_may_end_while_our_filter_lies_above_its_own() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    let mut live = place.live(&qemu);
    let target = place.image("theirs", Format::Qcow2, 8 * MIB);
    qemu.qmp("blockdev-add", json!({ "driver": "qcow2", "node-name": "theirs", "file": { "driver": "file", "filename": target } }));
    qemu.qmp("blockdev-backup", json!({ "job-id": "other", "device": "node-vda", "target": "theirs", "sync": "none" }));
    let point = live.begin(&request(&[("vda", None)], Some(1))).unwrap();
    qemu.qmp("block-job-cancel", json!({ "device": "other", "force": true }));
    qemu.control.wait_event("BLOCK_JOB_CANCELLED", std::time::Duration::from_secs(30)).unwrap();
    point.release().unwrap();
    assert_unharmed(&mut qemu, &mut live, "node-vda");
}

#[test]
fn a_snapshot_through_the_device_is_repaired_and_said() {
    for format in [Format::Qcow2, Format::Raw] {
        let place = Place::new();
        let file = place.image("vda", format, 8 * MIB);
        let disk = Disk { format, ..Disk::qcow2("vda", &file).attach(Attach::VirtioDrive) };
        let mut qemu = QemuBuilder::new(place.dir.path()).disk(disk).start();
        qemu.write("vda", 1, 0, MIB);
        let mut live = place.live(&qemu);
        let mut point = live.begin(&request(&[("vda", None)], None)).unwrap();
        let overlay = place.path("overlay.qcow2");
        let snapshot = json!({ "device": "drive-vda", "snapshot-file": overlay, "format": "qcow2", "snapshot-node-name": "over" });
        qemu.qmp("blockdev-snapshot-sync", snapshot);
        qemu.write("vda", 2, MIB, MIB);
        let mut read = open(&mut point, "vda");
        let all = &mut [Extent::new(0, 8 * MIB)].into_iter();
        assert!(read.read(all, &mut |_, _| Ok(())).is_err(), "nothing is read of a moment that has an overlay on it");
        drop(read);
        let failure = point.release().unwrap_err();
        assert!(failure.to_string().contains(&*overlay.to_string_lossy()), "{failure}");
        assert_unharmed(&mut qemu, &mut live, "over");
        take_checkpoint(&mut live, &["vda"], 2);
        qemu.quit();
        let header = image::info(&overlay, Format::Qcow2);
        assert_eq!((header["backing-filename-format"].as_str(), header["backing-filename"].as_str()), (Some(format.name()), file.to_str()));
        image::io(&overlay, Format::Qcow2, &["read -P 2 1M 1M"]);
    }
}

// The filter then has the overlay below it, and so has the device when the filter has gone.
#[test]
fn a_snapshot_below_the_filter_stays_with_the_device() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    qemu.write("vda", 1, 0, MIB);
    let mut live = place.live(&qemu);
    let mut point = live.begin(&request(&[("vda", None)], Some(1))).unwrap();
    let snapshot = json!({ "node-name": "node-vda", "snapshot-file": place.path("over"), "format": "qcow2", "snapshot-node-name": "over" });
    qemu.qmp("blockdev-snapshot-sync", snapshot);
    qemu.write("vda", 2, 0, MIB);
    assert!(is_filled(&read_all(open(&mut point, "vda").as_mut()), 0, MIB, 1));
    point.release().unwrap();
    qemu.expect_pattern("vda", 2, 0, MIB);
    assert_unharmed(&mut qemu, &mut live, "over");
}

// A revert compares what its delta says: a write before the device lost its disk must be in it.
#[test]
fn a_guest_that_is_started_before_its_disk_is_set_aside_is_seen_by_the_revert() {
    let place = Place::new();
    let mut qemu =
        QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 8 * MIB))).paused().start();
    take_checkpoint(&mut place.live(&qemu), &["vda"], 1);
    let mut other = Some(Other::of(&place));
    let (_proxy, mut live) = watched(&place, &qemu, move |command| {
        if command["execute"] == "qom-set"
            && let Some(mut other) = other.take()
        {
            other.0.execute("cont", json!({}));
            other.write(5, MIB);
        }
        Verdict::Forward
    });
    let disks = vec![PointDisk { name: DiskName::new("vda").unwrap(), since: Some(checkpoint(1)) }];
    let writing = WriteRequest { disks, run: "testrun1".into(), backup: BackupId::new("0123456789abcdef") };
    let mut writing = live.begin_writing(&writing).unwrap();
    let dirty = writing.disk(&DiskName::new("vda").unwrap()).unwrap().dirty().unwrap();
    assert!(extents(&[(MIB, 65_536)]).difference(&dirty).is_empty(), "{dirty:?}");
    writing.finish().unwrap();
    qemu.expect_pattern("vda", 5, MIB, 65_536);
}

#[test]
fn a_snapshot_on_a_dead_run_s_filter_is_repaired_by_the_next_run() {
    let place = Place::new();
    let file = place.image("vda", Format::Raw, 8 * MIB);
    let disk = Disk::raw("vda", &file).attach(Attach::VirtioDrive);
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(disk).start();
    let (root, scratch) = (qemu.node_of("vda"), place.image("scratch", Format::Qcow2, 8 * MIB));
    qemu.qmp(
        "blockdev-add",
        json!({ "driver": "qcow2", "node-name": "km1tmp-dead-s0", "file": { "driver": "file", "filename": scratch } }),
    );
    qemu.qmp(
        "blockdev-add",
        json!({ "driver": "copy-before-write", "node-name": "km1tmp-dead-c0", "file": root, "target": "km1tmp-dead-s0" }),
    );
    qemu.qmp("qom-set", json!({ "path": VDA, "property": "drive", "value": "km1tmp-dead-c0" }));
    let overlay = place.path("overlay.qcow2");
    let snapshot = json!({ "device": "drive-vda", "snapshot-file": overlay, "format": "qcow2", "snapshot-node-name": "over" });
    qemu.qmp("blockdev-snapshot-sync", snapshot);
    let mut live = place.live(&qemu);
    let said = live.clean_up().unwrap();
    assert!(said.iter().any(|line| line.contains(&*overlay.to_string_lossy())), "{said:?}");
    assert_unharmed(&mut qemu, &mut live, "over");
    qemu.quit();
    assert_eq!(image::info(&overlay, Format::Qcow2)["backing-filename-format"], "raw");
}

// A VM that is paused is not ours to stop: anybody may let it run behind the filter.
#[test]
fn a_write_behind_the_filter_is_in_the_next_delta() {
    let place = Place::new();
    let mut qemu =
        QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 8 * MIB))).paused().start();
    take_checkpoint(&mut place.live(&qemu), &["vda"], 1);
    let (mut other, mut is_in) = (Some(Other::of(&place)), false);
    let (_proxy, mut live) = watched(&place, &qemu, move |command| {
        if is_in && let Some(mut other) = other.take() {
            other.0.execute("cont", json!({}));
            other.write(5, MIB);
        }
        is_in |= command["execute"] == "qom-set";
        Verdict::Forward
    });
    let mut point = live.begin(&request(&[("vda", Some(1))], Some(2))).unwrap();
    let mut vda = open(&mut point, "vda");
    let has_it = is_filled(&read_all(vda.as_mut()), MIB, 65_536, 5);
    let written = extents(&[(MIB, 65_536)]);
    assert!(
        !has_it && written.difference(&vda.dirty().unwrap()).is_empty(),
        "the moment is before the write, which only makes the delta larger"
    );
    drop(vda);
    point.release().unwrap();
    let mut point = live.begin(&request(&[("vda", Some(2))], None)).unwrap();
    assert!(written.difference(&open(&mut point, "vda").dirty().unwrap()).is_empty(), "the next delta lacks the write");
    point.release().unwrap();
    assert_eq!(qemu.status(), "running");
}

#[test]
fn a_vm_that_is_resumed_between_the_filters_of_two_disks_has_no_moment() {
    let place = Place::new();
    let disk = |name: &str| Disk::qcow2(name, &place.image(name, Format::Qcow2, 8 * MIB));
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(disk("vda")).disk(disk("vdb")).start();
    let (mut other, mut filters) = (Other::of(&place), 0);
    let (_proxy, mut live) = watched(&place, &qemu, move |command| {
        filters += u32::from(command["execute"] == "qom-set");
        if filters == 2 {
            filters += 1;
            other.0.execute("cont", json!({}));
            other.0.execute("stop", json!({}));
        }
        Verdict::Forward
    });
    let failure = refusal(&mut live, &[("vda", None), ("vdb", None)]);
    assert!(failure.to_string().contains("resumed the VM"), "{failure}");
    assert_unharmed(&mut qemu, &mut live, "node-vda");
    assert_eq!(qemu.bitmaps(), []);
}
