//! Manifests as they lie in stores of both kinds.

use keepmark_model::manifest::{MANIFEST_VERSION, Manifest};
use serde::Deserialize;

/// Reads a manifest; says what is wrong with it otherwise.
pub fn decode(bytes: &[u8]) -> Result<Manifest, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_slice(bytes).map_err(|error| format!("is none: {error}"))?;
    if version > MANIFEST_VERSION {
        return Err(format!("has version {version}; this program reads up to {MANIFEST_VERSION}, a newer one is needed"));
    }
    serde_json::from_slice(bytes).map_err(|error| format!("cannot be read: {error}"))
}
