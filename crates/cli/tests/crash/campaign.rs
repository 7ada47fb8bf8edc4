//! Which strikes a campaign makes: all of them, or a share that is another one each time.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::tracer::{Cut, Moment};

const MOMENTS: [Moment; 2] = [Moment::Before, Moment::After];

/// Strikes at these effects: before and after each, or `share` strikes of which as many as possible are at unlike effects.
pub fn cuts(effects: &[String], share: usize) -> Vec<Cut> {
    let wish = std::env::var("KEEPMARK_CRASH").unwrap_or_default();
    if wish == "all" {
        println!("{} effects", effects.len());
        return (0..effects.len()).flat_map(|number| MOMENTS.map(|moment| Cut { number, moment })).collect();
    }
    if let Ok(part) = std::env::var("KEEPMARK_CRASH_AT") {
        let wanted = (0..effects.len()).filter(|number| effects[*number].contains(&part));
        return wanted.flat_map(|number| MOMENTS.map(|moment| Cut { number, moment })).collect();
    }
    let seed = seed();
    println!("{} effects, KEEPMARK_CRASH_SEED={seed}", effects.len());
    pick(effects, wish.parse().unwrap_or(share), seed)
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
