//! The calendar ahead: which kind will fall when, until when it stays and by which rule, and what it adds at the rate that was seen.

use jiff::Timestamp;

use super::{Scheme, Standing};
use crate::manifest::{Role, StoredBackup};
use crate::retention::{Entry, Policy, Reason, apply};

/// Most backups that are looked ahead to.
const AHEAD_MAX: usize = 5000;
/// The newest backups of a kind from which its size is guessed.
const OBSERVED_MAX: usize = 8;

/// A backup that is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ahead {
    /// When it falls.
    pub time: Timestamp,
    /// Its kind.
    pub role: Role,
    /// When it goes; none if it is still there at the end.
    pub until: Option<Timestamp>,
    /// The rules that kept it last.
    pub kept_by: Vec<Reason>,
    /// What it adds to the store, guessed from earlier ones of its kind; none where there are none.
    pub bytes: Option<u64>,
}

struct Alive<'a> {
    time: Timestamp,
    role: Role,
    tags: &'a [String],
    pinned: bool,
    ahead: Option<usize>,
}

/// What comes until a moment if every run succeeds, and what a policy makes of it; without one all stays.
#[must_use]
pub fn preview(sequence: &[StoredBackup], scheme: &Scheme, policy: Option<&Policy>, now: Timestamp, until: Timestamp) -> Vec<Ahead> {
    let mut standing = Standing::of(sequence, now);
    let mut alive: Vec<Alive<'_>> = sequence.iter().map(Alive::of).collect();
    let mut ahead: Vec<Ahead> = Vec::new();
    let mut time = now;
    while let Some(next) = scheme.next(time).filter(|next| *next <= until && ahead.len() < AHEAD_MAX) {
        time = next;
        let role = scheme.due(&standing, time).role;
        standing = standing.with(role, time);
        alive.push(Alive { time, role, tags: &[], pinned: false, ahead: Some(ahead.len()) });
        ahead.push(Ahead { time, role, until: None, kept_by: Vec::new(), bytes: observed(sequence, role) });
        if let Some(policy) = policy {
            forget(&mut alive, &mut ahead, policy, time);
        }
    }
    ahead
}

impl<'a> Alive<'a> {
    fn of(backup: &'a StoredBackup) -> Self {
        let manifest = &backup.manifest;
        Self { time: manifest.time, role: manifest.role(), tags: &manifest.tags, pinned: backup.pinned, ahead: None }
    }
}

fn forget(alive: &mut Vec<Alive<'_>>, ahead: &mut [Ahead], policy: &Policy, now: Timestamp) {
    let entries: Vec<Entry<'_>> = alive.iter().map(|one| Entry { time: one.time, tags: one.tags, pinned: one.pinned }).collect();
    // The newest is not in the future of its own moment.
    let after = now.checked_add(jiff::SignedDuration::from_secs(1)).unwrap_or(now);
    let mut reasons = apply(&entries, policy, after);
    let anchor = alive.iter().rposition(|one| one.role == Role::Full);
    for base in [anchor, alive.len().checked_sub(1)].into_iter().flatten() {
        if !reasons[base].contains(&Reason::Base) {
            reasons[base].push(Reason::Base);
        }
    }
    let mut fates = reasons.into_iter();
    alive.retain(|one| {
        let reasons = fates.next().unwrap_or_default();
        let stays = !reasons.is_empty();
        if let Some(told) = one.ahead.and_then(|place| ahead.get_mut(place)) {
            if stays { told.kept_by = reasons } else { told.until = Some(now) }
        }
        stays
    });
}

fn observed(sequence: &[StoredBackup], role: Role) -> Option<u64> {
    let of_role = sequence.iter().rev().map(|backup| &backup.manifest).filter(|manifest| manifest.role() == role);
    let sizes: Vec<u64> = of_role.map(crate::manifest::Manifest::stored_bytes).take(OBSERVED_MAX).collect();
    let sum = sizes.iter().copied().fold(0, u64::saturating_add);
    sum.checked_div(sizes.len() as u64)
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;
    use crate::retention::{Keep, Style};
    use crate::trust::tests::backup;

    #[test]
    fn months_ahead_are_told_with_the_end_of_each_backup() {
        let mut first = backup("f", None);
        first.manifest.time = "2026-11-02T01:00:00Z".parse().unwrap();
        let scheme = Scheme::gfs(TimeZone::UTC).unwrap();
        let mut policy = Policy::new(Style::Restic, TimeZone::UTC);
        (policy.counts[2], policy.counts[3]) = (Keep::Number(5), Keep::Number(3));
        let (now, until) = ("2026-11-02T02:00:00Z".parse().unwrap(), "2026-12-12T00:00:00Z".parse().unwrap());
        let told = preview(&[first.clone()], &scheme, Some(&policy), now, until);
        let letters: String = told.iter().map(|ahead| ahead.role.word().chars().next().unwrap()).collect();
        assert_eq!(letters, "iiiidiiiidiiiidiiiidiiiifiiii");
        // Tuesday's is one of five days with a backup until the next Tuesday has one.
        assert_eq!(told[0].until, Some("2026-11-10T00:00:00Z".parse().unwrap()));
        assert_eq!(told.last().unwrap().kept_by.first().map(ToString::to_string).as_deref(), Some("daily"));
        assert_eq!((told[24].bytes, told[0].bytes), (Some(first.manifest.stored_bytes()), None));
        assert!(preview(&[first], &scheme, None, now, until).iter().all(|ahead| ahead.until.is_none()));
    }
}
