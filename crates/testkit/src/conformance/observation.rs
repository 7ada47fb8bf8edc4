//! What a scenario sees, as values that can be compared between benches: in units, with labels instead of names.

use std::fmt;

use keepmark_model::facts::{BitmapFacts, DiskFacts, Persistence, Power};

use super::label;

/// Something seen through the seam, or of what the bench itself knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// A disk as the driver reports it.
    Disk {
        /// Its name.
        disk: String,
        /// Its size, units.
        units: u64,
        /// Its format.
        format: String,
        /// Whether its bitmaps outlive the process.
        lasting: bool,
        /// The bitmaps of its images, the active one first; each image's sorted by name.
        images: Vec<Vec<SeenBitmap>>,
    },
    /// Whether the VM runs.
    Power(Power),
    /// What a frozen disk calls changed since a checkpoint: first unit and number.
    Delta(String, Vec<(u64, u64)>),
    /// What of a frozen disk may hold something else than zeros.
    Data(String, Vec<(u64, u64)>),
    /// What a frozen disk holds: the first byte of each unit.
    Content(String, Vec<u8>),
    /// Something was refused.
    Refused(String),
    /// Something failed that had begun.
    Failed(String),
    /// What keepmark has left.
    Left(Vec<String>),
}

/// A bitmap as the driver reports it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenBitmap {
    /// Its label.
    pub label: String,
    /// Whether it records.
    pub recording: bool,
    /// Whether something holds it.
    pub busy: bool,
    /// Whether it is worthless.
    pub inconsistent: bool,
    /// Whether it is to be stored.
    pub persistent: bool,
    /// Units per bit.
    pub granularity: u64,
    /// Units called changed.
    pub dirty: u64,
}

impl SeenBitmap {
    fn new(facts: &BitmapFacts, unit: u64) -> Self {
        Self {
            label: label(&facts.name),
            recording: facts.recording,
            busy: facts.busy,
            inconsistent: facts.inconsistent,
            persistent: facts.persistent,
            granularity: facts.granularity / unit,
            dirty: facts.dirty.0 / unit,
        }
    }
}

/// For example `c1 recording 3`: label, state, units; `memory` and `busy` are said, `persistent` is not.
impl fmt::Display for SeenBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.inconsistent, self.recording) {
            (true, _) => "inconsistent",
            (false, true) => "recording",
            (false, false) => "stopped",
        };
        let memory = if self.persistent { "" } else { " memory" };
        let busy = if self.busy { " busy" } else { "" };
        write!(f, "{} {state}{memory}{busy} {}", self.label, self.dirty)
    }
}

/// A disk's facts in units.
pub(super) fn of_disk(facts: &DiskFacts, unit: u64) -> Observation {
    let image = |layer: &keepmark_model::facts::LayerFacts| {
        let mut bitmaps: Vec<SeenBitmap> = layer.bitmaps.iter().map(|bitmap| SeenBitmap::new(bitmap, unit)).collect();
        bitmaps.sort();
        bitmaps
    };
    Observation::Disk {
        disk: facts.name.to_string(),
        units: facts.size.0 / unit,
        format: facts.format.clone(),
        lasting: facts.persistence == Persistence::Stored,
        images: facts.layers.iter().map(image).collect(),
    }
}

/// The bitmaps in one line: `;` between those of an image, ` | ` between images, the active one first.
pub(super) fn in_words(images: &[Vec<SeenBitmap>]) -> String {
    let image = |bitmaps: &Vec<SeenBitmap>| bitmaps.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    images.iter().map(image).collect::<Vec<_>>().join(" | ")
}
