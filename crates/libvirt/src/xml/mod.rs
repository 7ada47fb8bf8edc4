//! libvirt's XML: reading what a domain says, writing what a backup and a checkpoint are. Pure.

pub(crate) mod backup;
pub(crate) mod checkpoint;
pub(crate) mod domain;
pub(crate) mod image;
pub(crate) mod references;
pub(crate) mod write;

pub use domain::{DiskXml, DomainXml, Firmware, Source};
pub use image::{ChainXml, ImageXml};
