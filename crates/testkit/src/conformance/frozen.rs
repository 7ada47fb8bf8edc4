//! What a scenario can do and see while keepmark has a moment.

use keepmark_model::seam::{FrozenDisk, FrozenPoint};
use keepmark_model::{Extent, Extents};

use super::observation::Observation;
use super::play::{End, Log, Played, broken, disk_name, happen, refused};
use super::{Bench, Change};
use crate::OrFail;

/// A moment that keepmark has fixed.
pub struct Frozen<'a, 'b> {
    pub(super) bench: &'a mut dyn Bench,
    pub(super) point: &'a mut (dyn FrozenPoint + 'b),
    pub(super) log: &'a mut Log,
    pub(super) off: bool,
}

impl Frozen<'_, '_> {
    fn only_running(&self) -> Played {
        if self.off { Err(End::NotHere("nobody writes to images that keepmark has open".to_owned())) } else { Ok(()) }
    }

    /// Something happens to a disk meanwhile.
    ///
    /// # Errors
    /// When it is refused or cannot be done here.
    pub fn change(&mut self, disk: &str, change: Change) -> Played {
        self.only_running()?;
        self.log.story.push(format!("meanwhile, {disk}: {change:?}"));
        happen(self.bench, disk, change)
    }

    /// Something is refused meanwhile.
    ///
    /// # Errors
    /// When it cannot be done here.
    pub fn refused(&mut self, disk: &str, change: Change) -> Played {
        self.only_running()?;
        let refused = refused(self.bench, disk, change)?;
        self.log.story.push(format!("meanwhile, {disk}: {change:?} is to be refused"));
        self.log.expect("refused", &refused, &true);
        self.log.seen.push(Observation::Refused(format!("{change:?}: {refused}")));
        Ok(())
    }

    /// What changed on a disk since the checkpoint that was asked for: (first unit, number).
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn delta(&mut self, disk: &str, wanted: &[(u64, u64)]) -> Played {
        let dirty = self.open(disk)?.dirty().map_err(broken)?;
        let units = in_units(&dirty, self.bench.unit());
        self.log.expect(&format!("the delta of {disk}"), units.as_slice(), wanted);
        self.log.seen.push(Observation::Delta(disk.to_owned(), units));
        Ok(())
    }

    /// That these units count as changed on a disk; perhaps more.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn delta_at_least(&mut self, disk: &str, wanted: &[(u64, u64)]) -> Played {
        let delta = self.open(disk)?.dirty().map_err(broken)?;
        self.log.expect(
            &format!("what the delta of {disk} lacks"),
            &in_bytes(wanted, self.bench.unit()).difference(&delta),
            &Extents::new(),
        );
        Ok(())
    }

    /// Which units of a disk may hold something else than zeros: (first unit, number).
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn data(&mut self, disk: &str, wanted: &[(u64, u64)]) -> Played {
        let units = in_units(&self.told_as_data(disk)?, self.bench.unit());
        self.log.expect(&format!("the data of {disk}"), units.as_slice(), wanted);
        self.log.seen.push(Observation::Data(disk.to_owned(), units));
        Ok(())
    }

    /// Whether these units of a disk may hold something else than zeros; perhaps more.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn data_at_least(&mut self, disk: &str, wanted: &[(u64, u64)]) -> Played {
        let missing = in_bytes(wanted, self.bench.unit()).difference(&self.told_as_data(disk)?);
        self.log.expect(&format!("what is not told as data of {disk}"), &missing, &Extents::new());
        Ok(())
    }

    fn told_as_data(&mut self, disk: &str) -> Result<Extents, End> {
        let mut open = self.open(disk)?;
        let whole = Extents::whole(open.size());
        open.data(&whole).map_err(broken)
    }

    /// A disk holds exactly these bytes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn holds(&mut self, disk: &str, truth: &[u8]) -> Played {
        let content = self.read(disk)?;
        self.log.expect(&format!("that the content of {disk} is the witness'"), &(content == truth), &true);
        let unit = usize::try_from(self.bench.unit()).or_fail("a unit is small");
        self.log.seen.push(Observation::Content(disk.to_owned(), content.chunks(unit).map(|bytes| bytes[0]).collect()));
        Ok(())
    }

    fn open(&mut self, disk: &str) -> Result<Box<dyn FrozenDisk>, End> {
        self.point.disk(&disk_name(disk)).map_err(broken)
    }

    fn read(&mut self, disk: &str) -> Result<Vec<u8>, End> {
        let mut open = self.open(disk)?;
        let whole = Extents::whole(open.size());
        let mut content = vec![0; usize::try_from(open.size().0).or_fail("a disk is small")];
        let place = |extent: Extent| usize::try_from(extent.start).or_fail("a disk is small");
        open.read(&mut whole.iter(), &mut |extent, bytes| {
            content[place(extent)..place(extent) + bytes.len()].copy_from_slice(&bytes);
            Ok(())
        })
        .map_err(broken)?;
        Ok(content)
    }
}

fn in_bytes(units: &[(u64, u64)], unit: u64) -> Extents {
    units.iter().map(|(start, length)| Extent::at(start * unit, length * unit)).collect()
}

fn in_units(extents: &Extents, unit: u64) -> Vec<(u64, u64)> {
    // A part of a unit counts as all of it.
    let rounded: Extents = extents.iter().map(|extent| Extent::new(extent.start / unit, extent.end.div_ceil(unit))).collect();
    rounded.iter().map(|extent| (extent.start, extent.len())).collect()
}
