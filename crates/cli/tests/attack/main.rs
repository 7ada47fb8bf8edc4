//! An intruder's campaign: hostile stores by somebody who has the key, and hostile monitors. Nothing outside of what was named is written or opened,
//! nothing panics, nothing hangs.
//!
//! Each try mutates by its seed what an honest run has made, and lets commands loose on it. `KEEPMARK_ATTACK=N` makes N tries of each kind
//! (`make attack`); otherwise a share is tried, another one each time. `KEEPMARK_ATTACK_SEED` repeats from a seed on.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]
#![expect(clippy::print_stdout, reason = "a campaign tells what it did")]

mod images;
mod lab;
mod monitor;
mod mutation;
mod repository;
