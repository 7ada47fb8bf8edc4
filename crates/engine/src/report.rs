//! What a finished job tells; the command line turns it into its documented JSON.

use jiff::Timestamp;
use keepmark_model::manifest::{Manifest, ManifestDisk};
use keepmark_model::{BackupId, DiskName};
use serde::Serialize;

/// A finished backup, in the shape of the documented `finished` event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// Always `finished`.
    pub event: &'static str,
    /// Its id.
    pub backup: BackupId,
    /// The VM's name.
    pub vm: String,
    /// `full`, `incremental`, `differential` or `resync`.
    pub kind: &'static str,
    /// What was wanted: `full`, `differential` or `incremental`.
    pub wanted: &'static str,
    /// Why that kind, in words.
    pub reason: String,
    /// The checkpoint that started at its moment.
    pub checkpoint: Option<String>,
    /// `application` or `crash`.
    pub consistency: &'static str,
    /// How long the VM's processors stood still.
    pub pause_ms: u64,
    /// From start to publication.
    pub duration_ms: u64,
    /// Disk by disk.
    pub disks: Vec<DiskReport>,
}

/// One disk of a finished backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskReport {
    /// How it is called.
    pub name: String,
    /// Bytes the guest saw.
    pub size: u64,
    /// How it was captured.
    pub kind: &'static str,
    /// Why, in words.
    pub reason: String,
    /// Bytes called changed.
    pub dirty_bytes: u64,
    /// Bytes read from the VM.
    pub read_bytes: u64,
    /// Bytes that went into the store.
    pub stored_bytes: u64,
    /// Bytes called clean and read again.
    pub audited_bytes: u64,
}

impl BackupReport {
    /// The report of a published backup.
    #[must_use]
    pub fn new(backup: BackupId, manifest: &Manifest) -> Self {
        Self {
            event: "finished",
            backup,
            vm: manifest.vm.name.clone(),
            kind: manifest.kind.word(),
            wanted: manifest.role().word(),
            reason: manifest.reason.clone(),
            checkpoint: manifest.checkpoint.as_ref().map(ToString::to_string),
            consistency: manifest.consistency.word(),
            pause_ms: manifest.pause_ms,
            duration_ms: manifest.duration_ms,
            disks: manifest.disks.iter().map(DiskReport::from).collect(),
        }
    }
}

impl From<&ManifestDisk> for DiskReport {
    fn from(disk: &ManifestDisk) -> Self {
        Self {
            name: disk.name.to_string(),
            size: disk.size.0,
            kind: disk.kind.word(),
            reason: disk.reason.clone(),
            dirty_bytes: disk.dirty_bytes,
            read_bytes: disk.read_bytes,
            stored_bytes: disk.stored_bytes,
            audited_bytes: disk.audited_bytes,
        }
    }
}

/// A revert, finished or planned, in the shape of the documented events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevertReport {
    /// `finished` or `plan`.
    pub event: &'static str,
    /// The VM's name.
    pub vm: String,
    /// The backup to which it went back.
    pub backup: BackupId,
    /// Its moment.
    pub time: Timestamp,
    /// The backup that was made just before.
    pub safety_backup: Option<BackupId>,
    /// Whether it finished an earlier revert.
    pub resumed: bool,
    /// The disks that went back.
    pub disks: Vec<RevertedDisk>,
    /// Disks of the VM that stayed.
    pub kept: Vec<DiskName>,
    /// From start to end.
    pub duration_ms: u64,
}

/// One disk of a revert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevertedDisk {
    /// How it is called.
    pub name: String,
    /// Bytes the guest sees.
    pub size: u64,
    /// What was compared and why, in words.
    pub reason: String,
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Bytes that differed and were written.
    pub written_bytes: u64,
    /// Bytes that differed and were zeroed.
    pub zeroed_bytes: u64,
}
