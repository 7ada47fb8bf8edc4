//! Playing all scenarios on two benches and comparing what was seen, step by step.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Bench;
use super::play::{End, Log, Play};
use super::scenarios::{SCENARIOS, Scenario};

/// What came of all scenarios on two benches.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Scenarios that were played on both and seen alike, by name.
    pub alike: Vec<&'static str>,
    /// Observations that were compared.
    pub compared: usize,
    /// Scenarios that do not apply: name and reason.
    pub not_here: Vec<(&'static str, String)>,
    /// What was not as expected, or not alike: in words.
    pub wrong: Vec<String>,
}

/// Plays all scenarios that are wanted on the reference (the simulation that meets its VM in the same way) and on another bench, and
/// compares.
#[must_use]
pub fn conform(reference: &mut dyn Bench, bench: &mut dyn Bench, wanted: impl Fn(&Scenario) -> bool) -> Report {
    let mut report = Report::default();
    for scenario in SCENARIOS.iter().filter(|scenario| wanted(scenario)) {
        let here = play(scenario, bench);
        let there = play(scenario, reference);
        report.judge(scenario, (reference.name(), there), (bench.name(), here));
    }
    report
}

/// Plays a scenario on one bench alone; what was not as expected, or why it was not played, in words.
#[must_use]
pub fn alone(scenario: &Scenario, bench: &mut dyn Bench) -> Vec<String> {
    let ended = play(scenario, bench);
    ended.log.wrong.into_iter().chain(ended.not_here).collect()
}

struct Ended {
    log: Log,
    not_here: Option<String>,
}

fn play(scenario: &Scenario, bench: &mut dyn Bench) -> Ended {
    let mut play = Play::new(bench);
    let end = catch_unwind(AssertUnwindSafe(|| {
        let end = (scenario.steps)(&mut play);
        (end, play.end())
    }));
    let Ok((end, mut log)) = end else {
        let log = Log { wrong: vec!["it panicked".to_owned()], ..Log::default() };
        return Ended { log, not_here: None };
    };
    match end {
        Ok(()) => Ended { log, not_here: None },
        Err(End::NotHere(why)) => Ended { log, not_here: Some(why) },
        Err(End::Broken(words)) => {
            let step = log.story.last().cloned().unwrap_or_default();
            log.wrong.push(format!("{step:?} failed: {words}"));
            Ended { log, not_here: None }
        }
    }
}

impl Report {
    fn judge(&mut self, scenario: &Scenario, there: (&str, Ended), here: (&str, Ended)) {
        let before = self.wrong.len();
        for (bench, ended) in [&there, &here] {
            self.wrong.extend(ended.log.wrong.iter().map(|wrong| format!("{}, on {bench}: {wrong}", scenario.name)));
        }
        match (&there.1.not_here, &here.1.not_here) {
            (_, Some(why)) => self.not_here.push((scenario.name, why.clone())),
            (Some(why), None) => self.wrong.push(format!("{}: the reference cannot play it: {why}", scenario.name)),
            (None, None) => self.compare(scenario, &there, &here),
        }
        if self.wrong.len() > before {
            let story = here.1.log.story.iter().map(|step| format!("\n      {step}")).collect::<String>();
            self.wrong.push(format!("{}: the story:{story}", scenario.name));
        }
    }

    fn compare(&mut self, scenario: &Scenario, there: &(&str, Ended), here: &(&str, Ended)) {
        let (a, b) = (&there.1.log.seen, &here.1.log.seen);
        let different = a.iter().zip(b).filter(|(a, b)| a != b);
        let mut wrong: Vec<String> =
            different.map(|(a, b)| format!("{}: seen on {}: {a:?}\n    seen on {}: {b:?}", scenario.name, there.0, here.0)).collect();
        if a.len() != b.len() {
            wrong.push(format!("{}: {} observations on {}, {} on {}", scenario.name, a.len(), there.0, b.len(), here.0));
        }
        self.compared += a.len().min(b.len());
        if wrong.is_empty() {
            self.alike.push(scenario.name);
        }
        self.wrong.extend(wrong);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} scenarios alike, {} observations compared", self.alike.len(), self.compared)?;
        writeln!(f, "{} scenarios do not apply:", self.not_here.len())?;
        self.not_here.iter().try_for_each(|(name, why)| writeln!(f, "  {name}: {why}"))?;
        writeln!(f, "{} things are wrong:", self.wrong.len())?;
        self.wrong.iter().try_for_each(|wrong| writeln!(f, "  {wrong}"))
    }
}
