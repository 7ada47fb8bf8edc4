//! The life of a bitmap: recorded, stored, lost, stopped, cleared, held.

use super::super::Change::{
    AddBitmap, ClearBitmap, DisableBitmap, Discard, EnableBitmap, HoldBitmap, LetGo, RemoveBitmap, Resize, Write, WriteZeros,
};
use super::super::{DiskSpec, Play, Played, Process, disk};

pub(super) fn a_checkpoint_records_what_comes_after_it(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda"), disk("vdb")]);
    play.change("vda", Write(0, 2, 1))?;
    play.checkpoint("c1")?;
    play.bitmaps("vda", "c1 recording 0")?;
    play.change("vda", Write(4, 3, 2))?;
    play.bitmaps("vda", "c1 recording 3")?;
    play.bitmaps("vdb", "c1 recording 0")?;
    play.delta("vda", "c1", &[(4, 3)])?;
    play.delta("vdb", "c1", &[])?;
    play.data("vda", &[(0, 2), (4, 3)])
}

pub(super) fn an_orderly_end_stores_bitmaps_and_they_go_on(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(1, 1, 1))?;
    play.process(Process::Restart)?;
    play.bitmaps("vda", "c1 recording 1")?;
    play.change("vda", Write(8, 1, 2))?;
    play.checkpoint("c2")?;
    play.process(Process::Restart)?;
    play.change("vda", Write(3, 1, 3))?;
    play.bitmaps("vda", "c1 recording 3; c2 recording 1")?;
    play.delta("vda", "c1", &[(1, 1), (3, 1), (8, 1)])?;
    play.delta("vda", "c2", &[(3, 1)])
}

pub(super) fn a_new_bitmap_is_absent_after_a_kill(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(1, 1, 1))?;
    play.process(Process::Kill)?;
    // Of a VM that is off, keepmark itself closed the image in order.
    let wanted = if play.is_off() { "c1 inconsistent 0" } else { "" };
    play.bitmaps("vda", wanted)
}

pub(super) fn stored_bitmaps_are_inconsistent_after_a_kill(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda"), disk("vdb")]);
    play.checkpoint("c1")?;
    play.process(Process::Restart)?;
    play.change("vda", Write(1, 1, 1))?;
    play.process(Process::Kill)?;
    play.bitmaps("vda", "c1 inconsistent 0")?;
    play.bitmaps("vdb", "c1 inconsistent 0")?;
    play.process(Process::Restart)?;
    play.bitmaps("vda", "c1 inconsistent 0")
}

pub(super) fn a_disabled_bitmap_is_lost_in_a_kill_too(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", DisableBitmap("c1"))?;
    play.process(Process::Restart)?;
    play.bitmaps("vda", "c1 stopped 0")?;
    play.process(Process::Kill)?;
    play.bitmaps("vda", "c1 inconsistent 0")
}

pub(super) fn a_removal_survives_a_kill(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.process(Process::Restart)?;
    play.forget(&["c1"])?;
    play.process(Process::Kill)?;
    play.bitmaps("vda", "")
}

pub(super) fn an_inconsistent_bitmap_can_only_be_removed(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.process(Process::Restart)?;
    play.process(Process::Kill)?;
    for change in [ClearBitmap("c1"), EnableBitmap("c1"), DisableBitmap("c1"), Resize(20)] {
        play.refused("vda", change)?;
    }
    play.no_point(&[("vda", Some("c1"))], Some("c2"), |_| Ok(()))?;
    play.no_point(&[("vda", None)], Some("c1"), |_| Ok(()))?;
    play.checkpoint("c3")?;
    play.change("vda", Write(2, 1, 1))?;
    play.bitmaps("vda", "c1 inconsistent 0; c3 recording 1")?;
    play.delta("vda", "c3", &[(2, 1)])?;
    play.forget(&["c1"])?;
    play.bitmaps("vda", "c3 recording 1")?;
    play.change("vda", Resize(20))
}

pub(super) fn a_disabled_bitmap_misses_writes(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 1, 1))?;
    play.change("vda", DisableBitmap("c1"))?;
    play.change("vda", Write(4, 1, 2))?;
    play.bitmaps("vda", "c1 stopped 1")?;
    play.change("vda", EnableBitmap("c1"))?;
    play.change("vda", Write(8, 1, 3))?;
    play.bitmaps("vda", "c1 recording 2")?;
    play.delta("vda", "c1", &[(0, 1), (8, 1)])
}

pub(super) fn a_cleared_bitmap_forgets(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 3, 1))?;
    play.change("vda", ClearBitmap("c1"))?;
    play.bitmaps("vda", "c1 recording 0")?;
    play.change("vda", Write(2, 1, 2))?;
    play.delta("vda", "c1", &[(2, 1)])
}

pub(super) fn bitmaps_of_raw_images_live_in_memory(play: &mut Play<'_>) -> Played {
    let raw = DiskSpec { raw: true, ..disk("vda") };
    play.vm(&[raw, disk("vdb")]);
    play.checkpoint("c1")?;
    play.bitmaps("vdb", "c1 recording 0")?;
    if play.is_off() {
        return play.bitmaps("vda", "");
    }
    play.bitmaps("vda", "c1 recording memory 0")?;
    play.process(Process::Restart)?;
    play.bitmaps("vda", "")
}

pub(super) fn foreign_bitmaps_are_left_alone(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", AddBitmap("other"))?;
    play.change("vda", Write(0, 1, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", Write(5, 1, 1))?;
    play.bitmaps("vda", "c1 recording 1; other recording 2")?;
    play.checkpoint("c2")?;
    play.forget(&["c1", "c2", "c9"])?;
    play.bitmaps("vda", "other recording 2")?;
    play.process(Process::Restart)?;
    play.bitmaps("vda", "other recording 2")?;
    play.change("vda", RemoveBitmap("other"))?;
    play.bitmaps("vda", "")
}

pub(super) fn a_bitmap_has_the_granularity_of_its_image(play: &mut Play<'_>) -> Played {
    play.vm(&[DiskSpec { cluster: 4, ..disk("vda") }, DiskSpec { cluster: 2, units: 15, ..disk("vdb") }]);
    play.checkpoint("c1")?;
    play.change("vda", Write(5, 1, 1))?;
    play.change("vdb", Write(14, 1, 1))?;
    play.bitmaps("vda", "c1 recording 4")?;
    play.delta("vda", "c1", &[(4, 4)])?;
    play.delta("vdb", "c1", &[(14, 1)])?;
    play.bitmaps("vdb", "c1 recording 2")?;
    // What is written into a part of a cluster allocates all of it, though QEMU may know of the zeros around.
    play.data_at_least("vda", &[(5, 1)])
}

pub(super) fn zeros_and_discards_are_recorded(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 8, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", WriteZeros(1, 2))?;
    play.change("vda", Discard(5, 2))?;
    play.change("vda", Discard(12, 2))?;
    play.delta("vda", "c1", &[(1, 2), (5, 2), (12, 2)])?;
    play.data("vda", &[(0, 1), (3, 2), (7, 1)])
}

pub(super) fn a_bitmap_that_a_job_holds_is_busy(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 4, 1))?;
    play.change("vda", HoldBitmap("c1"))?;
    play.bitmaps("vda", "c1 recording busy 4")?;
    for change in [ClearBitmap("c1"), DisableBitmap("c1"), RemoveBitmap("c1"), Resize(20)] {
        play.refused("vda", change)?;
    }
    play.no_point(&[("vda", Some("c1"))], Some("c2"), |_| Ok(()))?;
    play.cannot_forget(&["c1"])?;
    play.change("vda", Write(8, 2, 2))?;
    play.checkpoint("c3")?;
    play.bitmaps("vda", "c1 recording busy 4; c3 recording 0")?;
    play.change("vda", LetGo)?;
    play.bitmaps("vda", "c1 recording 6; c3 recording 0")?;
    play.delta("vda", "c1", &[(0, 4), (8, 2)])
}
