//! A running VM's disks: which there are, how they are wired in QEMU, and what bitmaps their images carry.

pub mod naming;
pub mod reply;
pub(crate) mod wiring;

use serde_json::{Value, json};

use keepmark_model::CheckpointName;
use keepmark_model::facts::{DiskFacts, SkippedDisk};

use crate::error::{Error, Result};
use crate::qmp::Qmp;

pub use wiring::survey;

/// A disk that can be backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What is reported of it.
    pub facts: DiskFacts,
    /// Node that the device uses: the active image's, or a filter's above it.
    pub root: String,
    /// The device in QOM, for `qom-set drive`; empty for images that no device uses.
    pub qom_path: String,
    /// The nodes of `facts.layers`, one for one.
    pub nodes: Vec<String>,
}

impl Disk {
    /// The node of the active image, where new bitmaps go.
    #[must_use]
    pub fn active(&self) -> &str {
        self.nodes.first().map_or(self.root.as_str(), String::as_str)
    }

    /// The nodes of all layers whose image carries a checkpoint's bitmap, and the smallest granularity among them.
    #[must_use]
    pub fn carriers(&self, checkpoint: &CheckpointName) -> Vec<(&str, u64)> {
        let layers = self.nodes.iter().zip(&self.facts.layers);
        layers
            .filter_map(|(node, layer)| {
                let bitmap = layer.bitmaps.iter().find(|bitmap| bitmap.name == checkpoint.as_str())?;
                Some((node.as_str(), bitmap.granularity))
            })
            .collect()
    }
}

/// What a look at QEMU's block layer gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Disks that can be backed up, in QEMU's order.
    pub disks: Vec<Disk>,
    /// The others, and why.
    pub skipped: Vec<SkippedDisk>,
    /// Every node there is.
    pub nodes: Vec<reply::Node>,
    /// Devices and the nodes they use, skipped ones included: (QOM path, root node).
    pub devices: Vec<(String, String)>,
    /// Which node uses which: (parent, child, role).
    pub edges: Vec<(String, String, String)>,
}

/// Looks at a running VM's disks. Changes nothing.
///
/// # Errors
/// When QEMU does not answer, or does not tell how its nodes are connected.
pub fn look(qmp: &mut Qmp) -> Result<Survey> {
    let blocks = qmp.execute("query-block", Value::Null)?;
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
    let graph = qmp.execute("x-debug-query-block-graph", Value::Null)?;
    Ok(survey(blocks, nodes, &graph))
}

/// Finds a disk by its name.
///
/// # Errors
/// When there is none of that name.
pub fn find<'a>(disks: &'a [Disk], name: &str) -> Result<&'a Disk> {
    disks.iter().find(|disk| disk.facts.name.as_str() == name).ok_or_else(|| {
        let names: Vec<&str> = disks.iter().map(|disk| disk.facts.name.as_str()).collect();
        Error::UnknownDisk { name: name.to_owned(), known: if names.is_empty() { "none".into() } else { names.join(", ") } }
    })
}
