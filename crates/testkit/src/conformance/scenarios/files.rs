//! Images that are moved, written anew, copied or put back.

use super::super::Change::{Amend, Convert, CopyFile, Mirror, PutBack, Write};
use super::super::{Play, Played, Process, disk};

pub(super) fn a_mirrored_disk_has_no_bitmaps(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.change("vda", Write(0, 4, 1))?;
    play.checkpoint("c1")?;
    play.change("vda", Mirror)?;
    play.bitmaps("vda", "")?;
    play.data("vda", &[(0, 4)])?;
    play.checkpoint("c2")?;
    play.change("vda", Write(8, 1, 2))?;
    play.delta("vda", "c2", &[(8, 1)])
}

pub(super) fn convert_drops_bitmaps_unless_told(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 4, 1))?;
    play.change("vda", Convert(true))?;
    play.bitmaps("vda", "c1 recording 4")?;
    play.change("vda", Write(6, 1, 1))?;
    play.delta("vda", "c1", &[(0, 4), (6, 1)])?;
    play.change("vda", Convert(false))?;
    play.bitmaps("vda", "")?;
    play.data("vda", &[(0, 4), (6, 1)])
}

pub(super) fn amend_drops_bitmaps(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Amend)?;
    play.bitmaps("vda", "")
}

pub(super) fn a_copy_of_an_open_image_has_worthless_bitmaps(play: &mut Play<'_>) -> Played {
    play.only_running("the image is open only while keepmark works")?;
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.process(Process::Restart)?;
    play.checkpoint("c2")?;
    play.change("vda", CopyFile)?;
    play.change("vda", PutBack)?;
    play.bitmaps("vda", "c1 inconsistent 0")
}

pub(super) fn a_copy_of_a_closed_image_is_as_it_was(play: &mut Play<'_>) -> Played {
    play.vm(&[disk("vda")]);
    play.checkpoint("c1")?;
    play.change("vda", Write(0, 1, 1))?;
    if !play.is_off() {
        return Err(super::super::End::NotHere("the image is open while the VM runs".to_owned()));
    }
    play.change("vda", CopyFile)?;
    play.change("vda", Write(5, 1, 1))?;
    play.checkpoint("c2")?;
    play.bitmaps("vda", "c1 recording 2; c2 recording 0")?;
    play.change("vda", PutBack)?;
    play.bitmaps("vda", "c1 recording 1")?;
    play.delta("vda", "c1", &[(0, 1)])
}
