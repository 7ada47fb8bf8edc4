//! The images of a VM's disks on a bench of real ones, whoever has them open.

mod files;

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::DiskSpec;
use crate::image::{self, Format};
use crate::{Disk, OrFail, tmp};

pub(super) use files::io_words;

/// Bytes of a unit.
pub(super) const UNIT: u64 = 16 << 10;

/// All disks' images, in a folder of their own.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) disks: Vec<RealDisk>,
    /// How many files were named.
    pub(super) files: u32,
    dir: TempDir,
}

#[derive(Debug)]
pub(super) struct RealDisk {
    pub(super) name: String,
    /// The active image first.
    pub(super) images: Vec<(PathBuf, Format)>,
    pub(super) cluster: u64,
    pub(super) copy: Option<PathBuf>,
}

impl Images {
    /// Makes them, empty.
    pub(super) fn new(disks: &[DiskSpec]) -> Self {
        let mut images = Self { disks: Vec::new(), files: 0, dir: tmp() };
        disks.iter().for_each(|spec| images.add(spec));
        images
    }

    fn add(&mut self, spec: &DiskSpec) {
        let (file, format) = if spec.raw {
            (self.fresh(&format!("{}.raw", spec.name)), Format::Raw)
        } else {
            (self.fresh(&format!("{}.qcow2", spec.name)), Format::Qcow2)
        };
        match format {
            // `qemu-img create` would allocate the first block.
            Format::Raw => image::sparse(&file, spec.units * UNIT),
            Format::Qcow2 => image::create_with(&file, format, spec.units * UNIT, &format!("cluster_size={}", spec.cluster * UNIT)),
        }
        self.disks.push(RealDisk { name: spec.name.to_owned(), images: vec![(file, format)], cluster: spec.cluster, copy: None });
    }

    /// A path that nobody had yet.
    pub(super) fn fresh(&mut self, name: &str) -> PathBuf {
        self.files += 1;
        self.dir.path().join(format!("{name}-{}", self.files))
    }

    /// Which of them a disk is.
    pub(super) fn at(&self, disk: &str) -> usize {
        self.disks.iter().position(|one| one.name == disk).or_fail(format_args!("no disk {disk}"))
    }

    /// The disks with their active images.
    pub(super) fn as_disks(&self) -> Vec<Disk> {
        let disk = |disk: &RealDisk| Disk { format: disk.images[0].1, ..Disk::qcow2(&disk.name, &disk.images[0].0) };
        self.disks.iter().map(disk).collect()
    }

    /// The driver's own folder.
    pub(super) fn keepmarks(&self) -> PathBuf {
        self.dir.path().join("k")
    }

    /// What keepmark has in the images and in its folder, checkpoints apart.
    pub(super) fn left(&self) -> Vec<String> {
        let names = self.disks.iter().filter(|disk| disk.images[0].1 == Format::Qcow2).flat_map(|disk| image::bitmaps(&disk.images[0].0));
        let mut left: Vec<String> = names.filter(|name| name.starts_with("km1tmp")).collect();
        left.extend(below(&self.keepmarks()).into_iter().filter(|name| !name.ends_with(".lock")));
        left
    }
}

/// Files below the folders in a folder.
fn below(folder: &Path) -> Vec<String> {
    let list = |folder: &Path| std::fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let names = list(folder).into_iter().flat_map(|entry| list(&entry.path()));
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
