//! The guest boots, mounts, beats, writes, obeys and answers as an agent.

use std::time::{Duration, Instant};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, Guest, QemuBuilder, tmp};

const MIB: u64 = 1 << 20;

#[test]
fn a_guest_boots_beats_writes_and_obeys() {
    let dir = tmp();
    let file = |name: &str| dir.path().join(name);
    let attachments = [("vda", Attach::VirtioBlockdev), ("vdb", Attach::VirtioAnonymous), ("sda", Attach::Scsi)];
    let mut builder = QemuBuilder::new(dir.path()).guest(&Guest::build()).agent().mount(&["vda", "vdb", "sda"]).writer("vdb", 20);
    for (name, attach) in attachments {
        image::mkfs_ext4(&file(name), Format::Qcow2, 64 * MIB, None);
        builder = builder.disk(Disk::qcow2(name, &file(name)).attach(attach));
    }
    let begun = Instant::now();
    let mut qemu = builder.start();
    qemu.wait_ready();
    println!("ready after {:?}", begun.elapsed());
    qemu.serial.wait_beats(3, Duration::from_secs(30));
    qemu.serial.wait_writes(5, Duration::from_secs(60));
    qemu.guest("write vda 3 100");
    let sums = qemu.guest("sums vda");
    assert_eq!(sums.lines().count(), 3, "{sums}");
    assert!(qemu.guest("df /mnt/sda").contains("/dev/sda"));
    assert!(qemu.guest("rm /mnt/vda/file-*; sync; fstrim vda").contains("trimmed"));
    let mut agent = qemu.agent();
    println!("agent after {:?}", begun.elapsed());
    assert_eq!(agent.execute("guest-fsfreeze-freeze"), 3);
    assert_eq!(agent.execute("guest-fsfreeze-status"), "frozen");
    assert_eq!(agent.execute("guest-fsfreeze-thaw"), 3);
    drop(agent);
    qemu.serial.wait_writes(5, Duration::from_secs(60));
    qemu.guest("stop_writer");
    qemu.assert_guest_unharmed();
    qemu.power_off();
    println!("off after {:?}", begun.elapsed());
}
