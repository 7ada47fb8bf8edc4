//! Where backups live: a deduplicated, encrypted repository in restic's format, or plain qcow2 images.
//!
//! The public faces are [`Repository`] and [`ImageStore`], each a [`keepmark_model::seam::Store`]. Invariants: a backup is listed when,
//! and only when, its snapshot file, or its manifest in a folder that has its name, is there; that is written last; whatever it needs
//! was made durable before. After a failed write nothing more is written. Nothing here knows a hypervisor, prints, or reads the
//! environment.

mod error;
mod folders;
pub mod identity;
pub mod images;
mod manifest;
pub mod repository;

pub use error::{Error, Result};
pub use images::{ImageOptions, ImageStore};
pub use repository::lock::Environment;
pub use repository::{Options, Repository};
