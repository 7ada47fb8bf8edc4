//! Where backups live: a deduplicated, encrypted repository in restic's format.
//!
//! The public face is [`Repository`], which is a [`keepmark_model::seam::Store`]. Invariants: a backup is listed when, and only
//! when, its snapshot file is there; that is written last; whatever it needs was made durable before. After a failed write
//! nothing more is written. Nothing here knows a hypervisor, prints, or reads the environment.

mod error;
pub mod repository;

pub use error::{Error, Result};
pub use repository::lock::Environment;
pub use repository::{Options, Repository};
