//! A witness has the bytes of its moment, however the moment was fixed; the proxy does what its hook says.

use std::path::Path;
use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, Guest, PauseWitness, Qemu, QemuBuilder, Qmp, QmpProxy, Verdict, Witness, tmp};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

fn two_disks(dir: &Path) -> QemuBuilder {
    let mut builder = QemuBuilder::new(dir);
    for (name, attach) in [("vda", Attach::VirtioBlockdev), ("vdb", Attach::VirtioAnonymous)] {
        let file = dir.join(name);
        image::create(&file, Format::Qcow2, 64 * MIB);
        builder = builder.disk(Disk::qcow2(name, &file).attach(attach));
    }
    builder
}

fn write_everywhere(qemu: &mut Qemu, pattern: u8) {
    for disk in ["vda", "vdb"] {
        qemu.write(disk, pattern, 5 * MIB, MIB);
    }
}

/// Whether the copies have `pattern` where [`write_everywhere`] writes.
fn expect(witness: &Witness, pattern: u8) {
    for disk in ["vda", "vdb"] {
        image::io(&witness.image(disk), Format::Raw, &[&format!("read -P {pattern} 5M 1M"), "read -P 0 6M 58M"]);
    }
}

fn same(witness: &Witness, disks: &[Disk]) {
    for disk in disks {
        witness.assert_same(&disk.name, &disk.file, disk.format);
    }
}

#[test]
fn a_held_vm_is_copied_and_goes_on() {
    let dir = tmp();
    let mut qemu = two_disks(dir.path()).start();
    write_everywhere(&mut qemu, 1);
    let witness = Witness::hold(&mut qemu, &dir.path().join("w"));
    assert_eq!(qemu.status(), "paused");
    witness.release(&mut qemu);
    assert_eq!(qemu.status(), "running");
    write_everywhere(&mut qemu, 2);
    expect(&witness, 1);
    let later = Witness::hold(&mut qemu, &dir.path().join("later"));
    let disks = qemu.disks().to_vec();
    qemu.quit();
    expect(&later, 2);
    same(&later, &disks);
    same(&Witness::of_images(&disks, &dir.path().join("off")), &disks);
}

#[test]
fn a_held_vm_is_released_when_a_point_is_fixed() {
    let dir = tmp();
    let mut qemu = two_disks(dir.path()).start();
    let witness = Witness::hold(&mut qemu, &dir.path().join("w"));
    let mut other = Qmp::try_connect(&qemu.qmp_socket()).unwrap();
    other.execute("block-dirty-bitmap-add", json!({"node": "node-vda", "name": "b"}));
    witness.release_when_taken(&mut qemu, Duration::from_secs(5));
    assert_eq!(qemu.status(), "running");
}

/// Fixes a point as the design says: a filter over each disk and a transaction, in a pause.
fn fix_point(monitor: &mut Qmp, disks: &[(&str, &str, &str)], dir: &Path) {
    monitor.execute("stop", json!({}));
    let mut actions = Vec::new();
    for (disk, node, device) in disks {
        let scratch = dir.join(format!("scratch-{disk}"));
        image::sparse(&scratch, 64 * MIB);
        let file = json!({"driver": "file", "filename": scratch});
        let filter = format!("filter-{disk}");
        monitor.execute("blockdev-add", json!({"driver": "raw", "node-name": format!("scratch-{disk}"), "file": file}));
        let target = format!("scratch-{disk}");
        monitor.execute("blockdev-add", json!({"driver": "copy-before-write", "node-name": filter, "file": node, "target": target}));
        monitor.execute("qom-set", json!({"path": device, "property": "drive", "value": filter}));
        actions.push(json!({"type": "block-dirty-bitmap-add", "data": {"node": node, "name": "b", "persistent": true}}));
    }
    monitor.execute("transaction", json!({"actions": actions}));
    monitor.execute("cont", json!({}));
    for (disk, ..) in disks {
        let add = json!({"driver": "snapshot-access", "node-name": format!("frozen-{disk}"), "file": format!("filter-{disk}")});
        monitor.execute("blockdev-add", add);
    }
}

#[test]
fn a_pause_of_a_running_guest_is_witnessed() {
    let dir = tmp();
    let mut builder = QemuBuilder::new(dir.path()).guest(&Guest::build()).agent().mount(&["vda", "sda"]).writer("sda", 50);
    for (name, attach) in [("vda", Attach::VirtioBlockdev), ("sda", Attach::Scsi)] {
        image::mkfs_ext4(&dir.path().join(name), Format::Qcow2, 64 * MIB, None);
        builder = builder.disk(Disk::qcow2(name, &dir.path().join(name)).attach(attach));
    }
    let mut qemu = builder.start();
    qemu.wait_ready();
    qemu.serial.wait_writes(3, Duration::from_secs(60));
    let pauses = PauseWitness::attach(&qemu, &dir.path().join("w"));
    let mut monitor = Qmp::try_connect(Path::new(pauses.vm().strip_prefix("qmp:").unwrap())).unwrap();
    let disks = [("vda", "node-vda", "/machine/peripheral/vda"), ("sda", "node-sda", "sda")];
    fix_point(&mut monitor, &disks, dir.path());
    let witness = pauses.take();
    qemu.serial.wait_writes(10, Duration::from_secs(60));
    let exported = export(&mut qemu, dir.path(), &["vda", "sda"]);
    for (disk, socket) in exported {
        let frozen = dir.path().join(format!("frozen-{disk}.raw"));
        let uri = format!("nbd+unix:///frozen-{disk}?socket={socket}");
        image::convert(Path::new(&uri), Format::Raw, &frozen, Format::Raw);
        witness.assert_same(disk, &frozen, Format::Raw);
    }
    let now = Witness::hold(&mut qemu, &dir.path().join("now"));
    assert!(image::difference(&now.image("sda"), Format::Raw, &witness.image("sda"), Format::Raw).is_some());
    now.release(&mut qemu);
    qemu.serial.wait_writes(3, Duration::from_secs(60));
    qemu.assert_guest_unharmed();
}

fn export<'a>(qemu: &mut Qemu, dir: &Path, disks: &[&'a str]) -> Vec<(&'a str, String)> {
    let socket = dir.join("nbd").display().to_string();
    qemu.qmp("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    let mut exported = Vec::new();
    for &disk in disks {
        let name = format!("frozen-{disk}");
        qemu.qmp("block-export-add", json!({"type": "nbd", "id": name, "node-name": name, "name": name}));
        exported.push((disk, socket.clone()));
    }
    exported
}

#[test]
fn a_proxy_answers_and_hangs_up() {
    let dir = tmp();
    let mut qemu = QemuBuilder::new(dir.path()).paused().start();
    let socket = dir.path().join("proxy");
    let proxy = QmpProxy::start(&socket, &qemu.qmp_socket(), |message: &Value| match message["execute"].as_str() {
        Some("stop") => Verdict::Answer(json!({"error": {"class": "GenericError", "desc": "no"}})),
        Some("cont") => Verdict::HangUp,
        _ => Verdict::Forward,
    });
    let mut client = Qmp::try_connect(&socket).unwrap();
    assert_eq!(client.execute("query-status", json!({}))["status"], "prelaunch");
    assert_eq!(client.try_execute("stop", json!({})).unwrap_err()["desc"], "no");
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client.execute("cont", json!({})))).is_err());
    assert_eq!(proxy.commands(), ["qmp_capabilities", "query-status", "stop", "cont"]);
    assert_eq!(qemu.status(), "prelaunch");
    assert!(Qmp::try_connect(&socket).is_some());
}
