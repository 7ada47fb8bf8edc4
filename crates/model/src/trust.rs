//! Trust: whether a disk's bitmap provably holds everything that changed since the last backup. A doubtful bitmap is never used.
//!
//! Checkpoint C is a usable base on a disk if a published manifest of this VM and store names C for this disk; C's bitmap is on
//! every image of the backing chain that was written since C down to the one in which it began, recording and not inconsistent; the
//! disk has not shrunk, the image in which it began is the same file, and no image of it was another disk's then. Everything else is a [`Doubt`] and ends in a resync. Names of checkpoints are used once, so an image that was rolled back or
//! replaced has not the newest name in it, and a copy of an image carries bitmaps that are true of the copy.

use std::fmt;

use crate::extents::Size;
use crate::facts::{BitmapFacts, DiskFacts, LayerFacts, Persistence};
use crate::manifest::{Kind, ManifestDisk, StoredBackup};
use crate::names::{BackupId, CheckpointName, DiskName};
use crate::rules::{Rule, broken};

/// What may be believed about one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The delta since this base is complete.
    Trusted(Base),
    /// There are backups of the disk, but no bitmap that proves what changed since.
    Doubtful {
        /// The backup whose chunks are compared with: the newest that has this disk, or its anchor.
        newest: BackupId,
        /// What is wrong.
        doubt: Doubt,
    },
    /// This store has no backup of the disk.
    Unknown,
}

/// A backup that can be built upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Which backup.
    pub backup: BackupId,
    /// The checkpoint whose bitmap is the delta.
    pub checkpoint: CheckpointName,
    /// The disk's size then.
    pub size: Size,
    /// What the bitmaps call changed, at most, before growth.
    pub dirty: Size,
}

/// Why a bitmap is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// No backup of this disk in this store has a checkpoint.
    NoCheckpoint,
    /// The bitmap is nowhere.
    Missing {
        /// Why bitmaps of this disk do not outlive QEMU, if they do not.
        memory_only: Option<String>,
    },
    /// QEMU died while the image was open.
    Inconsistent,
    /// Writes were not recorded.
    Disabled,
    /// A job or an export holds it; it cannot be read.
    Busy,
    /// The image that is written now has no such bitmap, but one below has.
    Overlay,
    /// An image between two that have the bitmap lacks it.
    Gap,
    /// Another manager cleared or paused it: a younger bitmap of the same image has seen more.
    Cleared {
        /// The younger one.
        younger: CheckpointName,
    },
    /// One of its images was another disk's at the checkpoint, and has that disk's bitmap of the same name.
    Swapped {
        /// The other disk.
        other: DiskName,
    },
    /// The lowest image that has the bitmap is not the one in which it began: what that one recorded may be lost.
    OtherImage {
        /// Where it began.
        then: String,
        /// Where it is now.
        now: String,
    },
    /// The image in which the bitmap began is another file than at the checkpoint: a copy may carry bitmaps that are true of other content.
    AnotherFile {
        /// Where it is.
        image: String,
    },
    /// What was cut off and grown again would be zeros that the bitmap calls clean.
    Shrunk {
        /// Size at the checkpoint.
        then: Size,
        /// Size now.
        now: Size,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCheckpoint => f.write_str("the earlier backups of this disk were made without a checkpoint"),
            Self::Missing { memory_only: None } => f.write_str(
                "the last backup's bitmap is gone: QEMU was killed before it could store it, or the image was replaced, rolled back or rewritten",
            ),
            Self::Missing { memory_only: Some(why) } => {
                write!(f, "the last backup's bitmap lived in QEMU's memory only ({why}) and QEMU has ended since")
            }
            Self::Inconsistent => f.write_str("QEMU was killed after the last backup, its bitmap is inconsistent"),
            Self::Disabled => f.write_str("the last backup's bitmap was disabled, so writes went unrecorded"),
            Self::Busy => f.write_str("another job or export holds the last backup's bitmap"),
            Self::Overlay => f.write_str("an external snapshot was taken since the last backup, and the new image has no bitmap of it"),
            Self::Gap => f.write_str("an image in the middle of the backing chain has no bitmap of the last backup"),
            Self::Cleared { younger } => write!(
                f,
                "the last backup's bitmap was cleared or paused by somebody else: it has fewer changes than the younger {younger}"
            ),
            Self::OtherImage { then, now } => {
                write!(f, "the last backup's bitmap began in {then} and is in {now} now: the file was copied or renamed, or images were merged")
            }
            Self::AnotherFile { image } => write!(
                f,
                "{image} is another file than at the last backup (copied, converted, restored or moved to another file system), and its bitmaps may be another content's"
            ),
            Self::Swapped { other } => write!(f, "the image was that of disk {other} at the last backup"),
            Self::Shrunk { then, now } => write!(f, "the disk shrank from {then} to {now} bytes since the last backup"),
        }
    }
}

/// A backup of a disk whose checkpoint has a bitmap on it: what a next backup may build on, if the bitmap is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Which backup.
    pub backup: &'a StoredBackup,
    /// The disk as it was then.
    pub disk: &'a ManifestDisk,
    /// The checkpoint that started at its moment.
    pub checkpoint: &'a CheckpointName,
}

fn candidates<'a>(disk: &DiskName, sequence: &'a [StoredBackup]) -> impl Iterator<Item = Candidate<'a>> {
    sequence.iter().rev().filter_map(move |backup| {
        let disk = backup.manifest.disk(disk).filter(|then| then.checkpointed)?;
        Some(Candidate { backup, disk, checkpoint: backup.manifest.checkpoint.as_ref()? })
    })
}

/// What an incremental of a disk builds on: its newest backup with a checkpoint.
#[must_use]
pub fn newest<'a>(disk: &DiskName, sequence: &'a [StoredBackup]) -> Option<Candidate<'a>> {
    candidates(disk, sequence).next()
}

/// What a differential of a disk builds on: its newest backup with a checkpoint for which all of the disk was read.
#[must_use]
pub fn anchor<'a>(disk: &DiskName, sequence: &'a [StoredBackup]) -> Option<Candidate<'a>> {
    candidates(disk, sequence).find(|candidate| matches!(candidate.disk.kind, Kind::Full | Kind::Resync))
}

/// Judges one disk against the backups of its VM in one store, oldest first: what changed since the last one.
#[must_use]
pub fn judge(disk: &DiskFacts, sequence: &[StoredBackup]) -> Verdict {
    let Some(last) = sequence.iter().rev().find(|backup| backup.manifest.disk(&disk.name).is_some()) else { return Verdict::Unknown };
    let judged = newest(&disk.name, sequence).ok_or(Doubt::NoCheckpoint).and_then(|candidate| base(disk, &candidate, candidate.checkpoint));
    judged.map_or_else(|doubt| Verdict::Doubtful { newest: last.id.clone(), doubt }, Verdict::Trusted)
}

/// Judges one disk against its [`anchor`]: what changed since then. Nothing without an anchor.
///
/// The anchor's own bitmap is the delta. Those of the backups in between have not seen all of it.
#[must_use]
pub fn judge_anchor(disk: &DiskFacts, sequence: &[StoredBackup]) -> Option<Verdict> {
    let candidate = anchor(&disk.name, sequence)?;
    let checkpoint = newest(&disk.name, sequence).filter(|_| broken(Rule::Anchor)).unwrap_or(candidate).checkpoint;
    let judged = base(disk, &candidate, checkpoint);
    Some(judged.map_or_else(|doubt| Verdict::Doubtful { newest: candidate.backup.id.clone(), doubt }, Verdict::Trusted))
}

fn base(disk: &DiskFacts, candidate: &Candidate<'_>, checkpoint: &CheckpointName) -> Result<Base, Doubt> {
    let Candidate { backup, disk: then, .. } = *candidate;
    if let Some(other) = swapped(disk, then, backup).filter(|_| !broken(Rule::Swapped)) {
        return Err(Doubt::Swapped { other });
    }
    let dirty = complete_delta(disk, then, checkpoint)?;
    Ok(Base { backup: backup.id.clone(), checkpoint: checkpoint.clone(), size: then.size, dirty })
}

/// A checkpoint's bitmaps have one name on all disks, so only the images' places tell exchanged disks apart. Disks may share images.
fn swapped(disk: &DiskFacts, then: &ManifestDisk, backup: &StoredBackup) -> Option<DiskName> {
    let images = disk.layers.iter().map(|layer| layer.image.as_str());
    let strange: Vec<&str> = images.filter(|image| !image.is_empty() && !then.had_image(image)).collect();
    let mut others = backup.manifest.disks.iter().filter(|other| other.name != disk.name);
    others.find(|other| strange.iter().any(|image| other.had_image(image))).map(|other| other.name.clone())
}

/// Bytes that the checkpoint's bitmaps call dirty, if together they are complete.
fn complete_delta(disk: &DiskFacts, then: &ManifestDisk, checkpoint: &CheckpointName) -> Result<Size, Doubt> {
    if disk.size < then.size && !broken(Rule::Shrunk) {
        return Err(Doubt::Shrunk { then: then.size, now: disk.size });
    }
    let dirty = recorded(disk, checkpoint)?;
    began_here(disk, then, checkpoint).map(|()| dirty)
}

/// Bytes that the checkpoint's bitmaps call dirty, if as they are now they have recorded every write since the checkpoint.
///
/// A driver asks this again at the frozen point itself: between the plan and the point somebody may have taken a snapshot.
///
/// # Errors
/// When a bitmap is missing where one is needed, or cannot be believed.
pub fn recorded(disk: &DiskFacts, checkpoint: &CheckpointName) -> Result<Size, Doubt> {
    let per_layer: Vec<Option<&BitmapFacts>> =
        disk.layers.iter().map(|layer| layer.bitmaps.iter().find(|bitmap| bitmap.name == checkpoint.as_str())).collect();
    let depth = per_layer.iter().take_while(|bitmap| bitmap.is_some()).count();
    let below = per_layer.iter().skip(depth).any(Option::is_some);
    match (depth, below) {
        (0, false) => return Err(missing(disk)),
        (0, true) if !broken(Rule::Overlay) => return Err(Doubt::Overlay),
        (1.., true) if !broken(Rule::Gap) => return Err(Doubt::Gap),
        (_, true | false) => {}
    }
    let found: Vec<&BitmapFacts> = per_layer.into_iter().flatten().collect();
    found.iter().try_for_each(|bitmap| believable(bitmap))?;
    if let Some(younger) = disk.layers.iter().zip(&found).find_map(|(layer, bitmap)| younger_with_more(layer, bitmap, checkpoint)) {
        return Err(Doubt::Cleared { younger });
    }
    Ok(Size(found.iter().map(|bitmap| bitmap.dirty.0).fold(0, u64::saturating_add).min(disk.size.0)))
}

/// A bitmap goes on in the images above the one in which it began. If that one has been streamed away, what it recorded is gone
/// although the others look complete. A file that is known as itself says so; of one that the manifest does not know, only the names are
/// compared: folders change when a VM moves, and are called in many ways.
fn began_here(disk: &DiskFacts, then: &ManifestDisk, checkpoint: &CheckpointName) -> Result<(), Doubt> {
    let has_bitmap = |layer: &&LayerFacts| layer.bitmaps.iter().any(|bitmap| bitmap.name == checkpoint.as_str());
    let Some(lowest) = disk.layers.iter().rfind(has_bitmap) else { return Ok(()) };
    let file_name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let is_named_alike = lowest.image.is_empty() || then.image.is_empty() || file_name(&lowest.image) == file_name(&then.image);
    let is_known = then.image_id.is_some() && !broken(Rule::Identity);
    match (is_known, is_named_alike) {
        _ if broken(Rule::Origin) => Ok(()),
        (true, _) if lowest.id == then.image_id => Ok(()),
        (true, true) => Err(Doubt::AnotherFile { image: lowest.image.clone() }),
        (true | false, false) => Err(Doubt::OtherImage { then: then.image.clone(), now: lowest.image.clone() }),
        (false, true) => Ok(()),
    }
}

/// A bitmap that began earlier has recorded everything that a younger one of the same image has.
fn younger_with_more(layer: &LayerFacts, bitmap: &BitmapFacts, checkpoint: &CheckpointName) -> Option<CheckpointName> {
    let sees_more = |other: &&BitmapFacts| other.granularity == bitmap.granularity && !other.inconsistent && other.dirty > bitmap.dirty;
    let names = layer.bitmaps.iter().filter(sees_more).filter_map(|other| CheckpointName::parse(&other.name).ok());
    names.into_iter().find(|other| other.time() > checkpoint.time())
}

fn missing(disk: &DiskFacts) -> Doubt {
    let memory_only = match &disk.persistence {
        Persistence::Stored => None,
        Persistence::MemoryOnly { why } => Some(why.clone()),
    };
    Doubt::Missing { memory_only }
}

/// A frozen layer below a snapshot still reports `recording` although nothing can be written there.
fn believable(bitmap: &BitmapFacts) -> Result<(), Doubt> {
    // QEMU never reports an inconsistent one as recording.
    let disabled = !bitmap.recording && !bitmap.inconsistent;
    if bitmap.inconsistent && !broken(Rule::Inconsistent) {
        Err(Doubt::Inconsistent)
    } else if disabled && !broken(Rule::Disabled) {
        Err(Doubt::Disabled)
    } else if bitmap.busy && !broken(Rule::Busy) {
        Err(Doubt::Busy)
    } else {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::facts::ImageId;
    use crate::manifest::tests::sample;

    pub(crate) const C1: &str = "km1-20261122T180000Z-000000000001";
    pub(crate) const C2: &str = "km1-20261122T190000Z-000000000002";

    pub(crate) fn bitmap(name: &str) -> BitmapFacts {
        BitmapFacts {
            name: name.into(),
            recording: true,
            busy: false,
            inconsistent: false,
            persistent: true,
            granularity: 65_536,
            dirty: Size(65_536),
        }
    }

    fn layer(bitmaps: &[BitmapFacts]) -> LayerFacts {
        LayerFacts { image: "/images/web.qcow2".into(), id: sample(None).disks[0].image_id.clone(), bitmaps: bitmaps.to_vec() }
    }

    pub(crate) fn disk(layers: &[&[BitmapFacts]]) -> DiskFacts {
        DiskFacts {
            name: DiskName::new("vda").unwrap(),
            size: Size(1 << 20),
            format: "qcow2".into(),
            cluster_size: Some(65_536),
            image: "/images/web.qcow2".into(),
            persistence: Persistence::Stored,
            layers: layers.iter().map(|bitmaps| layer(bitmaps)).collect(),
        }
    }

    pub(crate) fn backup(id: &str, checkpoint: Option<&str>) -> StoredBackup {
        StoredBackup::new(BackupId::new(id), sample(checkpoint))
    }

    fn doubt(disk: &DiskFacts, sequence: &[StoredBackup]) -> Doubt {
        let Verdict::Doubtful { doubt, .. } = judge(disk, sequence) else { panic!("a doubt was expected") };
        doubt
    }

    #[test]
    fn a_recording_bitmap_of_the_newest_checkpoint_is_trusted() {
        let sequence = [backup("a", Some(C1)), backup("b", Some(C2))];
        let Verdict::Trusted(base) = judge(&disk(&[&[bitmap(C1), bitmap(C2)]]), &sequence) else { panic!() };
        assert_eq!((base.backup.as_str(), base.checkpoint.as_str(), base.dirty), ("b", C2, Size(65_536)));
    }

    #[test]
    fn an_older_checkpoint_is_no_substitute_for_the_newest() {
        let sequence = [backup("a", Some(C1)), backup("b", Some(C2))];
        assert_eq!(doubt(&disk(&[&[bitmap(C1)]]), &sequence), Doubt::Missing { memory_only: None });
    }

    #[test]
    fn a_backup_without_checkpoint_in_between_does_not_break_the_base() {
        let sequence = [backup("a", Some(C1)), backup("b", None)];
        let Verdict::Trusted(base) = judge(&disk(&[&[bitmap(C1)]]), &sequence) else { panic!() };
        assert_eq!(base.backup.as_str(), "a");
    }

    #[test]
    fn a_differential_is_judged_by_the_anchors_own_bitmap() {
        let later = |id: &str, kind: Kind, checkpoint: Option<&str>| {
            let mut backup = backup(id, checkpoint);
            backup.manifest.disks[0].kind = kind;
            backup
        };
        let full = later("f", Kind::Full, Some(C1));
        let increment = later("i", Kind::Incremental, Some(C2));
        let both = disk(&[&[bitmap(C1), bitmap(C2)]]);
        let based_on = |disk: &DiskFacts, sequence: &[StoredBackup]| match judge_anchor(disk, sequence) {
            Some(Verdict::Trusted(base)) => Some((base.backup.as_str().to_owned(), base.checkpoint)),
            _ => None,
        };
        let expected = Some(("f".to_owned(), CheckpointName::parse(C1).unwrap()));
        assert_eq!(based_on(&both, &[full.clone(), increment.clone()]), expected);
        assert_eq!(based_on(&both, &[full.clone(), later("r", Kind::Resync, None)]), expected, "without a checkpoint it is no anchor");
        let resync = later("r", Kind::Resync, Some(C2));
        assert_eq!(based_on(&both, &[full.clone(), resync]), Some(("r".to_owned(), CheckpointName::parse(C2).unwrap())));
        let lost = judge_anchor(&disk(&[&[bitmap(C2)]]), &[full, increment.clone()]);
        let Some(Verdict::Doubtful { newest, doubt }) = lost else { panic!("{lost:?}") };
        assert_eq!((newest.as_str(), doubt), ("f", Doubt::Missing { memory_only: None }));
        assert_eq!(judge_anchor(&both, &[increment]), None);
    }

    #[test]
    fn without_any_backup_of_the_disk_nothing_is_known() {
        assert_eq!(judge(&disk(&[&[bitmap(C1)]]), &[]), Verdict::Unknown);
        let mut other = backup("a", Some(C1));
        other.manifest.disks[0].name = DiskName::new("vdb").unwrap();
        assert_eq!(judge(&disk(&[&[bitmap(C1)]]), &[other]), Verdict::Unknown);
    }

    #[test]
    fn each_state_of_a_bitmap_has_its_doubt() {
        type Change = fn(&mut BitmapFacts);
        let table: [(Change, Doubt); 3] = [
            (|bitmap| bitmap.inconsistent = true, Doubt::Inconsistent),
            (|bitmap| bitmap.recording = false, Doubt::Disabled),
            (|bitmap| bitmap.busy = true, Doubt::Busy),
        ];
        for (change, expected) in table {
            let mut changed = bitmap(C1);
            change(&mut changed);
            assert_eq!(doubt(&disk(&[&[changed.clone()]]), &[backup("a", Some(C1))]), expected);
            assert_eq!(doubt(&disk(&[&[bitmap(C1)], &[changed]]), &[backup("a", Some(C1))]), expected);
        }
    }

    #[test]
    fn backing_chains_need_the_bitmap_from_the_top_without_gaps() {
        let sequence = [backup("a", Some(C1))];
        let with: &[BitmapFacts] = &[bitmap(C1)];
        let Verdict::Trusted(base) = judge(&disk(&[with, with, &[]]), &sequence) else { panic!() };
        assert_eq!(base.dirty, Size(131_072));
        assert_eq!(doubt(&disk(&[&[], with]), &sequence), Doubt::Overlay);
        assert_eq!(doubt(&disk(&[with, &[], with]), &sequence), Doubt::Gap);
    }

    #[test]
    fn a_grown_disk_keeps_its_base_and_a_shrunk_one_does_not() {
        let sequence = [backup("a", Some(C1))];
        let mut grown = disk(&[&[bitmap(C1)]]);
        grown.size = Size(2 << 20);
        assert!(matches!(judge(&grown, &sequence), Verdict::Trusted(base) if base.size == Size(1 << 20)));
        grown.size = Size(1 << 19);
        assert_eq!(doubt(&grown, &sequence), Doubt::Shrunk { then: Size(1 << 20), now: Size(1 << 19) });
    }

    #[test]
    fn a_bitmap_that_has_seen_less_than_a_younger_one_was_cleared() {
        let more = |name: &str, dirty: u64| BitmapFacts { dirty: Size(dirty), ..bitmap(name) };
        let sequence = [backup("a", Some(C1))];
        let cleared = disk(&[&[more(C1, 0), more(C2, 65_536)]]);
        assert_eq!(doubt(&cleared, &sequence), Doubt::Cleared { younger: CheckpointName::parse(C2).unwrap() });
        let coarser = BitmapFacts { granularity: 1 << 20, ..more(C2, 1 << 20) };
        let lost = BitmapFacts { inconsistent: true, ..more(C2, 1 << 20) };
        for fine in [more(C2, 65_536), more(C2, 0), coarser, lost, more("foreign", 1 << 20)] {
            assert!(matches!(judge(&disk(&[&[bitmap(C1), fine]]), &sequence), Verdict::Trusted(_)));
        }
        let older = disk(&[&[more(C1, 1 << 20), more(C2, 0)]]);
        assert!(matches!(judge(&older, &[backup("b", Some(C2))]), Verdict::Trusted(_)), "an older one has seen more");
    }

    #[test]
    fn of_two_checkpoints_of_one_second_neither_is_younger() {
        let twin = "km1-20261122T180000Z-000000000009";
        let more = BitmapFacts { dirty: Size(1 << 20), ..bitmap(twin) };
        assert!(matches!(judge(&disk(&[&[bitmap(C1), more]]), &[backup("a", Some(C1))]), Verdict::Trusted(_)));
    }

    #[test]
    fn every_doubt_has_its_own_words() {
        let c2 = CheckpointName::parse(C2).unwrap();
        let table = [
            (Doubt::NoCheckpoint, "made without a checkpoint"),
            (Doubt::Missing { memory_only: None }, "bitmap is gone"),
            (Doubt::Missing { memory_only: Some("raw".into()) }, "memory only (raw)"),
            (Doubt::Inconsistent, "is inconsistent"),
            (Doubt::Disabled, "was disabled"),
            (Doubt::Busy, "another job or export holds"),
            (Doubt::Overlay, "external snapshot was taken"),
            (Doubt::Gap, "in the middle of the backing chain"),
            (Doubt::Cleared { younger: c2 }, C2),
            (Doubt::OtherImage { then: "old".into(), now: "new".into() }, "began in old and is in new now"),
            (Doubt::AnotherFile { image: "/a".into() }, "/a is another file"),
            (Doubt::Swapped { other: DiskName::new("vdb").unwrap() }, "that of disk vdb"),
            (Doubt::Shrunk { then: Size(20), now: Size(10) }, "shrank from 20 to 10 bytes"),
        ];
        for (doubt, words) in table {
            assert!(doubt.to_string().contains(words), "{doubt}");
        }
    }

    #[test]
    fn an_image_that_was_another_disks_is_not_built_upon() {
        let mut both = backup("a", Some(C1));
        both.manifest.disks[0].image_id = None;
        let other =
            ManifestDisk { name: DiskName::new("vdb").unwrap(), image: "/images/data.qcow2".into(), ..both.manifest.disks[0].clone() };
        both.manifest.disks.push(other);
        let mut exchanged = disk(&[&[bitmap(C1)]]);
        exchanged.layers[0].image = "/images/data.qcow2".into();
        let swapped = Doubt::Swapped { other: DiskName::new("vdb").unwrap() };
        assert_eq!(doubt(&exchanged, std::slice::from_ref(&both)), swapped);
        both.manifest.disks[1].image = "/images/snapshot.qcow2".into();
        both.manifest.disks[1].backing = vec!["/images/data.qcow2".into()];
        assert_eq!(doubt(&exchanged, std::slice::from_ref(&both)), swapped, "its snapshot was committed since");
        both.manifest.disks[0].backing = vec!["/images/data.qcow2".into()];
        assert!(!matches!(doubt(&exchanged, &[both]), Doubt::Swapped { .. }), "both were made from it");
    }

    #[test]
    fn the_image_in_which_the_bitmap_began_must_be_the_same_file() {
        let sequence = [backup("a", Some(C1))];
        let mut chain = disk(&[&[bitmap(C1)], &[bitmap(C1)], &[]]);
        (chain.layers[0].id, chain.layers[2].id) = (None, None);
        for path in ["/renamed", "/moved/web.qcow2"] {
            chain.layers.iter_mut().for_each(|layer| layer.image = path.into());
            assert!(matches!(judge(&chain, &sequence), Verdict::Trusted(_)), "with a snapshot on it, {path} is the same file");
        }
        let another = Doubt::AnotherFile { image: "/moved/web.qcow2".into() };
        chain.layers[1].id = Some(ImageId::new("another"));
        assert_eq!(doubt(&chain, &sequence), another);
        chain.layers[1].id = None;
        assert_eq!(doubt(&chain, &sequence), another, "what is not known to be the same is not");
        chain.layers[1].image = "/renamed".into();
        let began = Doubt::OtherImage { then: "/images/web.qcow2".into(), now: "/renamed".into() };
        assert_eq!(doubt(&chain, &sequence), began, "another name says more");
        assert_eq!(doubt(&disk(&[&[]]), &sequence), Doubt::Missing { memory_only: None }, "a bitmap that is gone says more");
    }

    #[test]
    fn of_files_that_the_manifest_does_not_know_the_names_are_compared() {
        let mut sequence = [backup("a", Some(C1))];
        sequence[0].manifest.disks[0].image_id = None;
        let in_images = |images: &[&str]| {
            let bitmaps: &[BitmapFacts] = &[bitmap(C1)];
            let mut chain = disk(&vec![bitmaps; images.len()]);
            chain.layers.iter_mut().zip(images).for_each(|(layer, image)| layer.image = (*image).to_owned());
            chain
        };
        for fine in [&["/images/web.qcow2"][..], &["/moved/web.qcow2"], &["/images/snap1.qcow2", "/images/web.qcow2"], &[""]] {
            assert!(matches!(judge(&in_images(fine), &sequence), Verdict::Trusted(_)), "{fine:?}");
        }
        for streamed in [&["/images/snap1.qcow2"][..], &["/images/web.qcow2", "/images/base.qcow2"]] {
            assert!(matches!(doubt(&in_images(streamed), &sequence), Doubt::OtherImage { .. }), "{streamed:?}");
        }
    }

    #[test]
    fn a_disk_that_the_checkpoint_left_out_has_none() {
        let mut partly = backup("a", Some(C1));
        partly.manifest.disks[0].checkpointed = false;
        assert_eq!(doubt(&disk(&[&[bitmap(C1)]]), &[partly]), Doubt::NoCheckpoint);
    }

    #[test]
    fn bitmaps_in_memory_only_say_so() {
        let mut raw = disk(&[&[]]);
        raw.persistence = Persistence::MemoryOnly { why: "raw images cannot hold bitmaps".into() };
        assert!(doubt(&raw, &[backup("a", Some(C1))]).to_string().contains("raw images cannot hold bitmaps"));
    }
}
