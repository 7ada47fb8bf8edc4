//! The plan: from what the hypervisor reports, the store's manifests and the request to a kind and a reason for each disk.

use std::time::Duration;

use jiff::Timestamp;

use crate::choice::{ChoiceError, DiskChoice};
use crate::extents::Size;
use crate::facts::{DiskFacts, VmFacts};
use crate::manifest::{Kind, Role, StoredBackup};
use crate::names::{BackupId, CheckpointName, DiskName, StoreId};
use crate::rules::{Rule, broken};
use crate::scheme::{Due, Scheme, Standing};
use crate::trust::{Base, Candidate, Verdict, anchor, judge, judge_anchor, newest};

/// Which kind the user asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedKind {
    /// What the scheme says is due.
    Auto(Box<Scheme>),
    /// Read everything.
    Full,
    /// What changed since the last full where that is provably complete, else what it takes.
    Differential,
    /// What changed since the last backup where that is provably complete, else what it takes.
    Incremental,
}

impl WantedKind {
    /// The kind that is wanted of a next backup of this sequence, and why.
    #[must_use]
    pub fn due(&self, sequence: &[StoredBackup], now: Timestamp) -> Due {
        let asked = |role: Role| Due { role, reason: format!("a {} backup was asked for", role.word()) };
        match self {
            Self::Auto(scheme) => scheme.due(&Standing::of(sequence, now), now),
            Self::Full => asked(Role::Full),
            Self::Differential => asked(Role::Differential),
            Self::Incremental => asked(Role::Incremental),
        }
    }
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
    /// The most telling kind of its disks.
    pub kind: Kind,
    /// What was wanted, and why.
    pub due: Due,
    /// Why that kind, in words.
    pub reason: String,
    /// Whether a checkpoint is started.
    pub checkpoint: bool,
    /// Disk by disk.
    pub disks: Vec<DiskPlan>,
    /// Disks that could be backed up and are not.
    pub left_out: Vec<DiskName>,
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
pub fn plan(facts: &VmFacts, sequence: &[StoredBackup], request: &Request, now: Timestamp) -> Result<Plan, ChoiceError> {
    let due = request.kind.due(sequence, now);
    let disks: Vec<DiskPlan> = request.disks.of(facts)?.into_iter().map(|disk| plan_disk(disk, sequence, &due)).collect();
    let is_out = |disk: &&DiskFacts| !disks.iter().any(|planned| planned.name == disk.name);
    let left_out = facts.disks.iter().filter(is_out).map(|disk| disk.name.clone()).collect();
    let (kind, reason) = overall(&disks);
    Ok(Plan { kind, due, reason, checkpoint: request.checkpoint, disks, left_out })
}

fn plan_disk(disk: &DiskFacts, sequence: &[StoredBackup], due: &Due) -> DiskPlan {
    let (kind, reason, since, compare) = match (judge(disk, sequence), due.role) {
        (Verdict::Unknown, _) => (Kind::Full, "first backup of this disk in this store".to_owned(), None, None),
        (_, Role::Full) => (Kind::Full, due.reason.clone(), None, None),
        (last, Role::Incremental) => of_verdict(disk, last, Kind::Incremental),
        (last, Role::Differential) => match judge_anchor(disk, sequence) {
            Some(verdict) => of_verdict(disk, verdict, Kind::Differential),
            // It was deleted, or it left no checkpoint: what can be proved is what changed since the last backup.
            None => of_verdict(disk, last, Kind::Incremental),
        },
    };
    DiskPlan { name: disk.name.clone(), size: disk.size, kind, reason, since, compare }
}

fn of_verdict(disk: &DiskFacts, verdict: Verdict, kind: Kind) -> (Kind, String, Option<Base>, Option<BackupId>) {
    match verdict {
        Verdict::Unknown => (Kind::Full, String::new(), None, None),
        Verdict::Trusted(base) => (kind, delta_reason(disk, &base), Some(base), None),
        Verdict::Doubtful { newest, doubt } => (Kind::Resync, doubt.to_string(), None, Some(newest)),
    }
}

fn delta_reason(disk: &DiskFacts, base: &Base) -> String {
    let grown = disk.size.0.saturating_sub(base.size.0);
    let growth = if grown > 0 { format!(", and the disk grew by {grown} bytes") } else { String::new() };
    format!("changes since {} are recorded by checkpoint {}{growth}", base.backup.short(), base.checkpoint)
}

/// A backup is called by the most telling kind among its disks: a resync above all, then differential, incremental, full only if all are.
fn overall(disks: &[DiskPlan]) -> (Kind, String) {
    let first_of = |kind| disks.iter().find(|disk| disk.kind == kind);
    let telling = [Kind::Resync, Kind::Differential, Kind::Incremental].into_iter().find_map(first_of).or_else(|| disks.first());
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
/// Kept are, per disk, the checkpoint of its newest checkpointed backup, on which an incremental builds, and that of its anchor, on
/// which a differential builds. Removed is what this store's manifests name and do not
/// need, what was made for this store and never published, and what is inconsistent wherever it is. Whatever else has our form
/// belongs to another store and stays until it is [`given_up`].
#[must_use]
pub fn obsolete_checkpoints(facts: &VmFacts, store: &StoreId, sequence: &[StoredBackup], hold: &Hold) -> Vec<CheckpointName> {
    let needed: Vec<&CheckpointName> =
        facts.disks.iter().flat_map(|disk| bases_of(&disk.name, sequence)).map(|base| base.checkpoint).collect();
    let published = |name: &CheckpointName| sequence.iter().any(|backup| backup.manifest.checkpoint.as_ref() == Some(name));
    let mut names = present_checkpoints(facts);
    let is_own = |name: &CheckpointName| name.is_for(store) || broken(Rule::StoreTag) && published(name);
    let ours = |name: &CheckpointName| broken(Rule::OtherStores) || is_own(name) && (published(name) || !broken(Rule::Orphans));
    names.retain(|(name, worthless)| *worthless || !needed.contains(&name) && (ours(name) || given_up(name, hold)));
    names.into_iter().map(|(name, _)| name).collect()
}

/// The checkpoints of this store that are on one of these disks, whose bitmaps were contradicted by what the disk holds.
///
/// What one bitmap missed, each older one has missed, too, and on what each younger one builds it is missing. So all go, and at once:
/// whoever comes next could be lucky enough to see nothing.
#[must_use]
pub fn condemned(facts: &VmFacts, store: &StoreId, contradicted: &[DiskName]) -> Vec<CheckpointName> {
    let disks = facts.disks.iter().filter(|disk| contradicted.contains(&disk.name));
    let names = disks.flat_map(DiskFacts::own_bitmaps).filter_map(|bitmap| CheckpointName::parse(&bitmap.name).ok());
    names.filter(|name| name.is_for(store)).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
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

fn bases_of<'a>(disk: &DiskName, sequence: &'a [StoredBackup]) -> impl Iterator<Item = Candidate<'a>> {
    let anchor = anchor(disk, sequence).filter(|_| !broken(Rule::AnchorStays));
    newest(disk, sequence).into_iter().chain(anchor)
}

/// The backups that the next one of this sequence may build on, oldest first: without them it has to read more. Its disks are those of
/// the newest complete backup and of those since.
#[must_use]
pub fn bases(sequence: &[StoredBackup]) -> Vec<&StoredBackup> {
    let complete = sequence.iter().rposition(|backup| backup.manifest.is_complete()).unwrap_or(0);
    let names = sequence[complete..].iter().flat_map(|backup| &backup.manifest.disks).map(|disk| &disk.name);
    let ids: Vec<&BackupId> = names.flat_map(|name| bases_of(name, sequence)).map(|base| &base.backup.id).collect();
    sequence.iter().filter(|backup| ids.contains(&&backup.id)).collect()
}

/// The checkpoints of a VM's own on its disks, by name in order of time, and whether each is inconsistent wherever it is.
///
/// Those that are on backing images alone may be other VMs', of whose disks they are the templates.
#[must_use]
pub fn present_checkpoints(facts: &VmFacts) -> Vec<(CheckpointName, bool)> {
    let below = facts.disks.iter().filter(|_| broken(Rule::OwnImages)).flat_map(DiskFacts::bitmaps);
    let bitmaps = facts.disks.iter().flat_map(DiskFacts::own_bitmaps).chain(below);
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
            (vec![], vec![], WantedKind::Incremental, Kind::Full),
            (vec![bitmap(C1)], vec![backup("a", Some(C1))], WantedKind::Incremental, Kind::Incremental),
            (vec![bitmap(C1)], vec![backup("a", Some(C1))], WantedKind::Differential, Kind::Differential),
            (vec![], vec![backup("a", Some(C1))], WantedKind::Differential, Kind::Resync),
            (vec![], vec![], WantedKind::Differential, Kind::Full),
            (vec![bitmap(C1)], vec![backup("a", Some(C1))], WantedKind::Full, Kind::Full),
            (vec![lost], vec![backup("a", Some(C1))], WantedKind::Incremental, Kind::Resync),
            (vec![], vec![], WantedKind::Incremental, Kind::Full),
        ];
        for (bitmaps, sequence, wanted, expected) in table {
            let planned = plan(&vm(vec![named("vda", &bitmaps)]), &sequence, &request(wanted.clone()), now()).unwrap();
            assert_eq!(planned.kind, expected, "{bitmaps:?} {wanted:?}");
            assert_eq!(planned.disks[0].since.is_some(), matches!(expected, Kind::Incremental | Kind::Differential));
        }
    }

    fn now() -> Timestamp {
        "2026-11-22T20:00:00Z".parse().unwrap()
    }

    fn captured(id: &str, kind: Kind, checkpoint: Option<&str>) -> StoredBackup {
        let mut backup = backup(id, checkpoint);
        (backup.manifest.kind, backup.manifest.disks[0].kind) = (kind, kind);
        backup
    }

    /// The store for which C1, C2 and C3 were made.
    fn own_store() -> StoreId {
        let store = StoreId::new("s663");
        assert_eq!(store.tag(), "0000");
        store
    }

    const C3: &str = "km1-20261122T193000Z-000000000003";

    #[test]
    fn a_differential_builds_on_the_last_full_and_an_incremental_on_the_last_backup() {
        let sequence = [captured("f", Kind::Full, Some(C1)), captured("i", Kind::Incremental, Some(C2))];
        let facts = vm(vec![named("vda", &[bitmap(C1), bitmap(C2)])]);
        let base = |wanted| {
            let planned = plan(&facts, &sequence, &request(wanted), now()).unwrap();
            planned.disks[0].since.as_ref().map(|base| (base.backup.as_str().to_owned(), base.checkpoint.as_str().to_owned()))
        };
        assert_eq!(base(WantedKind::Differential), Some(("f".to_owned(), C1.to_owned())));
        assert_eq!(base(WantedKind::Incremental), Some(("i".to_owned(), C2.to_owned())));
    }

    #[test]
    fn a_differential_without_its_full_is_an_incremental_and_with_a_doubtful_one_a_resync_against_it() {
        let increment = captured("i", Kind::Incremental, Some(C2));
        let planned = |sequence: &[StoredBackup]| {
            plan(&vm(vec![named("vda", &[bitmap(C2)])]), sequence, &request(WantedKind::Differential), now()).unwrap().disks.remove(0)
        };
        assert_eq!(planned(std::slice::from_ref(&increment)).kind, Kind::Incremental);
        assert_eq!(
            planned(&[captured("f", Kind::Full, None), increment.clone()]).kind,
            Kind::Incremental,
            "a full that left no checkpoint"
        );
        let doubtful = planned(&[captured("f", Kind::Full, Some(C1)), increment]);
        assert_eq!((doubtful.kind, doubtful.compare.as_ref().map(BackupId::as_str)), (Kind::Resync, Some("f")));
    }

    #[test]
    fn auto_is_what_the_scheme_says() {
        let scheme = Scheme::gfs(jiff::tz::TimeZone::UTC).unwrap();
        let sequence = [captured("f", Kind::Full, Some(C1)), captured("i", Kind::Incremental, Some(C2))];
        let facts = vm(vec![named("vda", &[bitmap(C1), bitmap(C2)])]);
        for (now, kind, role) in [
            ("2026-11-22T23:59:59Z", Kind::Incremental, Role::Incremental),
            ("2026-11-23T00:00:00Z", Kind::Differential, Role::Differential),
            ("2026-12-07T00:00:00Z", Kind::Full, Role::Full),
        ] {
            let planned = plan(&facts, &sequence, &request(WantedKind::Auto(Box::new(scheme.clone()))), now.parse().unwrap()).unwrap();
            assert_eq!((planned.kind, planned.due.role), (kind, role), "{now}");
        }
    }

    #[test]
    fn the_newest_and_the_anchor_are_bases_and_their_checkpoints_stay() {
        let facts = vm(vec![named("vda", &[bitmap(C1), bitmap(C2), bitmap(C3)])]);
        let obsolete = |sequence: &[StoredBackup]| {
            let names = obsolete_checkpoints(&facts, &own_store(), sequence, &Hold { now: now(), longest: None });
            let bases: String = bases(sequence).iter().map(|base| base.id.as_str()).collect();
            (names.iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>(), bases)
        };
        let (full, increment) = (captured("f", Kind::Full, Some(C1)), captured("i", Kind::Incremental, Some(C2)));
        let third = |kind, checkpoint| [full.clone(), increment.clone(), captured("x", kind, checkpoint)];
        assert_eq!(obsolete(&third(Kind::Incremental, Some(C3))), (vec![C2.to_owned()], "fx".to_owned()));
        assert_eq!(obsolete(&third(Kind::Differential, Some(C3))), (vec![C2.to_owned()], "fx".to_owned()));
        assert_eq!(obsolete(&third(Kind::Incremental, None)).1, "fi");
        for anew in [Kind::Full, Kind::Resync] {
            assert_eq!(obsolete(&third(anew, Some(C3))), (vec![C1.to_owned(), C2.to_owned()], "x".to_owned()));
        }
    }

    #[test]
    fn a_partial_backup_leaves_the_other_disks_their_bases() {
        let named_disk = |name: &str, like: &ManifestDisk| ManifestDisk { name: DiskName::new(name).unwrap(), ..like.clone() };
        let mut both = captured("f", Kind::Full, Some(C1));
        both.manifest.disks.push(named_disk("vdb", &both.manifest.disks[0]));
        let mut partial = captured("p", Kind::Incremental, Some(C2));
        partial.manifest.disks = vec![named_disk("vdb", &partial.manifest.disks[0])];
        partial.manifest.left_out = vec![DiskName::new("vda").unwrap()];
        let ids = |sequence: &[StoredBackup]| bases(sequence).iter().map(|base| base.id.as_str().to_owned()).collect::<String>();
        assert_eq!(ids(&[both.clone(), partial.clone()]), "fp");
        assert_eq!(ids(std::slice::from_ref(&partial)), "p");
        let mut alone = captured("x", Kind::Full, Some(C3));
        alone.manifest.disks = vec![named_disk("vdc", &alone.manifest.disks[0])];
        assert_eq!(ids(&[both, partial, alone]), "x", "a VM that has other disks now");
        assert_eq!(ids(&[]), "");
    }

    #[test]
    fn a_new_disk_is_a_full_inside_an_incremental() {
        let planned = plan(
            &vm(vec![named("vda", &[bitmap(C1)]), named("vdb", &[])]),
            &[backup("a", Some(C1))],
            &request(WantedKind::Incremental),
            now(),
        )
        .unwrap();
        assert_eq!(planned.kind, Kind::Incremental);
        assert_eq!(planned.disks[1].kind, Kind::Full);
        assert!(planned.reason.contains("vdb: full: first backup of this disk"));
    }

    #[test]
    fn a_differential_tells_more_than_an_incremental() {
        let mut then = captured("i", Kind::Incremental, Some(C1));
        let full = ManifestDisk { name: DiskName::new("vdb").unwrap(), kind: Kind::Full, ..then.manifest.disks[0].clone() };
        then.manifest.disks.push(full);
        let facts = vm(vec![named("vda", &[bitmap(C1)]), named("vdb", &[bitmap(C1)])]);
        let planned = plan(&facts, &[then], &request(WantedKind::Differential), now()).unwrap();
        assert_eq!(planned.disks.iter().map(|disk| disk.kind).collect::<Vec<_>>(), [Kind::Incremental, Kind::Differential]);
        assert_eq!(planned.kind, Kind::Differential);
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
            let plan = plan(&vm(disks), std::slice::from_ref(&then), &request(WantedKind::Incremental), now()).unwrap();
            assert_eq!(plan.kind, kind, "{}", plan.reason);
        }
    }

    #[test]
    fn only_the_disks_that_were_asked_for_are_planned() {
        let facts = vm(vec![named("vda", &[]), named("vdb", &[])]);
        let disks = DiskChoice::Only(vec![DiskName::new("vdb").unwrap()]);
        let plan = plan(&facts, &[], &Request { disks, ..request(WantedKind::Incremental) }, now()).unwrap();
        assert_eq!(plan.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["vdb"]);
        assert_eq!(plan.left_out.iter().map(DiskName::as_str).collect::<Vec<_>>(), ["vda"]);
    }

    #[test]
    fn the_reason_is_said_once_where_it_is_one_and_by_disk_where_not() {
        let reason_of = |disks: Vec<DiskFacts>, sequence: &[StoredBackup]| {
            plan(&vm(disks), sequence, &request(WantedKind::Incremental), now()).unwrap().reason
        };
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
        let store = own_store();
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
    fn a_contradiction_condemns_all_checkpoints_of_the_store_on_that_disk() {
        let store = own_store();
        let foreign = CheckpointName::make("2026-11-22T20:00:00Z".parse().unwrap(), &StoreId::new("another"), 8);
        let both = [bitmap(C2), bitmap(foreign.as_str()), bitmap(C1), bitmap("mine")];
        let facts = vm(vec![named("vda", &both), named("vdb", &[bitmap(C3)])]);
        let found = |disks: &[&str]| {
            let disks: Vec<DiskName> = disks.iter().map(|name| DiskName::new(name).unwrap()).collect();
            condemned(&facts, &store, &disks).iter().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found(&["vda"]), [C1, C2]);
        assert_eq!(found(&["vdb", "vdz"]), [C3]);
        assert!(found(&[]).is_empty());
    }

    /// `restic copy` takes manifests into another store: the checkpoints that they name are still those of the store they come from.
    #[test]
    fn a_copied_manifest_does_not_make_its_sources_checkpoint_obsolete() {
        let copy = StoreId::new("copy");
        let made = CheckpointName::make("2026-11-22T20:00:00Z".parse().unwrap(), &copy, 1);
        let facts = vm(vec![named("vda", &[bitmap(C1), bitmap(made.as_str())])]);
        let sequence = [backup("a", Some(C1)), backup("b", Some(made.as_str()))];
        assert_eq!(obsolete_checkpoints(&facts, &copy, &sequence, &hold("2026-11-22T21:00:00Z")), []);
        let source = [CheckpointName::parse(C1).unwrap()];
        assert_eq!(obsolete_checkpoints(&facts, &own_store(), &sequence, &hold("2026-11-22T21:00:00Z")), source);
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
        assert!(obsolete_checkpoints(&facts, &own_store(), &[backup("a", Some(C1)), newer], &late).is_empty());
    }

    #[test]
    fn a_checkpoint_that_is_inconsistent_on_one_disk_only_is_not_worthless() {
        let lost = BitmapFacts { inconsistent: true, ..bitmap(C1) };
        let facts = vm(vec![named("vda", &[bitmap(C1)]), named("vdb", &[lost])]);
        assert_eq!(present_checkpoints(&facts), [(CheckpointName::parse(C1).unwrap(), false)]);
    }

    #[test]
    fn what_is_on_a_template_alone_is_not_the_clones() {
        let mut clone = named("vda", &[bitmap(C2)]);
        clone.layers.push(crate::facts::LayerFacts { image: "/images/template.qcow2".into(), id: None, bitmaps: vec![bitmap(C1)] });
        let facts = vm(vec![clone]);
        assert_eq!(present_checkpoints(&facts), [(CheckpointName::parse(C2).unwrap(), false)]);
        let sequence = [backup("a", Some(C1)), backup("b", Some(C2))];
        assert_eq!(obsolete_checkpoints(&facts, &StoreId::new("s"), &sequence, &hold("2026-11-22T21:00:00Z")), []);
    }
}
