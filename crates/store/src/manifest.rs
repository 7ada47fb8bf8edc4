//! Manifests as they lie in stores of both kinds.

use std::collections::BTreeSet;

use keepmark_model::manifest::{MANIFEST_VERSION, Manifest};
use serde::Deserialize;

/// Reads a manifest, whose names are checked as it is decoded; says what is wrong with it otherwise.
pub fn decode(bytes: &[u8]) -> Result<Manifest, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes).map_err(|error| format!("is none: {error}"))?;
    if version > MANIFEST_VERSION {
        return Err(format!("has version {version}; this program reads up to {MANIFEST_VERSION}, a newer one is needed"));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| format!("cannot be read: {error}"))?;
    let mut names = BTreeSet::new();
    match manifest.disks.iter().find(|disk| !names.insert(&disk.name)) {
        Some(twice) => Err(format!("names disk {} twice", twice.name)),
        None => Ok(manifest),
    }
}
