//! Snapshot files: the publication of one is the publication of a backup.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repository::id::TreeId;

/// The tag of every backup of ours.
pub const TAG: &str = "keepmark";
/// Begins the tag that says whose backup it is.
pub const VM_TAG: &str = "vm:";

/// A snapshot as JSON has it. Fields of other programs are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The moment of the backup.
    pub time: Timestamp,
    /// Its content.
    pub tree: TreeId,
    /// What was backed up: `/<vm>`.
    #[serde(default)]
    pub paths: Vec<String>,
    /// The host that wrote it.
    #[serde(default)]
    pub hostname: String,
    /// Who wrote it.
    #[serde(default)]
    pub username: String,
    /// [`TAG`], the VM and others that filters of restic can use.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub tags: Vec<String>,
    /// What wrote it.
    #[serde(default)]
    pub program_version: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Snapshot {
    /// Whether keepmark wrote it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.tags.iter().any(|tag| tag == TAG)
    }

    /// The VM's id as the tags say it.
    #[must_use]
    pub fn vm(&self) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(VM_TAG))
    }
}
