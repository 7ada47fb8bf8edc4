//! Proxmox's rules: one after the other, each for what is older than the periods that earlier ones have covered; pins do not count.

use std::collections::HashSet;

use jiff::civil::DateTime;

use super::policy::{Keep, Period, Policy};
use super::{Entry, Reason};

/// What the rules so far say of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Open,
    Kept(Period),
    Gone,
}

/// The reasons of each entry, in the entries' own order.
pub(super) fn apply(entries: &[Entry<'_>], newest_first: &[usize], policy: &Policy) -> Vec<Vec<Reason>> {
    let times: Vec<DateTime> = entries.iter().map(|entry| policy.zone.to_datetime(entry.time)).collect();
    let mut marks = vec![Mark::Open; entries.len()];
    for (period, keep) in Period::ALL.into_iter().zip(policy.counts) {
        let open: Vec<usize> = newest_first.iter().copied().filter(|place| !entries[*place].pinned).collect();
        select(&mut marks, &open, keep, period, &|place| period.bucket(times[place], place));
    }
    let reasons = |(entry, mark): (&Entry<'_>, Mark)| match mark {
        _ if entry.pinned => vec![Reason::Pinned],
        Mark::Kept(period) => vec![Reason::Counted(period)],
        Mark::Open | Mark::Gone => Vec::new(),
    };
    entries.iter().zip(marks).map(reasons).collect()
}

fn select(marks: &mut [Mark], newest_first: &[usize], keep: Keep, period: Period, bucket: &dyn Fn(usize) -> i64) {
    let covered: HashSet<i64> =
        newest_first.iter().filter(|place| matches!(marks[**place], Mark::Kept(_))).map(|place| bucket(*place)).collect();
    let (mut found, mut kept) = (HashSet::new(), 0);
    for &place in newest_first {
        if marks[place] != Mark::Open || covered.contains(&bucket(place)) {
            continue;
        }
        if found.contains(&bucket(place)) {
            marks[place] = Mark::Gone;
        } else if keep.has_room_after(kept) {
            found.insert(bucket(place));
            kept += 1;
            marks[place] = Mark::Kept(period);
        } else {
            return;
        }
    }
}
