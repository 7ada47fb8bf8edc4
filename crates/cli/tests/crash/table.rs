//! What the campaigns print: number of kills, and for each effect which kinds the next backup took.

use std::collections::BTreeMap;

use crate::tracer::Moment;

/// Counts of kinds, by effect and moment.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<String, BTreeMap<Moment, BTreeMap<String, usize>>>,
    /// How often somebody was killed.
    pub kills: usize,
    /// Effects that did not come.
    pub missed: usize,
}

impl Table {
    /// Someone was killed at this effect, and what the next backup was called.
    pub fn note(&mut self, effect: &str, moment: Moment, outcome: &str) {
        self.kills += 1;
        let cell = self.rows.entry(effect.to_owned()).or_default().entry(moment).or_default();
        *cell.entry(outcome.to_owned()).or_default() += 1;
    }

    /// Fails the test if nobody was killed: then nothing was tested.
    pub fn print(&self, campaign: &str) {
        println!("{campaign}: {} kills, each followed by a right backup ({} effects did not come)", self.kills, self.missed);
        println!("  {:38} {:34} killed after it", "effect", "killed before it");
        for (effect, moments) in &self.rows {
            let cell = |moment| moments.get(&moment).map_or_else(|| "-".to_owned(), words);
            println!("  {effect:38} {:34} {}", cell(Moment::Before), cell(Moment::After));
        }
        assert!(self.kills > 0, "{campaign}: nobody was killed");
    }
}

fn words(outcomes: &BTreeMap<String, usize>) -> String {
    outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect::<Vec<_>>().join(", ")
}
