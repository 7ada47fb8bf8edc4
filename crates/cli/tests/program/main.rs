//! End-to-end tests of the built program: real QEMU, real images, stock restic; one file per theme.
//!
//! `lab` has what all share. Read `round_trip` first: it is the main job from beginning to end.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed assumption is a failed test")]

mod bad_guests;
mod bad_peers;
mod bad_stores;
mod changed_disks;
mod gate;
mod headers;
mod help;
mod images;
mod interruption;
mod lab;
mod neighbours;
mod restic;
mod retention;
mod revert;
mod round_trip;
mod selection;
mod sequence;
mod several;
mod shapes;
mod small_disk;
mod status;
mod ten_weeks;
mod terminal;
mod thinning;
mod words;
