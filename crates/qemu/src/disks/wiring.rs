//! From QEMU's replies to disks: which devices count, which node is the active image, and which images lie below. Pure.

use std::collections::HashMap;

use keepmark_model::Size;
use keepmark_model::facts::{BitmapFacts, DiskFacts, LayerFacts, Persistence, SkippedDisk};

use super::graph::Uses;
use super::naming::{Names, device_id, location, qom_path, stem};
use super::reply::{Bitmap, Block, Graph, Job, Node};
use super::{Disk, Replies, Survey};

// Nodes that pass on what lies below: ours, users' own (throttling), and those that jobs put in.
const FILTERS: [&str; 10] = [
    "copy-before-write",
    "throttle",
    "copy-on-read",
    "compress",
    "preallocate",
    "blkdebug",
    "blklogwrites",
    "mirror_top",
    "commit_top",
    "backup-top",
];
// QEMU limits the depth of nothing; a chain longer than this is a loop or an accident.
const DEPTH_MAX: usize = 1024;

// Their guests' commands go to the device as they are, past QEMU's block layer: no bitmap sees a write, no filter keeps what it overwrites.
const PASSED_THROUGH: [&str; 2] = ["scsi-block", "scsi-generic"];

/// Makes disks out of the replies.
#[must_use]
pub fn survey(replies: Replies) -> Survey {
    let Replies { blocks, nodes, graph, jobs, types } = replies;
    let mut survey = places(blocks.clone(), &graph);
    let below = Below::new(&nodes, &survey.uses, &jobs);
    let mut names = Names::default();
    for block in &blocks {
        match candidate(block, &types) {
            Ok(qdev) => match below.disk(block, qdev, &mut names) {
                Some(disk) => survey.disks.push(disk),
                None => survey.skipped.push(skip(block, "QEMU does not tell its image")),
            },
            Err(why) => survey.skipped.push(skip(block, why)),
        }
    }
    survey.nodes = nodes;
    survey
}

/// What the devices use, and nothing else.
#[must_use]
pub fn places(blocks: Vec<Block>, graph: &Graph) -> Survey {
    let uses = Uses::of(graph);
    let place = |block: &Block| Some((qom_path(block.qdev.as_deref()?), uses.root(block)?.to_owned()));
    let devices = blocks.iter().filter_map(place).collect();
    Survey { devices, uses, ..Survey::default() }
}

fn candidate<'b>(block: &'b Block, types: &HashMap<String, String>) -> Result<&'b str, &'static str> {
    let Some(inserted) = &block.inserted else { return Err("it is empty") };
    let is_passed_through = |qdev: &str| types.get(qdev).is_some_and(|kind| PASSED_THROUGH.contains(&kind.as_str()));
    match &block.qdev {
        None => Err("no device uses it"),
        Some(_) if block.removable => Err("it is a removable medium (cdrom or floppy)"),
        Some(_) if inserted.ro => Err("it is read-only"),
        Some(qdev) if qdev.contains("system.flash") || block.device.starts_with("pflash") => Err("it is firmware, not a disk"),
        Some(qdev) if is_passed_through(qdev) => Err("it is a SCSI device passed through"),
        Some(qdev) => Ok(qdev),
    }
}

fn skip(block: &Block, why: &str) -> SkippedDisk {
    let id = block.qdev.as_deref().and_then(device_id);
    let drive = Some(block.device.clone()).filter(|name| !name.is_empty());
    let name = id.or(drive).or_else(|| block.qdev.clone()).unwrap_or_else(|| "(unnamed)".into());
    SkippedDisk { name, why: why.to_owned() }
}

struct Below<'a> {
    nodes: HashMap<&'a str, &'a Node>,
    uses: &'a Uses,
    jobs: &'a [Job],
}

impl<'a> Below<'a> {
    fn new(nodes: &'a [Node], uses: &'a Uses, jobs: &'a [Job]) -> Self {
        Self { nodes: nodes.iter().map(|node| (node.node_name.as_str(), node)).collect(), uses, jobs }
    }

    fn disk(&self, block: &Block, qdev: &str, names: &mut Names) -> Option<Disk> {
        let root = self.uses.root(block)?;
        let chain = self.chain(root);
        let active = *chain.first()?;
        let image = location(&active.file);
        let drive = Some(block.device.clone());
        let name = names.pick([device_id(qdev), drive, stem(&image)])?;
        let facts = DiskFacts {
            name,
            size: Size(active.image.virtual_size),
            format: format_of(active),
            cluster_size: active.image.cluster_size,
            image,
            persistence: persistence(&active.drv, active.image.compat()),
            layers: chain.iter().map(|node| layer(node)).collect(),
        };
        let nodes = chain.iter().map(|node| node.node_name.clone()).collect();
        Some(Disk { facts, root: root.to_owned(), qom_path: qom_path(qdev), nodes, job: self.uses.job_on(root, self.jobs).cloned() })
    }

    // The images from the active one down, filters left out.
    fn chain(&self, root: &str) -> Vec<&'a Node> {
        let mut chain = Vec::new();
        let mut next = self.nodes.get(root).copied();
        for _ in 0..DEPTH_MAX {
            let Some(node) = next else { break };
            let is_filter = FILTERS.contains(&node.drv.as_str());
            if !is_filter {
                chain.push(node);
            }
            let below = self.child(node, "backing");
            next = if is_filter { below.or_else(|| self.child(node, "file")) } else { below };
        }
        chain
    }

    fn child(&self, node: &Node, role: &str) -> Option<&'a Node> {
        self.nodes.get(self.uses.child(&node.node_name, role)?).copied()
    }
}

// A disk on a bare file or block device is raw.
fn format_of(node: &Node) -> String {
    match node.drv.as_str() {
        "file" | "host_device" => "raw".into(),
        other => other.into(),
    }
}

/// Whether bitmaps outlive the process, by format and (for qcow2) version.
pub(crate) fn persistence(format: &str, compat: Option<&str>) -> Persistence {
    let why = match (format, compat) {
        ("qcow2", Some("0.10")) => {
            "qcow2 version 2 images cannot hold bitmaps; `qemu-img amend -o compat=1.1` makes it version 3".to_owned()
        }
        ("qcow2", _) => return Persistence::Stored,
        ("file" | "host_device", _) => "raw images cannot hold bitmaps".to_owned(),
        (other, _) => format!("{other} images cannot hold bitmaps"),
    };
    Persistence::MemoryOnly { why }
}

/// An image with its named bitmaps.
pub(crate) fn layer(node: &Node) -> LayerFacts {
    LayerFacts { image: location(&node.file), id: None, bitmaps: node.dirty_bitmaps.iter().filter_map(bitmap).collect() }
}

fn bitmap(bitmap: &Bitmap) -> Option<BitmapFacts> {
    let name = bitmap.name.clone().filter(|name| !name.is_empty())?;
    Some(BitmapFacts {
        name,
        recording: bitmap.recording,
        busy: bitmap.busy,
        inconsistent: bitmap.inconsistent,
        persistent: bitmap.persistent,
        granularity: bitmap.granularity,
        dirty: Size(bitmap.count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // The same VM under two versions: virtio-blk on an overlay, an anonymous drive, scsi, an empty cdrom, a drive without device.
    fn replies() -> [Replies; 2] {
        macro_rules! read {
            ($version:literal) => {
                Replies {
                    blocks: serde_json::from_str(include_str!(concat!("../../tests/data/qemu-", $version, "/query-block.json"))).unwrap(),
                    nodes: serde_json::from_str(include_str!(concat!("../../tests/data/qemu-", $version, "/query-named-block-nodes.json")))
                        .unwrap(),
                    graph: serde_json::from_str(include_str!(concat!("../../tests/data/qemu-", $version, "/block-graph.json"))).unwrap(),
                    ..Replies::default()
                }
            };
        }
        [read!("10.0"), read!("7.2")]
    }

    fn recorded() -> [Survey; 2] {
        replies().map(survey)
    }

    #[test]
    fn a_disk_that_is_passed_through_is_left_out() {
        for kind in ["scsi-block", "scsi-generic", "scsi-hd"] {
            for mut replies in replies() {
                replies.types.insert("sc".into(), kind.into());
                let survey = survey(replies);
                let is_skipped = survey.skipped.iter().any(|disk| disk.name == "sc" && disk.why == "it is a SCSI device passed through");
                let is_disk = survey.disks.iter().any(|disk| disk.facts.name.as_str() == "sc");
                assert_eq!((is_skipped, is_disk), (kind != "scsi-hd", kind == "scsi-hd"), "{kind}");
            }
        }
    }

    #[test]
    fn what_qemu_says_becomes_disks_with_layers_under_our_filters() {
        for survey in recorded() {
            let told = |disk: &Disk| [disk.facts.name.as_str(), &disk.facts.format, &disk.root, &disk.qom_path].map(str::to_owned);
            let seen: Vec<_> = survey.disks.iter().map(told).collect();
            insta::assert_debug_snapshot!("disks", (seen, &survey.skipped));
            let vda = &survey.disks[1];
            assert_eq!((vda.nodes.len(), vda.active(), vda.facts.layers[1].image.as_str()), (2, "na", "base.qcow2"));
            assert_eq!(vda.facts.persistence, Persistence::Stored);
            assert!(matches!(survey.disks[0].facts.persistence, Persistence::MemoryOnly { .. }));
            assert!(vda.facts.layers[0].bitmaps.iter().any(|bitmap| bitmap.name == "foreign" && bitmap.recording && bitmap.persistent));
        }
    }

    #[test]
    fn only_qcow2_version_3_stores_bitmaps() {
        assert_eq!(persistence("qcow2", Some("1.1")), Persistence::Stored);
        for (format, compat) in [("qcow2", Some("0.10")), ("raw", None), ("file", None), ("vmdk", None)] {
            assert!(matches!(persistence(format, compat), Persistence::MemoryOnly { .. }), "{format}");
        }
    }

    #[test]
    fn a_loop_in_the_graph_ends() {
        let node = |name: &str| serde_json::from_value::<Node>(serde_json::json!({"node-name": name, "drv": "qcow2"})).unwrap();
        let nodes = [node("a"), node("b")];
        let member = |id: u64, name: &str| serde_json::json!({"id": id, "type": "block-driver", "name": name});
        let edge = |parent: u64, child: u64| serde_json::json!({"parent": parent, "child": child, "name": "backing"});
        let graph = serde_json::json!({"nodes": [member(1, "a"), member(2, "b")], "edges": [edge(1, 2), edge(2, 1)]});
        let uses = Uses::of(&serde_json::from_value(graph).unwrap());
        assert_eq!(Below::new(&nodes, &uses, &[]).chain("a").len(), DEPTH_MAX);
    }
}
