//! The frozen moment: what it holds, what it takes to be refused, and what it leaves.

use keepmark_model::facts::Power;

use super::super::Change::{Commit, DisableBitmap, Discard, Resize, Snapshot, Write, WriteZeros};
use super::super::play::happen;
use super::super::{Play, Played, Process, disk};

pub(super) fn a_moment_stays_while_the_guest_writes_on(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda"), disk("vdb")]);
    play.change("vda", Write(0, 8, 1))?;
    play.change("vdb", Write(4, 4, 2))?;
    play.checkpoint("c1")?;
    play.change("vda", Write(2, 2, 3))?;
    let (vda, vdb) = (play.truth("vda"), play.truth("vdb"));
    play.point(&[("vda", Some("c1")), ("vdb", Some("c1"))], Some("c2"), |at| {
        at.holds("vda", &vda)?;
        at.change("vda", Write(0, 4, 9))?;
        at.change("vda", WriteZeros(4, 2))?;
        at.change("vda", Write(12, 2, 9))?;
        at.holds("vda", &vda)?;
        at.holds("vdb", &vdb)?;
        at.delta("vda", &[(2, 2)])?;
        at.delta("vdb", &[])?;
        at.data("vda", &[(0, 8)])?;
        at.data("vdb", &[(4, 4)])
    })?;
    // The old bitmap has gone on, the new one has what came after the moment.
    play.bitmaps("vda", "c1 recording 8; c2 recording 8")?;
    play.delta("vda", "c2", &[(0, 6), (12, 2)])?;
    play.delta("vdb", "c2", &[])?;
    play.data("vda", &[(0, 4), (6, 2), (12, 2)])
}

/// QEMU's filters ignore discards, its jobs do not: either way the moment is kept, and what changed is recorded.
pub(super) fn a_discard_does_not_reach_a_moment(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 8, 1))?;
    let truth = play.truth("vda");
    play.point(&[("vda", None)], Some("c1"), |at| {
        at.change("vda", Discard(2, 4))?;
        at.holds("vda", &truth)
    })?;
    if play.truth("vda") == truth { Ok(()) } else { play.delta_at_least("vda", "c1", &[(2, 4)]) }
}

pub(super) fn a_delta_is_what_was_written_between_two_checkpoints(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(1, 1, 1))?;
    let truth = play.truth("vda");
    play.point(&[("vda", Some("c1"))], Some("c2"), |at| {
        at.delta("vda", &[(1, 1)])?;
        at.holds("vda", &truth)
    })?;
    play.change("vda", Write(3, 1, 2))?;
    play.point(&[("vda", Some("c2"))], Some("c3"), |at| at.delta("vda", &[(3, 1)]))?;
    play.change("vda", Write(5, 1, 3))?;
    play.bitmaps("vda", "c1 recording 3; c2 recording 2; c3 recording 1")?;
    for (since, wanted) in [("c1", &[(1, 1), (3, 1), (5, 1)][..]), ("c2", &[(3, 1), (5, 1)]), ("c3", &[(5, 1)])] {
        play.delta("vda", since, wanted)?;
    }
    Ok(())
}

pub(super) fn a_dropped_moment_leaves_nothing(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda"), disk("vdb")]);
    play.checkpoint("c1")?;
    play.dropped_point(&[("vda", Some("c1")), ("vdb", Some("c1"))], None)?;
    play.bitmaps("vda", "c1 recording 0")?;
    // Once a moment exists its checkpoint stays.
    play.dropped_point(&[("vda", Some("c1")), ("vdb", None)], Some("c2"))?;
    play.bitmaps("vda", "c1 recording 0; c2 recording 0")?;
    play.bitmaps("vdb", "c1 recording 0; c2 recording 0")?;
    play.change("vda", Write(0, 1, 1))?;
    play.data("vda", &[(0, 1)])
}

pub(super) fn a_moment_without_checkpoint_leaves_no_bitmap(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 1, 1))?;
    let truth = play.truth("vda");
    play.point(&[("vda", None)], None, |at| at.holds("vda", &truth))?;
    play.bitmaps("vda", "")
}

pub(super) fn a_checkpoint_is_on_all_disks_or_none(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda"), disk("vdb")]);
    play.point(&[("vdb", None)], Some("c1"), |_| Ok(()))?;
    // The name is taken on the second disk, so the first one does not get it either.
    play.no_point(&[("vda", None), ("vdb", None)], Some("c1"), |_| Ok(()))?;
    play.bitmaps("vda", "")?;
    play.bitmaps("vdb", "c1 recording 0")?;
    play.checkpoint("c2")?;
    play.bitmaps("vda", "c2 recording 0")?;
    play.bitmaps("vdb", "c1 recording 0; c2 recording 0")
}

pub(super) fn a_checkpoint_on_some_disks_is_on_those_only(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda"), disk("vdb")]);
    play.point(&[("vda", None)], Some("c1"), |_| Ok(()))?;
    play.change("vdb", Write(0, 1, 1))?;
    play.bitmaps("vda", "c1 recording 0")?;
    play.bitmaps("vdb", "")
}

pub(super) fn what_cannot_be_had_is_refused(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.no_point(&[("vdz", None)], Some("c1"), |_| Ok(()))?;
    play.no_point(&[("vda", Some("c1"))], Some("c2"), |_| Ok(()))?;
    play.bitmaps("vda", "")
}

pub(super) fn a_moment_that_is_killed_is_gone(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.process(Process::Restart)?;
    play.change("vda", Write(0, 2, 1))?;
    play.killed_at_a_point(&[("vda", Some("c1"))], Some("c2"))?;
    play.bitmaps("vda", "c1 inconsistent 0")?;
    play.data("vda", &[(0, 2)])
}

pub(super) fn removed_checkpoints_are_gone_from_all_disks(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda"), disk("vdb")]);
    for label in ["c1", "c2", "c3"] {
        play.checkpoint(label)?;
    }
    play.forget(&["c1", "c3", "c7"])?;
    play.bitmaps("vda", "c2 recording 0")?;
    play.bitmaps("vdb", "c2 recording 0")?;
    play.process(Process::Restart)?;
    play.bitmaps("vda", "c2 recording 0")
}

pub(super) fn a_paused_vm_stays_paused(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    let power = if play.is_off() { Power::Off } else { Power::Running };
    play.power(power)?;
    play.checkpoint("c1")?;
    play.power(power)?;
    play.process(Process::Pause)?;
    play.checkpoint("c2")?;
    play.power(Power::Paused)
}

pub(super) fn nothing_changes_the_images_below_a_moment(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 4, 1))?;
    play.checkpoint("c1")?;
    let truth = play.truth("vda");
    play.point(&[("vda", Some("c1"))], Some("c2"), |at| {
        at.refused("vda", Resize(8))?;
        at.refused("vda", Resize(20))?;
        at.holds("vda", &truth)
    })?;
    play.change("vda", Resize(20))
}

pub(super) fn what_changed_after_the_look_is_refused_at_the_moment(play: &mut Play<'_>) -> Played {
    play.only_running("nobody else changes images that keepmark has open")?;
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.no_point(&[("vda", Some("c1"))], Some("c2"), |bench| {
        happen(bench, "vda", Snapshot(1))?;
        happen(bench, "vda", Write(2, 1, 1))
    })?;
    play.bitmaps("vda", " | c1 recording 0")?;
    play.change("vda", Commit)?;
    play.no_point(&[("vda", Some("c1"))], Some("c2"), |bench| {
        happen(bench, "vda", DisableBitmap("c1"))?;
        happen(bench, "vda", Write(4, 1, 1))
    })?;
    play.bitmaps("vda", "c1 stopped 1")
}
