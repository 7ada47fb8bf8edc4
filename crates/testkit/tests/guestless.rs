//! A QEMU without a guest, images, servers and restic do what the helpers say.

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::servers::{NbdServer, StorageDaemon};
use keepmark_testkit::{Attach, Disk, Machine, QemuBuilder, Restic, process, tmp};
use serde_json::json;

const MIB: u64 = 1 << 20;

#[test]
fn every_kind_of_attachment_can_be_written_like_a_guest() {
    let dir = tmp();
    let attachments = [Attach::VirtioBlockdev, Attach::VirtioDrive, Attach::VirtioAnonymous, Attach::Scsi, Attach::NodeOnly];
    let mut builder = QemuBuilder::new(dir.path()).name("a, b").uuid("11111111-2222-3333-4444-555555555555");
    for (at, attach) in attachments.into_iter().enumerate() {
        let file = dir.path().join(format!("disk{at}.qcow2"));
        image::create(&file, Format::Qcow2, 8 * MIB);
        builder = builder.disk(Disk::qcow2(&format!("disk{at}"), &file).attach(attach));
    }
    let mut qemu = builder.start();
    assert_eq!(qemu.status(), "running");
    assert_eq!(qemu.qmp("query-name", json!({}))["name"], "a, b");
    for (at, pattern) in (0..5).zip([1, 2, 3, 4, 5]) {
        let disk = format!("disk{at}");
        qemu.write(&disk, pattern, MIB, MIB);
        qemu.expect_pattern(&disk, pattern, MIB, MIB);
        assert!(qemu.try_qemu_io(&disk, "read -P 99 1M 64k").contains("Pattern verification"));
        let node = qemu.node_of(&disk);
        qemu.qmp("block-dirty-bitmap-add", json!({"node": node, "name": "b", "persistent": true}));
    }
    assert_eq!(qemu.bitmaps().len(), 5);
    qemu.quit();
    for (at, pattern) in (0..5).zip([1_u8, 2, 3, 4, 5]) {
        let file = dir.path().join(format!("disk{at}.qcow2"));
        assert_eq!(image::bitmaps(&file), ["b"]);
        image::io(&file, Format::Qcow2, &[&format!("read -P {pattern} 1M 1M")]);
    }
}

#[test]
fn a_killed_qemu_is_gone_and_starts_again() {
    let dir = tmp();
    let file = dir.path().join("a.qcow2");
    image::create(&file, Format::Qcow2, 8 * MIB);
    let mut qemu = QemuBuilder::new(dir.path()).machine(Machine::None).disk(Disk::qcow2("a", &file).attach(Attach::NodeOnly)).start();
    qemu.write("a", 7, 0, 65536);
    qemu.qmp("block-dirty-bitmap-add", json!({"node": "node-a", "name": "b", "persistent": true}));
    let builder = qemu.kill9();
    let mut qemu = builder.paused().start();
    assert_eq!(qemu.bitmaps(), []);
    qemu.quit();
}

#[test]
fn prelaunch_and_events() {
    let dir = tmp();
    let mut qemu = QemuBuilder::new(dir.path()).machine(Machine::Q35).paused().start();
    assert_eq!(qemu.status(), "prelaunch");
    qemu.cont();
    assert!(qemu.control.wait_event("RESUME", std::time::Duration::from_secs(5)).is_some());
    qemu.stop();
    assert!(qemu.control.take_events().iter().any(|event| event["event"] == "STOP"));
    assert_eq!(qemu.status(), "paused");
}

#[test]
fn images_are_filled_and_compared() {
    let dir = tmp();
    let (a, b) = (dir.path().join("a.qcow2"), dir.path().join("b.raw"));
    image::create(&a, Format::Qcow2, 8 * MIB);
    image::fill_random(&a, Format::Qcow2, 1, MIB, 300_000);
    image::convert(&a, Format::Qcow2, &b, Format::Raw);
    image::assert_same(&a, Format::Qcow2, &b, Format::Raw);
    assert_eq!(image::sha256_of_disk(&a, Format::Qcow2), image::sha256_of_file(&b));
    image::fill(&b, Format::Raw, 9, 0, 512);
    assert!(image::difference(&a, Format::Qcow2, &b, Format::Raw).is_some());
    let overlay = dir.path().join("c.qcow2");
    image::create_overlay(&overlay, &a, Format::Qcow2);
    assert_eq!(image::virtual_size(&overlay, Format::Qcow2), 8 * MIB);
}

#[test]
fn servers_serve() {
    let dir = tmp();
    let file = dir.path().join("a.qcow2");
    image::create(&file, Format::Qcow2, 8 * MIB);
    let size = |uri: &str| process::run(std::process::Command::new("nbdinfo").args(["--size", uri])).trim().to_owned();
    let nbdkit = NbdServer::nbdkit(&dir.path().join("n"), &["--filter=blocksize", "memory", "8M"]);
    assert_eq!(size(&nbdkit.uri("")), "8388608");
    let qemu_nbd = NbdServer::qemu_nbd(&dir.path().join("q"), &file, Format::Qcow2, &["-x", "e", "--read-only"]);
    assert_eq!(size(&qemu_nbd.uri("e")), "8388608");
    drop(qemu_nbd);
    let mut daemon = StorageDaemon::start(dir.path());
    daemon.open("d", &file, Format::Qcow2, false);
    let socket = daemon.listen();
    daemon.export("d", true, &[]);
    assert_eq!(size(&format!("nbd+unix:///d?socket={}", socket.display())), "8388608");
    daemon.quit();
}

#[test]
fn restic_makes_and_checks_a_repository() {
    let dir = tmp();
    let folder = dir.path().join("data");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("file"), b"content").unwrap();
    let restic = Restic::new(&dir.path().join("repo"), "secret");
    restic.init();
    let path = folder.display().to_string();
    restic.run(&["backup", "-q", &path]);
    restic.check();
    assert_eq!(restic.snapshots().len(), 1);
    assert_eq!(restic.dump("latest", &format!("{path}/file")), b"content");
    assert!(restic.list("latest").contains(&format!("{path}/file")));
    restic.restore("latest", &dir.path().join("out"));
    restic.prune();
}
