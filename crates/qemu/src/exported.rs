//! Reading what another manager's job exported: one disk by its server's socket and the export's name.

use std::path::Path;

use keepmark_model::DiskName;
use keepmark_model::seam::FrozenDisk;

use crate::disk::{Dirty, Opening};
use crate::error::Result;
use crate::space::Validity;

/// An export to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Which disk it is.
    pub disk: DiskName,
    /// Its name on the server.
    pub export: String,
    /// The meta context that has the delta, if one was asked for.
    pub delta: Option<String>,
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
            dirty: self.delta.clone().map_or(Dirty::Unknown, Dirty::Context),
            now: None,
            validity: Some(validity),
        };
        Ok(Box::new(crate::disk::open(&opening)?))
    }
}
