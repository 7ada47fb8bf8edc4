//! An image store in memory with real QEMU tools, disks whose content is known, and what is asked of them.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption is a failed test")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use keepmark_model::images::CLUSTER_BYTES;
use keepmark_model::manifest::{Kind, Manifest};
use keepmark_model::seam::{DiskContent, Monitor, Piece, Recycler, SavedFile, Store};
use keepmark_model::{BackupId, ChunkSize, DiskName, Extent, Extents, Failure, Size};
use keepmark_qemu::QemuImages;
use keepmark_store::{ImageOptions, ImageStore};

use crate::common;

/// Bytes of a chunk, which is a cluster.
pub const CHUNK: usize = 64 << 10;

/// A store and what its backups hold.
pub struct Lab {
    pub folder: tempfile::TempDir,
    pub store: ImageStore,
    pub truth: HashMap<BackupId, Vec<u8>>,
    time: u32,
}

/// How a new backup is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On<'a> {
    Nothing,
    Base(&'a BackupId),
    Compared(&'a BackupId),
}

pub fn options(folder: &Path, compress: bool) -> ImageOptions {
    ImageOptions { tools: Arc::new(QemuImages::new(folder.join("run"))), compress }
}

impl Lab {
    pub fn new() -> Self {
        Self::with(false)
    }

    pub fn with(compress: bool) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = ImageStore::init(&folder.path().join("store"), options(folder.path(), compress)).unwrap();
        Self { folder, store, truth: HashMap::new(), time: 0 }
    }

    pub fn vm_folder(&self) -> PathBuf {
        self.folder.path().join("store").join(common::vm().id().as_str())
    }

    pub fn image(&self, id: &BackupId) -> PathBuf {
        self.vm_folder().join(id.as_str()).join("vda.qcow2")
    }

    /// Publishes a backup of one disk, `vda`.
    pub fn backup(&mut self, content: &[u8], on: On<'_>) -> Result<BackupId, Failure> {
        self.backup_of("vda", content, on)
    }

    /// Publishes a backup of one disk.
    pub fn backup_of(&mut self, name: &str, content: &[u8], on: On<'_>) -> Result<BackupId, Failure> {
        self.time += 1;
        let time = format!("2026-11-{:02}T{:02}:{:02}:00Z", 1 + self.time / 1440, self.time / 60 % 24, self.time % 60);
        let (base, told) = match on {
            On::Base(id) => (Some(id), common_diff(&self.truth[id], content)),
            On::Nothing | On::Compared(_) => (None, common_diff(&inverse(content), content)),
        };
        let disk = common::disk_name(name);
        let mut writer = self.store.begin(&common::vm().id(), time.parse().unwrap())?;
        let compare = if let On::Compared(id) = on { Some(id.clone()) } else { None };
        let (put, zero) = told;
        let size = Size(content.len() as u64);
        let declared = DiskContent { name: disk, size, chunk_size: chunk(), base: base.cloned(), compare, put: put.clone(), zero };
        let mut target = writer.disk(&declared)?;
        let recycler: Recycler = Arc::new(drop);
        for index in put.chunks(chunk()) {
            let extent = chunk().extent(index, size);
            target.put(index, content[range(extent)].to_vec(), &recycler)?;
        }
        let stored = target.finish()?;
        let mut manifest: Manifest = common::manifest(&time, &[(name, size.0)], base);
        manifest.kind = if on == On::Nothing { Kind::Full } else { Kind::Incremental };
        manifest.disks[0].chunk_size = chunk();
        manifest.disks[0].stored_bytes = stored.stored_bytes;
        let id = writer.publish(&manifest, &[SavedFile { name: "vm.json".into(), content: b"{}".to_vec() }])?;
        self.truth.insert(id.clone(), content.to_vec());
        Ok(id)
    }

    /// What a backup restores to.
    pub fn restored(&self, id: &BackupId) -> Result<Vec<u8>, Failure> {
        let reader = self.store.open(id)?;
        let size = usize::try_from(reader.manifest().size()).unwrap();
        let (content, covered) = (Mutex::new(vec![0xee; size]), Mutex::new(0));
        reader.read_disk(&reader.manifest().disks[0].name.clone(), None, &|piece| {
            let mut content = content.lock().unwrap();
            match piece {
                Piece::Data { offset, bytes } => {
                    content[range(Extent::at(offset, bytes.len() as u64))].copy_from_slice(bytes);
                    *covered.lock().unwrap() += bytes.len();
                }
                Piece::Zero(extent) => {
                    content[range(extent)].fill(0);
                    *covered.lock().unwrap() += range(extent).len();
                }
            }
            Ok(())
        })?;
        assert_eq!(covered.into_inner().unwrap(), size, "every byte comes once");
        Ok(content.into_inner().unwrap())
    }

    /// All listed backups are those that should be, and restore to the truth.
    pub fn check(&self, expected: &[BackupId]) {
        let (listed, damaged) = self.store.backups(None).unwrap();
        assert_eq!(damaged, [""; 0]);
        let ids: Vec<&BackupId> = listed.iter().map(|backup| &backup.id).collect();
        assert_eq!(ids, expected.iter().collect::<Vec<_>>());
        for id in expected {
            assert!(self.restored(id).unwrap() == self.truth[id], "backup {id} restores to something else");
        }
    }

    /// The same by QEMU's own tools alone.
    pub fn check_with_qemu_img(&self, id: &BackupId) {
        let raw = self.folder.path().join("truth.raw");
        std::fs::write(&raw, &self.truth[id]).unwrap();
        let image = self.image(id);
        run("qemu-img", &["check", "-q", "-f", "qcow2", image.to_str().unwrap()]);
        run("qemu-img", &["compare", "-q", "-f", "qcow2", "-F", "raw", image.to_str().unwrap(), raw.to_str().unwrap()]);
    }
}

pub fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn chunk() -> ChunkSize {
    ChunkSize::try_from(u32::try_from(CLUSTER_BYTES).unwrap()).unwrap()
}

fn range(extent: Extent) -> std::ops::Range<usize> {
    usize::try_from(extent.start).unwrap()..usize::try_from(extent.end).unwrap()
}

fn inverse(content: &[u8]) -> Vec<u8> {
    content.iter().map(|byte| !byte).collect()
}

/// What is put and what is zero, where the new content differs from the old one or lies beyond it.
fn common_diff(then: &[u8], now: &[u8]) -> (Extents, Extents) {
    let (mut put, mut zero) = (Extents::new(), Extents::new());
    for (number, new) in now.chunks(CHUNK).enumerate() {
        let start = number * CHUNK;
        if then.get(start..start + new.len()) == Some(new) {
            continue;
        }
        let extent = Extent::at(start as u64, new.len() as u64);
        if new.iter().all(|byte| *byte == 0) { zero.push(extent) } else { put.push(extent) }
    }
    (put, zero)
}

/// Says nothing.
pub struct Silent;

impl Monitor for Silent {
    fn progress(&self, _: &str, _: u64, _: u64) {}
    fn finished(&self, _: &str) {}
    fn finding(&self, text: &str) {
        panic!("{text}");
    }
    fn note(&self, _: &str) {}
    fn interrupted(&self) -> bool {
        false
    }
}

/// A disk's name for those who need one.
pub fn vda() -> DiskName {
    common::disk_name("vda")
}
