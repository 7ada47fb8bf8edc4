//! Times that a wrong clock has written: what lies ahead of now decides nothing.
//!
//! A backup that is dated ahead is in its place in the sequence, restores, and keeps its true time; but it is no reason to make no other
//! one, it displaces none, and it protects nobody.

use jiff::{SignedDuration, Timestamp};

use crate::manifest::StoredBackup;

/// How far the clocks of a store's hosts may be apart.
const APART_MAX: SignedDuration = SignedDuration::from_mins(10);

/// Whether a time is one that nobody can have seen yet.
#[must_use]
pub fn is_ahead(time: Timestamp, now: Timestamp) -> bool {
    time.duration_since(now) > APART_MAX
}

/// The backup by which a VM is protected: the newest one that has all its disks and is not dated ahead.
#[must_use]
pub fn protecting(sequence: &[StoredBackup], now: Timestamp) -> Option<&StoredBackup> {
    sequence.iter().rfind(|backup| backup.manifest.is_complete() && !is_ahead(backup.manifest.time, now))
}

/// What is to be said of the backups of one VM that are dated ahead, if there are any.
#[must_use]
pub fn finding(sequence: &[StoredBackup], now: Timestamp) -> Option<String> {
    let ahead: Vec<&StoredBackup> = sequence.iter().filter(|backup| is_ahead(backup.manifest.time, now)).collect();
    let last = ahead.last()?;
    let ids = ahead.iter().map(|backup| backup.id.short()).collect::<Vec<_>>().join(" ");
    let (vm, until) = (&last.manifest.vm.name, ahead.iter().map(|backup| backup.manifest.time).max()?);
    let what = if ahead.len() == 1 { "a backup".to_owned() } else { format!("{} backups", ahead.len()) };
    Some(format!(
        "{what} of {vm} dated ahead of this host's clock (until {until}) counts for nothing: not for what is due, not for what is kept; 'keepmark delete {ids}' removes it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::DiskName;
    use crate::trust::tests::backup;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn dated(id: &str, time: &str) -> StoredBackup {
        let mut backup = backup(id, None);
        backup.manifest.time = at(time);
        backup
    }

    #[test]
    fn ten_minutes_are_no_wrong_clock() {
        let now = at("2026-12-01T12:00:00Z");
        for (time, ahead) in [
            ("2026-11-01T00:00:00Z", false),
            ("2026-12-01T12:00:00Z", false),
            ("2026-12-01T12:10:00Z", false),
            ("2026-12-01T12:10:01Z", true),
            ("2027-12-01T12:00:00Z", true),
        ] {
            assert_eq!(is_ahead(at(time), now), ahead, "{time}");
        }
    }

    #[test]
    fn what_protects_is_the_newest_that_is_complete_and_not_dated_ahead() {
        let now = at("2026-12-01T12:00:00Z");
        let partial = || {
            let mut partial = dated("part", "2026-11-30T00:00:00Z");
            partial.manifest.left_out = vec![DiskName::new("vdb").unwrap()];
            partial
        };
        let sequence = [dated("old", "2026-11-28T00:00:00Z"), dated("ahead", "2027-11-29T00:00:00Z"), partial()];
        assert_eq!(protecting(&sequence, now).map(|backup| backup.id.as_str()), Some("old"));
        assert_eq!(protecting(&[partial()], now), None);
    }

    #[test]
    fn what_is_dated_ahead_is_told_with_the_command_that_removes_it() {
        let now = at("2026-12-01T12:00:00Z");
        let sequence = ["2026-11-28T00:00:00Z", "2027-11-30T00:00:00Z", "2027-11-29T00:00:00Z"];
        let sequence: Vec<StoredBackup> = (0..).zip(sequence).map(|(number, time)| dated(&format!("id{number}"), time)).collect();
        let told = finding(&sequence, now).unwrap();
        assert!(told.starts_with("2 backups of web dated ahead") && told.contains("until 2027-11-30T00:00:00Z"), "{told}");
        assert!(told.contains("'keepmark delete id1 id2'"), "{told}");
        assert!(finding(&sequence[..2], now).unwrap().starts_with("a backup of web"));
        assert_eq!(finding(&sequence[..1], now), None);
    }
}
