//! Sizes, rates and times as people read them.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// `1.5 GiB`; whole bytes below 1 KiB.
pub fn size(bytes: u64) -> String {
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]) }
}

/// Reads `500`, `64M`, `1.5GiB`: all units are powers of 1024.
///
/// # Errors
/// In words, when it is no size.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || "expected a size such as 500M, 1.5GiB or 64K".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().trim_end_matches(['b', 'B']).trim_end_matches('i').to_ascii_uppercase();
    let power = ["", "K", "M", "G", "T", "P"].iter().position(|known| *known == unit).ok_or_else(wrong)?;
    let (whole, tenths) = number.split_once('.').unwrap_or((number, "0"));
    let scale = 1_u64 << (10 * power);
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let part = format!("0.{tenths}").parse::<f64>().map_err(|_| wrong())?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "less than the scale, and never negative")]
    let part = (part * scale as f64) as u64;
    whole.checked_mul(scale).and_then(|bytes| bytes.checked_add(part)).ok_or_else(wrong)
}

/// `2 h 5 min`, `3 min 4 s`, `12 s`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) if h < 48 => format!("{h} h {m} min"),
        (h, ..) => format!("{} d", h / 24),
    }
}

/// `0.42 s` for short things.
pub fn millis(milliseconds: u64) -> String {
    format!("{}.{:02} s", milliseconds / 1000, milliseconds % 1000 / 10)
}

/// `2026-11-22 19:00:00` in the user's zone.
pub fn time(time: Timestamp) -> String {
    time_in(time, &TimeZone::system())
}

/// `2026-11-22 19:00:00` in a zone.
pub fn time_in(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `1 backup`, `2 backups`.
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [("500", 500), ("64K", 65_536), ("64 KiB", 65_536), ("1.5GiB", 3 << 29), ("2tb", 2 << 40), ("0.5M", 1 << 19)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1X", "-1", "1..2M", "99999999999P", ".5M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_and_spans_read_well() {
        for (bytes, expected) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (8 << 30, "8.0 GiB"), (u64::MAX, "16383.9 PiB")] {
            assert_eq!(size(bytes), expected);
        }
        for (seconds, expected) in [(3, "3 s"), (184, "3 min 4 s"), (7500, "2 h 5 min")] {
            assert_eq!(span(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(millis(420), "0.42 s");
    }
}
