//! Which strikes a campaign makes: all of them, or a share that is another one each time.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::table::Table;
use crate::tracer::{Cut, Moment};

const MOMENTS: [Moment; 2] = [Moment::Before, Moment::After];
// Threads make a few more or fewer effects from run to run, so a few in a hundred of those that are struck at do not come.
// Never are more missed than met.
const ATTEMPTS_PER_KILL: usize = 2;

/// Strikes, and what came of those that were made.
pub struct Campaign {
    cuts: std::vec::IntoIter<Cut>,
    /// How many somebody is to be killed at; with none all strikes are made.
    share: Option<usize>,
    table: Table,
}

impl Campaign {
    /// Strikes at these effects: before and after each, or as many as `share` says, of which as many as possible are at unlike effects.
    /// Where an effect does not come another one is struck at.
    pub fn over(effects: &[String], share: usize) -> Self {
        let wish = std::env::var("KEEPMARK_CRASH").unwrap_or_default();
        if wish == "all" {
            println!("{} effects", effects.len());
            return Self::new(both(0..effects.len()), None);
        }
        if let Ok(part) = std::env::var("KEEPMARK_CRASH_AT") {
            return Self::new(both((0..effects.len()).filter(|number| effects[*number].contains(&part))), None);
        }
        let (share, seed) = (wish.parse().unwrap_or(share), seed());
        println!("{} effects, KEEPMARK_CRASH_SEED={seed}", effects.len());
        Self::new(pick(effects, share * ATTEMPTS_PER_KILL, seed), Some(share))
    }

    fn new(cuts: Vec<Cut>, share: Option<usize>) -> Self {
        Self { cuts: cuts.into_iter(), share, table: Table::default() }
    }

    /// Where to strike next.
    pub fn next_cut(&mut self) -> Option<Cut> {
        let is_enough = self.share.is_some_and(|share| self.table.kills >= share);
        if is_enough { None } else { self.cuts.next() }
    }

    /// Somebody was killed at this effect, if it came, and this is what the next backup was called.
    pub fn count(&mut self, struck: Option<&str>, moment: Moment, outcome: &str) {
        match struck {
            Some(effect) => self.table.note(effect, moment, outcome),
            None => self.table.missed += 1,
        }
    }

    /// Fails the test if fewer were killed than there should be, or hardly anybody: then nothing was tested.
    pub fn print(&self, name: &str) {
        self.table.print(name);
        let Table { kills, missed, .. } = self.table;
        let is_enough = self.share.map_or(kills > missed, |share| kills >= share);
        assert!(is_enough, "{name}: {kills} killed, {missed} effects did not come");
    }
}

fn both(numbers: impl Iterator<Item = usize>) -> Vec<Cut> {
    numbers.flat_map(|number| MOMENTS.map(|moment| Cut { number, moment })).collect()
}

/// Names in turn from a random one on, each time another of the effects that are called so.
fn pick(effects: &[String], share: usize, seed: usize) -> Vec<Cut> {
    let mut named: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    effects.iter().enumerate().for_each(|(number, name)| named.entry(name).or_default().push(number));
    let groups: Vec<Vec<usize>> = named.into_values().collect();
    // A step that shares no factor with the number of names comes to all of them, and not to neighbours first.
    let step = [7, 5, 3, 1].into_iter().find(|step| !groups.len().is_multiple_of(*step)).unwrap_or(1);
    let pick = |turn: usize| {
        let group = &groups[(seed + turn * step) % groups.len()];
        let number = group[(seed / 7 + turn * 13) % group.len()];
        Cut { number, moment: MOMENTS[(seed + turn) % 2] }
    };
    (0..share).map(pick).collect()
}

/// Another number each time, or the one that is wished.
pub fn seed() -> usize {
    let given = std::env::var("KEEPMARK_CRASH_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_micros() as usize))
}

#[test]
fn a_share_is_of_unlike_effects() {
    let effects: Vec<String> = ["a", "b", "b", "b", "c", "b"].map(str::to_owned).into();
    for seed in 0..50 {
        let names: std::collections::BTreeSet<_> = pick(&effects, 3, seed).iter().map(|cut| effects[cut.number].clone()).collect();
        assert_eq!(names.len(), 3, "{seed}");
    }
}

#[test]
fn an_effect_that_does_not_come_is_made_up_for() {
    let effects: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
    let mut campaign = Campaign::new(pick(&effects, 2 * ATTEMPTS_PER_KILL, 0), Some(2));
    let mut strikes = 0;
    while let Some(cut) = campaign.next_cut() {
        strikes += 1;
        campaign.count((strikes % 2 == 0).then_some("a"), cut.moment, "incremental");
    }
    assert_eq!(strikes, 4);
    campaign.print("every second one");
}
