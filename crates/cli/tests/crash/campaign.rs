//! Which strikes a campaign makes: all of them, or a share that is another one each time.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::tracer::{Cut, Moment};

/// Strikes at `effects` effects: all, or `share` of them, evenly spread from a random start.
pub fn cuts(effects: usize, share: usize) -> Vec<Cut> {
    let all: Vec<Cut> = (0..effects).flat_map(|number| [Moment::Before, Moment::After].map(|moment| Cut { number, moment })).collect();
    if std::env::var("KEEPMARK_CRASH").is_ok_and(|wish| wish == "all") || all.len() <= share {
        return all;
    }
    // An even step would only ever strike at one of the two moments.
    let step = (all.len() / share).max(1) | 1;
    let start = seed() % step;
    all.into_iter().skip(start).step_by(step).collect()
}

fn seed() -> usize {
    let given = std::env::var("KEEPMARK_CRASH_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_micros() as usize));
    println!("KEEPMARK_CRASH_SEED={seed}");
    seed
}
