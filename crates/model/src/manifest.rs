//! The manifest: the small document whose publication makes a backup exist. Described for people in `docs/format.md`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::audit::AuditRecord;
use crate::extents::{ChunkSize, Size};
use crate::facts::{ImageId, Power, SkippedDisk};
use crate::names::{BackupId, CheckpointName, DiskName, VmId, VmIdentity};
use crate::rules::{Rule, broken};
use crate::scheme::Standing;

/// The manifest version that this program writes; newer ones are refused, older ones are read.
pub const MANIFEST_VERSION: u32 = 2;

/// How a backup or a disk of it was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Everything was read.
    Full,
    /// What changed since the last full.
    Differential,
    /// What changed since the last backup.
    Incremental,
    /// Everything was read and compared with the last backup; only differences were stored.
    Resync,
}

impl Kind {
    /// The word used in JSON, tags and tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Differential => "differential",
            Self::Incremental => "incremental",
            Self::Resync => "resync",
        }
    }

    /// The letter by which it is drawn in a sequence.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Full => 'F',
            Self::Differential => 'D',
            Self::Incremental => 'I',
            Self::Resync => 'R',
        }
    }
}

/// What was wanted of a backup, by the scheme or by the user; how it was captured is its [`Kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything is read.
    Full,
    /// What changed since the last full.
    Differential,
    /// What changed since the last backup.
    Incremental,
}

impl Role {
    /// The word used in JSON and tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Differential => "differential",
            Self::Incremental => "incremental",
        }
    }
}

/// What state the guest's data are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// File systems were quiesced by the guest agent, or the VM was powered off.
    Application,
    /// As after a power cut at that moment, over all disks.
    Crash,
}

impl Consistency {
    /// The word used in JSON and tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Crash => "crash",
        }
    }
}

/// What is known of a backup, saved inside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`] of the writer.
    pub version: u32,
    /// The program that wrote it: `keepmark 0.1.0`.
    pub program: String,
    /// Whose backup it is.
    pub vm: VmIdentity,
    /// Its place in the VM's sequence in this store: greater than that of every backup before it, whatever the clock said. 0 in
    /// manifests of version 1, which come before all others, in order of time.
    #[serde(default)]
    pub number: u64,
    /// The moment of the content, by the clock of the host that ran keepmark.
    pub time: Timestamp,
    /// How it was captured; the most expensive kind of its disks.
    pub kind: Kind,
    /// What was wanted; none in manifests of programs that knew no scheme.
    #[serde(default)]
    pub wanted: Option<Role>,
    /// When the newest full and the newest differential were, this one counted, though they may be deleted by now.
    #[serde(default)]
    pub standing: Standing,
    /// Words of the user's, by which retention can keep it.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Why that kind, in words.
    pub reason: String,
    /// The checkpoint that started at this moment, if one did.
    pub checkpoint: Option<CheckpointName>,
    /// What state the guest's data are in.
    pub consistency: Consistency,
    /// How long the VM's processors stood still.
    pub pause_ms: u64,
    /// How long the guest's file systems were frozen, if they were.
    pub freeze_ms: Option<u64>,
    /// From start until just before publication.
    pub duration_ms: u64,
    /// Whether the VM ran.
    pub power: Power,
    /// Driver and version: `qemu 10.0.2`.
    pub hypervisor: String,
    /// Its disks.
    pub disks: Vec<ManifestDisk>,
    /// Disks that the VM had and that could have been backed up, but were not wanted: with any, the backup is partial.
    #[serde(default)]
    pub left_out: Vec<DiskName>,
    /// Devices that were left out.
    pub skipped: Vec<SkippedDisk>,
    /// What was not as it should be, in words.
    pub findings: Vec<String>,
}

/// What is known of one disk of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestDisk {
    /// How it is called; also the folder of its chunks.
    pub name: DiskName,
    /// Bytes the guest saw.
    pub size: Size,
    /// How it was captured.
    pub kind: Kind,
    /// Why that kind, in words.
    pub reason: String,
    /// Format of the active image.
    pub format: String,
    /// Cluster size of the active image, bytes.
    pub cluster_size: Option<u64>,
    /// Where the active image was.
    pub image: String,
    /// Which file the active image was, where that could be told.
    #[serde(default)]
    pub image_id: Option<ImageId>,
    /// Where the images below it were, from the top down.
    #[serde(default)]
    pub backing: Vec<String>,
    /// Size of its chunks in this store.
    pub chunk_size: ChunkSize,
    /// Whether the backup's checkpoint has a bitmap on this disk.
    pub checkpointed: bool,
    /// The backup whose chunks were taken over where nothing changed.
    pub base: Option<BackupId>,
    /// Bytes that the bitmaps (and growth) called changed; the size where everything was read.
    pub dirty_bytes: u64,
    /// Bytes read from the VM.
    pub read_bytes: u64,
    /// Bytes that went into the store for this disk's chunks.
    pub stored_bytes: u64,
    /// Bytes that were called clean and were read again to check that.
    pub audited_bytes: u64,
    /// What the audit of an incremental covered and proved.
    #[serde(default)]
    pub audit: Option<AuditRecord>,
}

impl ManifestDisk {
    /// Whether one of its images was at this place.
    #[must_use]
    pub fn had_image(&self, image: &str) -> bool {
        self.image == image || self.backing.iter().any(|below| below == image)
    }
}

/// Puts the backups of one or several VMs into order, oldest first: a VM's by their numbers, and VMs among each other by time.
///
/// A clock may be wrong, and the order of a sequence decides what builds on what.
#[must_use]
pub fn in_order(mut backups: Vec<StoredBackup>) -> Vec<StoredBackup> {
    backups.sort_by(|a, b| (a.manifest.time, &a.id).cmp(&(b.manifest.time, &b.id)));
    let turns: Vec<VmId> = backups.iter().map(|backup| backup.manifest.vm_id()).collect();
    let mut sequences: BTreeMap<VmId, Vec<StoredBackup>> = BTreeMap::new();
    backups.into_iter().for_each(|backup| sequences.entry(backup.manifest.vm_id()).or_default().push(backup));
    let by_number = |sequence: &mut Vec<StoredBackup>| sequence.sort_by_key(|backup| backup.manifest.number);
    sequences.values_mut().filter(|_| !broken(Rule::Sequence)).for_each(by_number);
    let mut sequences: BTreeMap<VmId, _> = sequences.into_iter().map(|(id, sequence)| (id, sequence.into_iter())).collect();
    turns.iter().filter_map(|id| sequences.get_mut(id)?.next()).collect()
}

/// A published backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBackup {
    /// Its id in the store.
    pub id: BackupId,
    /// What is known of it.
    pub manifest: Manifest,
    /// Whether the user said that it stays.
    pub pinned: bool,
    /// The backups without which it cannot be restored, the next one below on each disk; none in a repository.
    pub builds_on: Vec<BackupId>,
}

impl StoredBackup {
    /// One that is not pinned and needs no other.
    #[must_use]
    pub fn new(id: BackupId, manifest: Manifest) -> Self {
        Self { id, manifest, pinned: false, builds_on: Vec::new() }
    }
}

impl Manifest {
    /// The sequence that it belongs to.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        self.vm.id()
    }

    /// Its place in the scheme: what was wanted of it, or a full if all of it was read for the first time.
    #[must_use]
    pub fn role(&self) -> Role {
        match (self.kind, self.wanted) {
            (Kind::Full, _) => Role::Full,
            (_, Some(wanted)) => wanted,
            (Kind::Differential, None) => Role::Differential,
            (Kind::Incremental | Kind::Resync, None) => Role::Incremental,
        }
    }

    /// Bytes of all its disks together, as the guest saw them.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size.0).fold(0, u64::saturating_add)
    }

    /// Bytes that went into the store for its disks.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.stored_bytes).fold(0, u64::saturating_add)
    }

    /// Whether it has all disks of the VM that could be backed up.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.left_out.is_empty()
    }

    /// What it has, where that is not all: `partial: vdb`.
    #[must_use]
    pub fn partial(&self) -> Option<String> {
        let disks = self.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>().join(", ");
        (!self.is_complete()).then(|| format!("partial: {disks}"))
    }

    /// One of its disks.
    #[must_use]
    pub fn disk(&self, name: &DiskName) -> Option<&ManifestDisk> {
        self.disks.iter().find(|disk| disk.name == *name)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::extents::Extent;

    /// A manifest of one disk `vda` of 1 MiB with a checkpoint.
    pub(crate) fn sample(checkpoint: Option<&str>) -> Manifest {
        let checkpoint = checkpoint.map(|name| CheckpointName::parse(name).unwrap());
        Manifest {
            version: MANIFEST_VERSION,
            program: "keepmark 0.1.0".into(),
            vm: VmIdentity::new("web", None).unwrap(),
            number: 3,
            time: "2026-11-22T18:00:00Z".parse().unwrap(),
            kind: Kind::Full,
            wanted: Some(Role::Full),
            standing: Standing::default(),
            tags: vec!["release".into()],
            reason: "first backup of this VM in this store".into(),
            consistency: Consistency::Crash,
            pause_ms: 7,
            freeze_ms: None,
            duration_ms: 900,
            power: Power::Running,
            hypervisor: "qemu 10.0.2".into(),
            disks: vec![ManifestDisk {
                name: DiskName::new("vda").unwrap(),
                size: Size(1 << 20),
                kind: Kind::Full,
                reason: "first backup of this disk in this store".into(),
                format: "qcow2".into(),
                cluster_size: Some(65_536),
                image: "/images/web.qcow2".into(),
                image_id: Some(ImageId::new("1048580 1795370400.123456789")),
                backing: vec!["/images/base.qcow2".into()],
                chunk_size: ChunkSize::DEFAULT,
                checkpointed: checkpoint.is_some(),
                base: None,
                dirty_bytes: 1 << 20,
                read_bytes: 1 << 20,
                stored_bytes: 1234,
                audited_bytes: 0,
                audit: None,
            }],
            checkpoint,
            left_out: vec![],
            skipped: vec![],
            findings: vec![],
        }
    }

    #[test]
    fn version_2_is_written_as_documented() {
        let mut manifest = sample(Some("km1-20261122T180000Z-3f9a1c0d7be2"));
        manifest.left_out = vec![DiskName::new("vdb").unwrap()];
        manifest.disks[0].audit = Some(AuditRecord {
            allocation_checked: Extent::new(0, 1 << 20),
            clean_bytes: 1 << 19,
            sampled_bytes: 1 << 18,
            undetected_max_ppm: 49_507,
        });
        insta::assert_json_snapshot!("manifest-v2", manifest);
    }

    #[test]
    fn version_1_is_read_for_ever() {
        let golden = include_str!("../tests/data/manifest-v1.json");
        let read: Manifest = serde_json::from_str(golden).unwrap();
        let mut expected = Manifest { version: 1, number: 0, ..sample(Some("km1-20261122T180000Z-3f9a1c0d7be2")) };
        expected.disks[0].image_id = None;
        expected.disks[0].audit.clone_from(&read.disks[0].audit);
        assert_eq!(read, expected);
        assert!(read.is_complete() && read.disks[0].audit.is_some());
    }

    #[test]
    fn words_are_those_of_the_json() {
        for kind in [Kind::Full, Kind::Differential, Kind::Incremental, Kind::Resync] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.word());
        }
        for consistency in [Consistency::Application, Consistency::Crash] {
            assert_eq!(serde_json::to_value(consistency).unwrap(), consistency.word());
        }
    }

    #[test]
    fn the_role_is_what_was_wanted_and_in_old_manifests_the_kind() {
        use Role::{Differential, Full, Incremental};
        for (kind, wanted, role) in [
            (Kind::Full, Some(Incremental), Full),
            (Kind::Full, None, Full),
            (Kind::Differential, None, Differential),
            (Kind::Incremental, None, Incremental),
            (Kind::Resync, None, Incremental),
            (Kind::Resync, Some(Differential), Differential),
            (Kind::Incremental, Some(Differential), Differential),
        ] {
            assert_eq!(Manifest { kind, wanted, ..sample(None) }.role(), role, "{kind:?} {wanted:?}");
        }
        let mut old = serde_json::to_value(sample(None)).unwrap();
        old.as_object_mut().unwrap().remove("wanted");
        assert_eq!(serde_json::from_value::<Manifest>(old).unwrap().wanted, None);
        for role in [Full, Differential, Incremental] {
            assert_eq!(serde_json::to_value(role).unwrap(), role.word());
        }
    }

    #[test]
    fn a_manifest_finds_and_adds_up_its_disks() {
        let mut manifest = sample(None);
        let second = ManifestDisk { name: DiskName::new("vdb").unwrap(), size: Size(5), stored_bytes: 6, ..manifest.disks[0].clone() };
        manifest.disks.push(second);
        assert_eq!((manifest.size(), manifest.stored_bytes(), manifest.vm_id().as_str()), ((1 << 20) + 5, 1240, "web"));
        let size_of = |name: &str| manifest.disk(&DiskName::new(name).unwrap()).map(|disk| disk.size.0);
        assert_eq!([size_of("vda"), size_of("vdb"), size_of("vdc")], [Some(1 << 20), Some(5), None]);
        assert!(manifest.is_complete() && manifest.partial().is_none());
        manifest.left_out = vec![DiskName::new("vdc").unwrap()];
        assert_eq!((manifest.is_complete(), manifest.partial().as_deref()), (false, Some("partial: vda, vdb")));
        let had = |image: &str| manifest.disks[0].had_image(image);
        assert!(had("/images/web.qcow2") && had("/images/base.qcow2") && !had("/images/other.qcow2"));
    }

    #[test]
    fn a_sequence_is_in_order_of_its_numbers_and_vms_are_in_order_of_time() {
        let backup = |id: &str, vm: &str, number: u64, time: &str| {
            let manifest = Manifest { number, vm: VmIdentity::new(vm, None).unwrap(), time: time.parse().unwrap(), ..sample(None) };
            StoredBackup::new(BackupId::new(id), manifest)
        };
        let all = in_order(vec![
            backup("c", "web", 1, "2027-11-22T00:00:00Z"),
            backup("d", "web", 2, "2026-11-23T00:00:00Z"),
            backup("b", "web", 0, "2026-11-21T00:00:00Z"),
            backup("a", "web", 0, "2026-11-20T00:00:00Z"),
            backup("y", "db", 7, "2026-11-22T00:00:00Z"),
            backup("x", "db", 6, "2026-11-21T00:00:00Z"),
        ]);
        let ids: String = all.iter().map(|backup| backup.id.as_str()).collect();
        assert_eq!(ids, "abxycd");
        let web: String = all.iter().filter(|backup| backup.manifest.vm.name == "web").map(|backup| backup.id.as_str()).collect();
        assert_eq!(web, "abcd");
    }

    #[test]
    fn what_is_written_reads_back() {
        let manifest = sample(None);
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
    }
}
