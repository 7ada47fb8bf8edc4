//! Tables for both styles, Proxmox's documented examples among them; the real programs are asked in `crates/store/tests/retention.rs`.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::manifest::{Kind, StoredBackup};
use crate::trust::tests::backup;

fn at(text: &str) -> Timestamp {
    let text = if text.contains('T') { text.to_owned() } else { format!("{text}T12:00:00") };
    format!("{text}Z").parse().unwrap()
}

fn policy(style: Style, options: &str) -> Policy {
    let mut policy = Policy::new(style, TimeZone::UTC);
    for option in options.split_whitespace() {
        let (name, value) = option.split_once('=').unwrap();
        let place = |word: &str| Period::ALL.iter().position(|period| period.word() == word).unwrap();
        match name.strip_prefix("within") {
            Some(rest) => policy.within[place(rest.strip_prefix('-').unwrap_or("last"))] = Within::parse(value).unwrap(),
            None if name == "tag" => policy.tags.push(value.split(',').map(str::to_owned).collect()),
            None => policy.counts[place(name)] = Keep::parse(value).unwrap(),
        }
    }
    policy
}

/// What stays of backups at these times; a `!` pins one, a `#` tags it.
fn kept(style: Style, options: &str, times: &[&str]) -> Vec<String> {
    let tags = |text: &str| text.split_once('#').map(|(_, tags)| tags.split(',').map(str::to_owned).collect()).unwrap_or_default();
    let tags: Vec<Vec<String>> = times.iter().map(|text| tags(text)).collect();
    let time = |text: &str| at(text.trim_start_matches('!').split('#').next().unwrap());
    let entry = |(text, tags): (&&str, &'_ Vec<String>)| (time(text), text.starts_with('!'), tags.clone());
    let entries: Vec<(Timestamp, bool, Vec<String>)> = times.iter().zip(&tags).map(entry).collect();
    let entries: Vec<Entry<'_>> = entries.iter().map(|(time, pinned, tags)| Entry { time: *time, tags, pinned: *pinned }).collect();
    let reasons = apply(&entries, &policy(style, options), at("2030-01-01"));
    let told = |reasons: &Vec<Reason>| reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    times
        .iter()
        .zip(&reasons)
        .filter(|(_, reasons)| !reasons.is_empty())
        .map(|(time, reasons)| format!("{time}: {}", told(reasons)))
        .collect()
}

fn times(kept: &[String]) -> Vec<&str> {
    kept.iter().filter_map(|line| line.split(": ").next()).collect()
}

#[test]
fn restics_rules_look_at_everything_and_the_oldest_fills_up() {
    let days = ["2026-11-02", "2026-11-03", "2026-11-04", "2026-11-09T08:00:00", "2026-11-09", "2026-11-10"];
    assert_eq!(kept(Style::Restic, "last=1", &days), ["2026-11-10: last"]);
    assert_eq!(kept(Style::Restic, "daily=2", &days), ["2026-11-09: daily", "2026-11-10: daily"]);
    assert_eq!(kept(Style::Restic, "last=1 weekly=2", &days), ["2026-11-04: weekly", "2026-11-10: last and weekly"]);
    assert_eq!(kept(Style::Restic, "weekly=3", &days), ["2026-11-02: oldest weekly", "2026-11-04: weekly", "2026-11-10: weekly"]);
    assert_eq!(kept(Style::Restic, "yearly=1", &days), ["2026-11-10: yearly"]);
    assert_eq!(kept(Style::Restic, "monthly=unlimited", &days), ["2026-11-02: oldest monthly", "2026-11-10: monthly"]);
    assert_eq!(kept(Style::Restic, "", &days), [""; 0]);
}

#[test]
fn within_counts_from_the_newest_backup_on_the_calendar() {
    let days = ["2026-02-27", "2026-02-28", "2026-03-03", "2026-03-03T12:00:01", "2026-03-31"];
    // 31 March less a month is 31 February, which is 3 March; the very moment is not within.
    assert_eq!(kept(Style::Restic, "within=1m", &days), ["2026-03-03T12:00:01: within 1m", "2026-03-31: within 1m"]);
    assert_eq!(kept(Style::Restic, "within=1m1h", &days).len(), 3);
    assert_eq!(
        kept(Style::Restic, "within-monthly=31d1h", &days),
        ["2026-02-28: monthly within 31d1h", "2026-03-31: monthly within 31d1h"]
    );
    let future = ["2026-03-30", "2026-03-31", "2031-01-01"];
    assert_eq!(
        times(&kept(Style::Restic, "within=1h", &future)),
        ["2026-03-31", "2031-01-01"],
        "the future is not what others are recent to"
    );
}

#[test]
fn tags_keep_what_has_all_of_a_list() {
    let days = ["2026-11-01#release", "2026-11-02#release,signed", "2026-11-03", "2026-11-04#signed"];
    assert_eq!(kept(Style::Restic, "tag=release,signed", &days), ["2026-11-02#release,signed: tag release,signed"]);
    assert_eq!(times(&kept(Style::Restic, "tag=release tag=signed", &days)).len(), 3);
}

#[test]
fn a_pin_keeps_and_counts_with_restic_and_does_not_count_with_proxmox() {
    let days = ["!2026-11-01", "2026-11-02", "!2026-11-03"];
    assert_eq!(kept(Style::Restic, "last=1", &days), ["!2026-11-01: pinned", "!2026-11-03: pinned and last"]);
    assert_eq!(kept(Style::Proxmox, "last=1", &days), ["!2026-11-01: pinned", "2026-11-02: last", "!2026-11-03: pinned"]);
}

#[test]
fn a_zone_decides_what_a_day_is() {
    let entries = ["2026-11-01T22:30:00", "2026-11-01T23:30:00"].map(|text| Entry { time: at(text), tags: &[], pinned: false });
    let kept = |zone: TimeZone| {
        let reasons = apply(&entries, &Policy { zone, ..policy(Style::Restic, "daily=2") }, at("2030-01-01"));
        reasons.into_iter().map(|reasons| reasons.first().map(ToString::to_string)).collect::<Vec<_>>()
    };
    let daily = || Some("daily".to_owned());
    assert_eq!(kept(TimeZone::UTC), [Some("oldest daily".to_owned()), daily()]);
    assert_eq!(kept(TimeZone::get("Europe/Berlin").unwrap()), [daily(), daily()]);
}

/// "Each option only covers backups within its time period. The next option does not take care of already covered backups. It will only
/// consider older backups" (prune simulator); days and results as in Proxmox Backup Server's own tests.
#[test]
fn proxmoxs_documented_examples() {
    let hours = [
        "2019-11-15T09:39:15",
        "2019-11-15T10:49:15",
        "2019-11-15T10:59:15",
        "2019-11-15T11:39:15",
        "2019-11-15T11:49:15",
        "2019-11-15T11:59:15",
    ];
    let days =
        ["2018-11-15", "2019-11-15", "2019-11-21", "2019-11-22", "2019-11-29", "2019-12-01", "2019-12-02", "2019-12-03", "2019-12-04"];
    let week = ["2019-12-02T11:59:15", "2019-12-03T11:59:15", "2019-12-04T11:59:15", "2019-12-04T12:59:15"];
    let protected = ["!2019-11-15T09:39:15", "2019-11-15T10:39:15", "2019-11-15T10:49:15", "!2019-11-15T10:59:15"];
    let table: [(&str, &[&str], &[usize]); 22] = [
        ("hourly=3", &hours, &[0, 2, 5]),
        ("hourly=2", &hours, &[2, 5]),
        ("daily=1", &days, &[8]),
        ("last=1 daily=1", &days, &[7, 8]),
        ("daily=1 weekly=1", &days, &[5, 8]),
        ("daily=1 weekly=1 monthly=1", &days, &[3, 5, 8]),
        ("monthly=1 yearly=1", &days, &[0, 8]),
        ("last=4", &week, &[0, 1, 2, 3]),
        ("last=3", &week, &[1, 2, 3]),
        ("last=2", &week, &[2, 3]),
        ("last=1", &week, &[3]),
        ("last=0", &week, &[]),
        ("last=2 daily=2", &week, &[0, 1, 2, 3]),
        ("daily=3", &week, &[0, 1, 3]),
        ("daily=2", &week, &[1, 3]),
        ("weekly=5", &week, &[3]),
        ("daily=1 weekly=5", &week, &[3]),
        ("monthly=6", &week, &[3]),
        ("yearly=7", &week, &[3]),
        ("weekly=5 monthly=6 yearly=7", &week, &[3]),
        ("last=1", &protected, &[0, 2, 3]),
        ("hourly=1", &protected, &[0, 2, 3]),
    ];
    for (options, series, expected) in table {
        let expected: Vec<&str> = expected.iter().map(|place| series[*place]).collect();
        assert_eq!(times(&kept(Style::Proxmox, options, series)), expected, "{options}");
    }
    // The manual's: a week that keep-weekly covers is not looked at by keep-monthly, even where a part of it is in an earlier month.
    assert_eq!(times(&kept(Style::Proxmox, "weekly=1 monthly=1", &["2019-10-28", "2019-10-31", "2019-11-01"])), ["2019-11-01"]);
    assert_eq!(
        times(&kept(Style::Restic, "weekly=1 monthly=2", &["2019-10-28", "2019-10-31", "2019-11-01"])),
        ["2019-10-31", "2019-11-01"]
    );
}

#[test]
fn texts_are_read_and_written() {
    assert_eq!(
        [Keep::parse("7"), Keep::parse("unlimited"), Keep::parse("-1")].map(Result::unwrap),
        [Keep::Number(7), Keep::All, Keep::All]
    );
    for wrong in ["", "-2", "many", "1.5"] {
        assert!(Keep::parse(wrong).is_err(), "{wrong}");
    }
    for text in ["1y5m7d2h", "3d", "12h", "2y1h"] {
        assert_eq!(Within::parse(text).unwrap().to_string(), text);
    }
    assert!(Within::parse("0d").unwrap().is_zero() && Within::parse("").unwrap().is_zero());
    for wrong in ["3", "d", "3w", "-3d", "3d4d", "99999999h", "1y "] {
        assert!(Within::parse(wrong).is_err() || wrong.ends_with(' '), "{wrong}");
    }
    assert!(policy(Style::Restic, "last=0 within=0d").is_empty());
    assert!(!policy(Style::Restic, "within-yearly=1h").is_empty() && !policy(Style::Restic, "tag=a").is_empty());
}

fn stored(id: &str, kind: Kind, time: &str) -> StoredBackup {
    let mut backup = backup(id, Some(crate::trust::tests::C1));
    (backup.manifest.kind, backup.manifest.disks[0].kind, backup.manifest.time) = (kind, kind, at(time));
    backup
}

#[test]
fn what_the_next_backup_builds_on_stays_and_so_does_the_last_one() {
    let sequence =
        [stored("f", Kind::Full, "2026-11-02"), stored("i", Kind::Incremental, "2026-11-03"), stored("j", Kind::Incremental, "2026-11-04")];
    let left = |options: &str, bases: bool, the_last: bool| {
        let verdicts = judge(&sequence, &policy(Style::Restic, options), Beyond { bases, the_last }, at("2026-11-05"));
        let told = |verdict: &Verdict<'_>| {
            format!("{}: {}", verdict.backup.id, verdict.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        };
        verdicts.iter().filter(|verdict| !verdict.reasons.is_empty()).map(told).collect::<Vec<_>>()
    };
    assert_eq!(left("last=2", true, true), ["f: the next backup builds on it", "i: last", "j: last, the next backup builds on it"]);
    assert_eq!(left("last=2", false, true), ["i: last", "j: last"]);
    assert_eq!(left("tag=none", false, true), ["j: the last one of the VM"]);
    assert_eq!(left("tag=none", false, false), [""; 0]);
    assert!(judge(&[], &policy(Style::Restic, "last=1"), Beyond { bases: true, the_last: true }, at("2026-11-05")).is_empty());
}

#[test]
fn a_partial_backup_takes_no_complete_ones_place() {
    let partial = |id: &str, time: &str| {
        let mut partial = stored(id, Kind::Full, time);
        partial.manifest.left_out = vec![crate::names::DiskName::new("vdb").unwrap()];
        partial
    };
    let kept = |sequence: &[StoredBackup], options: &str| {
        let beyond = Beyond { bases: false, the_last: true };
        let verdicts = judge(sequence, &policy(Style::Restic, options), beyond, at("2026-11-05"));
        verdicts.iter().filter(|verdict| !verdict.reasons.is_empty()).map(|verdict| verdict.backup.id.as_str()).collect::<String>()
    };
    let sequence = [
        stored("a", Kind::Full, "2026-11-02"),
        partial("p", "2026-11-03"),
        stored("b", Kind::Full, "2026-11-03"),
        partial("q", "2026-11-04"),
    ];
    assert_eq!(kept(&sequence, "last=1"), "bq");
    assert_eq!(kept(&sequence, "daily=2"), "apbq");
    assert_eq!(kept(&sequence, "tag=none"), "b");
    assert_eq!(kept(&sequence[..2], "tag=none"), "a");
    assert_eq!(kept(&[partial("p", "2026-11-03"), partial("q", "2026-11-04")], "tag=none"), "q");
    let mut pinned = sequence.clone();
    pinned[3].pinned = true;
    assert_eq!(kept(&pinned, "tag=none"), "bq", "a partial one that stays is not enough");
}

#[test]
fn what_is_dated_ahead_stays_and_takes_no_place() {
    let dates = ["2026-11-02", "2026-11-03", "2027-11-03", "2026-11-04"];
    let sequence: Vec<StoredBackup> = dates.iter().zip(["a", "b", "x", "c"]).map(|(date, id)| stored(id, Kind::Full, date)).collect();
    let verdicts = judge(&sequence, &policy(Style::Proxmox, "daily=2"), Beyond { bases: false, the_last: true }, at("2026-11-05"));
    let told: Vec<String> = verdicts.iter().map(|verdict| verdict.reasons.iter().map(ToString::to_string).collect()).collect();
    assert_eq!(told, ["", "daily", "dated ahead of the clock", "daily"]);
}

proptest! {
    /// Whatever the order of the list, each backup meets the same fate; more of a rule never keeps less.
    #[test]
    fn the_order_of_the_list_does_not_matter(seconds in proptest::collection::btree_set(0_i64..40_000_000, 1..60), daily in 0_u32..5, weekly in 0_u32..4, proxmox: bool) {
        let style = if proxmox { Style::Proxmox } else { Style::Restic };
        let times: Vec<Timestamp> = seconds.iter().map(|second| at("2026-01-01") + SignedDuration::from_secs(*second)).collect();
        let fate = |times: &[Timestamp], daily: u32| {
            let entries: Vec<Entry<'_>> = times.iter().map(|time| Entry { time: *time, tags: &[], pinned: false }).collect();
            let policy = policy(style, &format!("daily={daily} weekly={weekly}"));
            let reasons = apply(&entries, &policy, at("2030-01-01"));
            times.iter().zip(reasons).filter(|(_, reasons)| !reasons.is_empty()).map(|(time, _)| *time).collect::<std::collections::BTreeSet<_>>()
        };
        let mut reversed = times.clone();
        reversed.reverse();
        prop_assert_eq!(fate(&times, daily), fate(&reversed, daily));
        prop_assert!(proxmox || fate(&times, daily).is_subset(&fate(&times, daily + 1)));
    }
}
