//! Removing checkpoints' bitmaps, from every image that has them, in one transaction.

use keepmark_model::CheckpointName;
use serde_json::{Value, json};

use crate::disks::reply::Node;
use crate::error::Result;
use crate::qmp::Qmp;

/// Removes the bitmaps of these checkpoints wherever they can be removed.
///
/// Those on read-only backing images stay: QEMU cannot change them, and they do no harm.
///
/// # Errors
/// When QEMU refuses; then none was removed.
pub(crate) fn remove(qmp: &mut Qmp, nodes: &[Node], names: &[CheckpointName]) -> Result<()> {
    let actions = removals(nodes, names);
    if actions.is_empty() { Ok(()) } else { qmp.run("transaction", json!({ "actions": actions })) }
}

fn removals(nodes: &[Node], names: &[CheckpointName]) -> Vec<Value> {
    let mut actions = Vec::new();
    for node in nodes.iter().filter(|node| !node.ro) {
        for name in node.dirty_bitmaps.iter().filter_map(|bitmap| bitmap.name.as_deref()) {
            if names.iter().any(|wanted| wanted.as_str() == name) {
                actions.push(json!({ "type": "block-dirty-bitmap-remove", "data": { "node": node.node_name, "name": name } }));
            }
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_bitmaps_of_writable_images_are_removed() {
        let ours = "km1-20261122T180000Z-3f9a1c0d7be2";
        let node = |name: &str, ro: bool| {
            let bitmaps = json!([{ "name": ours }, { "name": "foreign" }, {}]);
            serde_json::from_value::<Node>(json!({ "node-name": name, "ro": ro, "dirty-bitmaps": bitmaps })).unwrap()
        };
        let names = [CheckpointName::parse(ours).unwrap()];
        let actions = removals(&[node("top", false), node("base", true)], &names);
        assert_eq!(actions, [json!({ "type": "block-dirty-bitmap-remove", "data": { "node": "top", "name": ours } })]);
    }
}
