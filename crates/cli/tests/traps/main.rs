//! Every trap of incremental backup, set on purpose against real QEMU: what the plan says, what the backup does, and that it restores.
//!
//! `stage` has the one judgement that all tests share: plan and backup are of the expected kind for the expected reason, the
//! restored disks equal an independent copy byte for byte, nothing of keepmark is left but checkpoints, and nothing of others
//! was touched. Each file is a family of traps; a test's name is the trap.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod bitmaps;
mod copies;
mod images;
mod killed;
mod managers;
mod others;
mod proof;
mod shape;
mod snapshots;
mod stage;
mod stores;
