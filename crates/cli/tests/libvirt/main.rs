//! VMs that libvirt owns, on a libvirtd of the test's own: backups and restores, virsh beside us, and libvirtd killed at the worst moments.
//!
//! `stage` has the one judgement that all tests share: the restored disks equal an independent copy byte for byte, libvirt and
//! QEMU agree about every checkpoint, nothing of keepmark is left but checkpoints, and nothing of others was touched.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod clones;
mod define;
mod definitions;
mod firmware;
mod held;
mod killed;
mod many;
mod midway;
mod migrated;
mod names;
mod others;
mod push;
mod revert;
mod round_trip;
mod scratch;
mod stage;
mod still;
mod virsh;
