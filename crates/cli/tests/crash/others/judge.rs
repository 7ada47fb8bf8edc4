//! What a backup may hold beside which somebody else acted.

use std::path::PathBuf;

use keepmark_testkit::{OrFail, Witness};

use crate::lab::Lab;

/// Pieces that a guest writes as a whole: what is in a backup is of before the act or of after it.
const PIECE: usize = 4096;

/// Whether each act is to happen at every effect (`make others`).
pub fn is_all() -> bool {
    std::env::var("KEEPMARK_CRASH").is_ok_and(|wish| wish == "all")
}

/// The struck run's backup, if it is listed as the second one: each piece of it is of before the act or of after it.
#[track_caller]
pub fn published(lab: &mut Lab, before: &Witness, after: &Witness, told: &str) -> Option<String> {
    let listed = lab.ok(&["list", "--json"]).json();
    let backup = listed.get(1)?;
    let id = backup["id"].as_str().unwrap().to_owned();
    // From now on it is one of those that are known, with the bytes that it has.
    let restored = lab.adopt(&id);
    for name in backup["disks"].as_array().unwrap().iter().filter_map(|disk| disk["name"].as_str()) {
        assert_of_either(&read(restored.image(name)), &read(before.image(name)), &read(after.image(name)), &format!("{name}: {told}"));
    }
    Some(id)
}

fn read(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).or_fail(format_args!("reading {}", path.display()))
}

#[track_caller]
fn assert_of_either(restored: &[u8], before: &[u8], after: &[u8], told: &str) {
    assert!([before.len(), after.len()].contains(&restored.len()), "{} bytes: {told}", restored.len());
    let mut pieces = restored.chunks(PIECE).enumerate().map(|(number, piece)| (number * PIECE, piece));
    let is_of = |all: &[u8], at: usize, piece: &[u8]| all.get(at..at + piece.len()).is_some_and(|of| of == piece);
    let strange = pieces.find(|(at, piece)| !is_of(before, *at, piece) && !is_of(after, *at, piece));
    assert!(strange.is_none(), "at {:?} neither of before nor of after, {told}", strange.map(|(at, _)| at));
}
