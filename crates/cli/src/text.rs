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
