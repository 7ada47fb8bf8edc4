//! Every decision of keepmark as a pure function of values: no I/O, no clock, no randomness.
//!
//! Read in this order: [`names`] and [`extents`] (the vocabulary), [`facts`] (what a hypervisor reports), [`manifest`] (what a
//! store remembers) and [`clock`] (what its times are worth), [`opening`] (which image may be opened, and as what), [`trust`] (which bitmap may be believed), [`scheme`] (which kind is due), [`choice`] and [`plan`] (what a backup will do), [`revert`] and [`blocks`] (what going back in place will do), [`retention`] (which backups stay), [`select`] (which backup a text means), [`seam`] (what drivers and
//! stores must offer so that the plan can be carried out) with [`moment`] (in which order a moment is fixed), [`writing`] and [`pushing`].

pub mod audit;
pub mod blocks;
pub mod choice;
pub mod clock;
pub mod extents;
pub mod facts;
pub mod failure;
pub mod images;
pub mod manifest;
pub mod moment;
pub mod names;
pub mod opening;
pub mod plan;
pub mod prune;
pub mod pushing;
pub mod retention;
pub mod revert;
pub mod rules;
pub mod scheme;
pub mod seam;
pub mod select;
pub mod trust;
pub mod writing;

pub use extents::{ChunkIndex, ChunkSize, Extent, Extents, Offset, Size};
pub use failure::{Failure, FailureClass};
pub use names::{BackupId, CheckpointName, DiskName, FileName, StoreId, VmId, VmIdentity};
