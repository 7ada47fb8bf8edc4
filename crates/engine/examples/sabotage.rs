//! `make sabotage`: breaks one rule after the other and counts the histories until the simulation notices; `stories` tells how.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

#[path = "../tests/driver/mod.rs"]
mod driver;

use std::process::ExitCode;
use std::time::Duration;

use driver::Campaign;
use keepmark_model::rules::{Rule, break_only};
use keepmark_testkit::sim::{BREAKS, Break};

const SEEDS_MAX: u64 = 10_000;

/// Rules of the derivation and of the engine, in words.
const RULES: [(Rule, &str); 25] = [
    (Rule::Inconsistent, "trust an inconsistent bitmap"),
    (Rule::Disabled, "trust a disabled bitmap"),
    (Rule::Busy, "treat a busy bitmap as fine"),
    (Rule::Overlay, "trust a bitmap that only a lower layer has"),
    (Rule::Gap, "ignore a gap in the backing chain"),
    (Rule::Shrunk, "ignore a shrunk size"),
    (Rule::Swapped, "ignore that two disks changed places"),
    (Rule::Origin, "ignore that the bitmap's first image is gone"),
    (Rule::Identity, "ignore that the image is another file"),
    (Rule::Growth, "ignore growth"),
    (Rule::Rounding, "drop the rounding to chunks"),
    (Rule::Allocation, "skip the allocation check"),
    (Rule::End, "do not compare the last clean data"),
    (Rule::EndByBytes, "take zeros that were written for the last clean data"),
    (Rule::SizeChanged, "ignore a size that changed before the point"),
    (Rule::OtherStores, "remove another store's checkpoints"),
    (Rule::Orphans, "leave checkpoints that were never published"),
    (Rule::Anchor, "make a differential from the newest checkpoint"),
    (Rule::AnchorStays, "remove the last full's checkpoint"),
    (Rule::MomentOrder, "filters first, new bitmaps after them"),
    (Rule::StoreTag, "remove what a copied manifest names"),
    (Rule::OwnImages, "remove a template's checkpoints for its clone"),
    (Rule::EndProof, "leave the last clean content out at the end"),
    (Rule::Condemned, "keep a checkpoint that was contradicted"),
    (Rule::Sequence, "order a sequence by its clocks"),
];

fn main() -> ExitCode {
    println!("{:<52} {:>14}  what was seen", "broken rule", "histories");
    let mut unnoticed = 0;
    for (rule, words) in RULES {
        break_only(Some(rule));
        unnoticed += u32::from(!row(words, None));
    }
    break_only(None);
    for (rule, words) in BREAKS {
        unnoticed += u32::from(!row(words, Some(rule)));
    }
    println!("{} rules, {unnoticed} not noticed within {SEEDS_MAX} histories", RULES.len() + BREAKS.len());
    if unnoticed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Breaks one rule and prints when it was noticed.
fn row(words: &str, broken: Option<Break>) -> bool {
    let longest = Some(Duration::from_secs(120));
    let found = Campaign { first: 1, seeds: SEEDS_MAX, longest, broken }.run();
    let seen = found.failure.as_ref().map_or("NOTHING", |(_, what)| what.lines().next().unwrap_or_default());
    println!("{words:<52} {:>14}  {seen}", found.histories);
    let Some((seed, _)) = &found.failure else {
        println!("{}", found.summary());
        return false;
    };
    if std::env::args().any(|argument| argument == "stories") {
        println!("{}", driver::story(*seed, keepmark_testkit::sim::Kinds::All, broken));
    }
    true
}
