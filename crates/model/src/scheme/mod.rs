//! The scheme: which kind of backup is due, as a pure function of the sequence, the calendar and the clock.
//!
//! Each kind has a rhythm of its own. A kind is due when its rhythm has fallen since the newest backup of that kind or a greater one:
//! so a missed run is caught up once, whenever the next one comes, and a failed backup, which is in no sequence, does not count.

pub mod preview;
pub mod rhythm;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::clock::is_ahead;
use crate::manifest::{Role, StoredBackup};

pub use rhythm::{Rhythm, RhythmError};

/// Which kind of backup falls when; none is never.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheme {
    /// Everything is read.
    pub full: Option<Rhythm>,
    /// What changed since the last full.
    pub differential: Option<Rhythm>,
    /// What changed since the last backup. Whenever a backup is made and nothing greater is due, it is one of these.
    pub incremental: Option<Rhythm>,
    /// Where the calendar is.
    pub zone: TimeZone,
}

/// What is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The kind.
    pub role: Role,
    /// Why, in words.
    pub reason: String,
}

/// What the scheme has to know of a sequence: when its newest full was, and its newest full or differential.
///
/// Each manifest carries it on: a full that retention has let go was made all the same.
/// Backups without a checkpoint count, too: nothing builds on them, but what was wanted that day was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The newest full.
    pub full: Option<Timestamp>,
    /// The newest full or differential.
    pub differential: Option<Timestamp>,
}

impl Standing {
    /// Of a sequence. Times ahead of now count for nothing, and so do backups that do not have all disks.
    #[must_use]
    pub fn of(sequence: &[StoredBackup], now: Timestamp) -> Self {
        let seen = |time: &Timestamp| !is_ahead(*time, now);
        sequence.iter().map(|backup| &backup.manifest).fold(Self::default(), |standing, manifest| {
            let (full, differential) = (manifest.standing.full.filter(seen), manifest.standing.differential.filter(seen));
            let known = Self { full: standing.full.max(full), differential: standing.differential.max(differential) };
            let counts = seen(&manifest.time) && manifest.is_complete();
            if counts { known.with(manifest.role(), manifest.time) } else { known }
        })
    }

    /// After one more backup.
    #[must_use]
    pub fn with(self, role: Role, time: Timestamp) -> Self {
        let newest = |known: Option<Timestamp>| known.max(Some(time));
        match role {
            Role::Full => Self { full: newest(self.full), differential: newest(self.differential) },
            Role::Differential => Self { differential: newest(self.differential), ..self },
            Role::Incremental => self,
        }
    }
}

impl Scheme {
    /// Grandfather, father, son: full on the first Monday of the month, differential on the other Mondays, incremental on working days.
    ///
    /// # Errors
    /// Never; its rhythms are well-formed.
    pub fn gfs(zone: TimeZone) -> Result<Self, RhythmError> {
        let rhythm = |name: &str| Rhythm::parse(name).map(Some);
        Ok(Self { full: rhythm("monthly")?, differential: rhythm("weekly")?, incremental: rhythm("workdays")?, zone })
    }

    /// Which kind is due now.
    #[must_use]
    pub fn due(&self, standing: &Standing, now: Timestamp) -> Due {
        let overdue = |rhythm: &Option<Rhythm>, last: Option<Timestamp>| {
            let rhythm = rhythm.as_ref()?;
            let fell = rhythm.latest(now, &self.zone)?;
            last.is_none_or(|last| last < fell).then(|| format!("{rhythm}, {}", self.day(fell)))
        };
        if let Some(why) = overdue(&self.full, standing.full) {
            return Due { role: Role::Full, reason: self.told(Role::Full, &why, standing.full) };
        }
        if let Some(why) = overdue(&self.differential, standing.differential) {
            return Due { role: Role::Differential, reason: self.told(Role::Differential, &why, standing.differential) };
        }
        Due { role: Role::Incremental, reason: "nothing greater is due".to_owned() }
    }

    fn told(&self, role: Role, why: &str, last: Option<Timestamp>) -> String {
        let last = last.map_or_else(|| "there is none yet".to_owned(), |last| format!("the last one is of {}", self.day(last)));
        format!("a {} backup is due ({why}; {last})", role.word())
    }

    fn day(&self, time: Timestamp) -> String {
        time.to_zoned(self.zone.clone()).strftime("%Y-%m-%d").to_string()
    }

    /// The next moment after this one on which any kind falls.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let rhythms = [&self.full, &self.differential, &self.incremental];
        rhythms.into_iter().flatten().filter_map(|rhythm| rhythm.next(after, &self.zone)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gfs() -> Scheme {
        Scheme::gfs(TimeZone::UTC).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn letter(role: Role) -> char {
        match role {
            Role::Full => 'F',
            Role::Differential => 'D',
            Role::Incremental => 'I',
        }
    }

    /// What the scheme makes of runs at these moments.
    fn drawn(scheme: &Scheme, runs: impl Iterator<Item = Timestamp>) -> String {
        let mut standing = Standing::default();
        runs.map(|now| {
            let due = scheme.due(&standing, now);
            standing = standing.with(due.role, now);
            letter(due.role)
        })
        .collect()
    }

    fn workdays(from: &str, days: usize) -> impl Iterator<Item = Timestamp> {
        let scheme = gfs();
        let mut last = at(from);
        std::iter::from_fn(move || {
            last = scheme.next(last)?;
            Some(last)
        })
        .take(days)
    }

    #[test]
    fn the_default_is_the_sequence_that_people_draw() {
        // From the first Monday of November 2026 on.
        assert_eq!(drawn(&gfs(), workdays("2026-11-01T12:00:00Z", 28)), "FIIIIDIIIIDIIIIDIIIIDIIIIFII");
    }

    #[test]
    fn a_missed_run_is_caught_up_once() {
        let missed = |lost: &[&str]| {
            let kept = workdays("2026-11-01T12:00:00Z", 28).filter(|run| !lost.iter().any(|day| run.to_string().starts_with(day)));
            drawn(&gfs(), kept)
        };
        assert_eq!(missed(&["2026-11-09"]), "FIIIIDIIIDIIIIDIIIIDIIIIFII", "Tuesday makes Monday's differential");
        assert_eq!(missed(&["2026-11-09", "2026-11-10", "2026-11-16"]), "FIIIIDIIDIIIDIIIIDIIIIFII");
        assert_eq!(missed(&["2026-12-07", "2026-12-08"]), "FIIIIDIIIIDIIIIDIIIIDIIIIF");
        let all = ["2026-11-1", "2026-11-09", "2026-11-2", "2026-11-30", "2026-12-0"];
        assert_eq!(missed(&all), "FIIII", "what never ran is not made up for one by one");
    }

    #[test]
    fn several_runs_a_day_make_what_is_due_once() {
        let runs = workdays("2026-11-01T12:00:00Z", 7).flat_map(|run| [run, run + jiff::SignedDuration::from_hours(9)]);
        assert_eq!(drawn(&gfs(), runs), "FIIIIIIIIIDIII");
    }

    #[test]
    fn a_greater_backup_stands_for_a_smaller_one_and_not_the_other_way() {
        let monday = at("2026-11-09T01:00:00Z");
        let standing = |role, time: &str| Standing::default().with(Role::Full, at("2026-11-02T01:00:00Z")).with(role, at(time));
        for (role, time, due) in [
            (Role::Full, "2026-11-09T00:00:00Z", Role::Incremental),
            (Role::Differential, "2026-11-09T00:00:00Z", Role::Incremental),
            (Role::Incremental, "2026-11-09T00:30:00Z", Role::Differential),
            (Role::Full, "2026-11-08T23:59:59Z", Role::Differential),
        ] {
            assert_eq!(gfs().due(&standing(role, time), monday).role, due, "{role:?} {time}");
        }
        let december = at("2026-12-07T01:00:00Z");
        assert_eq!(gfs().due(&standing(Role::Differential, "2026-12-07T00:30:00Z"), december).role, Role::Full);
        let words = gfs().due(&standing(Role::Incremental, "2026-11-08T23:59:59Z"), december).reason;
        assert_eq!(words, "a full backup is due (monthly, 2026-12-07; the last one is of 2026-11-02)");
        assert!(gfs().due(&Standing::default(), monday).reason.ends_with("there is none yet)"));
    }

    #[test]
    fn what_was_made_and_deleted_since_is_not_made_again() {
        use crate::manifest::Kind;
        use crate::trust::tests::backup;
        let mut full = backup("f", None);
        full.manifest.time = at("2026-11-02T01:00:00Z");
        let mut last = backup("i", None);
        (last.manifest.kind, last.manifest.wanted) = (Kind::Incremental, Some(Role::Incremental));
        last.manifest.time = at("2026-11-10T01:00:00Z");
        last.manifest.standing =
            Standing::of(std::slice::from_ref(&full), at("2026-11-11T01:00:00Z")).with(Role::Differential, at("2026-11-09T01:00:00Z"));
        let due =
            |sequence: &[StoredBackup]| gfs().due(&Standing::of(sequence, at("2026-11-11T01:00:00Z")), at("2026-11-11T01:00:00Z")).role;
        assert_eq!(due(&[full.clone(), last.clone()]), Role::Incremental);
        assert_eq!(due(std::slice::from_ref(&last)), Role::Incremental);
        assert_eq!(due(std::slice::from_ref(&full)), Role::Differential);
        assert_eq!(Standing::of(&[last], at("2026-11-11T01:00:00Z")).full, Some(full.manifest.time));
    }

    #[test]
    fn what_is_dated_ahead_or_partial_stands_for_nothing() {
        use crate::trust::tests::backup;
        let now = at("2026-11-11T01:00:00Z");
        let full = |time: &str| {
            let mut full = backup("f", None);
            full.manifest.time = at(time);
            full
        };
        let first = full("2026-11-02T01:00:00Z");
        let standing = Standing { full: Some(first.manifest.time), differential: Some(first.manifest.time) };
        let mut partial = full("2026-11-10T01:00:00Z");
        partial.manifest.left_out = vec![crate::names::DiskName::new("vdb").unwrap()];
        let ahead = full("2027-11-10T01:00:00Z");
        let mut dragged = full("2026-11-10T01:00:00Z");
        (dragged.manifest.kind, dragged.manifest.wanted) = (crate::manifest::Kind::Incremental, Some(Role::Incremental));
        dragged.manifest.standing = Standing { full: Some(ahead.manifest.time), differential: Some(ahead.manifest.time) };
        for another in [partial, ahead, dragged] {
            assert_eq!(Standing::of(&[first.clone(), another], now), standing);
        }
    }

    #[test]
    fn what_is_off_is_never_due() {
        let runs = || workdays("2026-11-01T12:00:00Z", 28);
        assert_eq!(drawn(&Scheme { differential: None, ..gfs() }, runs()), format!("F{}FII", "I".repeat(24)));
        assert_eq!(drawn(&Scheme { full: None, differential: None, ..gfs() }, runs()), "I".repeat(28));
        assert_eq!(Scheme { full: None, differential: None, incremental: None, ..gfs() }.next(at("2026-11-01T12:00:00Z")), None);
    }

    #[test]
    fn the_zone_decides_what_day_it_is() {
        let now = at("2026-11-08T23:30:00Z");
        let standing = Standing::default().with(Role::Full, at("2026-11-02T12:00:00Z"));
        assert_eq!(gfs().due(&standing, now).role, Role::Incremental);
        let berlin = Scheme { zone: TimeZone::get("Europe/Berlin").unwrap(), ..gfs() };
        assert_eq!(berlin.due(&standing, now).role, Role::Differential);
    }
}
