//! A rhythm: a calendar expression in civil time, and the moments at which it falls in a time zone.
//!
//! Expressions are cron's five fields, or a name. They are evaluated on the calendar alone; only what is found there is put into the
//! zone. What falls into the hour that a clock skips happens once, when it has skipped it; what falls into an hour that comes twice
//! happens the first time only. So a later entry of the calendar is never an earlier moment, and nothing happens twice.

use std::fmt;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};

/// Expressions that have a name.
const NAMED: [(&str, &str); 5] = [
    ("monthly", "0 0 * * MON#1"),
    ("weekly", "0 0 * * MON"),
    ("workdays", "0 0 * * MON-FRI"),
    ("daily", "0 0 * * *"),
    ("hourly", "0 * * * *"),
];

/// When something is due: `monthly` (the first Monday), `weekly` (Mondays), `workdays`, `daily`, `hourly`, or five fields as cron has them.
#[derive(Debug, Clone)]
pub struct Rhythm {
    text: String,
    cron: Cron,
}

impl PartialEq for Rhythm {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Rhythm {}

impl fmt::Display for Rhythm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is wrong with a calendar expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RhythmError {
    /// It is none.
    #[error("{text:?} is no rhythm ({problem}): expected monthly, weekly, workdays, daily, hourly, or 'MINUTE HOUR DAY MONTH WEEKDAY'")]
    Form {
        /// What was given.
        text: String,
        /// What the parser says.
        problem: String,
    },
    /// No date fits it.
    #[error("{text:?} never happens")]
    Never {
        /// What was given.
        text: String,
    },
}

impl Rhythm {
    /// Reads an expression.
    ///
    /// # Errors
    /// When it is none, or no date fits it.
    pub fn parse(text: &str) -> Result<Self, RhythmError> {
        let text = text.trim().to_owned();
        let named = NAMED.iter().find(|(name, _)| *name == text).map_or(text.as_str(), |(_, expression)| expression);
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(named).map_err(|problem| RhythmError::Form { text: text.clone(), problem: problem.to_string() })?;
        match cron.find_next_occurrence(&DateTime::constant(2000, 1, 1, 0, 0, 0, 0), true) {
            Ok(_) => Ok(Self { text, cron }),
            Err(_) => Err(RhythmError::Never { text }),
        }
    }

    /// The last time it fell, until and including this moment.
    #[must_use]
    pub fn latest(&self, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut civil = zone.to_datetime(until).checked_add(repeated(until, zone)).ok()?;
        let mut inclusive = true;
        loop {
            civil = self.cron.find_previous_occurrence(&civil, inclusive).ok()?;
            let moment = moment(civil, zone)?;
            if moment <= until {
                return Some(moment);
            }
            inclusive = false;
        }
    }

    /// The next time it falls after this moment.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut civil = zone.to_datetime(after);
        loop {
            civil = self.cron.find_next_occurrence(&civil, false).ok()?;
            let moment = moment(civil, zone)?;
            if moment > after {
                return Some(moment);
            }
        }
    }
}

/// When a civil time is: the first time of two, the end of the gap for one that does not exist.
fn moment(civil: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    match zone.to_ambiguous_timestamp(civil).offset() {
        AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => offset.to_timestamp(civil).ok(),
        AmbiguousOffset::Gap { after, .. } => {
            let earlier = after.to_timestamp(civil).ok()?;
            zone.following(earlier).next().map(|transition| transition.timestamp())
        }
    }
}

/// How much of the calendar is behind this moment although the clock shows an earlier time, since it was set back: none, mostly.
fn repeated(at: Timestamp, zone: &TimeZone) -> jiff::SignedDuration {
    match zone.to_ambiguous_timestamp(zone.to_datetime(at)).offset() {
        AmbiguousOffset::Fold { before, after } if zone.to_offset(at) == after => {
            jiff::SignedDuration::from_secs(i64::from(before.seconds()) - i64::from(after.seconds()))
        }
        AmbiguousOffset::Fold { .. } | AmbiguousOffset::Gap { .. } | AmbiguousOffset::Unambiguous { .. } => jiff::SignedDuration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rhythm(text: &str) -> Rhythm {
        Rhythm::parse(text).unwrap()
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn names_stand_for_what_they_say() {
        let utc = TimeZone::UTC;
        for (name, after, expected) in [
            ("monthly", "2026-11-22T18:00:00Z", "2026-12-07T00:00:00Z"),
            ("weekly", "2026-11-22T18:00:00Z", "2026-11-23T00:00:00Z"),
            ("workdays", "2026-11-20T00:00:00Z", "2026-11-23T00:00:00Z"),
            ("daily", "2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"),
            ("hourly", "2026-11-20T00:00:01Z", "2026-11-20T01:00:00Z"),
            ("30 22 L * *", "2026-11-20T00:00:01Z", "2026-11-30T22:30:00Z"),
        ] {
            assert_eq!(rhythm(name).next(at(after), &utc), Some(at(expected)), "{name}");
            assert_eq!(rhythm(name).latest(at(expected), &utc), Some(at(expected)), "{name}");
            assert!(rhythm(name).latest(at(after), &utc).unwrap() <= at(after), "{name}");
        }
        assert_eq!(rhythm(" weekly ").to_string(), "weekly");
    }

    #[test]
    fn what_is_no_rhythm_is_said() {
        for text in ["", "sometimes", "0 0 * *", "61 0 * * *", "0 0 0 * * *", "0 0 1 1 * 2030 7", "* * * * * *"] {
            assert!(matches!(Rhythm::parse(text), Err(RhythmError::Form { .. })), "{text}");
        }
        assert!(matches!(Rhythm::parse("0 0 31 2 *"), Err(RhythmError::Never { .. })));
    }

    #[test]
    fn what_falls_into_a_skipped_hour_happens_once_at_its_end() {
        let berlin = zone("Europe/Berlin");
        // 2026-03-29: 02:00 becomes 03:00, which is 01:00 UTC.
        let end = at("2026-03-29T01:00:00Z");
        for text in ["30 2 * * *", "10 2 * * *", "*/7 2 * * *"] {
            assert_eq!(rhythm(text).next(at("2026-03-28T12:00:00Z"), &berlin), Some(end), "{text}");
            assert_eq!(rhythm(text).latest(at("2026-03-29T08:00:00Z"), &berlin), Some(end), "{text}");
            assert!(rhythm(text).next(end, &berlin).unwrap() >= at("2026-03-30T00:00:00Z"), "{text}");
            assert!(rhythm(text).latest(at("2026-03-29T00:59:59Z"), &berlin).unwrap() < at("2026-03-28T02:00:00Z"), "{text}");
        }
    }

    #[test]
    fn what_falls_into_an_hour_that_comes_twice_happens_the_first_time() {
        let berlin = zone("Europe/Berlin");
        // 2026-10-25: 03:00 becomes 02:00, which is 01:00 UTC.
        let first = at("2026-10-25T00:30:00Z");
        let half = rhythm("30 2 * * *");
        assert_eq!(half.next(at("2026-10-24T12:00:00Z"), &berlin), Some(first));
        assert_eq!(half.next(first, &berlin), Some(at("2026-10-26T01:30:00Z")));
        for now in ["2026-10-25T00:30:00Z", "2026-10-25T00:45:00Z", "2026-10-25T01:10:00Z", "2026-10-25T01:30:00Z", "2026-10-25T20:00:00Z"]
        {
            assert_eq!(half.latest(at(now), &berlin), Some(first), "{now}");
        }
        assert_eq!(half.latest(at("2026-10-25T00:29:59Z"), &berlin), Some(at("2026-10-24T00:30:00Z")));
    }

    #[test]
    fn a_day_that_a_zone_skips_happens_at_its_end() {
        // Samoa had no 2011-12-30.
        let apia = zone("Pacific/Apia");
        assert_eq!(rhythm("0 12 30 12 *").next(at("2011-12-01T00:00:00Z"), &apia), Some(at("2011-12-30T10:00:00Z")));
    }

    const ZONES: [&str; 6] = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca"];
    const TEXTS: [&str; 8] = ["monthly", "weekly", "workdays", "daily", "hourly", "30 2 * * *", "*/20 0-3 * * SUN", "15 1,2,3 L * *"];

    proptest! {
        /// Nothing lies between a moment's latest and next: going on from one gives the other, in every zone and over every change of clocks.
        #[test]
        fn latest_and_next_are_neighbours(second in 1_230_000_000_i64..2_000_000_000, zone_at in 0..ZONES.len(), text_at in 0..TEXTS.len()) {
            let (zone, rhythm) = (zone(ZONES[zone_at]), rhythm(TEXTS[text_at]));
            let now = Timestamp::from_second(second).unwrap();
            let (latest, next) = (rhythm.latest(now, &zone).unwrap(), rhythm.next(now, &zone).unwrap());
            prop_assert!(latest <= now && now < next);
            prop_assert_eq!(rhythm.next(latest, &zone), Some(next));
            prop_assert_eq!(rhythm.latest(next, &zone), Some(next));
            let before = next.checked_sub(jiff::SignedDuration::from_nanos(1)).unwrap();
            prop_assert_eq!(rhythm.latest(before, &zone), Some(latest));
        }
    }
}
