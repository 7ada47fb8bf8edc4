//! Retention: which backups of a sequence stay, and by which rules; the rules are restic's or Proxmox's, to the letter.
//!
//! Read [`policy`] (what can be asked for), then [`layered`] (restic's way: every rule looks at all backups) and [`tiered`] (Proxmox's
//! way: each rule looks only at what is older than what the rules before it have covered). Rules see times and tags only, never kinds:
//! what a backup that stays needs of one that goes is the store's business.

mod layered;
pub mod policy;
mod tiered;

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

pub use policy::{Keep, Period, Policy, PolicyError, Style, Within};

use crate::clock::is_ahead;
use crate::manifest::StoredBackup;
use crate::names::{BackupId, DiskName};
use crate::plan::bases;

/// What the rules look at of one backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its moment.
    pub time: Timestamp,
    /// Its tags.
    pub tags: &'a [String],
    /// Whether the user said that it stays.
    pub pinned: bool,
}

/// Why a backup stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The user said so.
    Pinned,
    /// It has all tags of one list.
    Tags(Vec<String>),
    /// It is the newest of a period, and the period is among those that are kept.
    Counted(Period),
    /// It is the oldest of all, and the rule has not found as many periods as it may keep.
    Oldest(Period),
    /// It is the newest of a period within a time before the newest backup.
    Recent(Period, Within),
    /// It is dated ahead of the clock, so that no rule can tell.
    Ahead,
    /// The next backup of the VM builds on it.
    Base,
    /// The VM would have none.
    TheLast,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned => f.write_str("pinned"),
            Self::Tags(tags) => write!(f, "tag {}", tags.join(",")),
            Self::Counted(period) => f.write_str(period.word()),
            Self::Oldest(period) => write!(f, "oldest {}", period.word()),
            Self::Recent(Period::Last, within) => write!(f, "within {within}"),
            Self::Recent(period, within) => write!(f, "{} within {within}", period.word()),
            Self::Ahead => f.write_str("dated ahead of the clock"),
            Self::Base => f.write_str("the next backup builds on it"),
            Self::TheLast => f.write_str("the last one of the VM"),
        }
    }
}

/// By which rules each backup stays, in the order in which they were given; one without any goes.
///
/// Takes a time of n log n.
#[must_use]
pub fn apply(entries: &[Entry<'_>], policy: &Policy, now: Timestamp) -> Vec<Vec<Reason>> {
    let mut newest_first: Vec<usize> = (0..entries.len()).collect();
    newest_first.sort_by_key(|place| std::cmp::Reverse((entries[*place].time, *place)));
    match policy.style {
        Style::Restic => layered::apply(entries, &newest_first, policy, now),
        Style::Proxmox => tiered::apply(entries, &newest_first, policy),
    }
}

/// What happens to a sequence by a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict<'a> {
    /// The backup.
    pub backup: &'a StoredBackup,
    /// Why it stays; it goes if there is no reason.
    pub reasons: Vec<Reason>,
}

/// What is kept besides what the rules keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beyond {
    /// What the next backup builds on, so that it need not read more.
    pub bases: bool,
    /// The newest one where the rules leave none.
    pub the_last: bool,
}

/// Applies a policy to the sequence of one VM, oldest first.
#[must_use]
pub fn judge<'a>(sequence: &'a [StoredBackup], policy: &Policy, beyond: Beyond, now: Timestamp) -> Vec<Verdict<'a>> {
    let mut reasons = apply_by_disks(sequence, policy, now);
    let held: Vec<&BackupId> = if beyond.bases { bases(sequence).iter().map(|base| &base.id).collect() } else { Vec::new() };
    for (backup, reasons) in sequence.iter().zip(&mut reasons) {
        if held.contains(&&backup.id) {
            reasons.push(Reason::Base);
        }
    }
    if beyond.the_last
        && let Some(last) = last_to_stay(sequence, &reasons)
    {
        reasons[last].push(Reason::TheLast);
    }
    sequence.iter().zip(reasons).map(|(backup, reasons)| Verdict { backup, reasons }).collect()
}

/// Which backups have the same disks: a partial one must not take the place of one that has more. What is dated ahead takes no place.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Group<'a> {
    Complete,
    Partial(Vec<&'a DiskName>),
    Ahead,
}

impl<'a> Group<'a> {
    fn of(backup: &'a StoredBackup, now: Timestamp) -> Self {
        let manifest = &backup.manifest;
        match manifest.is_complete() {
            _ if is_ahead(manifest.time, now) => Self::Ahead,
            true => Self::Complete,
            false => Self::Partial(manifest.disks.iter().map(|disk| &disk.name).collect()),
        }
    }
}

fn apply_by_disks(sequence: &[StoredBackup], policy: &Policy, now: Timestamp) -> Vec<Vec<Reason>> {
    let mut groups: BTreeMap<Group<'_>, Vec<usize>> = BTreeMap::new();
    for (place, backup) in sequence.iter().enumerate() {
        groups.entry(Group::of(backup, now)).or_default().push(place);
    }
    let mut reasons = vec![Vec::new(); sequence.len()];
    for (group, places) in groups {
        let entries: Vec<Entry<'_>> = places.iter().map(|place| Entry::of(&sequence[*place])).collect();
        let kept = if group == Group::Ahead { vec![vec![Reason::Ahead]; places.len()] } else { apply(&entries, policy, now) };
        places.into_iter().zip(kept).for_each(|(place, kept)| reasons[place] = kept);
    }
    reasons
}

/// The one that stays because no complete one does, or none at all where none is complete.
fn last_to_stay(sequence: &[StoredBackup], reasons: &[Vec<Reason>]) -> Option<usize> {
    let complete = sequence.iter().rposition(|backup| backup.manifest.is_complete());
    let is_like = |backup: &StoredBackup| complete.is_none() || backup.manifest.is_complete();
    let stays = sequence.iter().zip(reasons).any(|(backup, reasons)| is_like(backup) && !reasons.is_empty());
    if stays { None } else { complete.or(sequence.len().checked_sub(1)) }
}

impl<'a> Entry<'a> {
    /// Of a stored backup.
    #[must_use]
    pub fn of(backup: &'a StoredBackup) -> Self {
        Self { time: backup.manifest.time, tags: &backup.manifest.tags, pinned: backup.pinned }
    }
}

#[cfg(test)]
mod tests;
