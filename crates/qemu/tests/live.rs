//! Frozen points of a running QEMU: what is read is the moment's, the delta is right, and nothing stays behind.

mod common;

use common::*;
use keepmark_model::facts::{Persistence, Power};
use keepmark_model::seam::Hypervisor;
use keepmark_qemu::Live;
use keepmark_testkit::image::Format;
use keepmark_testkit::{Attach, Disk, Qemu, QemuBuilder};
use serde_json::json;

/// A VM with one disk of each kind of attachment and format.
fn vm(place: &Place) -> Qemu {
    QemuBuilder::new(place.dir.path())
        .uuid("6e1a8d4c-0000-4000-8000-00000000abcd")
        .disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 64 * MIB)))
        .disk(Disk::raw("data", &place.image("data", Format::Raw, 8 * MIB)).attach(Attach::VirtioAnonymous))
        .disk(Disk::qcow2("sc", &place.image("sc", Format::Qcow2, 32 * MIB)).attach(Attach::Scsi))
        .disk(Disk::qcow2("drv", &place.image("drv", Format::Qcow2, 16 * MIB)).attach(Attach::VirtioDrive))
        .start()
}

const ALL: [(&str, Option<u32>); 4] = [("vda", None), ("virtio0", None), ("sc", None), ("drv", None)];

#[test]
fn facts_tell_disks_of_every_attachment() {
    let place = Place::new();
    let qemu = vm(&place);
    let facts = place.live(&qemu).facts().unwrap();
    assert_eq!((facts.identity.name.as_str(), facts.power, facts.agent), ("test-vm", Power::Running, false));
    assert_eq!(facts.identity.uuid.as_deref(), Some("6e1a8d4c-0000-4000-8000-00000000abcd"));
    let mut names: Vec<_> = facts.disks.iter().map(|disk| disk.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["drv", "sc", "vda", "virtio0"]);
    let raw = facts.disks.iter().find(|disk| disk.name.as_str() == "virtio0").unwrap();
    assert!(matches!(raw.persistence, Persistence::MemoryOnly { .. }));
    assert_eq!((raw.format.as_str(), raw.size.0), ("raw", 8 * MIB));
}

#[test]
fn a_point_keeps_its_moment_while_the_guest_writes_on() {
    for force_jobs in [false, true] {
        let place = Place::new();
        let mut qemu = vm(&place);
        for (disk, byte) in [("vda", 1), ("data", 2), ("sc", 3), ("drv", 4)] {
            qemu.write(disk, byte, MIB, MIB);
        }
        let mut options = place.options(&qemu);
        options.force_jobs = force_jobs;
        let mut live = Live::connect(options).unwrap();
        let mut point = live.begin(&request(&ALL, Some(1))).unwrap();
        assert_eq!(qemu.status(), "running");
        for disk in ["vda", "data", "sc", "drv"] {
            qemu.write(disk, 9, MIB, 2 * MIB);
        }
        for (disk, byte) in [("vda", 1), ("virtio0", 2), ("sc", 3), ("drv", 4)] {
            let mut open = open(&mut point, disk);
            let content = read_all(open.as_mut());
            assert!(is_filled(&content, 0, MIB, 0) && is_filled(&content, MIB, MIB, byte), "{disk}, jobs {force_jobs}");
            assert!(is_filled(&content, 2 * MIB, MIB, 0), "{disk}, jobs {force_jobs}");
            // Old QEMUs call what was written since data too; and new raw files have their first block allocated.
            let data = open.data(&extents(&[(0, 8 * MIB)])).unwrap();
            assert!(
                extents(&[(MIB, MIB)]).difference(&data).is_empty() && data.difference(&extents(&[(0, 4096), (MIB, 2 * MIB)])).is_empty(),
                "{disk} {data:?}"
            );
        }
        point.release().unwrap();
        qemu.expect_pattern("vda", 9, MIB, 2 * MIB);
        assert_eq!(qemu.node_of("vda"), "node-vda");
        assert!(qemu.bitmaps().iter().all(|(_, name)| name == checkpoint(1).as_str()), "{:?}", qemu.bitmaps());
        assert_eq!(qemu.bitmaps().len(), 4);
        assert_eq!(qemu.qmp("query-block-exports", json!({})), json!([]));
        assert_eq!(place.left(), Vec::<String>::new());
        assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_delta_is_what_was_written_since_its_checkpoint_and_no_more() {
    for force_jobs in [false, true] {
        let place = Place::new();
        let mut qemu = vm(&place);
        let mut options = place.options(&qemu);
        options.force_jobs = force_jobs;
        let mut live = Live::connect(options).unwrap();
        qemu.write("vda", 1, 0, MIB);
        take_checkpoint(&mut live, &["vda", "virtio0"], 1);
        qemu.write("vda", 2, 4 * MIB, MIB);
        qemu.write("data", 2, 0, 65536);
        let mut point = live.begin(&request(&[("vda", Some(1)), ("virtio0", Some(1))], Some(2))).unwrap();
        qemu.write("vda", 3, 10 * MIB, MIB);
        let mut vda = open(&mut point, "vda");
        assert_eq!(vda.dirty().unwrap(), extents(&[(4 * MIB, MIB)]));
        assert!(is_filled(&read(vda.as_mut(), &extents(&[(4 * MIB, MIB)])), 4 * MIB, MIB, 2));
        assert_eq!(open(&mut point, "virtio0").dirty().unwrap(), extents(&[(0, 65536)]));
        point.release().unwrap();
        // The older checkpoint goes on recording; the newer one has only what came after it.
        for (since, expected) in [(1, extents(&[(4 * MIB, MIB), (10 * MIB, MIB)])), (2, extents(&[(10 * MIB, MIB)]))] {
            let mut point = live.begin(&request(&[("vda", Some(since))], None)).unwrap();
            assert_eq!(open(&mut point, "vda").dirty().unwrap(), expected, "since {since}");
        }
        live.remove_checkpoints(&[checkpoint(1), checkpoint(7)]).unwrap();
        assert!(qemu.bitmaps().iter().all(|(_, name)| name == checkpoint(2).as_str()));
    }
}

#[test]
fn a_dropped_point_and_a_failed_one_leave_nothing() {
    let place = Place::new();
    let mut qemu = vm(&place);
    let mut live = place.live(&qemu);
    drop(live.begin(&request(&ALL, None)).unwrap());
    take_checkpoint(&mut live, &["vda"], 1);
    // The name is taken on one of the disks: the transaction fails, and with it everything.
    let error = live.begin(&request(&ALL, Some(1))).map(drop).unwrap_err();
    assert!(error.to_string().contains("already exists"), "{error}");
    assert!(live.begin(&request(&[("nope", None)], None)).map(drop).unwrap_err().to_string().contains("nope"));
    assert!(live.begin(&request(&[("sc", Some(1))], None)).map(drop).unwrap_err().to_string().contains("no bitmap"));
    assert_eq!(qemu.status(), "running");
    assert_eq!(qemu.bitmaps(), [("node-vda".to_owned(), checkpoint(1).to_string())]);
    assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
    assert_eq!(place.left(), Vec::<String>::new());
    qemu.write("vda", 1, 0, MIB);
}

#[test]
fn a_paused_vm_stays_paused() {
    let place = Place::new();
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, MIB))).paused().start();
    let mut live = place.live(&qemu);
    assert_eq!(live.facts().unwrap().power, Power::Paused);
    take_checkpoint(&mut live, &["vda"], 1);
    assert_eq!(qemu.status(), "prelaunch");
    qemu.cont();
    qemu.stop();
    take_checkpoint(&mut live, &["vda"], 2);
    assert_eq!(qemu.status(), "paused");
}

#[test]
fn bitmaps_of_overlay_and_base_are_united() {
    let place = Place::new();
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 8 * MIB))).start();
    let mut live = place.live(&qemu);
    take_checkpoint(&mut live, &["vda"], 1);
    qemu.write("vda", 1, 0, MIB);
    let overlay = place.path("overlay.qcow2");
    qemu.qmp(
        "blockdev-snapshot-sync",
        json!({ "node-name": "node-vda", "snapshot-file": overlay, "snapshot-node-name": "over", "format": "qcow2" }),
    );
    qemu.qmp("block-dirty-bitmap-add", json!({ "node": "over", "name": checkpoint(1).as_str(), "persistent": true }));
    qemu.write("vda", 2, 3 * MIB, MIB);
    let facts = live.facts().unwrap();
    assert_eq!(facts.disks[0].layers.len(), 2);
    assert!(facts.disks[0].layers.iter().all(|layer| layer.bitmaps.len() == 1));
    let mut point = live.begin(&request(&[("vda", Some(1))], Some(2))).unwrap();
    assert_eq!(open(&mut point, "vda").dirty().unwrap(), extents(&[(0, MIB), (3 * MIB, MIB)]));
    point.release().unwrap();
    // The base is read-only: its bitmap stays, and that is no error.
    live.remove_checkpoints(&[checkpoint(1)]).unwrap();
    assert_eq!(qemu.bitmaps(), [("node-vda".to_owned(), checkpoint(1).to_string()), ("over".to_owned(), checkpoint(2).to_string())]);
}

#[test]
fn hundreds_of_foreign_bitmaps_do_not_matter_and_stay() {
    let place = Place::new();
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 64 * MIB))).start();
    for number in 0..400 {
        qemu.qmp("block-dirty-bitmap-add", json!({ "node": "node-vda", "name": format!("other.{number}"), "persistent": true }));
    }
    let before = qemu.bitmaps();
    let mut live = place.live(&qemu);
    take_checkpoint(&mut live, &["vda"], 1);
    qemu.write("vda", 1, MIB, MIB);
    let mut point = live.begin(&request(&[("vda", Some(1))], None)).unwrap();
    assert_eq!(open(&mut point, "vda").dirty().unwrap(), extents(&[(MIB, MIB)]));
    point.release().unwrap();
    live.remove_checkpoints(&[checkpoint(1)]).unwrap();
    assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
    assert_eq!(qemu.bitmaps(), before);
}

#[test]
fn the_definition_names_devices_and_command_line() {
    let place = Place::new();
    let qemu = vm(&place);
    let files = place.live(&qemu).definition().unwrap().files;
    let document: serde_json::Value = serde_json::from_slice(&files[0].content).unwrap();
    assert_eq!(files[0].name, "vm.json");
    assert!(document["command_line"].as_array().unwrap().iter().any(|word| word == "-nodefaults"));
    assert!(document["qmp"]["query-block"].is_array() && document["devices"].is_array());
}

#[test]
fn a_qemu_of_another_user_can_open_scratch_and_socket() {
    let place = Place::new();
    let file = place.image("vda", Format::Qcow2, 16 * MIB);
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &file)).args(&["-run-with", "user=nobody"]).start();
    std::fs::set_permissions(place.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let mut live = place.live(&qemu);
    let mut point = live.begin(&request(&[("vda", None)], Some(1))).unwrap();
    qemu.write("vda", 1, 0, MIB);
    assert!(is_filled(&read_all(open(&mut point, "vda").as_mut()), 0, MIB, 0));
    point.release().unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn what_a_point_costs_beside_reading_is_small() {
    let place = Place::new();
    let qemu = vm(&place);
    let since = std::time::Instant::now();
    let mut live = place.live(&qemu);
    let connected = since.elapsed();
    live.facts().unwrap();
    live.clean_up().unwrap();
    let point = live.begin(&request(&ALL, Some(1))).unwrap();
    let (begun, pause) = (since.elapsed(), point.moment().pause);
    point.release().unwrap();
    println!("connected {connected:?}, begun {begun:?}, pause {pause:?}, released {:?}", since.elapsed());
    assert!(since.elapsed() < std::time::Duration::from_secs(2));
}

#[test]
fn images_named_by_qemu_s_own_folder_are_told_with_their_whole_path() {
    let place = Place::new();
    let file = place.image("rel", Format::Qcow2, MIB);
    let relative = file.strip_prefix("/").unwrap();
    let up: std::path::PathBuf = std::env::current_dir().unwrap().components().skip(1).map(|_| "..").collect();
    let qemu = QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &up.join(relative))).start();
    let facts = place.live(&qemu).facts().unwrap();
    assert!(facts.disks[0].image.starts_with('/') && std::path::Path::new(&facts.disks[0].image).exists(), "{:?}", facts.disks[0].image);
}

// QEMU < 9.0 would abort here, taking the guest with it: see `hazards`.
#[test]
fn a_disk_in_an_iothread_is_read_or_refused_and_the_guest_lives() {
    let place = Place::new();
    let file = place.image("vda", Format::Qcow2, 16 * MIB);
    let node = json!({ "driver": "qcow2", "node-name": "node-vda", "file": { "driver": "file", "filename": file } }).to_string();
    let arguments = ["-object", "iothread,id=io1", "-blockdev", &node, "-device", "virtio-blk-pci,id=vda,drive=node-vda,iothread=io1"];
    let mut qemu = QemuBuilder::new(place.dir.path()).args(&arguments).start();
    let version = qemu.qmp("query-version", json!({}))["qemu"]["major"].as_u64().unwrap();
    let mut live = place.live(&qemu);
    match live.begin(&request(&[("vda", None)], Some(1))) {
        Ok(mut point) => {
            assert!(version >= 9);
            read_all(open(&mut point, "vda").as_mut());
            point.release().unwrap();
        }
        Err(failure) => assert!(version < 9 && failure.to_string().contains("iothread"), "{failure}"),
    }
    assert_eq!(qemu.status(), "running");
}
