//! Selection: which backup a text such as `3f9a1c0d`, `web01@latest`, `web01@-1` or `web01@2026-11-22` means.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;

use crate::manifest::StoredBackup;
use crate::names::VmIdentity;

/// Fewest characters of an id that are taken as a prefix.
pub const PREFIX_LEN_MIN: usize = 4;

/// A text that names no backup, or too many.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No id begins so.
    #[error("no backup's id begins with {text:?}")]
    NoSuchId {
        /// The text as it came.
        text: String,
    },
    /// Several ids begin so.
    #[error("{count} backups' ids begin with {text:?}")]
    AmbiguousId {
        /// The text as it came.
        text: String,
        /// How many.
        count: usize,
    },
    /// The store has no backup of such a VM.
    #[error("the store has no backup of a VM called {vm:?}")]
    NoSuchVm {
        /// The name or UUID as it came.
        vm: String,
    },
    /// Several VMs have this name.
    #[error("several VMs are called {vm:?}: {ids}")]
    AmbiguousVm {
        /// The name as it came.
        vm: String,
        /// Their ids.
        ids: String,
    },
    /// The VM has no backup of all its disks.
    #[error("VM {vm} has only backups of some of its disks; the newest is {vm}@latest-partial")]
    OnlyPartial {
        /// The name as it came.
        vm: String,
    },
    /// What follows the `@` is neither `latest`, a time nor `-N`.
    #[error(
        "{text:?} is neither 'latest', 'latest-partial', a time (2026-11-22, 2026-11-22T18:00, with Z or an offset if wanted) nor -N (N backups before the latest)"
    )]
    Moment {
        /// What follows the `@`.
        text: String,
    },
    /// The VM has backups, but none that early.
    #[error("VM {vm} has no backup at or before {moment}")]
    NothingThen {
        /// The name as it came.
        vm: String,
        /// What was asked for.
        moment: String,
    },
}

/// The backups (oldest first) of the VM that a text names, by UUID or name; an id wins over a name.
///
/// # Errors
/// When no VM or several VMs are called so.
pub fn of_vm<'a>(backups: &'a [StoredBackup], vm: &str) -> Result<Vec<&'a StoredBackup>, SelectError> {
    let matching = |fits: &dyn Fn(&VmIdentity) -> bool| backups.iter().filter(|backup| fits(&backup.manifest.vm)).collect::<Vec<_>>();
    let by_id = matching(&|identity| identity.id().as_str().eq_ignore_ascii_case(vm));
    let found = if by_id.is_empty() { matching(&|identity| identity.name == vm) } else { by_id };
    let mut ids: Vec<String> = found.iter().map(|backup| backup.manifest.vm_id().to_string()).collect();
    ids.sort_unstable();
    ids.dedup();
    match ids.len() {
        0 => Err(SelectError::NoSuchVm { vm: vm.to_owned() }),
        1 => Ok(found),
        _ => Err(SelectError::AmbiguousVm { vm: vm.to_owned(), ids: ids.join(", ") }),
    }
}

/// The backup that a text means; `zone` is where times without an offset are.
///
/// # Errors
/// When it means none, or several.
pub fn select<'a>(backups: &'a [StoredBackup], text: &str, zone: &TimeZone) -> Result<&'a StoredBackup, SelectError> {
    match text.rsplit_once('@') {
        Some((vm, moment)) => at_moment(&of_vm(backups, vm)?, vm, moment, zone),
        None => by_prefix(backups, text),
    }
}

fn by_prefix<'a>(backups: &'a [StoredBackup], text: &str) -> Result<&'a StoredBackup, SelectError> {
    let prefix = text.to_ascii_lowercase();
    let fits = |backup: &&StoredBackup| prefix.len() >= PREFIX_LEN_MIN && backup.id.as_str().starts_with(&prefix);
    let found: Vec<&StoredBackup> = backups.iter().filter(fits).collect();
    match found[..] {
        [] => Err(SelectError::NoSuchId { text: text.to_owned() }),
        [one] => Ok(one),
        _ => Err(SelectError::AmbiguousId { text: text.to_owned(), count: found.len() }),
    }
}

fn at_moment<'a>(sequence: &[&'a StoredBackup], vm: &str, moment: &str, zone: &TimeZone) -> Result<&'a StoredBackup, SelectError> {
    let nothing = || SelectError::NothingThen { vm: vm.to_owned(), moment: moment.to_owned() };
    if moment == "latest-partial" {
        return sequence.last().copied().ok_or_else(nothing);
    }
    let complete: Vec<&StoredBackup> = sequence.iter().copied().filter(|backup| backup.manifest.is_complete()).collect();
    let found = if moment == "latest" {
        complete.last()
    } else if let Some(steps) = moment.strip_prefix('-').and_then(|steps| usize::from_str(steps).ok()) {
        complete.iter().nth_back(steps)
    } else {
        let until = parse_until(moment, zone).ok_or_else(|| SelectError::Moment { text: moment.to_owned() })?;
        // Clocks are set back now and then: of what is dated alike, the later one in the sequence.
        complete.iter().filter(|backup| backup.manifest.time <= until).max_by_key(|backup| backup.manifest.time)
    };
    found.copied().ok_or_else(|| if complete.is_empty() { SelectError::OnlyPartial { vm: vm.to_owned() } } else { nothing() })
}

/// The last instant that a text covers: a day means its end, a minute its last moment.
fn parse_until(text: &str, zone: &TimeZone) -> Option<Timestamp> {
    if let Ok(exact) = text.parse::<Timestamp>() {
        return Some(exact);
    }
    if let Ok(day) = text.parse::<Date>().and_then(|day| day.tomorrow())
        && text.len() <= 10
    {
        return before(day.to_datetime(jiff::civil::Time::midnight()), zone);
    }
    let civil = text.parse::<DateTime>().ok()?;
    let minute_only = text.matches(':').count() == 1;
    let span = if minute_only { jiff::Span::new().minutes(1) } else { jiff::Span::new().seconds(1) };
    before(civil.checked_add(span).ok()?, zone)
}

fn before(civil: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let end = zone.to_ambiguous_zoned(civil).compatible().ok()?.timestamp();
    end.checked_sub(jiff::Span::new().nanoseconds(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::sample;
    use crate::names::BackupId;

    const UUID: &str = "6e1a8d4c-0000-4000-8000-00000000abcd";

    fn backup(id: &str, vm: &str, uuid: Option<&str>, time: &str) -> StoredBackup {
        let mut manifest = sample(None);
        manifest.vm = VmIdentity::new(vm, uuid).unwrap();
        manifest.time = time.parse().unwrap();
        StoredBackup::new(BackupId::new(id), manifest)
    }

    fn sequence() -> Vec<StoredBackup> {
        vec![
            backup("aaaa1111", "web", None, "2026-11-20T18:00:00Z"),
            backup("aaaa2222", "web", None, "2026-11-21T18:00:30Z"),
            backup("bbbb3333", "web", None, "2026-11-22T18:00:00Z"),
            backup("cccc4444", "db", Some(UUID), "2026-11-22T19:00:00Z"),
        ]
    }

    #[test]
    fn every_way_to_name_a_backup() {
        for (text, expected) in [
            ("bbbb", "bbbb3333"),
            ("AAAA1", "aaaa1111"),
            ("web@latest", "bbbb3333"),
            ("web@-0", "bbbb3333"),
            ("web@-1", "aaaa2222"),
            ("web@2026-11-21", "aaaa2222"),
            ("web@2026-11-21T18:00", "aaaa2222"),
            ("web@2026-11-21T18:00:29", "aaaa1111"),
            ("web@2026-11-22T18:00:00Z", "bbbb3333"),
            ("web@2026-11-22T19:59:59+02:00", "aaaa2222"),
            ("db@latest", "cccc4444"),
            (&format!("{UUID}@latest"), "cccc4444"),
        ] {
            assert_eq!(select(&sequence(), text, &TimeZone::UTC).map(|found| found.id.as_str()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_names_none_or_several_says_so() {
        let fails = |text: &str| select(&sequence(), text, &TimeZone::UTC).unwrap_err();
        assert!(matches!(fails("aaaa"), SelectError::AmbiguousId { count: 2, .. }));
        assert!(matches!(fails("bbb"), SelectError::NoSuchId { .. }));
        assert!(matches!(fails("mail@latest"), SelectError::NoSuchVm { .. }));
        assert!(matches!(fails("web@yesterday"), SelectError::Moment { .. }));
        assert!(matches!(fails("web@2026-11-19"), SelectError::NothingThen { .. }));
        assert!(matches!(fails("web@-3"), SelectError::NothingThen { .. }));
    }

    #[test]
    fn a_backup_of_some_disks_is_named_by_its_id_or_as_the_latest_partial_one() {
        let mut backups = sequence();
        backups[2].manifest.left_out = vec![crate::names::DiskName::new("vdb").unwrap()];
        let found = |backups: &[StoredBackup], text: &str| select(backups, text, &TimeZone::UTC).map(|found| found.id.as_str().to_owned());
        for (text, expected) in [
            ("web@latest", "aaaa2222"),
            ("web@-1", "aaaa1111"),
            ("web@2026-11-30", "aaaa2222"),
            ("web@latest-partial", "bbbb3333"),
            ("db@latest-partial", "cccc4444"),
            ("bbbb", "bbbb3333"),
        ] {
            assert_eq!(found(&backups, text), Ok(expected.to_owned()), "{text}");
        }
        assert_eq!(found(&backups[2..3], "web@latest"), Err(SelectError::OnlyPartial { vm: "web".into() }));
        assert!(found(&backups[2..3], "web@-0").unwrap_err().to_string().ends_with("the newest is web@latest-partial"));
    }

    #[test]
    fn a_wrong_clock_names_no_other_backup() {
        let mut backups = sequence();
        backups[1].manifest.time = "2027-11-21T18:00:00Z".parse().unwrap();
        let found = |text: &str| select(&backups, text, &TimeZone::UTC).unwrap().id.as_str();
        assert_eq!(
            ["web@2026-11-21", "web@2026-11-25", "web@latest", "web@2027-12-01"].map(found),
            ["aaaa1111", "bbbb3333", "bbbb3333", "aaaa2222"]
        );
    }

    #[test]
    fn two_vms_of_one_name_must_be_told_apart() {
        let mut two = sequence();
        two.push(backup("dddd5555", "web", Some(UUID), "2026-11-23T00:00:00Z"));
        assert_eq!(select(&two, "web@latest", &TimeZone::UTC).unwrap().id.as_str(), "bbbb3333");
        two.push(backup("eeee6666", "db", Some("6e1a8d4c-0000-4000-8000-00000000abce"), "2026-11-23T00:00:00Z"));
        assert!(matches!(select(&two, "db@latest", &TimeZone::UTC), Err(SelectError::AmbiguousVm { .. })));
    }
}
