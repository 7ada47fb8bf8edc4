//! Going back in place: which ranges of each disk can differ from a backup, and why; what differs there is found by comparing.
//!
//! A disk differs from the target at most where its newest checkpoint's bitmap says that it was written since that checkpoint's
//! backup, and where that backup and the target differ. In doubt of the bitmap, by the same rule as for backups, the whole disk
//! is compared; so is a disk that an earlier revert left half written.

use std::fmt;

use crate::choice::{ChoiceError, DiskChoice};
use crate::extents::{ChunkSize, Extent, Extents, Size};
use crate::facts::{DiskFacts, VmFacts};
use crate::failure::{Failure, FailureClass};
use crate::manifest::{ManifestDisk, StoredBackup};
use crate::names::DiskName;
use crate::trust::{Base, Verdict, judge};
use crate::writing::Unfinished;

/// What a revert will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevertPlan {
    /// The disks that go back, in the VM's order.
    pub disks: Vec<RevertDisk>,
    /// Disks of the VM that stay as they are.
    pub kept: Vec<DiskName>,
}

/// What a revert will do with one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevertDisk {
    /// Which disk.
    pub name: DiskName,
    /// Its size, now and then.
    pub size: Size,
    /// Chunk size of the backup.
    pub chunk_size: ChunkSize,
    /// Where it may differ.
    pub scope: Scope,
}

/// Where a disk may differ from the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Where it was written since this base, and where the base differs from the backup.
    Since(Base),
    /// Anywhere.
    Whole(Why),
}

/// Why a whole disk is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// An earlier revert did not finish.
    Unfinished,
    /// The user wants it.
    Asked,
    /// No bitmap proves what was written since the last backup.
    Doubt(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Since(base) => {
                let (backup, checkpoint) = (base.backup.short(), &base.checkpoint);
                write!(f, "compared where it was written since {backup} (checkpoint {checkpoint}) and where {backup} differs")
            }
            Self::Whole(Why::Unfinished) => f.write_str("compared whole: an earlier revert did not finish"),
            Self::Whole(Why::Asked) => f.write_str("compared whole, as asked for"),
            Self::Whole(Why::Doubt(doubt)) => write!(f, "compared whole: {doubt}"),
        }
    }
}

/// What the user wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wish {
    /// Only these disks; all of the backup's when empty.
    pub only: Vec<DiskName>,
    /// Whether bitmaps are not to be asked.
    pub compare_all: bool,
}

/// Why a VM cannot go back to a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RevertError {
    /// The backup is another VM's.
    #[error("backup {backup} is of VM {of}, and this is VM {vm}")]
    OtherVm {
        /// Which backup.
        backup: String,
        /// Whose it is.
        of: String,
        /// Whose disks are to be written.
        vm: String,
    },
    /// The backup has no such disk.
    #[error("the backup has no disk {disk} (it has: {known})")]
    NotInBackup {
        /// As asked for.
        disk: DiskName,
        /// What there is.
        known: String,
    },
    /// The VM has no such disk.
    #[error("the VM has no disk {disk}, which the backup has")]
    NotInVm {
        /// Which.
        disk: DiskName,
    },
    /// The disk has another size than then.
    #[error("disk {disk} has {now} bytes now and had {then} in the backup")]
    Size {
        /// Which.
        disk: DiskName,
        /// Where its image is.
        image: String,
        /// Its format.
        format: String,
        /// Bytes now.
        now: Size,
        /// Bytes then.
        then: Size,
    },
    /// A disk that is half written would stay so.
    #[error("disk {disk} is half reverted to {backup}, and is not among the disks that are to be reverted")]
    LeftHalf {
        /// Which.
        disk: DiskName,
        /// To which backup.
        backup: String,
    },
    /// There is nothing to do.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
}

impl RevertError {
    /// The sentence or command that helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::OtherVm { .. } => {
                "restore it to new files with 'keepmark restore', or say by --uuid or --name whose disks these are".into()
            }
            Self::NotInBackup { .. } => "'keepmark show BACKUP' tells its disks".into(),
            Self::NotInVm { .. } => "choose the disks by --disk, or restore this one with 'keepmark restore'".into(),
            // Shrinking throws away what is behind the new end, which may be another's where the disk is a part of its file.
            Self::Size { now, then, .. } if then < now => "get the disk as it was as a new file, with 'keepmark restore'".into(),
            Self::Size { image, format, then, .. } => format!(
                "give it the size that it had (powered off: qemu-img resize -f {format} {image} {then}), then revert; or use 'keepmark restore'"
            ),
            Self::LeftHalf { disk, .. } => format!("name it too: --disk {disk}"),
            Self::Choice(_) => return None,
        })
    }
}

impl From<RevertError> for Failure {
    fn from(error: RevertError) -> Self {
        let hint = error.hint();
        let failure = Self::new(FailureClass::Usage, error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

/// Plans going back to `target`, given the VM's backups in its store, oldest first.
///
/// # Errors
/// When the backup does not fit the VM.
pub fn plan(
    facts: &VmFacts,
    sequence: &[StoredBackup],
    target: &StoredBackup,
    wish: &Wish,
    unfinished: &[Unfinished],
) -> Result<RevertPlan, RevertError> {
    if target.manifest.vm_id() != facts.identity.id() {
        let (of, vm) = (target.manifest.vm_id().to_string(), facts.identity.id().to_string());
        return Err(RevertError::OtherVm { backup: target.id.short().to_owned(), of, vm });
    }
    let wanted = wanted(facts, target, &wish.only)?;
    if let Some(left) = unfinished.iter().find(|left| !wanted.contains(&left.disk)) {
        return Err(RevertError::LeftHalf { disk: left.disk.clone(), backup: left.backup.clone() });
    }
    let (going, kept): (Vec<&DiskFacts>, Vec<&DiskFacts>) = facts.disks.iter().partition(|disk| wanted.contains(&disk.name));
    let going = going.into_iter().filter_map(|disk| Some((disk, target.manifest.disk(&disk.name)?)));
    let disks = going.map(|(disk, then)| revert_disk(disk, then, sequence, wish, unfinished)).collect::<Result<_, _>>()?;
    Ok(RevertPlan { disks, kept: kept.into_iter().map(|disk| disk.name.clone()).collect() })
}

fn wanted(facts: &VmFacts, target: &StoredBackup, only: &[DiskName]) -> Result<Vec<DiskName>, RevertError> {
    let stored: Vec<&DiskName> = target.manifest.disks.iter().map(|disk| &disk.name).collect();
    if let Some(unknown) = only.iter().find(|name| !stored.contains(name)) {
        let known = stored.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(RevertError::NotInBackup { disk: unknown.clone(), known });
    }
    let wanted: Vec<DiskName> = if only.is_empty() { stored.into_iter().cloned().collect() } else { only.to_vec() };
    match wanted.iter().find(|name| !facts.disks.iter().any(|disk| disk.name == **name)) {
        Some(missing) => Err(RevertError::NotInVm { disk: missing.clone() }),
        // Nothing to revert at all is said as a backup would say it.
        None => Ok(DiskChoice::Only(wanted).of(facts)?.into_iter().map(|disk| disk.name.clone()).collect()),
    }
}

fn revert_disk(
    disk: &DiskFacts,
    then: &ManifestDisk,
    sequence: &[StoredBackup],
    wish: &Wish,
    unfinished: &[Unfinished],
) -> Result<RevertDisk, RevertError> {
    if disk.size != then.size {
        return Err(RevertError::Size {
            disk: disk.name.clone(),
            image: disk.image.clone(),
            format: disk.format.clone(),
            now: disk.size,
            then: then.size,
        });
    }
    let is_half = unfinished.iter().any(|left| left.disk == disk.name);
    let scope = match judge(disk, sequence) {
        _ if is_half => Scope::Whole(Why::Unfinished),
        _ if wish.compare_all => Scope::Whole(Why::Asked),
        Verdict::Trusted(base) => Scope::Since(base),
        Verdict::Doubtful { doubt, .. } => Scope::Whole(Why::Doubt(doubt.to_string())),
        Verdict::Unknown => Scope::Whole(Why::Doubt("this store has no backup of the disk".to_owned())),
    };
    Ok(RevertDisk { name: disk.name.clone(), size: disk.size, chunk_size: then.chunk_size, scope })
}

impl RevertDisk {
    /// What was written since the base: `dirty` by its bitmap, and what was added to the disk, which QEMU calls clean.
    #[must_use]
    pub fn written(&self, dirty: &Extents) -> Extents {
        match &self.scope {
            Scope::Since(base) => dirty.union(&Extents::from_iter([Extent::new(base.size.0, self.size.0)])).clip(self.size),
            Scope::Whole(_) => Extents::whole(self.size),
        }
    }

    /// The chunks in which the disk can differ from the backup: `written` since the base, and where the base and the backup
    /// differ, which no store may be able to tell.
    #[must_use]
    pub fn candidates(&self, written: &Extents, difference: Option<&Extents>) -> Extents {
        let whole = Extents::whole(self.size);
        difference.map_or(whole, |difference| written.union(difference).round_out(self.chunk_size, self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Power;
    use crate::names::{BackupId, VmIdentity};
    use crate::trust::tests::{C1, C2, backup, bitmap, disk};

    const CHUNK: u64 = 256 << 10;

    fn vm(disks: &[(&str, &[&str])]) -> VmFacts {
        let disk = |(name, bitmaps): &(&str, &[&str])| {
            let bitmaps: Vec<_> = bitmaps.iter().map(|name| bitmap(name)).collect();
            DiskFacts { name: DiskName::new(name).unwrap(), ..disk(&[&bitmaps]) }
        };
        VmFacts {
            identity: VmIdentity::new("web", None).unwrap(),
            power: Power::Off,
            hypervisor: "h".into(),
            disks: disks.iter().map(disk).collect(),
            skipped: vec![],
            agent: false,
        }
    }

    fn of_disks(id: &str, checkpoint: Option<&str>, disks: &[&str]) -> StoredBackup {
        let mut backup = backup(id, checkpoint);
        let sample = backup.manifest.disks[0].clone();
        let disk = |name: &&str| ManifestDisk { name: DiskName::new(name).unwrap(), ..sample.clone() };
        backup.manifest.disks = disks.iter().map(disk).collect();
        backup
    }

    fn only(names: &[&str]) -> Wish {
        Wish { only: names.iter().map(|name| DiskName::new(name).unwrap()).collect(), compare_all: false }
    }

    fn half(disk: &str) -> Vec<Unfinished> {
        vec![Unfinished { disk: DiskName::new(disk).unwrap(), backup: "aaaa".into() }]
    }

    #[test]
    fn each_disk_is_compared_where_it_can_differ_and_says_why() {
        let sequence = [of_disks("a", Some(C1), &["vda"]), of_disks("b", Some(C2), &["vda"])];
        let all = |wish: &Wish, left: &[Unfinished], bitmaps: &[&str]| {
            let plan = plan(&vm(&[("vda", bitmaps)]), &sequence, &sequence[0], wish, left).unwrap();
            plan.disks[0].scope.clone()
        };
        let Scope::Since(base) = all(&Wish::default(), &[], &[C1, C2]) else { panic!("the bitmap is to be trusted") };
        assert_eq!((base.backup.as_str(), base.checkpoint.as_str()), ("b", C2));
        let doubt = all(&Wish::default(), &[], &[C1]);
        assert!(matches!(&doubt, Scope::Whole(Why::Doubt(why)) if why.contains("bitmap is gone")), "{doubt}");
        assert_eq!(all(&Wish { compare_all: true, ..Wish::default() }, &[], &[C1, C2]), Scope::Whole(Why::Asked));
        assert_eq!(all(&Wish::default(), &half("vda"), &[C1, C2]), Scope::Whole(Why::Unfinished));
    }

    #[test]
    fn disks_that_the_backup_has_not_stay() {
        let target = of_disks("a", Some(C1), &["vda", "vdb"]);
        let facts = vm(&[("vda", &[C1]), ("vdb", &[C1]), ("vdc", &[])]);
        for (wish, going, kept) in [(only(&[]), vec!["vda", "vdb"], vec!["vdc"]), (only(&["vdb"]), vec!["vdb"], vec!["vda", "vdc"])] {
            let plan = plan(&facts, std::slice::from_ref(&target), &target, &wish, &[]).unwrap();
            assert_eq!(plan.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), going);
            assert_eq!(plan.kept.iter().map(DiskName::as_str).collect::<Vec<_>>(), kept);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_hint() {
        let target = of_disks("a", Some(C1), &["vda", "vdb"]);
        let facts = vm(&[("vda", &[C1]), ("vdb", &[C1])]);
        let refuse = |facts: &VmFacts, wish: &Wish, left: &[Unfinished]| {
            let error = plan(facts, std::slice::from_ref(&target), &target, wish, left).unwrap_err();
            assert!(error.hint().is_some(), "{error}");
            error.to_string()
        };
        assert_eq!(refuse(&facts, &only(&["vdz"]), &[]), "the backup has no disk vdz (it has: vda, vdb)");
        assert_eq!(refuse(&vm(&[("vda", &[])]), &only(&[]), &[]), "the VM has no disk vdb, which the backup has");
        assert!(refuse(&facts, &only(&["vda"]), &half("vdb")).contains("half reverted"));
        let mut grown = facts.clone();
        grown.disks[1].size = Size(2 << 20);
        assert_eq!(refuse(&grown, &only(&[]), &[]), "disk vdb has 2097152 bytes now and had 1048576 in the backup");
        let other = VmFacts { identity: VmIdentity::new("db", None).unwrap(), ..facts };
        assert_eq!(refuse(&other, &only(&[]), &[]), "backup a is of VM web, and this is VM db");
    }

    #[test]
    fn candidates_are_what_was_written_what_differs_and_what_grew_in_whole_chunks() {
        let base = Base {
            backup: BackupId::new("b"),
            checkpoint: crate::names::CheckpointName::parse(C2).unwrap(),
            size: Size(6 * CHUNK),
            dirty: Size(0),
        };
        let name = DiskName::new("vda").unwrap();
        let disk = |scope| RevertDisk { name: name.clone(), size: Size(7 * CHUNK + 5), chunk_size: ChunkSize::DEFAULT, scope };
        let set = |pairs: &[(u64, u64)]| -> Extents { pairs.iter().map(|(start, end)| Extent::new(*start, *end)).collect() };
        let (dirty, difference) = (set(&[(1, 2)]), set(&[(3 * CHUNK, 4 * CHUNK)]));
        let since = disk(Scope::Since(base));
        let written = since.written(&dirty);
        assert_eq!(written, set(&[(1, 2), (6 * CHUNK, 7 * CHUNK + 5)]));
        assert_eq!(since.candidates(&written, Some(&difference)), set(&[(0, CHUNK), (3 * CHUNK, 4 * CHUNK), (6 * CHUNK, 7 * CHUNK + 5)]));
        assert_eq!(since.candidates(&written, None), Extents::whole(since.size));
        let whole = disk(Scope::Whole(Why::Asked));
        assert_eq!(whole.candidates(&whole.written(&dirty), Some(&difference)), Extents::whole(whole.size));
    }
}
