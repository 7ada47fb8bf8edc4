//! Reading what another manager's job exported: one disk by its server's socket and the export's name.

use std::path::Path;

use keepmark_model::DiskName;
use keepmark_model::seam::FrozenDisk;

use crate::disk::Opening;
use crate::error::Result;
use crate::space::Validity;

pub use crate::disk::Dirty;

/// An export to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Which disk it is.
    pub disk: DiskName,
    /// Its name on the server.
    pub export: String,
    /// Where its delta comes from.
    pub delta: Dirty,
}

impl Exported {
    /// Connects to it. What is read counts as long as `validity` holds.
    ///
    /// # Errors
    /// When the server does not answer or has no such export.
    pub fn open(&self, socket: &Path, validity: Validity) -> Result<Box<dyn FrozenDisk>> {
        let opening = Opening {
            disk: self.disk.clone(),
            socket: socket.to_owned(),
            export: self.export.clone(),
            dirty: self.delta.clone(),
            now: None,
            validity: Some(validity),
        };
        Ok(Box::new(crate::disk::open(&opening)?))
    }
}
