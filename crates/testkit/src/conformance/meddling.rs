//! What somebody else does to bitmaps in a running QEMU, by a monitor that keepmark does not use.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Change, Unable, bitmap_name};
use crate::process::wait_for;
use crate::{OrFail, Qmp};

/// The id of a job of theirs.
pub(super) const JOB: &str = "conformance-job";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Executes a command; QEMU's refusal is the bench's.
pub(super) fn try_qmp(qmp: &mut Qmp, command: &str, arguments: Value) -> Result<(), Unable> {
    qmp.try_execute(command, arguments).map(drop).map_err(|error| Unable::Refused(error.to_string()))
}

/// What QEMU says of a node.
pub(super) fn node_facts(qmp: &mut Qmp, node: &str) -> Value {
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }));
    let mut found = nodes.as_array().into_iter().flatten().filter(|one| one["node-name"] == node);
    found.next().cloned().or_fail(format_args!("no node {node}"))
}

pub(super) fn size_of(qmp: &mut Qmp, node: &str) -> u64 {
    node_facts(qmp, node)["image"]["virtual-size"].as_u64().or_fail("a node has a size")
}

/// Lets one of the changes of bitmaps happen on a node, whose image keeps bitmaps or does not.
#[expect(clippy::wildcard_enum_match_arm, reason = "only eight changes are of bitmaps")]
pub(super) fn meddle(qmp: &mut Qmp, node: &str, persistent: bool, change: Change) -> Result<(), Unable> {
    let bitmap = |label: &str| json!({ "node": node, "name": bitmap_name(label) });
    match change {
        Change::AddBitmap(label) => {
            let arguments = json!({ "node": node, "name": bitmap_name(label), "persistent": persistent });
            try_qmp(qmp, "block-dirty-bitmap-add", arguments)
        }
        Change::RemoveBitmap(label) => try_qmp(qmp, "block-dirty-bitmap-remove", bitmap(label)),
        Change::DisableBitmap(label) => try_qmp(qmp, "block-dirty-bitmap-disable", bitmap(label)),
        Change::EnableBitmap(label) => try_qmp(qmp, "block-dirty-bitmap-enable", bitmap(label)),
        Change::ClearBitmap(label) => try_qmp(qmp, "block-dirty-bitmap-clear", bitmap(label)),
        Change::MergeBitmap(label, other) => {
            let merge = json!({ "node": node, "target": bitmap_name(label), "bitmaps": [bitmap_name(other)] });
            try_qmp(qmp, "block-dirty-bitmap-merge", merge)
        }
        Change::HoldBitmap(label) => hold(qmp, node, label),
        Change::LetGo => let_go(qmp),
        other => crate::fail(format_args!("{other:?} is none of bitmaps")),
    }
}

/// A job of somebody else's that has read by the bitmap and is not told to end.
fn hold(qmp: &mut Qmp, node: &str, label: &str) -> Result<(), Unable> {
    let size = size_of(qmp, node);
    qmp.execute("blockdev-add", json!({ "driver": "null-co", "node-name": "theirs", "size": size }));
    let waiting = json!({ "job-id": JOB, "device": node, "target": "theirs", "sync": "incremental", "bitmap": bitmap_name(label), "auto-finalize": false });
    try_qmp(qmp, "blockdev-backup", waiting)?;
    wait_for("a job that waits", TIMEOUT, || (qmp.execute("query-jobs", json!({}))[0]["status"] == "pending").then_some(()));
    Ok(())
}

fn let_go(qmp: &mut Qmp) -> Result<(), Unable> {
    try_qmp(qmp, "job-cancel", json!({ "id": JOB }))?;
    wait_for("the job's end", TIMEOUT, || (qmp.execute("query-jobs", json!({})) == json!([])).then_some(()));
    try_qmp(qmp, "blockdev-del", json!({ "node-name": "theirs" }))
}
