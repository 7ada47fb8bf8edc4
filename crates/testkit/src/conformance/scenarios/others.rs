//! What people and other programs do beside keepmark, and what becomes of a moment meanwhile.

use super::super::Change::{AddBitmap, Commit, MergeBitmap, Mirror, RemoveBitmap, Snapshot, Write};
use super::super::play::happen;
use super::super::{Play, Played, disk};

pub(super) fn a_bitmap_that_somebody_merged_into_ours_adds_to_it(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", AddBitmap("other"))?;
    play.change("vda", Write(0, 2, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", Write(4, 1, 1))?;
    play.change("vda", MergeBitmap("c1", "other"))?;
    play.delta_at_least("vda", "c1", &[(0, 2), (4, 1)])
}

pub(super) fn a_bitmap_that_was_made_anew_has_forgotten(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 2, 1))?;
    play.change("vda", RemoveBitmap("c1"))?;
    play.change("vda", AddBitmap("c1"))?;
    play.change("vda", Write(4, 1, 1))?;
    play.bitmaps("vda", "c1 recording 1")
}

pub(super) fn a_mirror_that_ended_after_the_look_is_refused_at_the_moment(play: &mut Play<'_>) -> Played {
    play.only_running("nobody else changes images that keepmark has open")?;
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.no_point(&[("vda", Some("c1"))], Some("c2"), |bench| happen(bench, "vda", Mirror))?;
    play.bitmaps("vda", "")
}

pub(super) fn mirror_and_commit_are_refused_during_a_moment(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 4, 1))?;
    play.change("vda", Snapshot(1))?;
    play.checkpoint("c1")?;
    let truth = play.truth("vda");
    play.point(&[("vda", Some("c1"))], Some("c2"), |at| {
        at.refused("vda", Mirror)?;
        at.refused("vda", Commit)?;
        at.holds("vda", &truth)
    })
}
