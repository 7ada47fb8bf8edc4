//! External snapshots: bitmaps along the backing chain, merged downwards and upwards.

use super::super::Change::{Commit, DisableBitmap, ManagedSnapshot, Resize, Snapshot, Stream, Write, WriteZeros};
use super::super::{DiskSpec, Play, Played, Process, disk};

pub(super) fn a_snapshot_without_bitmaps_freezes_those_below(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 1, 1))?;
    play.change("vda", Snapshot(1))?;
    play.bitmaps("vda", " | c1 recording 1")?;
    play.change("vda", Write(4, 1, 2))?;
    play.bitmaps("vda", " | c1 recording 1")?;
    // The writes above are in no bitmap.
    play.no_point(&[("vda", Some("c1"))], Some("c2"), |_| Ok(()))?;
    play.checkpoint("c3")?;
    play.change("vda", Write(6, 1, 3))?;
    play.bitmaps("vda", "c3 recording 1 | c1 recording 1")?;
    play.delta("vda", "c3", &[(6, 1)])?;
    play.data("vda", &[(0, 1), (4, 1), (6, 1)])?;
    play.process(Process::Kill)?;
    let above = if play.is_off() { "c3 inconsistent 0" } else { "" };
    play.bitmaps("vda", &format!("{above} | c1 recording 1"))
}

pub(super) fn a_moment_of_a_chain_stays_while_the_guest_writes_on(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 6, 1))?;
    play.change("vda", Snapshot(1))?;
    play.change("vda", Write(4, 4, 2))?;
    let truth = play.truth("vda");
    play.point(&[("vda", None)], Some("c1"), |at| {
        at.data("vda", &[(0, 8)])?;
        at.change("vda", WriteZeros(0, 2))?;
        at.change("vda", WriteZeros(5, 2))?;
        at.change("vda", Write(10, 1, 9))?;
        // What was below, and what was above, still counts as data; what was nothing may.
        at.data_at_least("vda", &[(0, 8)])?;
        at.holds("vda", &truth)
    })?;
    play.data("vda", &[(2, 3), (7, 1), (10, 1)])
}

pub(super) fn a_snapshot_with_bitmaps_goes_on_under_the_same_names(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 1, 1))?;
    play.change("vda", ManagedSnapshot(1))?;
    play.bitmaps("vda", "c1 recording 0 | c1 recording 1")?;
    play.change("vda", Write(4, 1, 2))?;
    play.delta("vda", "c1", &[(0, 1), (4, 1)])?;
    play.process(Process::Restart)?;
    play.change("vda", ManagedSnapshot(1))?;
    play.change("vda", Write(6, 1, 3))?;
    play.bitmaps("vda", "c1 recording 1 | c1 recording 1 | c1 recording 1")?;
    play.delta("vda", "c1", &[(0, 1), (4, 1), (6, 1)])
}

pub(super) fn bitmaps_above_are_lost_in_a_kill_and_those_below_are_not(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 1, 1))?;
    play.change("vda", ManagedSnapshot(1))?;
    play.change("vda", Write(4, 1, 2))?;
    play.process(Process::Kill)?;
    let above = if play.is_off() { "c1 inconsistent 0" } else { "" };
    play.bitmaps("vda", &format!("{above} | c1 recording 1"))?;
    play.no_point(&[("vda", Some("c1"))], Some("c2"), |_| Ok(()))
}

pub(super) fn a_commit_is_recorded_below(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 8, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", Write(1, 1, 2))?;
    play.change("vda", Snapshot(1))?;
    play.change("vda", Write(4, 1, 3))?;
    play.change("vda", WriteZeros(6, 1))?;
    play.change("vda", Commit)?;
    play.bitmaps("vda", "c1 recording 3")?;
    play.change("vda", Write(10, 1, 4))?;
    play.delta("vda", "c1", &[(1, 1), (4, 1), (6, 1), (10, 1)])?;
    play.data("vda", &[(0, 6), (7, 1), (10, 1)])
}

pub(super) fn a_commit_of_a_coarser_image(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Snapshot(4))?;
    play.change("vda", Write(5, 1, 3))?;
    play.change("vda", Commit)?;
    // All of the upper image's cluster is written below.
    play.delta("vda", "c1", &[(4, 4)])
}

pub(super) fn a_disabled_bitmap_below_misses_a_commit(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", DisableBitmap("c1"))?;
    play.change("vda", Snapshot(1))?;
    play.change("vda", Write(5, 1, 3))?;
    play.change("vda", Commit)?;
    play.bitmaps("vda", "c1 stopped 0")
}

pub(super) fn a_stream_is_not_recorded(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 4, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", ManagedSnapshot(1))?;
    play.checkpoint("c2")?;
    play.change("vda", Write(2, 1, 2))?;
    play.change("vda", Stream)?;
    play.bitmaps("vda", "c1 recording 1; c2 recording 1")?;
    play.delta("vda", "c2", &[(2, 1)])?;
    play.data("vda", &[(0, 4)])
}

pub(super) fn images_of_different_size_make_everything_count(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", ManagedSnapshot(1))?;
    play.change("vda", Resize(20))?;
    play.change("vda", Write(17, 1, 1))?;
    play.bitmaps("vda", "c1 recording 1 | c1 recording 0")?;
    play.delta("vda", "c1", &[(0, 20)])
}

pub(super) fn bitmaps_below_cannot_be_removed(play: &mut Play<'_>) -> Played {
    play.vm(&[DiskSpec { units: 12, ..disk("vda") }]);
    play.checkpoint("c1")?;
    play.change("vda", ManagedSnapshot(1))?;
    // That they stay is no error: they do no harm.
    play.forget(&["c1"])?;
    play.bitmaps("vda", " | c1 recording 0")?;
    play.change("vda", Commit)?;
    play.forget(&["c1"])?;
    play.bitmaps("vda", "")
}
