//! keepmark is killed at every effect on a real guest with an agent, which is frozen, paused and filtered while it writes.

use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Guest, QemuBuilder};

use crate::campaign::Campaign;
use crate::lab::{Lab, MIB};
use crate::live::Rig;
use crate::tracer::Fate;

/// Longest time until the guest writes again after keepmark was killed: a thaw, under software emulation.
pub const WRITES_AGAIN_MAX: Duration = Duration::from_secs(20);

/// What holds the guest still, and what is put between it and its disks.
fn counts(effect: &str) -> bool {
    ["qmp ", "agent ", "watchdog ", "start "].iter().any(|kind| effect.starts_with(kind))
}

/// A guest of two disks with an agent that writes to `sdb` all the time.
pub fn rig() -> Rig {
    rig_in(Lab::new(), 24 * MIB)
}

/// The same in a lab that is there, in a repository unless the lab has a store already; its `vda` has this size.
pub fn rig_in(lab: Lab, size: u64) -> Rig {
    std::fs::create_dir(lab.path("vm")).unwrap();
    let mut builder = QemuBuilder::new(&lab.path("vm")).guest(&Guest::build()).agent().mount(&["vda", "sdb"]).writer("sdb", 20);
    for (name, size) in [("vda", size), ("sdb", 24 * MIB)] {
        let file = lab.path(&format!("{name}.qcow2"));
        image::mkfs_ext4(&file, Format::Qcow2, size, None);
        builder = builder.disk(Disk::qcow2(name, &file));
    }
    lab.init_if_bare();
    let mut qemu = builder.start();
    qemu.wait_ready();
    // It starts beside everything else, and serves one connection at a time.
    drop(qemu.agent());
    Rig::over(lab, qemu, None)
}

#[test]
fn keepmark_killed_at_effects_on_a_real_guest() {
    let mut rig = rig();
    let effects = rig.effects(&[], counts);
    let mut campaign = Campaign::over(&effects, 4);
    while let Some(cut) = campaign.next_cut() {
        let trace = rig.struck_backup(&[], counts, Some(cut), &mut |_| Fate::Killed);
        rig.wait_running();
        rig.qemu.serial.wait_writes(2, WRITES_AGAIN_MAX);
        let outcome = rig.recover();
        rig.qemu.serial.wait_writes(2, WRITES_AGAIN_MAX);
        rig.qemu.assert_guest_unharmed();
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
    }
    rig.lab.compare_all();
    campaign.print("keepmark killed, real guest");
}
