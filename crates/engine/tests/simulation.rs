//! The simulation in `make test`: seeds that failed once, and fresh ones for a minute.

mod driver;

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use driver::{Campaign, play_seed, story};
use keepmark_testkit::sim::Kinds;

/// How long fresh seeds are tried: building the simulation and playing it fit in two minutes.
const LONGEST: Duration = Duration::from_secs(60);

/// Seeds whose histories found something once, and what it was.
const KEPT: [(u64, Kinds, &str); 13] = [
    (3, Kinds::NoDifferentials, "a clock that was set back makes an older bitmap look younger: a resync too many, and no more"),
    (96, Kinds::NoDifferentials, "a backup with a silent edit in it is contradicted by the next one's audit"),
    (198, Kinds::NoDifferentials, "two disks on one backing image"),
    (280, Kinds::NoDifferentials, "the allocation check of a disk that grew covered nothing but the new end"),
    (4185, Kinds::NoDifferentials, "an overlay with bitmaps of the same names, into which the image below was streamed"),
    (4525, Kinds::NoDifferentials, "a backup is deleted while another one is made"),
    (
        25796,
        Kinds::NoDifferentials,
        "another tool removes the lower of two bitmaps of one name, and a commit moves the upper one into its place",
    ),
    (
        1882598539264886,
        Kinds::NoDifferentials,
        "a bitmap that another tool paused, which shows only at the frozen point: it fails, and the next run resyncs",
    ),
    (
        1882600560919812,
        Kinds::NoDifferentials,
        "disks change places, and the snapshot of one is committed into a file that is called like the other's",
    ),
    (1882700000082742, Kinds::NoDifferentials, "the base is deleted while a backup that holds a silent edit is made upon it"),
    (12346, Kinds::NoDifferentials, "an image that is copied while it is open"),
    (
        7705955,
        Kinds::NoDifferentials,
        "a cut inside a cluster of several bits: what was written comes back when the disk grows, its bits do not",
    ),
    (641, Kinds::NoDifferentials, "without an audit, a foreign tool's holes go unseen"),
];

#[test]
fn seeds_that_failed_once_pass() {
    for (seed, kinds, what) in KEPT {
        assert!(play_seed(seed, kinds, None).violation.is_none(), "{what}\n{}", story(seed, kinds, None));
    }
}

#[test]
fn fresh_seeds_pass() {
    let first = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() << 20;
    let found = Campaign { first, seeds: u64::MAX, longest: Some(LONGEST), broken: None }.run();
    // Past the capture of what a test prints: which seeds ran is to be seen when they pass, too.
    writeln!(std::io::stderr(), "fresh seeds from {first}: {}", found.summary()).unwrap();
    if let Some((seed, _)) = found.failure {
        panic!("{}", story(seed, Kinds::All, None));
    }
    assert!(found.histories > 0);
}
