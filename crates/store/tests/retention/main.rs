//! Retention beside the programs whose rules it has: stock restic, and rustic's own function, on 1,000 random series of backups.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod cheap_repository;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use cheap_repository::CheapRepository;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use keepmark_model::retention::{Entry, Keep, Period, Policy, Reason, Style, Within, apply};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustic_core::KeepOptions;
use rustic_core::repofile::SnapshotFile;
use serde_json::{Map, Value, json};

/// Option sets, and series of each.
const SETS: u64 = 250;
const SERIES: usize = 4;
const ZONES: [&str; 4] = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"];
const TAGS: [&str; 3] = ["release", "signed", "odd"];

/// One backup of a series.
struct Made {
    time: Timestamp,
    tags: Vec<String>,
}

/// Several series and the rules that are applied to each.
struct Case {
    policy: Policy,
    series: Vec<Vec<Made>>,
}

impl Case {
    fn of_seed(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let policy = policy(&mut rng);
        Self { policy, series: (0..SERIES).map(|_| series(&mut rng)).collect() }
    }

    /// A snapshot as restic and rustic have it: times as the zone's clock shows them, since restic counts days by each time's own offset.
    fn snapshot(&self, host: usize, made: &Made) -> Value {
        let zoned = made.time.to_zoned(self.policy.zone.clone());
        let time = zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
        json!({"time": time, "tree": "00".repeat(32), "paths": ["/x"], "hostname": format!("host{host}"), "username": "t", "tags": made.tags})
    }

    fn ours(&self, series: &[Made]) -> BTreeSet<Timestamp> {
        self.kept(series, |reasons| !reasons.is_empty())
    }

    /// What older restics keep: they have no rule about the oldest backup of all.
    fn without_oldest(&self, series: &[Made]) -> BTreeSet<Timestamp> {
        self.kept(series, |reasons| reasons.iter().any(|reason| !matches!(reason, Reason::Oldest(_))))
    }

    fn kept(&self, series: &[Made], is_kept: fn(&[Reason]) -> bool) -> BTreeSet<Timestamp> {
        let entries: Vec<Entry<'_>> = series.iter().map(|made| Entry { time: made.time, tags: &made.tags, pinned: false }).collect();
        let reasons = apply(&entries, &self.policy, Timestamp::now());
        series.iter().zip(reasons).filter(|(_, reasons)| is_kept(reasons)).map(|(made, _)| made.time).collect()
    }

    fn told(&self, series: &[Made]) -> String {
        let mut text = format!("{}\n", self.options().join(" "));
        series.iter().for_each(|made| writeln!(text, "{} {:?}", made.time, made.tags).unwrap());
        text
    }

    /// `--keep-daily`, `7`, ... as restic has them.
    fn options(&self) -> Vec<String> {
        self.named().into_iter().flat_map(|(name, value)| [format!("--{name}"), value]).collect()
    }

    fn named(&self) -> Vec<(String, String)> {
        let mut named = Vec::new();
        for (period, keep) in Period::ALL.into_iter().zip(self.policy.counts) {
            match keep {
                Keep::Number(0) => {}
                Keep::Number(number) => named.push((format!("keep-{}", period.word()), number.to_string())),
                Keep::All => named.push((format!("keep-{}", period.word()), "-1".to_owned())),
            }
        }
        for (period, within) in Period::ALL.into_iter().zip(self.policy.within).filter(|(_, within)| !within.is_zero()) {
            let name = if period == Period::Last { "keep-within".to_owned() } else { format!("keep-within-{}", period.word()) };
            named.push((name, within.to_string()));
        }
        named.extend(self.policy.tags.iter().map(|list| ("keep-tag".to_owned(), list.join(","))));
        named
    }
}

fn policy(rng: &mut StdRng) -> Policy {
    let zone = TimeZone::get(ZONES.choose(rng).unwrap()).unwrap();
    let mut policy = Policy::new(Style::Restic, zone);
    while policy.is_empty() {
        for keep in &mut policy.counts {
            if rng.random_ratio(2, 3) {
                continue;
            }
            *keep = if rng.random_ratio(1, 10) { Keep::All } else { Keep::Number(rng.random_range(1..8)) };
        }
        for within in &mut policy.within {
            if rng.random_ratio(7, 8) {
                continue;
            }
            let text = ["36h", "9d", "3m", "1y2m", "2m5d7h", "1y", "31d1h", "14m"].choose(rng).unwrap();
            *within = Within::parse(text).unwrap();
        }
        if rng.random_ratio(1, 5) {
            let lists: [&[&str]; 3] = [&["release"], &["release", "signed"], &["odd"]];
            policy.tags.push(lists.choose(rng).unwrap().iter().map(|tag| (*tag).to_owned()).collect());
        }
    }
    policy
}

/// Up to 40 backups, from minutes to months apart, with different whole seconds.
fn series(rng: &mut StdRng) -> Vec<Made> {
    let mut time = Timestamp::from_second(rng.random_range(1_500_000_000..1_600_000_000)).unwrap();
    let pace: i64 = *[600, 3600, 20_000, 86_400, 86_400, 600_000, 3_000_000].choose(rng).unwrap();
    let count = rng.random_range(1..40);
    let mut made = Vec::with_capacity(count);
    for _ in 0..count {
        let tags = TAGS.iter().filter(|_| rng.random_ratio(1, 5)).map(|tag| (*tag).to_owned()).collect();
        made.push(Made { time, tags });
        time += SignedDuration::from_secs(rng.random_range(1..=2 * pace));
    }
    made
}

#[test]
fn restic_keeps_the_same_of_a_thousand_series() {
    let repository = CheapRepository::new();
    let is_old = cheap_repository::restic_version() < (0, 16);
    let mut compared = 0;
    for case in (0..SETS).map(Case::of_seed) {
        let snapshots = case.series.iter().enumerate().flat_map(|(host, series)| series.iter().map(move |made| (host, made)));
        repository.hold(snapshots.map(|(host, made)| case.snapshot(host, made)));
        // What "all" is to later restics is a large number to older ones.
        let options = case.options().into_iter().map(|word| if is_old && word == "-1" { "1000000".to_owned() } else { word });
        let kept = repository.kept_by_restic(&options.collect::<Vec<_>>());
        for (host, series) in case.series.iter().enumerate() {
            let theirs = kept.get(&format!("host{host}")).cloned().unwrap_or_default();
            let ours = if is_old { case.without_oldest(series) } else { case.ours(series) };
            assert_eq!(ours, theirs, "{}", case.told(series));
            compared += 1;
        }
    }
    assert_eq!(compared, 1000);
}

/// rustic differs in two things (docs/retention.md): weeks at the turn of a year, and months and years of `within`.
fn rustic_counts_alike(case: &Case, series: &[Made]) -> bool {
    let is_split = |made: &Made| {
        let day = case.policy.zone.to_datetime(made.time).date();
        day.iso_week_date().year() != day.year()
    };
    let by_weeks = [case.policy.counts[3] != Keep::Number(0), !case.policy.within[3].is_zero()].contains(&true);
    let by_calendar = case.policy.within.iter().any(|within| within.years > 0 || within.months > 0);
    !(by_calendar || by_weeks && series.iter().any(is_split))
}

fn kept_by_rustic(case: &Case, series: &[Made]) -> BTreeSet<Timestamp> {
    let mut options = Map::new();
    for (name, value) in case.named().into_iter().filter(|(name, _)| name != "keep-tag") {
        let number = value.parse::<i32>().map(Value::from);
        // What is a month to restic is a minute to rustic.
        options.insert(name, number.unwrap_or_else(|_| value.replace('m', "mo").into()));
    }
    options.insert("keep-tags".to_owned(), case.policy.tags.iter().map(|list| list.join(",")).collect());
    let options: KeepOptions = serde_json::from_value(options.into()).unwrap();
    let snapshots = series.iter().map(|made| serde_json::from_value::<SnapshotFile>(case.snapshot(0, made)).unwrap()).collect();
    let judged = options.apply(snapshots, &jiff::Zoned::now()).unwrap();
    judged.into_iter().filter(|judged| judged.keep).map(|judged| judged.snapshot.time.timestamp()).collect()
}

#[test]
fn rustic_keeps_the_same_of_the_same_series() {
    let (mut compared, mut seed) = (0, 0);
    while compared < 1000 {
        let case = Case::of_seed(seed);
        for series in case.series.iter().filter(|series| rustic_counts_alike(&case, series)) {
            assert_eq!(case.ours(series), kept_by_rustic(&case, series), "{}", case.told(series));
            compared += 1;
        }
        seed += 1;
    }
}

#[test]
fn where_rustic_differs_it_is_as_documented() {
    let made = |times: &[&str]| times.iter().map(|time| Made { time: time.parse().unwrap(), tags: Vec::new() }).collect::<Vec<_>>();
    let case = |series: &[&str], change: fn(&mut Policy)| {
        let mut policy = Policy::new(Style::Restic, TimeZone::UTC);
        change(&mut policy);
        Case { policy, series: vec![made(series)] }
    };
    let counts = |case: &Case| (case.ours(&case.series[0]).len(), kept_by_rustic(case, &case.series[0]).len());
    // One ISO week, two years: rustic makes two weeks of it.
    let turn = case(&["2020-12-01T12:00:00Z", "2020-12-30T12:00:00Z", "2021-01-01T12:00:00Z"], |policy| policy.counts[3] = Keep::Number(2));
    assert_eq!(counts(&turn), (2, 2));
    let names = |times: BTreeSet<Timestamp>| times.into_iter().map(|time| time.to_string()[..10].to_owned()).collect::<Vec<_>>();
    assert_eq!(names(turn.ours(&turn.series[0])), ["2020-12-01", "2021-01-01"]);
    assert_eq!(names(kept_by_rustic(&turn, &turn.series[0])), ["2020-12-30", "2021-01-01"]);
    // A month before 31 March: restic goes to "31 February", 3 March; rustic asks what comes a month after each, and 28 February gives 28 March.
    let month = case(&["2021-03-01T12:00:00Z", "2021-03-02T12:00:00Z", "2021-03-31T12:00:00Z"], |policy| policy.within[0].months = 1);
    assert_eq!(counts(&month), (1, 3));
}
