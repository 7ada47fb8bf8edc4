//! A running VM's disks: which there are, how they are wired in QEMU, and what bitmaps their images carry.

pub mod graph;
pub mod naming;
pub mod reply;
pub(crate) mod wiring;

use std::collections::HashMap;

use serde_json::{Value, json};

use keepmark_model::CheckpointName;
use keepmark_model::facts::{DiskFacts, SkippedDisk};

use crate::error::{Error, Result};
use crate::qmp::Qmp;

pub use wiring::survey;

use graph::Uses;
use reply::{Block, Graph, Job, Node};

/// A disk that can be backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What is reported of it.
    pub facts: DiskFacts,
    /// Node that the device uses: the active image's, or a filter's above it, an implicit one included.
    pub root: String,
    /// The device in QOM, for `qom-set drive`; empty for images that no device uses.
    pub qom_path: String,
    /// The nodes of `facts.layers`, one for one.
    pub nodes: Vec<String>,
    /// Somebody else's job that works on its images and will change what the device uses.
    pub job: Option<Job>,
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
    /// Who uses whom.
    pub uses: Uses,
}

impl Survey {
    /// The devices that use this node, by their QOM paths.
    #[must_use]
    pub fn devices_on(&self, node: &str) -> Vec<String> {
        self.devices.iter().filter(|(_, root)| root == node).map(|(device, _)| device.clone()).collect()
    }

    /// The node that a device uses; none if there is no such device, or nothing is in it.
    #[must_use]
    pub fn root_of(&self, qom_path: &str) -> Option<&str> {
        self.devices.iter().find(|(device, _)| device == qom_path).map(|(_, root)| root.as_str())
    }
}

/// What QEMU answers to the questions of a look.
#[derive(Debug, Clone, Default)]
pub struct Replies {
    /// `query-block`.
    pub blocks: Vec<Block>,
    /// `query-named-block-nodes`.
    pub nodes: Vec<Node>,
    /// `x-debug-query-block-graph`.
    pub graph: Graph,
    /// `query-jobs`.
    pub jobs: Vec<Job>,
    /// Types of devices, by what `query-block` calls them.
    pub types: HashMap<String, String>,
}

/// Looks at a running VM's disks. Changes nothing.
///
/// # Errors
/// When QEMU does not answer, or does not tell how its nodes are connected.
pub fn look(qmp: &mut Qmp) -> Result<Survey> {
    let blocks: Vec<Block> = qmp.execute("query-block", Value::Null)?;
    Ok(survey(Replies {
        nodes: qmp.execute("query-named-block-nodes", json!({ "flat": true }))?,
        graph: qmp.execute("x-debug-query-block-graph", Value::Null)?,
        jobs: qmp.execute("query-jobs", Value::Null)?,
        types: types(qmp, &blocks)?,
        blocks,
    }))
}

/// Looks only at what the devices use, which is quick.
///
/// # Errors
/// As [`look`].
pub fn places(qmp: &mut Qmp) -> Result<Survey> {
    let blocks = qmp.execute("query-block", Value::Null)?;
    Ok(wiring::places(blocks, &qmp.execute("x-debug-query-block-graph", Value::Null)?))
}

// virtio-blk passes nothing through, so its devices are not asked.
fn types(qmp: &mut Qmp, blocks: &[Block]) -> Result<HashMap<String, String>> {
    let mut types = HashMap::new();
    for qdev in blocks.iter().filter_map(|block| block.qdev.as_ref()).filter(|qdev| !naming::is_virtio(qdev)) {
        match qmp.execute::<String>("qom-get", json!({ "path": naming::qom_path(qdev), "property": "type" })) {
            Ok(kind) => drop(types.insert(qdev.clone(), kind)),
            Err(error) if error.is_unreachable() => return Err(error),
            // Unplugged since.
            Err(_) => {}
        }
    }
    Ok(types)
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
