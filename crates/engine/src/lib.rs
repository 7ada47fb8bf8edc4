//! Backup, restore, revert and verify: the only crate that knows both a hypervisor and a store.
//!
//! Read [`backup`] first; [`capture`] is its inner loop.

mod audit;
pub mod backup;
mod capture;
pub mod checkpoint;
mod error;
pub mod push;
pub mod report;
pub mod restore;
pub mod revert;
pub mod surroundings;

pub use error::Error;
pub use report::{BackupReport, DiskReport, RevertReport, RevertedDisk};
pub use surroundings::Surroundings;
