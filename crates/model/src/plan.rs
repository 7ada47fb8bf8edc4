//! The plan: from what the hypervisor reports, the store's manifests and the request to a kind and a reason for each disk.

use std::time::Duration;

use jiff::Timestamp;

use crate::choice::{ChoiceError, DiskChoice};
use crate::extents::Size;
use crate::facts::{DiskFacts, VmFacts};
use crate::manifest::{Kind, StoredBackup};
use crate::names::{BackupId, CheckpointName, DiskName, StoreId};
use crate::rules::{Rule, broken};
use crate::trust::{Base, Verdict, judge};

/// Which kind the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WantedKind {
    /// Incremental where it is provably complete, else what it takes.
    Auto,
    /// Read everything.
    Full,
    /// As `Auto`; said explicitly.
    Incremental,
}

/// What the user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Which kind.
    pub kind: WantedKind,
    /// Whether to start a checkpoint that the next backup can build on.
    pub checkpoint: bool,
    /// Which disks.
    pub disks: DiskChoice,
}

/// What a backup will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The most expensive kind of its disks.
    pub kind: Kind,
    /// Why that kind, in words.
    pub reason: String,
    /// Whether a checkpoint is started.
    pub checkpoint: bool,
    /// Disk by disk.
    pub disks: Vec<DiskPlan>,
}

/// What a backup will do with one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Which disk.
    pub name: DiskName,
    /// Its size now.
    pub size: Size,
    /// How it is captured.
    pub kind: Kind,
    /// Why, in words.
    pub reason: String,
    /// The base, for an incremental.
    pub since: Option<Base>,
    /// The backup whose chunks are most likely the same, for a resync.
    pub compare: Option<BackupId>,
}

/// Plans a backup.
///
/// # Errors
/// When the request names a disk that is not there, or there is none at all.
pub fn plan(facts: &VmFacts, sequence: &[StoredBackup], request: &Request) -> Result<Plan, ChoiceError> {
    let disks: Vec<DiskPlan> = request.disks.of(facts)?.into_iter().map(|disk| plan_disk(disk, sequence, request.kind)).collect();
    let (kind, reason) = overall(&disks);
    Ok(Plan { kind, reason, checkpoint: request.checkpoint, disks })
}

fn plan_disk(disk: &DiskFacts, sequence: &[StoredBackup], wanted: WantedKind) -> DiskPlan {
    let (kind, reason, since, compare) = match (judge(disk, sequence), wanted) {
        (_, WantedKind::Full) => (Kind::Full, "a full backup was asked for".to_owned(), None, None),
        (Verdict::Unknown, _) => (Kind::Full, "first backup of this disk in this store".to_owned(), None, None),
        (Verdict::Trusted(base), _) => (Kind::Incremental, incremental_reason(disk, &base), Some(base), None),
        (Verdict::Doubtful { newest, doubt }, _) => (Kind::Resync, doubt.to_string(), None, Some(newest)),
    };
    DiskPlan { name: disk.name.clone(), size: disk.size, kind, reason, since, compare }
}

fn incremental_reason(disk: &DiskFacts, base: &Base) -> String {
    let grown = disk.size.0.saturating_sub(base.size.0);
    let growth = if grown > 0 { format!(", and the disk grew by {grown} bytes") } else { String::new() };
    format!("changes since {} are recorded by checkpoint {}{growth}", base.backup.short(), base.checkpoint)
}

/// A backup is called by the most telling kind among its disks: a resync above all, then incremental, full only if all are.
fn overall(disks: &[DiskPlan]) -> (Kind, String) {
    let first_of = |kind| disks.iter().find(|disk| disk.kind == kind);
    let telling = first_of(Kind::Resync).or_else(|| first_of(Kind::Incremental)).or_else(|| disks.first());
    let Some(telling) = telling else { return (Kind::Full, String::new()) };
    let alike = disks.iter().all(|disk| disk.kind == telling.kind);
    let of_disk = |disk: &DiskPlan| match alike {
        true => format!("{}: {}", disk.name, disk.reason),
        false => format!("{}: {}: {}", disk.name, disk.kind.word(), disk.reason),
    };
    let same = alike && disks.iter().all(|disk| disk.reason == telling.reason);
    let reason = if same { telling.reason.clone() } else { disks.iter().map(of_disk).collect::<Vec<_>>().join("; ") };
    (telling.kind, reason)
}

/// Checkpoints on the VM that nothing will build on, given everything this store has of it (oldest first).
///
/// Kept is, per disk, the checkpoint of its newest checkpointed backup. Removed is what this store's manifests name and do not
/// need, what was made for this store and never published, and what is inconsistent wherever it is. Whatever else has our form
/// belongs to another store and stays until it is [`given_up`].
#[must_use]
pub fn obsolete_checkpoints(facts: &VmFacts, store: &StoreId, sequence: &[StoredBackup], hold: &Hold) -> Vec<CheckpointName> {
    let needed: Vec<&CheckpointName> = facts.disks.iter().filter_map(|disk| newest_checkpoint(&disk.name, sequence)).collect();
    let published = |name: &CheckpointName| sequence.iter().any(|backup| backup.manifest.checkpoint.as_ref() == Some(name));
    let mut names = present_checkpoints(facts);
    let ours = |name: &CheckpointName| published(name) || broken(Rule::OtherStores) || name.is_for(store) && !broken(Rule::Orphans);
    names.retain(|(name, worthless)| *worthless || !needed.contains(&name) && (ours(name) || given_up(name, hold)));
    names.into_iter().map(|(name, _)| name).collect()
}

/// How long a store that is not at hand keeps its checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// The time now.
    pub now: Timestamp,
    /// Longest time since a store's last backup; none waits for ever.
    pub longest: Option<Duration>,
}

/// Whether another store has not been seen for so long that its checkpoint goes; its next backup is then a resync.
///
/// A store removes its older checkpoints at each backup, so what is left of it is as old as its last backup: the name's own time
/// says when the store was last seen, and nothing has to be remembered. A name from the future or without a time is kept.
fn given_up(name: &CheckpointName, hold: &Hold) -> bool {
    let Some((longest, made)) = hold.longest.zip(name.time()) else { return false };
    Duration::try_from(hold.now.duration_since(made)).is_ok_and(|age| age > longest)
}

fn newest_checkpoint<'a>(disk: &DiskName, sequence: &'a [StoredBackup]) -> Option<&'a CheckpointName> {
    let of_disk = |backup: &&StoredBackup| backup.manifest.disk(disk).is_some_and(|then| then.checkpointed);
    sequence.iter().rev().filter(of_disk).find_map(|backup| backup.manifest.checkpoint.as_ref())
}

/// The checkpoints on a VM's disks, by name in order of time, and whether each is inconsistent wherever it is.
#[must_use]
pub fn present_checkpoints(facts: &VmFacts) -> Vec<(CheckpointName, bool)> {
    let bitmaps = facts.disks.iter().flat_map(DiskFacts::bitmaps);
    let mut found = std::collections::BTreeMap::new();
    for bitmap in bitmaps {
        if let Ok(name) = CheckpointName::parse(&bitmap.name) {
            found.entry(name).and_modify(|worthless| *worthless &= bitmap.inconsistent).or_insert(bitmap.inconsistent);
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{BitmapFacts, Power};
    use crate::manifest::ManifestDisk;
    use crate::names::VmIdentity;
    use crate::trust::tests::{C1, C2, backup, bitmap, disk};

    fn vm(disks: Vec<DiskFacts>) -> VmFacts {
        VmFacts {
            identity: VmIdentity::new("web", None).unwrap(),
            power: Power::Running,
            hypervisor: "qemu 10.0.2".into(),
            disks,
            skipped: vec![],
            agent: false,
        }
    }

    fn named(name: &str, bitmaps: &[BitmapFacts]) -> DiskFacts {
        DiskFacts { name: DiskName::new(name).unwrap(), ..disk(&[bitmaps]) }
    }

    fn hold(now: &str) -> Hold {
        Hold { now: now.parse().unwrap(), longest: Some(Duration::from_hours(24 * 35)) }
    }

    fn request(kind: WantedKind) -> Request {
        Request { kind, checkpoint: true, disks: DiskChoice::All }
    }

    #[test]
    fn the_kind_follows_from_trust_and_request() {
        let lost = BitmapFacts { inconsistent: true, ..bitmap(C1) };
        let table = [
            (vec![], vec![], WantedKind::Auto, Kind::Full),
            (vec![bitmap(C1)], vec![backup("a", Some(C1))], WantedKind::Auto, Kind::Incremental),
            (vec![bitmap(C1)], vec![backup("a", Some(C1))], WantedKind::Incremental, Kind::Incremental),
            (vec![bitmap(C1)], vec![backup("a", Some(C1))], WantedKind::Full, Kind::Full),
            (vec![lost], vec![backup("a", Some(C1))], WantedKind::Auto, Kind::Resync),
            (vec![], vec![], WantedKind::Incremental, Kind::Full),
        ];
        for (bitmaps, sequence, wanted, expected) in table {
            let planned = plan(&vm(vec![named("vda", &bitmaps)]), &sequence, &request(wanted)).unwrap();
            assert_eq!(planned.kind, expected, "{bitmaps:?} {wanted:?}");
            assert_eq!(planned.disks[0].since.is_some(), expected == Kind::Incremental);
        }
    }

    #[test]
    fn a_new_disk_is_a_full_inside_an_incremental() {
        let planned =
            plan(&vm(vec![named("vda", &[bitmap(C1)]), named("vdb", &[])]), &[backup("a", Some(C1))], &request(WantedKind::Auto)).unwrap();
        assert_eq!(planned.kind, Kind::Incremental);
        assert_eq!(planned.disks[1].kind, Kind::Full);
        assert!(planned.reason.contains("vdb: full: first backup of this disk"));
    }

    #[test]
    fn a_backup_is_called_by_its_most_telling_disk() {
        let mut then = backup("a", Some(C1));
        then.manifest.disks.push(ManifestDisk { name: DiskName::new("vdb").unwrap(), ..then.manifest.disks[0].clone() });
        let (known, lost, new) = (named("vda", &[bitmap(C1)]), named("vdb", &[]), named("vdc", &[]));
        for (disks, kind) in [
            (vec![new.clone()], Kind::Full),
            (vec![new.clone(), known.clone()], Kind::Incremental),
            (vec![known.clone(), lost.clone()], Kind::Resync),
            (vec![new, known, lost], Kind::Resync),
        ] {
            let plan = plan(&vm(disks), std::slice::from_ref(&then), &request(WantedKind::Auto)).unwrap();
            assert_eq!(plan.kind, kind, "{}", plan.reason);
        }
    }

    #[test]
    fn only_the_disks_that_were_asked_for_are_planned() {
        let facts = vm(vec![named("vda", &[]), named("vdb", &[])]);
        let disks = DiskChoice::Only(vec![DiskName::new("vdb").unwrap()]);
        let plan = plan(&facts, &[], &Request { disks, ..request(WantedKind::Auto) }).unwrap();
        assert_eq!(plan.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["vdb"]);
    }

    #[test]
    fn the_reason_is_said_once_where_it_is_one_and_by_disk_where_not() {
        let reason_of =
            |disks: Vec<DiskFacts>, sequence: &[StoredBackup]| plan(&vm(disks), sequence, &request(WantedKind::Auto)).unwrap().reason;
        let first = "first backup of this disk in this store";
        assert_eq!(reason_of(vec![named("vda", &[]), named("vdb", &[])], &[]), first);
        let mut both = backup("0123456789", Some(C1));
        both.manifest.disks.push(ManifestDisk { name: DiskName::new("vdb").unwrap(), ..both.manifest.disks[0].clone() });
        let since = format!("changes since 01234567 are recorded by checkpoint {C1}");
        let mut grown = named("vdb", &[bitmap(C1)]);
        grown.size = Size((1 << 20) + 512);
        let same = [named("vda", &[bitmap(C1)]), named("vdb", &[bitmap(C1)])].to_vec();
        assert_eq!(reason_of(same, std::slice::from_ref(&both)), since);
        let alike = vec![named("vda", &[bitmap(C1)]), grown];
        assert_eq!(reason_of(alike, std::slice::from_ref(&both)), format!("vda: {since}; vdb: {since}, and the disk grew by 512 bytes"));
        let unlike = vec![named("vda", &[bitmap(C1)]), named("vdc", &[])];
        assert_eq!(reason_of(unlike, &[both]), format!("vda: incremental: {since}; vdc: full: {first}"));
    }

    #[test]
    fn only_what_nothing_builds_on_is_obsolete() {
        let store = StoreId::new("s");
        let other = StoreId::new("another");
        let time = "2026-11-22T20:00:00Z".parse().unwrap();
        let orphan = CheckpointName::make(time, &store, 7);
        let foreign = CheckpointName::make(time, &other, 8);
        let broken = CheckpointName::make(time, &other, 9);
        let bitmaps = [
            bitmap(C1),
            bitmap(C2),
            bitmap(orphan.as_str()),
            bitmap(foreign.as_str()),
            BitmapFacts { inconsistent: true, ..bitmap(broken.as_str()) },
            bitmap("virtnbdbackup.0"),
        ];
        let facts = vm(vec![named("vda", &bitmaps)]);
        let obsolete = obsolete_checkpoints(&facts, &store, &[backup("a", Some(C1)), backup("b", Some(C2))], &hold("2026-11-22T21:00:00Z"));
        let mut expected = vec![CheckpointName::parse(C1).unwrap(), orphan, broken];
        expected.sort();
        assert_eq!(obsolete, expected);
    }

    #[test]
    fn another_stores_checkpoint_goes_when_the_store_was_not_seen_for_too_long() {
        let (own, other) = (StoreId::new("s"), StoreId::new("another"));
        let foreign = CheckpointName::make("2026-11-22T20:00:00Z".parse().unwrap(), &other, 8);
        let timeless = CheckpointName::parse("km1-20269922T200000Z-000000000003").unwrap();
        let facts = vm(vec![named("vda", &[bitmap(C1), bitmap(foreign.as_str()), bitmap(timeless.as_str())])]);
        let obsolete = |hold: &Hold| obsolete_checkpoints(&facts, &own, &[backup("a", Some(C1))], hold);
        for (now, goes) in [
            ("2026-11-22T19:00:00Z", false),
            ("2026-11-22T20:00:00Z", false),
            ("2026-12-27T20:00:00Z", false),
            ("2026-12-27T20:00:01Z", true),
            ("2036-01-01T00:00:00Z", true),
        ] {
            let expected: &[CheckpointName] = if goes { std::slice::from_ref(&foreign) } else { &[] };
            assert_eq!(obsolete(&hold(now)), expected, "{now}");
            assert!(obsolete(&Hold { longest: None, ..hold(now) }).is_empty(), "{now}");
        }
    }

    #[test]
    fn a_checkpoint_that_another_disk_still_needs_stays() {
        let mut newer = backup("b", Some(C2));
        newer.manifest.disks[0].name = DiskName::new("vdb").unwrap();
        let facts = vm(vec![named("vda", &[bitmap(C1)]), named("vdb", &[bitmap(C1), bitmap(C2)])]);
        let late = hold("2036-11-22T21:00:00Z");
        assert!(obsolete_checkpoints(&facts, &StoreId::new("s"), &[backup("a", Some(C1)), newer], &late).is_empty());
    }

    #[test]
    fn a_checkpoint_that_is_inconsistent_on_one_disk_only_is_not_worthless() {
        let lost = BitmapFacts { inconsistent: true, ..bitmap(C1) };
        let facts = vm(vec![named("vda", &[bitmap(C1)]), named("vdb", &[lost])]);
        assert_eq!(present_checkpoints(&facts), [(CheckpointName::parse(C1).unwrap(), false)]);
    }
}
