//! Disks that change their size, and what is told of holes.

use super::super::Change::{Discard, Resize, Snapshot, Write, WriteZeros};
use super::super::{DiskSpec, Play, Played, Process, disk};

pub(super) fn a_grown_part_is_clean(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(14, 2, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", Resize(24))?;
    play.bitmaps("vda", "c1 recording 0")?;
    play.change("vda", Write(20, 1, 2))?;
    play.bitmaps("vda", "c1 recording 1")?;
    play.delta("vda", "c1", &[(20, 1)])?;
    play.data("vda", &[(14, 2), (20, 1)])?;
    play.process(Process::Restart)?;
    play.delta("vda", "c1", &[(20, 1)])
}

pub(super) fn a_shrunk_and_grown_disk_is_silently_zero(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 16, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", Write(12, 1, 2))?;
    play.change("vda", Resize(6))?;
    play.bitmaps("vda", "c1 recording 0")?;
    play.change("vda", Resize(16))?;
    play.bitmaps("vda", "c1 recording 0")?;
    play.delta("vda", "c1", &[])?;
    play.data("vda", &[(0, 6)])
}

pub(super) fn a_cut_inside_a_cluster(play: &mut Play<'_>) -> Played {
    play.vm(&[DiskSpec { cluster: 4, ..disk("vda") }]);
    play.change("vda", Write(0, 16, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", Resize(6))?;
    play.data("vda", &[(0, 6)])?;
    play.change("vda", Resize(16))?;
    play.bitmaps("vda", "c1 recording 0")?;
    // QEMU gives back whole clusters only: what lies behind the cut in the last one comes back with it.
    play.data("vda", &[(0, 8)])
}

pub(super) fn a_cut_above_a_longer_image(play: &mut Play<'_>) -> Played {
    play.vm(&[DiskSpec { cluster: 4, ..disk("vda") }]);
    play.change("vda", Write(0, 16, 1))?;
    play.change("vda", Snapshot(4))?;
    play.change("vda", Write(4, 4, 2))?;
    play.checkpoint("c1")?;
    play.change("vda", Resize(6))?;
    play.change("vda", Resize(16))?;
    play.bitmaps("vda", "c1 recording 0 | ")?;
    // Neither what was cut off nor what is below shows again.
    play.data_at_least("vda", &[(0, 6)])
}

pub(super) fn a_cut_inside_a_bit(play: &mut Play<'_>) -> Played {
    play.vm(&[DiskSpec { cluster: 4, ..disk("vda") }]);
    play.checkpoint("c1")?;
    play.change("vda", Write(4, 4, 1))?;
    play.change("vda", Resize(6))?;
    play.delta("vda", "c1", &[(4, 2)])?;
    play.change("vda", Resize(16))?;
    // The bit is still there, and counts for all of what it covers.
    play.delta("vda", "c1", &[(4, 4)])
}

/// What lies behind a cut inside a cluster comes back when the disk grows again, but the bits that said that it had changed do not.
pub(super) fn a_cut_inside_a_cluster_of_several_bits_loses_some(play: &mut Play<'_>) -> Played {
    play.vm(&[DiskSpec { cluster: 8, ..disk("vda") }]);
    play.change("vda", Write(0, 8, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", Write(5, 1, 2))?;
    play.bitmaps("vda", "c1 recording 4")?;
    play.change("vda", Resize(3))?;
    play.change("vda", Resize(16))?;
    play.bitmaps("vda", "c1 recording 0")?;
    play.delta("vda", "c1", &[])?;
    play.data("vda", &[(0, 8)])
}

pub(super) fn a_busy_bitmap_forbids_another_size(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.point(&[("vda", Some("c1"))], None, |at| {
        at.refused("vda", Resize(20))?;
        at.refused("vda", Resize(8))
    })?;
    play.change("vda", Resize(20))?;
    play.bitmaps("vda", "c1 recording 0")
}

pub(super) fn holes_and_zeros_are_told(play: &mut Play<'_>) -> Played {
    play.vm(&[DiskSpec { cluster: 2, ..disk("vda") }]);
    play.data("vda", &[])?;
    // Zeros that are written as data take space; zeros that are written as zeros do not count as data.
    play.change("vda", Write(0, 2, 0))?;
    play.data("vda", &[(0, 2)])?;
    play.change("vda", WriteZeros(0, 2))?;
    play.change("vda", WriteZeros(5, 1))?;
    play.data("vda", &[])?;
    play.change("vda", Write(8, 4, 1))?;
    play.change("vda", WriteZeros(9, 1))?;
    play.change("vda", Discard(11, 1))?;
    play.data("vda", &[(8, 4)])?;
    play.change("vda", Discard(10, 2))?;
    play.data("vda", &[(8, 2)])
}
