//! Makes a repository that looks as if it had a long history: many chunks in its index, many backups of other VMs.
//!
//! `synthesize REPOSITORY PASSWORD CACHE CHUNKS BACKUPS VMS`. Index entries name packs that are not there, which nothing that
//! does not need those chunks looks at; the backups are real, small, an hour apart and of so many VMs of their own.

use std::error::Error;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use keepmark_model::facts::Power;
use keepmark_model::manifest::{Consistency, Kind, MANIFEST_VERSION, Manifest};
use keepmark_model::seam::Store as _;
use keepmark_model::{ChunkSize, VmIdentity};
use keepmark_store::repository::blob::BlobEntry;
use keepmark_store::repository::id::{BlobKind, Id};
use keepmark_store::repository::pack::PublishedPack;
use keepmark_store::{Environment, Options, Repository};

/// As many as a 16 MiB pack of 256 KiB chunks has, and as many packs as we put into an index file.
const PACK_CHUNKS: u64 = 118;
const INDEX_PACKS: u64 = 16;

fn main() -> Result<(), Box<dyn Error>> {
    let [path, password, cache, chunks, backups, vms] = <[String; 6]>::try_from(std::env::args().skip(1).collect::<Vec<_>>())
        .map_err(|_| "usage: synthesize REPOSITORY PASSWORD CACHE CHUNKS BACKUPS VMS")?;
    let environment = Environment {
        hostname: "synthetic".into(),
        username: "bench".into(),
        uid: 0,
        gid: 0,
        pid: std::process::id(),
        now: Timestamp::now,
        is_alive: |_| true,
    };
    let options = Options { cache: PathBuf::from(cache), environment, workers: 2 };
    let path = PathBuf::from(path);
    let repository = if path.join("config").exists() {
        Repository::open(&path, &password, options)?
    } else {
        Repository::init(&path, &password, ChunkSize::DEFAULT, options)?
    };
    let chunks: u64 = chunks.parse()?;
    for start in (0..chunks).step_by(usize::try_from(PACK_CHUNKS * INDEX_PACKS)?) {
        let end = chunks.min(start + PACK_CHUNKS * INDEX_PACKS);
        let packs: Vec<PublishedPack> =
            (start..end).step_by(usize::try_from(PACK_CHUNKS)?).map(|first| pack(first, end.min(first + PACK_CHUNKS))).collect();
        repository.write_index(&packs)?;
    }
    for number in 0..backups.parse::<u32>()? {
        publish(&repository, number, vms.parse()?)?;
    }
    Ok(())
}

fn pack(first: u64, end: u64) -> PublishedPack {
    let name = |number: u64, salt: &str| Id::of(format!("{salt} {number}").as_bytes());
    let entry = |(place, number): (u32, u64)| BlobEntry {
        id: name(number, "chunk"),
        kind: BlobKind::Data,
        offset: place * 140_000,
        length: 140_000,
        plain_length: Some(262_144),
    };
    PublishedPack { id: name(first, "pack"), blobs: (0..).zip(first..end).map(entry).collect() }
}

fn publish(repository: &Repository, number: u32, vms: u32) -> Result<(), Box<dyn Error>> {
    let vm = VmIdentity::new(&format!("synthetic-{}", number % vms), None)?;
    let time = "2026-01-01T00:00:00Z".parse::<Timestamp>()? + SignedDuration::from_hours(i64::from(number));
    let manifest = Manifest {
        version: MANIFEST_VERSION,
        program: "synthesize".into(),
        vm: vm.clone(),
        number: 0,
        time,
        kind: Kind::Full,
        wanted: None,
        standing: Default::default(),
        tags: Vec::new(),
        reason: "synthetic".into(),
        checkpoint: None,
        consistency: Consistency::Crash,
        pause_ms: 0,
        freeze_ms: None,
        duration_ms: u64::from(number),
        power: Power::Off,
        hypervisor: "none".into(),
        disks: vec![],
        left_out: vec![],
        skipped: vec![],
        findings: vec![],
    };
    repository.begin(&vm.id(), time)?.publish(&manifest, &[])?;
    Ok(())
}
