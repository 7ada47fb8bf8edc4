//! Simulated images: cells, backing chains and named bitmaps, under the rules that were observed of QEMU.

use std::ops::Range;

use keepmark_model::DiskName;

use super::device::Device;

/// Bytes of the smallest thing that is written: a quarter of the smallest chunk, so that chunks can be half changed.
pub const ATOM: u64 = 1024;
/// Most atoms of a disk: one bit each in a [`Mask`].
pub const ATOMS_MAX: usize = 64;
/// Longest backing chain.
const LAYERS_MAX: usize = 4;

/// A set of atoms.
pub type Mask = u64;

/// The atoms from `start` up to, not including, `end`.
#[must_use]
pub fn mask(start: usize, end: usize) -> Mask {
    let below = |n: usize| if n >= ATOMS_MAX { Mask::MAX } else { (1 << n) - 1 };
    below(end) & !below(start)
}

/// The atoms of every unit of `unit` atoms that has one in `atoms`.
#[must_use]
pub fn round(atoms: Mask, unit: usize) -> Mask {
    (0..ATOMS_MAX).step_by(unit).map(|start| mask(start, start + unit)).filter(|whole| whole & atoms != 0).fold(0, |all, whole| all | whole)
}

/// What an image has at an atom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Nothing: the backing image shows through, or zeros.
    Absent,
    /// Zeros that take no space.
    Zero,
    /// Allocated content; `Data(0)` is zeros that were written.
    Data(u32),
}

/// Format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Stores bitmaps.
    Qcow2,
    /// Has bitmaps in memory only.
    Raw,
}

/// A named dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// Its name.
    pub name: String,
    /// Whether writes are recorded.
    pub recording: bool,
    /// Whether a job or export holds it.
    pub busy: bool,
    /// Whether QEMU died while the image was open for writing.
    pub inconsistent: bool,
    /// Whether it is to be stored.
    pub persistent: bool,
    /// Whether the file has its name already; a new one is in no file before the image is closed.
    pub stored: bool,
    /// Atoms per bit.
    pub granularity: usize,
    /// What it calls dirty.
    pub bits: Mask,
    /// What was written since a job holds it: QEMU keeps that aside until the job lets go.
    pub held: Mask,
    /// The truth beside it: what changed since it began and was kept from it by somebody who is not QEMU's writer.
    pub missed: Mask,
    /// Whether an audit has contradicted it.
    pub contradicted: bool,
}

impl Bitmap {
    /// A new, empty, recording one.
    #[must_use]
    pub fn new(name: &str, persistent: bool, granularity: usize) -> Self {
        let name = name.to_owned();
        Self {
            name,
            recording: true,
            busy: false,
            inconsistent: false,
            persistent,
            stored: false,
            granularity,
            bits: 0,
            held: 0,
            missed: 0,
            contradicted: false,
        }
    }

    /// The job that holds it gives up.
    pub fn let_go(&mut self) {
        self.busy = false;
        self.bits |= std::mem::take(&mut self.held);
    }

    fn mark(&mut self, atoms: Mask) {
        if self.recording && !self.inconsistent {
            let into = if self.busy { &mut self.held } else { &mut self.bits };
            *into |= round(atoms, self.granularity);
        } else {
            self.missed |= atoms;
        }
    }
}

/// One image file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Where it is.
    pub path: u32,
    /// Which file it is: the same wherever it is moved, and another one for every copy of it.
    pub file: u32,
    /// Whether other VMs have it as their backing image, too.
    pub shared: bool,
    /// Its format.
    pub format: Format,
    /// Atoms per cluster: what is allocated at once.
    pub cluster: usize,
    /// Its content; as many as the disk has atoms.
    pub cells: Vec<Cell>,
    /// What a cut has left behind the end, in the last cluster: only whole clusters are given back.
    hidden: Vec<Cell>,
    /// Its bitmaps.
    pub bitmaps: Vec<Bitmap>,
    /// The truth beside them: those of ours that another tool removed.
    pub removed: Vec<Bitmap>,
}

impl Layer {
    /// An empty image.
    #[must_use]
    pub fn new(path: u32, format: Format, cluster: usize, atoms: usize) -> Self {
        let cells = vec![Cell::Absent; atoms];
        Self { path, file: path, shared: false, format, cluster, cells, hidden: Vec::new(), bitmaps: Vec::new(), removed: Vec::new() }
    }

    /// Whether it lies where it can be told which file it is: every other image does.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.path.is_multiple_of(2)
    }

    /// The bitmap of a name.
    #[must_use]
    pub fn bitmap(&self, name: &str) -> Option<&Bitmap> {
        self.bitmaps.iter().find(|bitmap| bitmap.name == name)
    }

    /// Orderly closing, or reopening for reading only: what is persistent gets into the file.
    fn close(&mut self) {
        self.bitmaps.retain(|bitmap| bitmap.persistent);
        for bitmap in &mut self.bitmaps {
            bitmap.let_go();
            bitmap.stored = true;
        }
    }

    /// The process dies while the image is open for writing: what the file names is inconsistent, the rest is absent.
    fn crash(&mut self) {
        self.bitmaps.retain(|bitmap| bitmap.stored);
        for bitmap in &mut self.bitmaps {
            bitmap.let_go();
            (bitmap.inconsistent, bitmap.recording, bitmap.bits) = (true, false, 0);
        }
    }

    fn cut(&mut self, atoms: usize) {
        let cluster_end = atoms.div_ceil(self.cluster) * self.cluster;
        let mut behind = self.cells.split_off(atoms);
        behind.append(&mut self.hidden);
        behind.truncate(cluster_end - atoms);
        self.hidden = behind;
        for bitmap in &mut self.bitmaps {
            bitmap.bits &= round(mask(0, atoms), bitmap.granularity);
        }
    }

    fn grow(&mut self, atoms: usize, backing: usize) {
        let old = self.cells.len();
        let is_allocated = matches!(self.cells.last(), Some(Cell::Data(_)));
        let fill = if backing > old { Cell::Zero } else { Cell::Absent };
        let cluster_end = old.div_ceil(self.cluster) * self.cluster;
        let hidden = std::mem::take(&mut self.hidden);
        for atom in old..atoms {
            let cell = match hidden.get(atom - old) {
                Some(Cell::Data(value)) if is_allocated && backing <= old => Cell::Data(*value),
                _ if is_allocated && atom < cluster_end => Cell::Data(0),
                _ => fill,
            };
            self.cells.push(cell);
        }
    }

    fn is_pinned(&self) -> bool {
        self.bitmaps.iter().any(|bitmap| bitmap.busy || bitmap.inconsistent)
    }

    fn mark(&mut self, atoms: Mask) {
        self.bitmaps.iter_mut().for_each(|bitmap| bitmap.mark(atoms));
    }
}

/// A disk of a VM: its backing chain, the active image first.
#[derive(Debug, Clone)]
pub struct SimDisk {
    /// How it is called.
    pub name: DiskName,
    /// Its images.
    pub layers: Vec<Layer>,
    /// Whether the VM has it.
    pub attached: bool,
    /// Granularity that new bitmaps get, in atoms.
    pub granularity: usize,
    /// Older copies of it on the host.
    pub copies: Vec<Vec<Layer>>,
    /// What is between the device and its images.
    pub device: Device,
}

impl SimDisk {
    /// A disk that is plugged in.
    #[must_use]
    pub fn new(name: DiskName, layers: Vec<Layer>, granularity: usize) -> Self {
        Self { name, layers, attached: true, granularity, copies: Vec::new(), device: Device::default() }
    }

    /// Atoms the guest sees.
    #[must_use]
    pub fn atoms(&self) -> usize {
        self.layers.first().map_or(0, |active| active.cells.len())
    }

    /// What the guest reads at an atom, and whether it is a hole.
    #[must_use]
    pub fn at(&self, atom: usize) -> (u32, bool) {
        Self::through(&self.layers, atom)
    }

    fn through(layers: &[Layer], atom: usize) -> (u32, bool) {
        for layer in layers {
            match layer.cells.get(atom) {
                Some(Cell::Absent) => {}
                Some(Cell::Zero) | None => return (0, true),
                Some(Cell::Data(value)) => return (*value, false),
            }
        }
        (0, true)
    }

    /// What the guest reads everywhere.
    #[must_use]
    pub fn content(&self) -> Vec<(u32, bool)> {
        (0..self.atoms()).map(|atom| self.at(atom)).collect()
    }

    fn active(&mut self) -> Option<&mut Layer> {
        self.layers.first_mut()
    }

    // Writing to a part of a cluster that is not allocated copies the rest of it up.
    fn allocate(&mut self, start: usize, end: usize) {
        let cluster = self.layers.first().map_or(1, |active| active.cluster);
        let (first, last) = (start / cluster * cluster, (end.div_ceil(cluster) * cluster).min(self.atoms()));
        for group in (first..last).step_by(cluster) {
            let whole = group..(group + cluster).min(last);
            let is_allocated = whole.clone().any(|atom| matches!(self.layers[0].cells[atom], Cell::Data(_)));
            for atom in whole.filter(|_| !is_allocated) {
                let (value, _) = self.at(atom);
                self.layers[0].cells[atom] = Cell::Data(value);
            }
        }
    }

    /// The guest, or a tool that uses QEMU's block layer, writes; the bitmaps see it.
    pub fn write(&mut self, start: usize, end: usize, value: u32) {
        let end = end.min(self.atoms());
        self.allocate(start, end);
        let Some(active) = self.active() else { return };
        (start..end).for_each(|atom| active.cells[atom] = Cell::Data(value));
        active.mark(mask(start, end));
    }

    /// Zeros are written as such: whole clusters become zero clusters, and so do parts of clusters that read as zeros anyway; other
    /// parts are data. A raw image keeps the space if it is not to be given back.
    pub fn write_zeros(&mut self, start: usize, end: usize, unmap: bool) {
        let end = end.min(self.atoms());
        let Some(active) = self.layers.first() else { return };
        if active.format == Format::Raw && !unmap {
            return self.write(start, end, 0);
        }
        for (part, whole) in self.clusters(start, end) {
            let is_whole = part == whole;
            let others = whole.clone().filter(|atom| !part.contains(atom));
            let is_zero_around = self.layers[0].cells[whole.clone()].iter().all(|cell| !matches!(cell, Cell::Data(_)))
                && others.into_iter().all(|atom| self.at(atom) == (0, true));
            if is_whole || is_zero_around {
                self.zero_cluster(&whole);
            } else {
                self.write(part.start, part.end, 0);
            }
        }
        self.layers[0].mark(mask(start, end));
    }

    /// The guest gives space back; parts of clusters are left as they are, and recorded all the same.
    pub fn discard(&mut self, start: usize, end: usize) {
        let end = end.min(self.atoms());
        for (part, whole) in self.clusters(start, end) {
            if part == whole {
                self.zero_cluster(&whole);
            }
        }
        self.layers.iter_mut().take(1).for_each(|active| active.mark(mask(start, end)));
    }

    fn zero_cluster(&mut self, whole: &Range<usize>) {
        let Some(active) = self.active() else { return };
        active.cells[whole.clone()].fill(Cell::Zero);
        if whole.end == active.cells.len() {
            active.hidden.clear();
        }
    }

    /// The parts of a range that lie in one cluster each, with all of the cluster that the guest sees.
    fn clusters(&self, start: usize, end: usize) -> Vec<(Range<usize>, Range<usize>)> {
        let Some(active) = self.layers.first() else { return Vec::new() };
        let unit = if active.format == Format::Raw { 1 } else { active.cluster };
        let firsts = (start / unit * unit..end).step_by(unit);
        firsts.map(|first| (first.max(start)..(first + unit).min(end), first..(first + unit).min(active.cells.len()))).collect()
    }

    /// Changes the size; refused while a bitmap is busy or inconsistent. Whole clusters that are cut off are zero if it grows again, and
    /// no bitmap says so; what was behind the cut in its cluster comes back, unless a longer image below made QEMU write zeros there.
    pub fn resize(&mut self, atoms: usize) -> bool {
        let backing = self.layers.get(1).map_or(0, |layer| layer.cells.len());
        let Some(active) = self.active().filter(|active| !active.is_pinned()) else { return false };
        if atoms < active.cells.len() {
            active.cut(atoms)
        } else {
            active.grow(atoms, backing)
        }
        true
    }

    /// What it has no space for gets some, which holds zeros; nothing is marked, since nothing changes.
    pub fn preallocate(&mut self) {
        let content = self.content();
        let Some(active) = self.active() else { return };
        for (cell, (value, _)) in active.cells.iter_mut().zip(content).filter(|(cell, _)| !matches!(cell, Cell::Data(_))) {
            *cell = Cell::Data(value);
        }
    }

    /// From an atom on, what the active image has no space for gets some, which holds zeros.
    pub fn allocate_from(&mut self, start: usize) {
        let Some(active) = self.active() else { return };
        active.cells.iter_mut().skip(start).filter(|cell| !matches!(cell, Cell::Data(_))).for_each(|cell| *cell = Cell::Data(0));
    }

    /// External snapshot. A manager like libvirt starts bitmaps of the same names on the overlay.
    pub fn snapshot(&mut self, path: u32, cluster: usize, managed: bool) -> bool {
        let atoms = self.atoms();
        if self.layers.len() >= LAYERS_MAX {
            return false;
        }
        let mut overlay = Layer::new(path, Format::Qcow2, cluster, atoms);
        if let Some(base) = self.active() {
            base.bitmaps.iter_mut().filter(|bitmap| bitmap.persistent).for_each(|bitmap| bitmap.stored = true);
            if managed {
                let followed = base.bitmaps.iter().filter(|bitmap| bitmap.recording && !bitmap.inconsistent && !bitmap.busy);
                overlay.bitmaps = followed.map(|bitmap| Bitmap::new(&bitmap.name, true, bitmap.granularity)).collect();
            }
        }
        self.layers.insert(0, overlay);
        true
    }

    /// Commits the active image into its backing image, whose enabled bitmaps record it; a manager like libvirt merges the bitmaps, too.
    pub fn commit(&mut self, managed: bool) -> bool {
        let fits = |layers: &[Layer]| layers.len() > 1 && layers[0].cells.len() >= layers[1].cells.len();
        if !fits(&self.layers) || self.layers[..2].iter().any(Layer::is_pinned) {
            return false;
        }
        let top = self.layers.remove(0);
        self.resize(top.cells.len());
        let Some(base) = self.active() else { return false };
        let mut written = 0;
        for (atom, cell) in top.cells.iter().enumerate().filter(|(_, cell)| **cell != Cell::Absent) {
            base.cells[atom] = *cell;
            written |= mask(atom, atom + 1);
        }
        base.mark(written);
        for bitmap in top.bitmaps.into_iter().filter(|_| managed && base.format == Format::Qcow2) {
            match base.bitmaps.iter_mut().find(|below| below.name == bitmap.name) {
                Some(below) => (below.bits, below.missed) = (below.bits | bitmap.bits, below.missed | bitmap.missed),
                // If another tool removed it here, what it had recorded is missed from now on, and nothing tells any more.
                None => {
                    let gone = base.removed.iter().filter(|gone| gone.name == bitmap.name);
                    let missed = gone.fold(bitmap.missed, |all, gone| all | gone.bits | gone.missed);
                    base.bitmaps.push(Bitmap { stored: false, missed, ..bitmap });
                }
            }
        }
        true
    }

    /// Pulls everything into the active image; nothing is marked, since nothing changes.
    pub fn stream(&mut self) -> bool {
        let content = self.content();
        if self.layers.len() < 2 {
            return false;
        }
        self.layers.truncate(1);
        let Some(active) = self.active() else { return false };
        for (cell, (value, hole)) in active.cells.iter_mut().zip(content).filter(|(cell, _)| **cell == Cell::Absent) {
            *cell = if hole { Cell::Zero } else { Cell::Data(value) };
        }
        true
    }

    /// Moves the content to a new file, by mirror or `qemu-img convert`; the active image's bitmaps only where that is asked for.
    pub fn rewrite(&mut self, path: u32, format: Format, cluster: usize, with_bitmaps: bool) {
        let content = self.content();
        let is_told = self.layers.iter().all(Layer::is_told);
        let mut new = Layer::new(path, format, cluster, content.len());
        for (cell, (value, hole)) in new.cells.iter_mut().zip(content) {
            *cell = if hole { Cell::Absent } else { Cell::Data(value) };
        }
        if let Some(old) = self
            .layers
            .first()
            .filter(|old| with_bitmaps && format == Format::Qcow2 && !old.is_pinned() && (self.layers.len() == 1 || is_told))
        {
            new.bitmaps =
                old.bitmaps.iter().filter(|bitmap| bitmap.persistent).cloned().map(|bitmap| Bitmap { stored: true, ..bitmap }).collect();
        }
        self.layers = vec![new];
    }

    /// Somebody writes past QEMU into a layer: no bitmap sees it, and the truth beside each notes what the guest will see changed.
    pub fn edit_silently(&mut self, layer: usize, start: usize, end: usize, cell: Cell) {
        let before = self.content();
        let Some(edited) = self.layers.get_mut(layer) else { return };
        let end = end.min(edited.cells.len());
        (start..end).for_each(|atom| edited.cells[atom] = cell);
        let changed =
            before.iter().enumerate().filter(|(atom, was)| self.at(*atom).0 != was.0).fold(0, |all, (atom, _)| all | mask(atom, atom + 1));
        self.miss(changed);
    }

    /// The bitmaps of all layers miss a change of these atoms.
    pub fn miss(&mut self, atoms: Mask) {
        self.layers.iter_mut().flat_map(|layer| &mut layer.bitmaps).for_each(|bitmap| bitmap.missed |= atoms);
    }

    /// Orderly closing of the whole chain.
    pub fn close(&mut self) {
        self.layers.iter_mut().for_each(Layer::close);
    }

    /// The process dies: the active image suffers, those below were open for reading only.
    pub fn crash(&mut self) {
        Self::crash_chain(&mut self.layers);
    }

    fn crash_chain(layers: &mut [Layer]) {
        if let Some((active, below)) = layers.split_first_mut() {
            active.crash();
            below.iter_mut().for_each(Layer::close);
        }
    }

    /// What a host copies of the image files, open for writing or closed.
    #[must_use]
    pub fn copied(&self, open: bool) -> Vec<Layer> {
        let mut copy = self.layers.clone();
        if open {
            Self::crash_chain(&mut copy);
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(format: Format, cluster: usize) -> SimDisk {
        SimDisk::new(DiskName::new("vda").unwrap(), vec![Layer::new(1, format, cluster, 16)], 2)
    }

    fn with_bitmap(format: Format) -> SimDisk {
        let mut disk = disk(format, 2);
        disk.layers[0].bitmaps.push(Bitmap::new("b", format == Format::Qcow2, 2));
        disk
    }

    #[test]
    fn masks_round_to_units() {
        assert_eq!(mask(1, 3), 0b110);
        assert_eq!(mask(0, 64), Mask::MAX);
        assert_eq!(round(0b1_0010, 4), 0xff);
    }

    #[test]
    fn a_new_bitmap_is_in_no_file_before_an_orderly_end() {
        let mut killed = with_bitmap(Format::Qcow2);
        killed.crash();
        assert!(killed.layers[0].bitmaps.is_empty());
        let mut closed = with_bitmap(Format::Qcow2);
        closed.close();
        closed.crash();
        assert!(closed.layers[0].bitmaps[0].inconsistent);
        let mut raw = with_bitmap(Format::Raw);
        raw.close();
        assert!(raw.layers[0].bitmaps.is_empty());
    }

    #[test]
    fn shrinking_and_growing_zeros_silently() {
        let mut disk = with_bitmap(Format::Qcow2);
        disk.write(0, 16, 7);
        disk.layers[0].bitmaps[0].bits = 0;
        assert!(disk.resize(3) && disk.resize(16));
        assert_eq!((disk.at(2), disk.at(3), disk.at(4)), ((7, false), (7, false), (0, true)));
        assert_eq!(disk.layers[0].bitmaps[0].bits, 0);
        assert!(disk.resize(2) && disk.resize(1) && disk.resize(16));
        assert_eq!((disk.at(0), disk.at(1), disk.at(2)), ((7, false), (7, false), (0, true)));
    }

    #[test]
    fn an_overlay_that_was_cut_and_grown_hides_what_is_below() {
        let mut disk = disk(Format::Qcow2, 2);
        disk.write(0, 16, 7);
        assert!(disk.snapshot(2, 2, false));
        disk.write(2, 4, 8);
        assert!(disk.resize(3) && disk.resize(16));
        assert_eq!((disk.at(1), disk.at(2), disk.at(3), disk.at(4)), ((7, false), (8, false), (0, false), (0, true)));
    }

    #[test]
    fn parts_of_clusters_are_not_given_back() {
        let mut disk = with_bitmap(Format::Qcow2);
        disk.write(0, 4, 7);
        disk.layers[0].bitmaps[0].bits = 0;
        disk.discard(1, 4);
        assert_eq!((disk.at(1), disk.at(2), disk.layers[0].bitmaps[0].bits), ((7, false), (0, true), mask(0, 4)));
        disk.write_zeros(1, 2, true);
        disk.write_zeros(9, 10, true);
        assert_eq!((disk.at(0), disk.at(1), disk.at(9)), ((7, false), (0, false), (0, true)));
    }

    #[test]
    fn a_snapshot_freezes_bitmaps_and_a_commit_marks_them() {
        let mut disk = with_bitmap(Format::Qcow2);
        assert!(disk.snapshot(2, 1, false));
        disk.write(4, 5, 9);
        assert_eq!(disk.layers[1].bitmaps[0].bits, 0);
        assert!(disk.commit(false));
        assert_eq!((disk.layers.len(), disk.layers[0].bitmaps[0].bits, disk.at(4)), (1, mask(4, 6), (9, false)));
    }

    #[test]
    fn an_overlay_of_a_manager_loses_its_bitmaps_in_a_crash_and_the_base_does_not() {
        let mut disk = with_bitmap(Format::Qcow2);
        assert!(disk.snapshot(2, 1, true));
        assert_eq!(disk.layers[0].bitmaps.len(), 1);
        disk.crash();
        assert!(disk.layers[0].bitmaps.is_empty());
        assert!(!disk.layers[1].bitmaps[0].inconsistent);
    }

    #[test]
    fn streaming_and_zeros_keep_what_the_guest_reads() {
        let mut disk = disk(Format::Qcow2, 2);
        disk.write(0, 8, 3);
        assert!(disk.snapshot(2, 2, false));
        disk.write_zeros(2, 7, true);
        let before: Vec<u32> = disk.content().iter().map(|(value, _)| *value).collect();
        assert_eq!(before[..8], [3, 3, 0, 0, 0, 0, 0, 3]);
        assert!(disk.stream());
        assert_eq!(disk.content().iter().map(|(value, _)| *value).collect::<Vec<_>>(), before);
    }
}
