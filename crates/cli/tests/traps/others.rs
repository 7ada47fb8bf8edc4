//! Others who change QEMU's block graph around a backup: it is refused or fails with the reason, and the guest keeps its disk.

use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, Qmp, QmpProxy, Verdict};
use serde_json::json;

use crate::stage::{MIB, SIZE, Stage, is};

const WAIT: Duration = Duration::from_secs(60);

#[test]
fn a_mirror_is_named_and_gets_all_that_the_guest_writes() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let moved = stage.path("moved.qcow2");
    image::create(&moved, Format::Qcow2, SIZE);
    vm.qemu.qmp("blockdev-add", json!({ "driver": "qcow2", "node-name": "moved", "file": { "driver": "file", "filename": moved } }));
    vm.qemu.qmp("blockdev-mirror", json!({ "job-id": "move-it", "device": "node-vda", "target": "moved", "sync": "full" }));
    vm.qemu.control.wait_event("BLOCK_JOB_READY", WAIT).unwrap();
    let refused = stage.keepmark.run(&["backup", &vm.qemu.vm()]);
    assert_eq!(refused.code, Some(11), "{}", refused.stderr);
    assert!(refused.stderr.contains("mirror job \"move-it\" works on disk vda"), "{}", refused.stderr);
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    vm.qemu.qmp("block-job-complete", json!({ "device": "move-it" }));
    vm.qemu.control.wait_event("BLOCK_JOB_COMPLETED", WAIT).unwrap();
    vm.qemu.expect_pattern("vda", 7, 3 * MIB, MIB);
    stage.live(&mut vm, is("resync", &[]));
}

#[test]
fn a_snapshot_through_the_device_fails_the_backup_and_the_vm_starts_again() {
    let stage = Stage::new();
    let disk = stage.disk("vda").attach(Attach::VirtioDrive);
    let mut qemu = stage.vm(&[disk]).start();
    let overlay = stage.path("overlay.qcow2");
    let (file, mut other) = (overlay.clone(), Qmp::try_connect(&stage.path("vm").join("witness")));
    let proxy = QmpProxy::start(&stage.fresh("proxy"), &qemu.qmp_socket(), move |message| {
        let is_exported = message["arguments"]["id"].as_str().is_some_and(|id| id.ends_with("-e0"));
        if is_exported && let Some(mut other) = other.take() {
            other.execute("blockdev-snapshot-sync", json!({ "device": "drive-vda", "snapshot-file": file, "format": "qcow2" }));
        }
        Verdict::Forward
    });
    let failed = stage.keepmark.run(&["backup", &proxy.vm()]);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains("snapshot through the device") && failed.stderr.contains("overlay.qcow2"), "{}", failed.stderr);
    drop(proxy);
    qemu.write("vda", 7, 3 * MIB, MIB);
    assert_eq!(stage.keepmark.run(&["backup", &qemu.vm()]).code, Some(0));
    qemu.quit();
    let mut again = stage.bare_vm("again").disk(Disk::qcow2("vda", &overlay)).start();
    again.expect_pattern("vda", 7, 3 * MIB, MIB);
}
