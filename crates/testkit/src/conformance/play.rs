//! What a scenario can do and see. Each step is told in words; what was expected and is not so is noted, and the scenario goes on.

use keepmark_model::facts::{Power, VmFacts};
use keepmark_model::seam::{Freeze, PointDisk, PointRequest};
use keepmark_model::{CheckpointName, DiskName, Extent};

use super::frozen::Frozen;
use super::observation::{Observation, in_words, of_disk};
use super::{Bench, Change, DiskSpec, Meets, Process, Unable, bitmap_name};
use crate::OrFail;

/// Why a scenario ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It cannot be played on this bench, and why.
    NotHere(String),
    /// Something that has to work did not.
    Broken(String),
}

/// How a scenario, or a step of one, ends.
pub type Played = Result<(), End>;

/// A scenario being played on a bench.
pub struct Play<'a> {
    bench: &'a mut dyn Bench,
    disks: Vec<String>,
    log: Log,
}

/// What was done and seen so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    pub(super) story: Vec<String>,
    pub(super) seen: Vec<Observation>,
    pub(super) wrong: Vec<String>,
}

impl Log {
    pub(super) fn expect<T: PartialEq + std::fmt::Debug + ?Sized>(&mut self, what: &str, got: &T, wanted: &T) {
        if got != wanted {
            let step = self.story.last().map_or("the beginning", String::as_str);
            self.wrong.push(format!("after {step:?}: {what} is {got:?}, expected {wanted:?}"));
        }
    }
}

fn checkpoint(label: &str) -> CheckpointName {
    CheckpointName::parse(&bitmap_name(label)).or_fail(format_args!("{label} is no checkpoint's label"))
}

pub(super) fn disk_name(name: &str) -> DiskName {
    DiskName::new(name).or_fail(format_args!("{name} is no disk's name"))
}

pub(super) fn broken(failure: impl std::fmt::Display) -> End {
    End::Broken(failure.to_string())
}

impl<'a> Play<'a> {
    pub(super) fn new(bench: &'a mut dyn Bench) -> Self {
        Self { bench, disks: Vec::new(), log: Log::default() }
    }

    pub(super) fn end(mut self) -> Log {
        let left = self.bench.left();
        self.log.expect("what keepmark left", &left, &Vec::new());
        self.log.seen.push(Observation::Left(left));
        self.log
    }

    /// Whether keepmark meets the VM powered off here.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.bench.meets() == Meets::Off
    }

    /// This scenario is about a running VM.
    ///
    /// # Errors
    /// When it is met powered off here.
    pub fn only_running(&self, why: &str) -> Played {
        if self.is_off() { Err(End::NotHere(why.to_owned())) } else { Ok(()) }
    }

    /// There is a VM with these disks.
    pub fn vm(&mut self, disks: &[DiskSpec]) {
        let units = |disk: &DiskSpec| format!("{} of {} units", disk.name, disk.units);
        self.log.story.push(format!("a VM with {}", disks.iter().map(units).collect::<Vec<_>>().join(", ")));
        self.disks = disks.iter().map(|disk| disk.name.to_owned()).collect();
        self.bench.make(disks);
    }

    /// Something happens to a disk.
    ///
    /// # Errors
    /// When it is refused or cannot be done here.
    pub fn change(&mut self, disk: &str, change: Change) -> Played {
        self.log.story.push(format!("{disk}: {change:?}"));
        happen(self.bench, disk, change)
    }

    /// Something is refused.
    ///
    /// # Errors
    /// When it cannot be done here.
    pub fn refused(&mut self, disk: &str, change: Change) -> Played {
        let refused = refused(self.bench, disk, change)?;
        self.log.story.push(format!("{disk}: {change:?} is to be refused"));
        self.log.expect("refused", &refused, &true);
        self.log.seen.push(Observation::Refused(format!("{change:?}: {refused}")));
        Ok(())
    }

    /// Something happens to the process that has the images open.
    ///
    /// # Errors
    /// When it cannot be done here.
    pub fn process(&mut self, change: Process) -> Played {
        self.log.story.push(format!("the process: {change:?}"));
        self.bench.process(change).map_err(unable)
    }

    /// keepmark starts a checkpoint on all disks.
    ///
    /// # Errors
    /// When it cannot.
    pub fn checkpoint(&mut self, label: &str) -> Played {
        let all: Vec<String> = self.disks.clone();
        let disks: Vec<(&str, Option<&str>)> = all.iter().map(|name| (name.as_str(), None)).collect();
        self.point(&disks, Some(label), |_| Ok(()))
    }

    /// keepmark fixes a moment over these disks, each with the checkpoint whose delta is wanted, and starts a checkpoint; `inside` is
    /// what happens while the moment is there. Then it is released.
    ///
    /// # Errors
    /// When anything of it fails.
    pub fn point(
        &mut self,
        disks: &[(&str, Option<&str>)],
        new: Option<&str>,
        inside: impl FnOnce(&mut Frozen<'_, '_>) -> Played,
    ) -> Played {
        self.log.story.push(format!("keepmark fixes a moment over {disks:?}, checkpoint {new:?}"));
        let mut vm = self.bench.connect();
        vm.facts().map_err(broken)?;
        let mut point = vm.begin(&request(disks, new)).map_err(broken)?;
        let off = self.bench.meets() == Meets::Off;
        inside(&mut Frozen { bench: self.bench, point: point.as_mut(), log: &mut self.log, off })?;
        self.log.story.push("keepmark releases the moment".to_owned());
        point.release().map_err(broken)?;
        vm.close().map_err(broken)
    }

    /// The same, but the moment is dropped without being released.
    ///
    /// # Errors
    /// When it cannot begin.
    pub fn dropped_point(&mut self, disks: &[(&str, Option<&str>)], new: Option<&str>) -> Played {
        self.log.story.push(format!("keepmark fixes a moment over {disks:?}, checkpoint {new:?}, and drops it"));
        let mut vm = self.bench.connect();
        vm.facts().map_err(broken)?;
        drop(vm.begin(&request(disks, new)).map_err(broken)?);
        vm.close().map_err(broken)
    }

    /// keepmark looks, `meanwhile` happens, and then no moment may be fixed.
    ///
    /// # Errors
    /// When it cannot look.
    pub fn no_point(
        &mut self,
        disks: &[(&str, Option<&str>)],
        new: Option<&str>,
        meanwhile: impl FnOnce(&mut dyn Bench) -> Played,
    ) -> Played {
        let mut vm = self.bench.connect();
        vm.facts().map_err(broken)?;
        meanwhile(self.bench)?;
        let failure = vm.begin(&request(disks, new)).map(drop).err();
        self.log.story.push(format!("a moment over {disks:?}, checkpoint {new:?}, is to fail: {failure:?}"));
        self.log.expect("refused", &failure.is_some(), &true);
        self.log.seen.push(Observation::Refused(format!("a moment: {}", failure.is_some())));
        vm.close().map_err(broken)
    }

    /// The process that has the images open is killed while keepmark has a moment.
    ///
    /// # Errors
    /// When the moment cannot begin.
    pub fn killed_at_a_point(&mut self, disks: &[(&str, Option<&str>)], new: Option<&str>) -> Played {
        self.log.story.push(format!("the process is killed at a moment over {disks:?}, checkpoint {new:?}"));
        let mut vm = self.bench.connect();
        vm.facts().map_err(broken)?;
        let mut point = vm.begin(&request(disks, new)).map_err(broken)?;
        let disk = disks.first().map(|(name, _)| disk_name(name)).or_fail("a moment has disks");
        let mut frozen = point.disk(&disk).map_err(broken)?;
        self.bench.process(Process::Kill).map_err(unable)?;
        let read = frozen.read(&mut std::iter::once(Extent::at(0, self.bench.unit())), &mut |_, _| Ok(()));
        let failed = [read.is_err(), point.release().is_err(), vm.facts().is_err()];
        // A manager tells that nothing is left of the moment, and how the new process is.
        let direct = self.bench.is_direct();
        self.log.expect("reading, releasing and looking fail", &failed, &[true, direct, direct]);
        self.log.seen.push(Observation::Failed(format!("reading: {}", failed[0])));
        // Whether closing what is dead is an error does not matter.
        drop(vm.close());
        Ok(())
    }

    /// keepmark removes checkpoints.
    ///
    /// # Errors
    /// When it cannot.
    pub fn forget(&mut self, labels: &[&str]) -> Played {
        self.log.story.push(format!("keepmark removes {labels:?}"));
        self.remove(labels)?.map_err(broken)
    }

    /// keepmark cannot remove checkpoints.
    ///
    /// # Errors
    /// When it cannot even connect.
    pub fn cannot_forget(&mut self, labels: &[&str]) -> Played {
        let refused = self.remove(labels)?.is_err();
        self.log.story.push(format!("removing {labels:?} is to be refused"));
        self.log.expect("refused", &refused, &true);
        self.log.seen.push(Observation::Refused(format!("removing {labels:?}: {refused}")));
        Ok(())
    }

    fn remove(&mut self, labels: &[&str]) -> Result<keepmark_model::seam::Result<()>, End> {
        let names: Vec<CheckpointName> = labels.iter().map(|label| checkpoint(label)).collect();
        let mut vm = self.bench.connect();
        vm.facts().map_err(broken)?;
        let result = vm.remove_checkpoints(&names);
        vm.close().map_err(broken)?;
        Ok(result)
    }

    /// What is reported of a disk's bitmaps, as [`super::SeenBitmap`] says it: `;` between bitmaps, ` | ` between images.
    ///
    /// # Errors
    /// When keepmark cannot look.
    pub fn bitmaps(&mut self, disk: &str, wanted: &str) -> Played {
        let facts = self.look()?;
        let facts = facts.disks.iter().find(|facts| facts.name.as_str() == disk).or_fail(format_args!("{disk} is not reported"));
        let seen = of_disk(facts, self.bench.unit());
        if let Observation::Disk { images, .. } = &seen {
            self.log.expect(&format!("what {disk} reports"), in_words(images).as_str(), wanted);
        }
        self.log.seen.push(seen);
        Ok(())
    }

    /// Whether the VM runs, as keepmark sees it.
    ///
    /// # Errors
    /// When keepmark cannot look.
    pub fn power(&mut self, wanted: Power) -> Played {
        let power = self.look()?.power;
        self.log.expect("power", &power, &wanted);
        self.log.seen.push(Observation::Power(power));
        Ok(())
    }

    fn look(&mut self) -> Result<VmFacts, End> {
        let mut vm = self.bench.connect();
        let facts = vm.facts().map_err(broken)?;
        vm.close().map_err(broken)?;
        Ok(facts)
    }

    /// What changed on a disk since a checkpoint: (first unit, number).
    ///
    /// # Errors
    /// When keepmark cannot tell.
    pub fn delta(&mut self, disk: &str, since: &str, wanted: &[(u64, u64)]) -> Played {
        self.point(&[(disk, Some(since))], None, |at| at.delta(disk, wanted))
    }

    /// That these units count as changed on a disk since a checkpoint; perhaps more.
    ///
    /// # Errors
    /// When keepmark cannot tell.
    pub fn delta_at_least(&mut self, disk: &str, since: &str, wanted: &[(u64, u64)]) -> Played {
        self.point(&[(disk, Some(since))], None, |at| at.delta_at_least(disk, wanted))
    }

    /// What keepmark reads of a disk: what the guest reads, and which units may hold something else than zeros.
    ///
    /// # Errors
    /// When keepmark cannot read.
    pub fn data(&mut self, disk: &str, wanted: &[(u64, u64)]) -> Played {
        let truth = self.bench.content(disk);
        self.point(&[(disk, None)], None, |at| at.data(disk, wanted).and_then(|()| at.holds(disk, &truth)))
    }

    /// The same where no more is known than that these units may hold something else than zeros, and perhaps more.
    ///
    /// # Errors
    /// When keepmark cannot read.
    pub fn data_at_least(&mut self, disk: &str, wanted: &[(u64, u64)]) -> Played {
        let truth = self.bench.content(disk);
        self.point(&[(disk, None)], None, |at| at.data_at_least(disk, wanted).and_then(|()| at.holds(disk, &truth)))
    }

    /// What the guest reads.
    #[must_use]
    pub fn truth(&mut self, disk: &str) -> Vec<u8> {
        self.bench.content(disk)
    }
}

fn request(disks: &[(&str, Option<&str>)], new: Option<&str>) -> PointRequest {
    let disk = |(name, since): &(&str, Option<&str>)| PointDisk { name: disk_name(name), since: since.map(checkpoint) };
    PointRequest {
        disks: disks.iter().map(disk).collect(),
        checkpoint: new.map(checkpoint),
        run: "conformance".to_owned(),
        freeze: Freeze::Never,
        push: keepmark_model::pushing::Push::No,
    }
}

fn unable(unable: Unable) -> End {
    match unable {
        Unable::Refused(words) => End::Broken(words),
        Unable::NotHere(why) => End::NotHere(why.to_owned()),
    }
}

/// Something happens to a disk of a bench.
///
/// # Errors
/// When it is refused or cannot be done here.
pub(super) fn happen(bench: &mut dyn Bench, disk: &str, change: Change) -> Played {
    bench.change(disk, change).map_err(unable)
}

pub(super) fn refused(bench: &mut dyn Bench, disk: &str, change: Change) -> Result<bool, End> {
    match bench.change(disk, change) {
        Ok(()) => Ok(false),
        Err(Unable::Refused(_)) => Ok(true),
        Err(Unable::NotHere(why)) => Err(End::NotHere(why.to_owned())),
    }
}
