//! Who uses whom in QEMU's block layer, by the graph's own edges: what implicit filters hide from other queries is in it. Pure.

use std::collections::{BTreeSet, HashMap};

use super::reply::{Block, Graph, GraphNode, Job};
use crate::temporary::is_ours;

const NODE: &str = "block-driver";
const BACKEND: &str = "block-backend";
const JOB: &str = "block-job";
// A backup's filter only reads the disk, and ours goes above it; the other jobs change what the device or an image stands on.
const HARMLESS: &str = "backup";

/// The uses that matter: of nodes by nodes, by devices and drives, and by jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Uses {
    /// (parent, child, role).
    edges: Vec<(String, String, String)>,
    /// Devices' and drives' backends, and their roots.
    backends: Vec<(String, String)>,
    /// Jobs, and each node that they hold.
    jobs: Vec<(String, String)>,
}

impl Uses {
    /// Reads them out of the reply.
    #[must_use]
    pub fn of(graph: &Graph) -> Self {
        let members: HashMap<u64, &GraphNode> = graph.nodes.iter().map(|node| (node.id, node)).collect();
        let mut uses = Self::default();
        for edge in &graph.edges {
            let (Some(parent), Some(child)) = (members.get(&edge.parent), members.get(&edge.child)) else { continue };
            let (parent_name, child_name) = (parent.name.clone(), child.name.clone());
            match parent.kind.as_str() {
                NODE => uses.edges.push((parent_name, child_name, edge.name.clone())),
                BACKEND => uses.backends.push((parent_name, child_name)),
                JOB => uses.jobs.push((parent_name, child_name)),
                _ => {}
            }
        }
        uses
    }

    /// The node below another one in this role.
    #[must_use]
    pub fn child(&self, parent: &str, role: &str) -> Option<&str> {
        self.edges.iter().find(|edge| edge.0 == parent && edge.2 == role).map(|edge| edge.1.as_str())
    }

    /// The nodes that have this one as their backing.
    #[must_use]
    pub fn overlays(&self, node: &str) -> Vec<String> {
        self.edges.iter().filter(|edge| edge.1 == node && edge.2 == "backing").map(|edge| edge.0.clone()).collect()
    }

    /// The node that a device uses. A drive's backend bears the drive's name, another one its device's; should two bear the same name, it is
    /// the one that leads to the node that QEMU shows.
    #[must_use]
    pub fn root(&self, block: &Block) -> Option<&str> {
        let drive = Some(block.device.as_str()).filter(|name| !name.is_empty());
        let name = drive.or(block.qdev.as_deref())?;
        let shown = &block.inserted.as_ref()?.node_name;
        let roots: BTreeSet<&str> = self.backends.iter().filter(|backend| backend.0 == name).map(|backend| backend.1.as_str()).collect();
        let leads = |root: &&str| roots.len() == 1 || self.below(root).contains(shown.as_str());
        let mut found = roots.iter().copied().filter(leads);
        found.next().filter(|_| found.next().is_none())
    }

    /// A job of somebody else's that changes what one of these nodes stands on.
    #[must_use]
    pub fn job_on<'j>(&self, root: &str, jobs: &'j [Job]) -> Option<&'j Job> {
        let below = self.below(root);
        let holds = |job: &&Job| self.jobs.iter().any(|(id, node)| *id == job.id && below.contains(node.as_str()));
        jobs.iter().filter(|job| !is_ours(&job.id) && job.kind != HARMLESS).find(holds)
    }

    // A node and all below it.
    fn below<'s>(&'s self, root: &'s str) -> BTreeSet<&'s str> {
        let (mut found, mut due) = (BTreeSet::new(), vec![root]);
        while let Some(node) = due.pop() {
            if found.insert(node) {
                due.extend(self.edges.iter().filter(|edge| edge.0 == node).map(|edge| edge.1.as_str()));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    // As QEMU 10.0.2 shows a mirror without `filter-node-name` that is ready.
    fn mirrored() -> Uses {
        let member = |id: u64, kind: &str, name: &str| json!({ "id": id, "type": kind, "name": name });
        let edge = |parent: u64, child: u64, name: &str| json!({ "parent": parent, "child": child, "name": name });
        let graph = json!({
            "nodes": [member(1, NODE, "#block204"), member(2, NODE, "nt"), member(3, NODE, "na"), member(4, JOB, "mj"),
                member(5, BACKEND, ""), member(6, BACKEND, "/machine/peripheral/vd/virtio-backend"), member(7, NODE, "nb"), member(8, BACKEND, "sd")],
            "edges": [edge(1, 3, "backing"), edge(4, 1, "main node"), edge(4, 3, "source"), edge(4, 2, "target"), edge(5, 2, "root"),
                edge(6, 1, "root"), edge(8, 7, "root")],
        });
        Uses::of(&serde_json::from_value(graph).unwrap())
    }

    fn block(qdev: &str, shown: &str) -> Block {
        serde_json::from_value(json!({ "device": "", "qdev": qdev, "inserted": { "node-name": shown } })).unwrap()
    }

    fn job(id: &str, kind: &str) -> Job {
        Job { id: id.into(), kind: kind.into() }
    }

    #[test]
    fn a_device_s_root_is_the_implicit_filter_that_query_block_hides() {
        let uses = mirrored();
        assert_eq!(uses.root(&block("/machine/peripheral/vd/virtio-backend", "na")), Some("#block204"));
        assert_eq!((uses.root(&block("sd", "nb")), uses.root(&block("sc", "nb"))), (Some("nb"), None));
        assert_eq!((uses.overlays("na"), uses.child("#block204", "backing")), (vec!["#block204".to_owned()], Some("na")));
    }

    #[test]
    fn two_backends_of_one_name_are_told_apart_by_what_they_lead_to() {
        let mut uses = mirrored();
        uses.backends.push(("sd".into(), "#block204".into()));
        assert_eq!((uses.root(&block("sd", "na")), uses.root(&block("sd", "nb"))), (Some("#block204"), Some("nb")));
        assert_eq!(uses.root(&block("sd", "elsewhere")), None);
    }

    #[test]
    fn a_job_holds_the_disks_whose_images_it_works_on() {
        let (uses, mirror) = (mirrored(), job("mj", "mirror"));
        assert_eq!(uses.job_on("#block204", std::slice::from_ref(&mirror)), Some(&mirror));
        assert_eq!(uses.job_on("nb", std::slice::from_ref(&mirror)), None);
        for other in [job("mj", "backup"), job("another", "mirror")] {
            assert_eq!(uses.job_on("#block204", &[other]), None);
        }
        let ours = Uses { jobs: vec![("km1tmp-r-j0".into(), "nb".into())], ..uses };
        assert_eq!(ours.job_on("nb", &[job("km1tmp-r-j0", "stream")]), None);
    }

    #[test]
    fn a_loop_in_the_graph_ends() {
        let edge = |parent: &str, child: &str| (parent.to_owned(), child.to_owned(), "backing".to_owned());
        let uses = Uses { edges: vec![edge("a", "b"), edge("b", "a")], ..Uses::default() };
        assert_eq!(uses.below("a").len(), 2);
    }
}
