//! The kill campaign: keepmark, QEMU and the store's disk die at every effect, for real; every listed backup must stay right.
//!
//! Reading order: [`effect`] says what an effect is, [`tracer`] runs the program from system call to system call and strikes
//! exactly before or after the N-th effect, [`lab`] has what a campaign works on and judges it by, then a file per campaign.
//!
//! `KEEPMARK_CRASH=all` (`make crash`) strikes at every effect, both before and after; otherwise each campaign takes a share
//! of them (`KEEPMARK_CRASH=N`: N strikes), another one each time. `KEEPMARK_CRASH_SEED` repeats a share.
//! `KEEPMARK_CRASH_AT=PART`: only effects with this part in their names.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]
#![expect(clippy::print_stdout, reason = "a campaign tells what it did")]

mod campaign;
mod children;
mod define;
mod domain;
mod effect;
mod guest;
mod held;
mod images;
mod lab;
mod live;
mod others;
mod power_cut;
mod powered_off;
mod prune;
mod pulse;
mod qemu_killed;
mod restore;
mod revert;
mod rpc;
mod scratch;
mod stalled_store;
mod table;
mod tracer;
mod watchdog;
