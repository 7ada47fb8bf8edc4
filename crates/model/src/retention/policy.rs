//! The policy: how many backups of which period are kept, as restic's and Proxmox's options say it.

use std::fmt;

use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// Whose rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Style {
    /// restic's and rustic's: what any rule keeps is kept.
    #[default]
    Restic,
    /// Proxmox's: a rule looks only at what is older than what earlier rules have covered.
    Proxmox,
}

/// How many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// So many; 0 is no rule.
    Number(u32),
    /// All there are.
    All,
}

impl Default for Keep {
    fn default() -> Self {
        Self::Number(0)
    }
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No number.
    #[error("{text:?} is neither a number nor 'unlimited'")]
    Keep {
        /// What was given.
        text: String,
    },
    /// No time.
    #[error("{text:?} is no time such as 1y5m7d2h (years, months, days, hours)")]
    Within {
        /// What was given.
        text: String,
    },
}

impl Keep {
    /// Reads `7`, `unlimited` or `-1`.
    ///
    /// # Errors
    /// When it is none of these.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        match text {
            "unlimited" | "-1" => Ok(Self::All),
            number => number.parse().map(Self::Number).map_err(|_| PolicyError::Keep { text: text.to_owned() }),
        }
    }

    /// Whether one more fits after so many.
    #[must_use]
    pub fn has_room_after(self, kept: u32) -> bool {
        match self {
            Self::Number(number) => kept < number,
            Self::All => true,
        }
    }
}

/// What counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// Every backup.
    Last,
    /// The backups of an hour.
    Hourly,
    /// The backups of a day.
    Daily,
    /// The backups of an ISO week, which begins on Monday.
    Weekly,
    /// The backups of a month.
    Monthly,
    /// The backups of a year.
    Yearly,
}

impl Period {
    /// Every one, from the shortest to the longest.
    pub const ALL: [Self; 6] = [Self::Last, Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];

    /// The word in options, JSON and tables.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Last => "last",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }

    /// The number of the period in which a backup falls; its place in the list for [`Period::Last`].
    pub(super) fn bucket(self, at: DateTime, place: usize) -> i64 {
        let (year, month, day, hour) = (i64::from(at.year()), i64::from(at.month()), i64::from(at.day()), i64::from(at.hour()));
        match self {
            Self::Last => i64::try_from(place).unwrap_or(i64::MAX),
            Self::Hourly => ((year * 100 + month) * 100 + day) * 100 + hour,
            Self::Daily => (year * 100 + month) * 100 + day,
            Self::Weekly => {
                let week = at.date().iso_week_date();
                i64::from(week.year()) * 100 + i64::from(week.week())
            }
            Self::Monthly => year * 100 + month,
            Self::Yearly => year,
        }
    }
}

/// A time before the newest backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Within {
    /// Years.
    pub years: u16,
    /// Months.
    pub months: u16,
    /// Days.
    pub days: u16,
    /// Hours.
    pub hours: u16,
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.years, 'y'), (self.months, 'm'), (self.days, 'd'), (self.hours, 'h')];
        parts.into_iter().filter(|(number, _)| *number > 0).try_for_each(|(number, unit)| write!(f, "{number}{unit}"))
    }
}

impl Within {
    /// Reads `1y5m7d2h`: any of the units, each once.
    ///
    /// # Errors
    /// When it is nothing of the kind.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let wrong = || PolicyError::Within { text: text.to_owned() };
        let (mut within, mut rest) = (Self::default(), text.trim());
        while let Some(unit_at) = rest.find(|letter: char| !letter.is_ascii_digit()) {
            let (number, tail) = rest.split_at(unit_at);
            let mut letters = tail.chars();
            let place = match letters.next() {
                Some('y') => &mut within.years,
                Some('m') => &mut within.months,
                Some('d') => &mut within.days,
                Some('h') => &mut within.hours,
                _ => return Err(wrong()),
            };
            if *place > 0 {
                return Err(wrong());
            }
            *place = number.parse().map_err(|_| wrong())?;
            rest = letters.as_str();
        }
        if rest.is_empty() { Ok(within) } else { Err(wrong()) }
    }

    /// Whether it is no time at all, which is no rule.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// The moment so long before another. Months and years are counted on the calendar at that moment's distance from UTC; a day
    /// that a month does not have is as many days into the next one (31 March less a month is 3 March, or 2 March in a leap year).
    pub(super) fn before(&self, latest: Timestamp, offset: Offset) -> Option<Timestamp> {
        let at = offset.to_datetime(latest);
        let months = i32::from(at.year()) * 12 + i32::from(at.month()) - 1 - i32::from(self.years) * 12 - i32::from(self.months);
        let (year, month) = (i16::try_from(months.div_euclid(12)).ok()?, i8::try_from(months.rem_euclid(12) + 1).ok()?);
        let first = DateTime::new(year, month, 1, at.hour(), at.minute(), at.second(), at.subsec_nanosecond()).ok()?;
        let days = i64::from(at.day()) - 1 - i64::from(self.days);
        let moved = first.checked_add(SignedDuration::from_hours(24 * days - i64::from(self.hours))).ok()?;
        offset.to_timestamp(moved).ok()
    }
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Whose rules.
    pub style: Style,
    /// Where the calendar is.
    pub zone: TimeZone,
    /// How many of each period, as [`Period::ALL`] orders them.
    pub counts: [Keep; 6],
    /// The newest of each period within a time before the newest backup; all of them for [`Period::Last`].
    pub within: [Within; 6],
    /// Lists of tags: what has all tags of one list stays.
    pub tags: Vec<Vec<String>>,
}

impl Policy {
    /// Without any rule.
    #[must_use]
    pub fn new(style: Style, zone: TimeZone) -> Self {
        Self { style, zone, counts: [Keep::default(); 6], within: [Within::default(); 6], tags: Vec::new() }
    }

    /// Whether it has no rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.within.iter().all(Within::is_zero) && self.counts.iter().all(|keep| *keep == Keep::Number(0))
    }
}
