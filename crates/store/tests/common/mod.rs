//! What the store's tests share: a repository in a temporary folder, sample disks, stock restic.
#![expect(dead_code, reason = "every test file uses its own part")]
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a failed assumption is a failed test; lengths are small")]

pub mod failing;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use keepmark_model::facts::Power;
use keepmark_model::manifest::{Consistency, Kind, MANIFEST_VERSION, Manifest, ManifestDisk};
use keepmark_model::seam::{self, BackupReader as _, DiskContent, DiskStored, Piece, Recycler, SavedFile, Store as _};
use keepmark_model::{BackupId, ChunkIndex, ChunkSize, DiskName, Extent, Extents, Size, VmIdentity};
use keepmark_store::{Environment, Options, Repository};

pub const PASSWORD: &str = "correct horse";

/// Small chunks keep the tests small.
pub fn chunk_size() -> ChunkSize {
    ChunkSize::try_from(4096).unwrap()
}

pub struct Place {
    pub folder: tempfile::TempDir,
}

pub fn environment() -> Environment {
    Environment {
        hostname: "testhost".into(),
        username: "tester".into(),
        uid: 0,
        gid: 0,
        pid: std::process::id(),
        now: Timestamp::now,
        is_alive: |pid| Path::new(&format!("/proc/{pid}")).exists(),
    }
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A place in memory, where syncing costs nothing: for tests of many steps that are not about syncing.
    pub fn in_memory() -> Self {
        Self { folder: tempfile::tempdir_in("/dev/shm").unwrap() }
    }

    /// A place with the same repository and cache, to be changed apart from this one.
    pub fn copy(&self) -> Self {
        let copy = Self { folder: tempfile::tempdir_in(self.folder.path().parent().unwrap()).unwrap() };
        for name in ["repository", "cache"] {
            let status = Command::new("cp").arg("-a").arg(self.folder.path().join(name)).arg(copy.folder.path()).status().unwrap();
            assert!(status.success());
        }
        copy
    }

    pub fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    pub fn options(&self) -> Options {
        Options { cache: self.cache(), environment: environment(), workers: 2 }
    }

    pub fn init(&self) -> Repository {
        Repository::init(&self.repository(), PASSWORD, chunk_size(), self.options()).unwrap()
    }

    pub fn open(&self) -> Repository {
        Repository::open(&self.repository(), PASSWORD, self.options()).unwrap()
    }

    pub fn restic(&self, args: &[&str]) -> Output {
        Command::new("restic")
            .args(["--no-cache", "-q", "-r"])
            .arg(self.repository())
            .args(args)
            .env("RESTIC_PASSWORD", PASSWORD)
            .output()
            .expect("stock restic must be installed (make deps)")
    }

    /// Runs restic, which must succeed; returns its stdout.
    pub fn restic_ok(&self, args: &[&str]) -> Vec<u8> {
        let output = self.restic(args);
        assert!(
            output.status.success(),
            "restic {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    pub fn check_with_restic(&self) {
        self.restic_ok(&["check", "--read-data"]);
    }

    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut waiting = vec![self.repository().join(folder)];
        while let Some(folder) = waiting.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { waiting.push(path) } else { found.push(path) }
            }
        }
        found.sort();
        found
    }
}

pub fn vm() -> VmIdentity {
    VmIdentity::new("web \"1\" \\ ü", None).unwrap()
}

pub fn disk_name(name: &str) -> DiskName {
    DiskName::new(name).unwrap()
}

pub fn manifest(time: &str, disks: &[(&str, u64)], base: Option<&BackupId>) -> Manifest {
    let kind = if base.is_some() { Kind::Incremental } else { Kind::Full };
    Manifest {
        version: MANIFEST_VERSION,
        program: "keepmark 0.1.0".into(),
        vm: vm(),
        number: 0,
        time: time.parse().unwrap(),
        kind,
        wanted: None,
        standing: Default::default(),
        tags: Vec::new(),
        reason: "test".into(),
        checkpoint: None,
        consistency: Consistency::Crash,
        pause_ms: 0,
        freeze_ms: None,
        duration_ms: 0,
        power: Power::Off,
        hypervisor: "none".into(),
        disks: disks
            .iter()
            .map(|(name, size)| ManifestDisk {
                name: disk_name(name),
                size: Size(*size),
                kind,
                reason: "test".into(),
                format: "raw".into(),
                cluster_size: None,
                image: "none".into(),
                image_id: None,
                backing: Vec::new(),
                chunk_size: chunk_size(),
                checkpointed: false,
                base: base.cloned(),
                dirty_bytes: 0,
                read_bytes: 0,
                stored_bytes: 0,
                audited_bytes: 0,
                audit: None,
            })
            .collect(),
        left_out: vec![],
        skipped: vec![],
        findings: vec![],
    }
}

pub fn recycler() -> Recycler {
    Arc::new(drop)
}

/// Which parts of a disk's content are told to be zero instead of being put, and which are left to the base.
pub struct Told {
    pub put: Extents,
    pub zero: Extents,
}

pub fn extents(pairs: &[(u64, u64)]) -> Extents {
    pairs.iter().map(|(start, end)| Extent::new(*start, *end)).collect()
}

pub fn put_all(content: &[u8]) -> Told {
    Told { put: Extents::whole(Size(content.len() as u64)), zero: Extents::new() }
}

/// Everything: what is zero is told, the rest is put.
pub fn put_data(content: &[u8]) -> Told {
    // Unlike anything, so that every chunk differs.
    let unlike: Vec<u8> = content.iter().map(|byte| !byte).collect();
    diff(&unlike, content)
}

/// Puts the told part of `content` in a slightly wrong order.
pub fn write_disk(
    writer: &mut dyn seam::BackupWriter,
    name: &str,
    content: &[u8],
    base: Option<&BackupId>,
    told: &Told,
) -> seam::Result<DiskStored> {
    let size = Size(content.len() as u64);
    let declared = DiskContent {
        name: disk_name(name),
        size,
        chunk_size: chunk_size(),
        base: base.cloned(),
        compare: None,
        put: told.put.clone(),
        zero: told.zero.clone(),
    };
    let mut disk = writer.disk(&declared)?;
    let chunks: Vec<ChunkIndex> = told.put.chunks(chunk_size()).collect();
    for window in chunks.chunks(7) {
        for chunk in window.iter().rev() {
            let extent = chunk_size().extent(*chunk, size);
            disk.put(*chunk, content[extent.start as usize..extent.end as usize].to_vec(), &recycler())?;
        }
    }
    disk.finish()
}

pub const MORNING: &str = "2026-11-22T08:00:00Z";
pub const EVENING: &str = "2026-11-22T18:00:00Z";

/// A whole backup of one disk `vda`.
pub fn backup(repository: &Repository, time: &str, content: &[u8], base: Option<&BackupId>, told: &Told) -> seam::Result<BackupId> {
    backup_of(&vm(), repository, time, content, base, told)
}

/// The same of any VM.
pub fn backup_of(
    vm: &VmIdentity,
    repository: &Repository,
    time: &str,
    content: &[u8],
    base: Option<&BackupId>,
    told: &Told,
) -> seam::Result<BackupId> {
    let mut writer = repository.begin(&vm.id(), time.parse().unwrap())?;
    write_disk(&mut *writer, "vda", content, base, told)?;
    // Unlike any other VM's, so that they share nothing but zeros.
    let file = SavedFile { name: "domain.json".into(), content: format!(r#"{{"machine":"q35","name":{:?}}}"#, vm.name).into_bytes() };
    let manifest = Manifest { vm: vm.clone(), ..manifest(time, &[("vda", content.len() as u64)], base) };
    writer.publish(&manifest, &[file])
}

/// What changed from one content to the other of the same size, in whole chunks; zeros are told.
pub fn diff(then: &[u8], now: &[u8]) -> Told {
    let mut told = Told { put: Extents::new(), zero: Extents::new() };
    let chunk = chunk_size().bytes() as usize;
    for (number, (old, new)) in then.chunks(chunk).zip(now.chunks(chunk)).enumerate() {
        let extent = Extent::at((number * chunk) as u64, new.len() as u64);
        match (old == new, new.iter().all(|byte| *byte == 0)) {
            (true, _) => {}
            (false, true) => told.zero.push(extent),
            (false, false) => told.put.push(extent),
        }
    }
    told
}

pub fn full(repository: &Repository, content: &[u8]) -> BackupId {
    backup(repository, MORNING, content, None, &put_all(content)).unwrap()
}

/// Reads a disk back; every byte must come exactly once.
pub fn restore(repository: &Repository, id: &BackupId, name: &str, size: usize) -> seam::Result<Vec<u8>> {
    let reader = repository.open_backup(id)?;
    let (content, covered) = (Mutex::new(vec![0xee; size]), Mutex::new(Vec::new()));
    reader.read_disk(&disk_name(name), None, &|piece| {
        let (extent, bytes) = match piece {
            Piece::Data { offset, bytes } => (Extent::at(offset, bytes.len() as u64), bytes.to_vec()),
            Piece::Zero(extent) => (extent, vec![0; extent.len() as usize]),
        };
        content.lock().unwrap()[extent.start as usize..extent.end as usize].copy_from_slice(&bytes);
        covered.lock().unwrap().push(extent);
        Ok(())
    })?;
    let covered = covered.into_inner().unwrap();
    assert_eq!(covered.iter().map(|extent| extent.len()).sum::<u64>(), size as u64);
    assert_eq!(covered.into_iter().collect::<Extents>(), Extents::whole(Size(size as u64)));
    Ok(content.into_inner().unwrap())
}

/// Bytes without a pattern, the same every time.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}
