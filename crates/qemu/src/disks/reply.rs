//! The parts of QEMU's replies about its block layer that keepmark reads; everything else in them is ignored.

use serde::Deserialize;
use serde_json::Value;

/// One entry of `query-block`: a device, or a drive without one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Block {
    /// The drive's name; empty for `-blockdev`.
    #[serde(default)]
    pub device: String,
    /// The device in QOM, where one uses it.
    pub qdev: Option<String>,
    /// Whether the medium can be changed (cdrom, floppy).
    #[serde(default)]
    pub removable: bool,
    /// What is in it.
    pub inserted: Option<Inserted>,
}

/// What a device has in it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inserted {
    /// The node at its root.
    #[serde(default)]
    pub node_name: String,
    /// Whether the guest may not write.
    #[serde(default)]
    pub ro: bool,
}

/// One entry of `query-named-block-nodes`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    /// Its name.
    #[serde(default)]
    pub node_name: String,
    /// Its driver.
    #[serde(default)]
    pub drv: String,
    /// Its file as QEMU says it: a path or `json:{...}`.
    #[serde(default)]
    pub file: String,
    /// Whether it is open for reading only.
    #[serde(default)]
    pub ro: bool,
    /// Its image.
    #[serde(default)]
    pub image: Image,
    /// Its bitmaps; those of jobs have no name.
    #[serde(default)]
    pub dirty_bitmaps: Vec<Bitmap>,
}

/// An image's measures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Image {
    /// What a guest would see, bytes.
    #[serde(default)]
    pub virtual_size: u64,
    /// Bytes.
    pub cluster_size: Option<u64>,
    /// What only this format has.
    pub format_specific: Option<Value>,
}

impl Image {
    /// qcow2's version as QEMU says it: `1.1` is version 3, `0.10` version 2.
    #[must_use]
    pub fn compat(&self) -> Option<&str> {
        self.format_specific.as_ref()?.get("data")?.get("compat")?.as_str()
    }
}

/// A bitmap of a node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Bitmap {
    /// Its name; job-internal ones have none.
    pub name: Option<String>,
    /// Whether writes are being recorded.
    #[serde(default)]
    pub recording: bool,
    /// Whether something holds it.
    #[serde(default)]
    pub busy: bool,
    /// Whether it is worthless.
    #[serde(default)]
    pub inconsistent: bool,
    /// Whether it is stored with the image.
    #[serde(default)]
    pub persistent: bool,
    /// Bytes per bit.
    #[serde(default)]
    pub granularity: u64,
    /// Dirty bytes.
    #[serde(default)]
    pub count: u64,
}

/// `x-debug-query-block-graph`: who uses whom.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Graph {
    /// Nodes, devices' backends, jobs.
    pub nodes: Vec<GraphNode>,
    /// Who uses whom.
    pub edges: Vec<Edge>,
}

/// One member of the graph.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct GraphNode {
    /// Its number in this reply.
    pub id: u64,
    /// What it is: `block-driver`, `block-backend`, `block-job`.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// Node name, drive name or QOM path.
    #[serde(default)]
    pub name: String,
}

/// One entry of `query-jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Job {
    /// Its name.
    pub id: String,
    /// What it does: `mirror`, `commit`, `stream`, `backup`, ...
    #[serde(default, rename = "type")]
    pub kind: String,
}

/// One use of one member by another.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Edge {
    /// Who uses.
    pub parent: u64,
    /// Who is used.
    pub child: u64,
    /// As what: `file`, `backing`, `root`, `target`.
    #[serde(default)]
    pub name: String,
}
