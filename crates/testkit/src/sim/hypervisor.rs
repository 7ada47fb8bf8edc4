//! The hypervisor's side of the seam: a simulated VM, running or powered off, and its frozen points.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use keepmark_model::facts::{BitmapFacts, DiskFacts, ImageId, LayerFacts, Persistence, Power, VmFacts};
use keepmark_model::seam::{Definition, FrozenDisk, FrozenPoint, Hypervisor, Moment, PointRequest, Recycler, Result};
use keepmark_model::writing::{Rest, Unfinished, WriteRequest, Writing};
use keepmark_model::{CheckpointName, DiskName, Extent, Extents, Failure, FailureClass, Size, VmIdentity};

use super::fixing::Noted;
use super::image::{ATOM, Bitmap, Format, Layer, SimDisk, mask};
use super::machine::{FIRST_IMAGE, FrozenCopy, Machine};
use super::store::encode;
use super::world::{Break, Shared, World, lock};

/// keepmark's connection to a simulated VM.
#[derive(Debug)]
pub struct SimVm {
    pub(super) world: Shared,
    pub(super) machine: usize,
    pub(super) process: u32,
    // What was reported last of each disk: its images, from the active one down.
    pub(super) reported: Vec<(DiskName, Vec<u32>)>,
}

pub(super) fn failed(why: impl Into<String>) -> Failure {
    Failure::new(FailureClass::Failed, why.into())
}

fn unreachable() -> Failure {
    Failure::new(FailureClass::Unreachable, "QEMU is gone")
}

impl SimVm {
    /// Connects to a VM, or opens the images of a powered-off one.
    #[must_use]
    pub fn connect(world: &Shared, machine: usize) -> Self {
        let process = {
            let mut world = lock(world);
            let machine = &mut world.machines[machine];
            if machine.power == Power::Off {
                machine.opened = Some(false);
            }
            machine.process
        };
        Self { world: Arc::clone(world), machine, process, reported: Vec::new() }
    }

    /// The next effect, on a VM that is still the one that was connected to.
    pub(super) fn effect(&self) -> Result<MutexGuard<'_, World>> {
        let mut world = lock(&self.world);
        world.effect()?;
        let is_same = world.machines[self.machine].process == self.process;
        if is_same { Ok(world) } else { Err(unreachable()) }
    }

    /// A step within an effect, as [`Self::effect`].
    pub(super) fn instant(&self) -> Result<MutexGuard<'_, World>> {
        let mut world = lock(&self.world);
        world.instant()?;
        let is_same = world.machines[self.machine].process == self.process;
        if is_same { Ok(world) } else { Err(unreachable()) }
    }

    /// Takes keepmark out of QEMU again, if both live.
    pub(super) fn undo(&self, checkpoint: Option<&CheckpointName>, noted: &[Noted]) {
        let mut world = lock(&self.world);
        let is_same = world.machines[self.machine].process == self.process;
        if world.is_alive() && is_same {
            let was_fixed = world.machines[self.machine].frozen.is_some();
            world.let_go(self.machine, noted);
            if let Some(checkpoint) = checkpoint.filter(|_| was_fixed) {
                world.machines[self.machine].remove(std::slice::from_ref(checkpoint)).unwrap_or_default();
            }
        }
    }
}

impl Hypervisor for SimVm {
    fn facts(&mut self) -> Result<VmFacts> {
        let world = self.effect()?;
        let machine = &world.machines[self.machine];
        let reported = machine.attached().map(|disk| (disk.name.clone(), paths(disk))).collect();
        let facts = VmFacts {
            identity: VmIdentity { name: machine.name.to_owned(), uuid: None },
            power: machine.power,
            hypervisor: "simulation".to_owned(),
            disks: machine.attached().map(disk_facts).collect(),
            skipped: Vec::new(),
            agent: machine.agent,
        };
        drop(world);
        self.reported = reported;
        Ok(facts)
    }

    fn clean_up(&mut self) -> Result<Vec<String>> {
        let mut world = self.effect()?;
        let skipped = world.breaks(Break::NoCleanUp);
        let machine = &mut world.machines[self.machine];
        if skipped || !machine.leftovers.any() {
            return Ok(Vec::new());
        }
        machine.thaw();
        machine.leftovers.orphans = false;
        Ok(vec!["filters and exports".to_owned()])
    }

    fn begin(&mut self, request: &PointRequest) -> Result<Box<dyn FrozenPoint + '_>> {
        let mut noted = Vec::new();
        match self.fix(request, &mut noted) {
            Ok(moment) => Ok(Box::new(SimPoint { vm: self, moment, noted })),
            Err(failure) => {
                self.undo(request.checkpoint.as_ref(), &noted);
                Err(failure)
            }
        }
    }

    fn remove_checkpoints(&mut self, names: &[CheckpointName]) -> Result<()> {
        let mut world = self.effect()?;
        world.check_removal(self.machine, names);
        let machine = &mut world.machines[self.machine];
        if machine.power == Power::Off {
            machine.opened = Some(true);
        }
        machine.remove(names)
    }

    fn definition(&mut self) -> Result<Definition> {
        Ok(Definition::default())
    }

    fn rest(&mut self) -> Result<Rest> {
        Ok(match self.effect()?.machines[self.machine].power {
            Power::Running => Rest::Running,
            Power::Paused => Rest::Held("it is paused".to_owned()),
            Power::Off => Rest::Resting { by_us: false },
        })
    }

    fn unfinished(&mut self) -> Result<Vec<Unfinished>> {
        Ok(Vec::new())
    }

    fn power_down(self: Box<Self>, _: Duration, _: &dyn Fn() -> bool) -> Result<Box<dyn Hypervisor>> {
        Err(failed("a simulated guest has no power button"))
    }

    fn begin_writing(&mut self, request: &WriteRequest) -> Result<Box<dyn Writing + '_>> {
        Ok(Box::new(self.write(request)?))
    }

    fn start(self: Box<Self>) -> Result<()> {
        self.close()
    }

    fn close(self: Box<Self>) -> Result<()> {
        let mut world = self.effect()?;
        let machine = &mut world.machines[self.machine];
        if machine.opened.is_some() {
            machine.close();
        }
        Ok(())
    }
}

impl Machine {
    /// One transaction over all active images; those below are read-only and keep what they have.
    pub(super) fn remove(&mut self, names: &[CheckpointName]) -> Result<()> {
        let named = |bitmap: &Bitmap| names.iter().any(|name| name.as_str() == bitmap.name);
        let active = || self.attached().flat_map(|disk| &disk.layers[0].bitmaps);
        if active().any(|bitmap| named(bitmap) && bitmap.busy) {
            return Err(failed("a bitmap is currently in use by another operation"));
        }
        for disk in self.disks.iter_mut().filter(|disk| disk.attached) {
            disk.layers[0].bitmaps.retain(|bitmap| !named(bitmap));
        }
        Ok(())
    }
}

pub(super) fn disk_facts(disk: &SimDisk) -> DiskFacts {
    let active = &disk.layers[0];
    let (format, persistence) = match active.format {
        Format::Qcow2 => ("qcow2", Persistence::Stored),
        Format::Raw => ("raw", Persistence::MemoryOnly { why: "raw images cannot hold bitmaps".to_owned() }),
    };
    DiskFacts {
        name: disk.name.clone(),
        size: Size(disk.atoms() as u64 * ATOM),
        format: format.to_owned(),
        cluster_size: (active.format == Format::Qcow2).then_some(active.cluster as u64 * ATOM),
        image: image(active),
        persistence,
        layers: disk.layers.iter().map(layer_facts).collect(),
    }
}

pub(super) fn paths(disk: &SimDisk) -> Vec<u32> {
    disk.layers.iter().map(|layer| layer.path).collect()
}

/// The first images of all disks have the same file name in different folders.
fn image(layer: &Layer) -> String {
    let file = if layer.path >= FIRST_IMAGE { "disk".to_owned() } else { layer.path.to_string() };
    format!("/{}/{file}", layer.path)
}

/// Which file it is, where that can be told.
fn file(layer: &Layer) -> Option<ImageId> {
    layer.is_told().then(|| ImageId::new(layer.file.to_string()))
}

fn layer_facts(layer: &Layer) -> LayerFacts {
    let bitmap = |bitmap: &Bitmap| BitmapFacts {
        name: bitmap.name.clone(),
        recording: bitmap.recording,
        busy: bitmap.busy,
        inconsistent: bitmap.inconsistent,
        persistent: bitmap.persistent,
        granularity: bitmap.granularity as u64 * ATOM,
        dirty: Size(u64::from(bitmap.bits.count_ones()) * ATOM),
    };
    LayerFacts { image: image(layer), id: file(layer), bitmaps: layer.bitmaps.iter().map(bitmap).collect() }
}

struct SimPoint<'a> {
    vm: &'a SimVm,
    moment: Moment,
    noted: Vec<Noted>,
}

impl FrozenPoint for SimPoint<'_> {
    fn moment(&self) -> &Moment {
        &self.moment
    }

    fn disk(&mut self, name: &DiskName) -> Result<Box<dyn FrozenDisk>> {
        let world = self.vm.effect()?;
        let frozen = world.machines[self.vm.machine].frozen.clone().ok_or_else(unreachable)?;
        Ok(Box::new(SimFrozenDisk::open(self.vm, &frozen, name)?))
    }

    fn release(mut self: Box<Self>) -> Result<()> {
        let noted = std::mem::take(&mut self.noted);
        let mut world = self.vm.effect()?;
        world.let_go(self.vm.machine, &noted);
        Ok(())
    }
}

impl Drop for SimPoint<'_> {
    fn drop(&mut self) {
        self.vm.undo(None, &self.noted);
    }
}

pub(super) struct SimFrozenDisk {
    world: Shared,
    machine: usize,
    frozen: Arc<Vec<FrozenCopy>>,
    place: usize,
}

impl SimFrozenDisk {
    pub(super) fn open(vm: &SimVm, frozen: &Arc<Vec<FrozenCopy>>, name: &DiskName) -> Result<Self> {
        let place = frozen.iter().position(|disk| disk.name == *name).ok_or_else(|| failed("the point has no such disk"))?;
        Ok(Self { world: Arc::clone(&vm.world), machine: vm.machine, frozen: Arc::clone(frozen), place })
    }

    fn copy(&self) -> &FrozenCopy {
        &self.frozen[self.place]
    }

    /// The next effect, if the moment is still there.
    fn effect(&self) -> Result<()> {
        let mut world = lock(&self.world);
        world.effect()?;
        let current = world.machines[self.machine].frozen.as_ref();
        if current.is_some_and(|current| Arc::ptr_eq(current, &self.frozen)) { Ok(()) } else { Err(unreachable()) }
    }

    fn atoms(&self, of: impl Fn(usize) -> bool) -> Extents {
        let all = (0..self.copy().cells.len()).filter(|atom| of(*atom));
        all.map(|atom| Extent::at(atom as u64 * ATOM, ATOM)).collect()
    }

    fn bytes(&self, extent: Extent) -> Result<Vec<u8>> {
        let range = usize::try_from(extent.start / ATOM).unwrap_or_default()..usize::try_from(extent.end / ATOM).unwrap_or_default();
        let cells = self.copy().cells.get(range).ok_or_else(|| failed("a read beyond the end"))?;
        let read = self.effect();
        let blind = read.is_err() && lock(&self.world).is_alive() && lock(&self.world).breaks(Break::ReadErrorsAreZeros);
        if blind {
            return Ok(encode(cells.iter().map(|_| 0)));
        }
        read.map(|()| encode(cells.iter().map(|(value, _)| *value)))
    }
}

impl FrozenDisk for SimFrozenDisk {
    fn size(&self) -> Size {
        self.copy().size()
    }

    fn dirty(&mut self) -> Result<Extents> {
        self.effect()?;
        let dirty = self.copy().dirty.ok_or_else(|| failed("no delta was asked for"))?;
        Ok(self.atoms(|atom| dirty & mask(atom, atom + 1) != 0))
    }

    fn data(&mut self, within: &Extents) -> Result<Extents> {
        self.effect()?;
        Ok(self.atoms(|atom| !self.copy().cells[atom].1).intersection(within))
    }

    fn read(&mut self, ranges: &mut dyn Iterator<Item = Extent>, sink: &mut dyn FnMut(Extent, Vec<u8>) -> Result<()>) -> Result<()> {
        // Answers come in any order: here each pair is turned round.
        let mut held: Option<(Extent, Vec<u8>)> = None;
        for extent in ranges {
            let bytes = self.bytes(extent)?;
            match held.take() {
                None => held = Some((extent, bytes)),
                Some((earlier, earlier_bytes)) => {
                    sink(extent, bytes)?;
                    sink(earlier, earlier_bytes)?;
                }
            }
        }
        held.map_or(Ok(()), |(extent, bytes)| sink(extent, bytes))
    }

    fn recycler(&self) -> Recycler {
        Arc::new(drop)
    }
}
