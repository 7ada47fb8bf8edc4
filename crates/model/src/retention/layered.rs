//! restic's rules: each looks at all backups, newest first, and what any of them keeps is kept.

use jiff::Timestamp;
use jiff::civil::DateTime;

use super::policy::{Keep, Period, Policy, Within};
use super::{Entry, Reason};

/// A rule on its way from the newest to the oldest.
struct Rule {
    period: Period,
    kind: RuleKind,
    last: Option<i64>,
}

enum RuleKind {
    /// So many periods; how many were kept.
    Count(Keep, u32),
    /// What is younger than a moment; all is, without one.
    Since(Within, Option<Timestamp>),
}

impl Rule {
    /// Whether a backup is the newest of its period, or the oldest of all, and the rule still keeps.
    fn look(&mut self, time: Timestamp, at: DateTime, place: usize, is_oldest: bool) -> Option<Reason> {
        let open = match &self.kind {
            RuleKind::Count(keep, kept) => keep.has_room_after(*kept),
            RuleKind::Since(_, since) => since.is_none_or(|since| time > since),
        };
        let bucket = self.period.bucket(at, place);
        let is_new = self.last != Some(bucket);
        if !open || !is_new && !is_oldest {
            return None;
        }
        self.last = Some(bucket);
        let reason = match &mut self.kind {
            RuleKind::Since(within, _) => Reason::Recent(self.period, *within),
            RuleKind::Count(_, kept) => {
                *kept = kept.saturating_add(1);
                Reason::Counted(self.period)
            }
        };
        Some(if is_new { reason } else { Reason::Oldest(self.period) })
    }
}

fn rules(policy: &Policy, latest: Option<Timestamp>) -> Vec<Rule> {
    let counts = Period::ALL.into_iter().zip(policy.counts).filter(|(_, keep)| keep.has_room_after(0));
    let within = Period::ALL.into_iter().zip(policy.within).filter(|(_, within)| !within.is_zero());
    let since = |within: Within| latest.and_then(|latest| within.before(latest, policy.zone.to_offset(latest)));
    let counts = counts.map(|(period, keep)| Rule { period, kind: RuleKind::Count(keep, 0), last: None });
    counts.chain(within.map(|(period, within)| Rule { period, kind: RuleKind::Since(within, since(within)), last: None })).collect()
}

/// The reasons of each entry, in the entries' own order.
pub(super) fn apply(entries: &[Entry<'_>], newest_first: &[usize], policy: &Policy, now: Timestamp) -> Vec<Vec<Reason>> {
    // What a wrong clock dated into the future is not what others are recent to.
    let latest = newest_first.iter().map(|place| entries[*place].time).find(|time| *time < now);
    let mut rules = rules(policy, latest);
    let mut reasons = vec![Vec::new(); entries.len()];
    for (number, &place) in newest_first.iter().enumerate() {
        let entry = &entries[place];
        let (at, is_oldest) = (policy.zone.to_datetime(entry.time), number + 1 == newest_first.len());
        let tagged = policy.tags.iter().filter(|list| has_all(entry.tags, list)).map(|list| Reason::Tags(list.clone()));
        let own = entry.pinned.then_some(Reason::Pinned).into_iter().chain(tagged);
        let kept = rules.iter_mut().filter_map(|rule| rule.look(entry.time, at, number, is_oldest));
        reasons[place] = own.chain(kept).collect();
    }
    reasons
}

fn has_all(tags: &[String], list: &[String]) -> bool {
    list.iter().all(|wanted| tags.contains(wanted))
}
