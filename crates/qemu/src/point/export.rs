//! The private NBD server inside QEMU, and one export per disk: read-only for a frozen point, writable for a revert.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::target::{Delta, Target};
use super::undo::{Step, Undo};
use crate::disk::Opening;
use crate::error::{Error, Result, text};
use crate::qmp::Qmp;
use crate::temporary::{Temporary, is_ours};

// A unix socket's path has 108 bytes, the last one zero.
const SOCKET_BYTES_MAX: usize = 107;
const CONNECTIONS_MAX: u32 = 64;

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Export {
    pub(crate) id: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// What it exports now.
    #[serde(rename = "node-name", default)]
    pub(crate) node: String,
}

/// QEMU's exports, everyone's.
pub(crate) fn list(qmp: &mut Qmp) -> Result<Vec<Export>> {
    qmp.execute("query-block-exports", Value::Null)
}

/// Starts the server. QEMU has only one: if somebody else's runs, that is an error.
///
/// # Errors
/// When the server is in use or cannot listen there.
pub fn start_server(qmp: &mut Qmp, socket: &Path, undo: &mut Undo) -> Result<()> {
    if socket.as_os_str().len() > SOCKET_BYTES_MAX {
        let problem = format!("the path of a socket has at most {SOCKET_BYTES_MAX} bytes");
        return Err(Error::Usage { what: "runtime folder", value: socket.display().to_string(), problem });
    }
    let address = json!({ "type": "unix", "data": { "path": text(socket)? } });
    let started = qmp.run("nbd-server-start", json!({ "addr": address, "max-connections": CONNECTIONS_MAX }));
    match started {
        Err(Error::Refused { description, .. }) if description.contains("already running") => {
            let foreign = list(qmp)?.into_iter().filter(|export| export.kind == "nbd" && !is_ours(&export.id)).map(|export| export.id);
            Err(Error::ServerTaken { exports: foreign.collect::<Vec<_>>().join(", ") })
        }
        other => other.map(|()| undo.push(Step::StopServer)),
    }
}

/// How QEMU finds an export's bitmap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// On the node that is named; not known to QEMU < 7.1.
    Node,
    /// By name alone, in the backing chain of what is exported.
    Chain,
}

/// How disks are exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// How their bitmaps are found.
    pub search: Search,
    /// Whether clients may write.
    pub writable: bool,
}

/// Exports `nodes`, one for each target, with the delta's bitmap where there is one.
///
/// # Errors
/// When QEMU refuses.
pub fn add_exports(
    qmp: &mut Qmp,
    targets: &[Target],
    nodes: &[String],
    names: &Temporary,
    Manner { search, writable }: Manner,
    socket: &Path,
    undo: &mut Undo,
) -> Result<Vec<Opening>> {
    let mut openings = Vec::with_capacity(targets.len());
    for (target, node) in targets.iter().zip(nodes) {
        let id = names.node("e", target.number);
        let mut export = json!({ "type": "nbd", "id": id, "node-name": node, "name": id, "writable": writable });
        if matches!(target.delta, Delta::Bitmaps { .. }) {
            export["bitmaps"] = json!([bitmap(target, names, search)]);
        }
        qmp.run("block-export-add", export)?;
        undo.push(Step::DeleteExport(id.clone()));
        openings.push(opening(target, id, names, socket));
    }
    Ok(openings)
}

/// Exports the filters: the disks as they are now, with all their images. And so that they cannot be resized while the moment is there.
///
/// QEMU forbids that below a filter, but not through it; and growing or cutting a disk one of whose bitmaps is exported makes QEMU abort,
/// and the guest with it (`bdrv_dirty_bitmap_truncate: Assertion !bdrv_dirty_bitmap_busy(bitmap)`; 10.0.2). An export forbids it.
///
/// # Errors
/// When QEMU refuses.
pub fn add_present(qmp: &mut Qmp, targets: &[Target], names: &Temporary, undo: &mut Undo) -> Result<()> {
    for target in targets {
        let id = now(target, names);
        let filter = names.node("c", target.number);
        qmp.run("block-export-add", json!({ "type": "nbd", "id": id, "node-name": filter, "name": id, "writable": false }))?;
        undo.push(Step::DeleteExport(id));
    }
    Ok(())
}

/// Tells the openings of disks with several images of [`add_present`]'s exports.
pub(crate) fn tell_present(openings: &mut [Opening], targets: &[Target], names: &Temporary) {
    for (opening, target) in openings.iter_mut().zip(targets).filter(|(_, target)| target.images > 1) {
        opening.now = Some(now(target, names));
    }
}

fn now(target: &Target, names: &Temporary) -> String {
    names.node("g", target.number)
}

fn bitmap(target: &Target, names: &Temporary, search: Search) -> Value {
    match search {
        Search::Node => json!({ "node": target.active, "name": names.delta() }),
        Search::Chain => names.delta().into(),
    }
}

fn opening(target: &Target, export: String, names: &Temporary, socket: &Path) -> Opening {
    let dirty = match target.delta {
        Delta::Unwanted => crate::disk::Dirty::Unknown,
        Delta::Bitmaps { .. } => crate::disk::Dirty::Context(format!("qemu:dirty-bitmap:{}", names.delta())),
        Delta::Everything => crate::disk::Dirty::Everything,
    };
    Opening { disk: target.name.clone(), socket: socket.to_owned(), export, dirty, now: None, validity: None }
}
