//! Where libvirt does otherwise than QEMU alone: which scenarios, why, and what is to be seen instead.
//!
//! Everything that is not in [`OTHERWISE`] has to be seen under libvirt as on the simulation. What is in it has to differ: an entry that
//! is no longer true fails the test, too.

use super::super::Change::{ManagedSnapshot, Write};
use super::super::{DiskSpec, Play, Played, Process, disk};
use super::Scenario;

/// A scenario that goes otherwise under libvirt.
#[derive(Debug, Clone, Copy)]
pub struct Otherwise {
    /// Which.
    pub scenario: &'static str,
    /// Why.
    pub why: &'static str,
    /// What is played and expected instead.
    pub instead: Scenario,
}

macro_rules! otherwise {
    ($($scenario:ident => $instead:ident: $why:literal;)*) => {
        /// All of them.
        pub const OTHERWISE: &[Otherwise] = &[$(Otherwise {
            scenario: stringify!($scenario),
            why: $why,
            instead: Scenario { about: "libvirt", name: stringify!($instead), steps: $instead },
        }),*];
    };
}

otherwise! {
    bitmaps_of_raw_images_live_in_memory => raw_images_get_no_bitmaps:
        "libvirt makes checkpoints on qcow2 only; a raw disk is read beside them, whole each time";
    bitmaps_below_cannot_be_removed => bitmaps_below_are_removed_too:
        "libvirt opens the images below for writing while it deletes a checkpoint";
}

fn raw_images_get_no_bitmaps(play: &mut Play<'_>) -> Played {
    let raw = DiskSpec { raw: true, ..disk("vda") };
    play.vm(&[raw, disk("vdb")]);
    play.change("vda", Write(0, 2, 1))?;
    play.checkpoint("c1")?;
    play.bitmaps("vda", "")?;
    play.bitmaps("vdb", "c1 recording 0")?;
    play.change("vdb", Write(3, 1, 1))?;
    play.no_point(&[("vda", Some("c1"))], None, |_| Ok(()))?;
    let (vda, vdb) = (play.truth("vda"), play.truth("vdb"));
    play.point(&[("vda", None), ("vdb", Some("c1"))], Some("c2"), |at| {
        at.holds("vda", &vda)?;
        at.delta("vdb", &[(3, 1)])?;
        at.change("vda", Write(1, 1, 9))?;
        at.holds("vda", &vda)?;
        at.holds("vdb", &vdb)
    })?;
    play.process(Process::Restart)?;
    play.bitmaps("vda", "")?;
    play.bitmaps("vdb", "c1 recording 1; c2 recording 0")
}

fn bitmaps_below_are_removed_too(play: &mut Play<'_>) -> Played {
    play.vm(&[DiskSpec { units: 12, ..disk("vda") }]);
    play.checkpoint("c1")?;
    play.change("vda", ManagedSnapshot(1))?;
    play.bitmaps("vda", "c1 recording 0 | c1 recording 0")?;
    play.forget(&["c1"])?;
    play.bitmaps("vda", " | ")?;
    play.process(Process::Kill)?;
    play.bitmaps("vda", " | ")
}
