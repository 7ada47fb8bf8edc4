//! A real Linux guest that writes all the time: one moment over three disks, quiesced by its agent, and no harm to the guest.

mod common;

use std::time::Duration;

use common::*;
use keepmark_model::manifest::Consistency;
use keepmark_model::seam::Hypervisor;
use keepmark_model::{Extents, Size};
use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, Guest, QemuBuilder};
use serde_json::json;

const DISKS: [&str; 3] = ["vda", "virtio0", "sda"];

#[test]
fn a_writing_guest_is_frozen_for_a_moment_over_all_disks_and_goes_on_unharmed() {
    let place = Place::new();
    let mut builder = QemuBuilder::new(place.dir.path()).guest(&Guest::build()).agent().mount(&["vda", "vdb", "sda"]).writer("vdb", 30);
    for (name, attach) in [("vda", Attach::VirtioBlockdev), ("vdb", Attach::VirtioAnonymous), ("sda", Attach::Scsi)] {
        let file = place.path(name);
        image::mkfs_ext4(&file, Format::Qcow2, 64 * MIB, None);
        builder = builder.disk(Disk::qcow2(name, &file).attach(attach));
    }
    let mut qemu = builder.start();
    qemu.wait_ready();
    drop(qemu.agent());
    let mut live = place.live(&qemu);
    take_checkpoint(&mut live, &DISKS, 1);
    qemu.serial.wait_writes(5, Duration::from_secs(60));
    qemu.guest("write vda 3 100");

    let point = request(&DISKS.map(|name| (name, Some(1))), Some(2));
    let mut point = live.begin(&freezing(point)).unwrap();
    let moment = point.moment().clone();
    assert_eq!((moment.consistency, moment.findings.clone()), (Consistency::Application, Vec::<String>::new()));
    assert!(!moment.pause.is_zero() && moment.pause < Duration::from_secs(2), "{moment:?}");
    assert!(moment.frozen.is_some_and(|frozen| frozen >= moment.pause && frozen < Duration::from_secs(5)), "{moment:?}");
    println!("pause {:?}, frozen {:?}", moment.pause, moment.frozen);

    // Thawed: the guest writes on while the frozen content stays the same.
    let mut vdb = open(&mut point, "virtio0");
    let first = read_all(vdb.as_mut());
    qemu.serial.wait_writes(5, Duration::from_secs(60));
    assert!(first == read_all(vdb.as_mut()));
    let delta = vdb.dirty().unwrap();
    assert!(!delta.is_empty() && delta.total() < Size(32 * MIB));
    drop(vdb);
    std::fs::write(place.path("frozen.raw"), &first).unwrap();
    point.release().unwrap();
    // Application-consistent: the frozen file system is clean without a journal's help.
    let check = std::process::Command::new("e2fsck").args(["-fn"]).arg(place.path("frozen.raw")).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));

    // What the base has now is what it had at the moment and what the new checkpoint has since: nothing fell between.
    qemu.guest("stop_writer");
    qemu.stop();
    for name in DISKS {
        let mut point = live.begin(&request(&[(name, Some(1))], None)).unwrap();
        let since_first = open(&mut point, name).dirty().unwrap();
        point.release().unwrap();
        let mut point = live.begin(&request(&[(name, Some(2))], None)).unwrap();
        let since_second = open(&mut point, name).dirty().unwrap();
        point.release().unwrap();
        assert!(since_second.difference(&since_first).is_empty());
        if name == "virtio0" {
            assert_eq!(delta.union(&since_second), since_first);
            // The moment's content with what changed since is the content now.
            let mut now = live.begin(&request(&[(name, None)], None)).unwrap();
            let content = read_all(open(&mut now, name).as_mut());
            now.release().unwrap();
            let untouched = Extents::whole(Size(64 * MIB)).difference(&since_second);
            for extent in untouched.iter() {
                let range = usize::try_from(extent.start).unwrap()..usize::try_from(extent.end).unwrap();
                assert!(content[range.clone()] == first[range], "a write fell between moment and checkpoint");
            }
        }
    }
    qemu.cont();
    qemu.qmp("query-status", json!({}));
    qemu.assert_guest_unharmed();
    assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
    drop(live);
    qemu.power_off();
}
