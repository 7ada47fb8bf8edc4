//! Times a backup of a raw file into a repository and its restore: what the store alone costs, without any hypervisor.
//!
//! `store_bench REPOSITORY PASSWORD CACHE full|inc|restore FILE [MIB]`. `inc` stores MIB scattered MiB of new bytes over the
//! newest backup; `restore` writes FILE.
#![expect(clippy::print_stdout, reason = "an example speaks for itself")]

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use keepmark_model::facts::Power;
use keepmark_model::manifest::{Consistency, Kind, MANIFEST_VERSION, Manifest, ManifestDisk};
use keepmark_model::seam::{DiskContent, Piece, Recycler, Store as _};
use keepmark_model::{BackupId, ChunkSize, DiskName, Extent, Extents, Failure, FailureClass, Size, VmIdentity};
use keepmark_store::{Environment, Options, Repository};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, password, cache, mode, file] =
        args.get(..5).and_then(|args| <&[String; 5]>::try_from(args).ok()).ok_or("usage: see the source")?;
    let mib: u64 = args.get(5).map_or(Ok(64), |text| text.parse())?;
    let start = Instant::now();
    let environment = Environment {
        hostname: "bench".into(),
        username: "bench".into(),
        uid: 0,
        gid: 0,
        pid: std::process::id(),
        now: Timestamp::now,
        is_alive: |_| true,
    };
    let options = Options { cache: PathBuf::from(cache), environment, workers: 2 };
    let path = Path::new(path);
    let repository = if path.join("config").exists() {
        Repository::open(path, password, options)?
    } else {
        Repository::init(path, password, ChunkSize::DEFAULT, options)?
    };
    let opened = start.elapsed();
    let vm = VmIdentity::new("bench", None)?;
    let (backups, _) = repository.backups(Some(&vm.id()))?;
    let listed = start.elapsed();
    let newest = backups.last();
    match mode.as_str() {
        "full" => {
            let file = File::open(file)?;
            let size = Size(file.metadata()?.len());
            backup(
                &repository,
                &vm,
                size,
                Extents::whole(size),
                None,
                &mut |extent, buffer| Ok(file.read_exact_at(buffer, extent.start)?),
            )?;
        }
        "inc" => {
            let base = newest.ok_or("no base")?;
            let size = base.manifest.disks[0].size;
            let chunks = ChunkSize::DEFAULT.count(size);
            let wanted = mib * 4;
            let step = (chunks / wanted).max(1);
            let put = (0..wanted).map(|number| ChunkSize::DEFAULT.extent(keepmark_model::ChunkIndex(number * step), size)).collect();
            let mut state = u64::try_from(Timestamp::now().as_microsecond())? | 1;
            backup(&repository, &vm, size, put, Some(&base.id), &mut |_, buffer| {
                for word in buffer.chunks_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
                }
                Ok(())
            })?;
        }
        _ => {
            let base = newest.ok_or("no backup")?;
            let out = File::create(file)?;
            out.set_len(base.manifest.disks[0].size.0)?;
            let io = |error: std::io::Error| Failure::new(FailureClass::Failed, error);
            repository.open(&base.id)?.read_disk(&DiskName::new("vda")?, None, &|piece| match piece {
                Piece::Data { offset, bytes } => out.write_all_at(bytes, offset).map_err(io),
                Piece::Zero(_) => Ok(()),
            })?;
            out.sync_all()?;
        }
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned();
    println!("{mode}: opened {opened:?}, listed {listed:?}, all {:?}, {peak}", start.elapsed());
    Ok(())
}

type Fill<'a> = &'a mut dyn FnMut(Extent, &mut [u8]) -> Result<(), Box<dyn Error>>;

fn backup(
    repository: &Repository,
    vm: &VmIdentity,
    size: Size,
    put: Extents,
    base: Option<&BackupId>,
    fill: Fill<'_>,
) -> Result<(), Box<dyn Error>> {
    let (pool_in, pool) = std::sync::mpsc::channel::<Vec<u8>>();
    let recycler: Recycler = Arc::new(move |buffer| drop(pool_in.send(buffer)));
    let name = DiskName::new("vda")?;
    let time = Timestamp::now();
    let mut writer = repository.begin(&vm.id(), time)?;
    let content = DiskContent {
        name: name.clone(),
        size,
        chunk_size: ChunkSize::DEFAULT,
        base: base.cloned(),
        compare: None,
        put: put.clone(),
        zero: Extents::new(),
    };
    let mut disk = writer.disk(&content)?;
    for chunk in put.chunks(ChunkSize::DEFAULT) {
        let extent = ChunkSize::DEFAULT.extent(chunk, size);
        let mut buffer = pool.try_recv().unwrap_or_default();
        buffer.resize(usize::try_from(extent.len())?, 0);
        fill(extent, &mut buffer)?;
        disk.put(chunk, buffer, &recycler)?;
    }
    println!("{:?}", disk.finish()?);
    let kind = if base.is_some() { Kind::Incremental } else { Kind::Full };
    let disk = ManifestDisk {
        name,
        size,
        kind,
        reason: String::new(),
        format: "raw".into(),
        cluster_size: None,
        image: String::new(),
        image_id: None,
        backing: Vec::new(),
        chunk_size: ChunkSize::DEFAULT,
        checkpointed: false,
        base: base.cloned(),
        dirty_bytes: 0,
        read_bytes: 0,
        stored_bytes: 0,
        audited_bytes: 0,
        audit: None,
    };
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        program: "bench".into(),
        vm: vm.clone(),
        number: 0,
        time,
        kind,
        wanted: None,
        standing: Default::default(),
        tags: Vec::new(),
        reason: String::new(),
        checkpoint: None,
        consistency: Consistency::Crash,
        pause_ms: 0,
        freeze_ms: None,
        duration_ms: 0,
        power: Power::Off,
        hypervisor: String::new(),
        disks: vec![disk],
        left_out: vec![],
        skipped: vec![],
        findings: vec![],
    };
    writer.publish(&manifest, &[])?;
    Ok(())
}
