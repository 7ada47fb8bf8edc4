//! What the tests of this crate share: VMs with disks, points on them, and reading them whole.
#![expect(dead_code, reason = "each test uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_model::seam::{Freeze, FrozenDisk, FrozenPoint, Hypervisor, PointDisk, PointRequest};
use keepmark_model::{CheckpointName, DiskName, Extent, Extents, Size};
use keepmark_qemu::{Live, LiveOptions, Offline, OfflineOptions, Said};
use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Qemu, tmp};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;

/// A folder of a test, with the places that keepmark needs.
pub struct Place {
    pub dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { dir: tmp() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn image(&self, name: &str, format: Format, size: u64) -> PathBuf {
        let path = self.path(&format!("{name}.{}", format.name()));
        image::create(&path, format, size);
        path
    }

    pub fn options(&self, qemu: &Qemu) -> LiveOptions {
        LiveOptions::new(qemu.qmp_socket(), self.path("scratch"), self.path("run"))
    }

    pub fn live(&self, qemu: &Qemu) -> Live {
        Live::connect(self.options(qemu)).unwrap()
    }

    pub fn offline(&self, images: &[&Path]) -> Offline {
        let images = images.iter().map(|path| (None, path.to_path_buf())).collect();
        Offline::open(OfflineOptions::new(images, self.path("run"))).unwrap()
    }

    /// An image whose chain its owner believes.
    pub fn offline_chain(&self, image: &Path) -> Offline {
        let said = Said::Operator { formats: Vec::new(), trust_chain: true };
        Offline::open(OfflineOptions { said, ..OfflineOptions::new(vec![(None, image.to_owned())], self.path("run")) }).unwrap()
    }

    /// Names of what is left in the folders that keepmark uses.
    pub fn left(&self) -> Vec<String> {
        let entries = ["scratch", "run"].into_iter().filter_map(|name| std::fs::read_dir(self.path(name)).ok()).flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| !name.ends_with(".lock")).collect()
    }
}

/// The n-th checkpoint of a test.
pub fn checkpoint(number: u32) -> CheckpointName {
    CheckpointName::parse(&format!("km1-20261122T1800{number:02}Z-3f9a1c0d7be2")).unwrap()
}

/// A request without freeze.
pub fn request(disks: &[(&str, Option<u32>)], new: Option<u32>) -> PointRequest {
    let disk = |(name, since): &(&str, Option<u32>)| PointDisk { name: DiskName::new(name).unwrap(), since: since.map(checkpoint) };
    PointRequest {
        disks: disks.iter().map(disk).collect(),
        checkpoint: new.map(checkpoint),
        run: "testrun1".into(),
        freeze: Freeze::Never,
        push: keepmark_model::pushing::Push::No,
    }
}

pub fn freezing(request: PointRequest) -> PointRequest {
    PointRequest { freeze: Freeze::IfPossible { deadline: Duration::from_secs(5) }, ..request }
}

pub fn open(point: &mut Box<dyn FrozenPoint + '_>, disk: &str) -> Box<dyn FrozenDisk> {
    point.disk(&DiskName::new(disk).unwrap()).unwrap()
}

/// Reads ranges of a disk into one buffer as long as the disk.
pub fn read(disk: &mut dyn FrozenDisk, within: &Extents) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(disk.size().0).unwrap()];
    let recycler = disk.recycler();
    disk.read(&mut within.iter(), &mut |extent, bytes| {
        let start = usize::try_from(extent.start).unwrap();
        content[start..start + bytes.len()].copy_from_slice(&bytes);
        recycler(bytes);
        Ok(())
    })
    .unwrap();
    content
}

pub fn read_all(disk: &mut dyn FrozenDisk) -> Vec<u8> {
    let whole = Extents::whole(Size(disk.size().0));
    read(disk, &whole)
}

pub fn extents(pairs: &[(u64, u64)]) -> Extents {
    pairs.iter().map(|&(start, length)| Extent::at(start, length)).collect()
}

/// Whether all bytes of a range are the same given one.
pub fn is_filled(content: &[u8], offset: u64, length: u64, byte: u8) -> bool {
    let start = usize::try_from(offset).unwrap();
    content[start..start + usize::try_from(length).unwrap()].iter().all(|&b| b == byte)
}

/// Makes and ends a checkpoint without reading anything.
pub fn take_checkpoint(vm: &mut dyn Hypervisor, disks: &[&str], number: u32) {
    let disks: Vec<_> = disks.iter().map(|name| (*name, None)).collect();
    vm.begin(&request(&disks, Some(number))).unwrap().release().unwrap();
}
