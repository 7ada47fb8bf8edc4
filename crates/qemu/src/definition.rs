//! What is needed besides the disks to bring a VM back, as far as QEMU tells: one JSON document for people and tools.

use keepmark_model::VmIdentity;
use keepmark_model::seam::SavedFile;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::qmp::{Peer, Qmp};

const NAME: &str = "vm.json";
// Commands that only read and whose answers describe the machine. One that a QEMU does not have is left out.
const QUESTIONS: [&str; 9] = [
    "query-version",
    "query-status",
    "query-current-machine",
    "query-cpus-fast",
    "query-memory-size-summary",
    "query-chardev",
    "query-pci",
    "query-block",
    "query-named-block-nodes",
];

/// A running VM's: the answers of its QEMU and, where this user may read it, its command line.
///
/// # Errors
/// When QEMU does not answer.
pub(crate) fn of_live(qmp: &mut Qmp, peer: &Peer, identity: &VmIdentity) -> Result<SavedFile> {
    let mut answers = Map::new();
    for question in QUESTIONS {
        let arguments = if question == "query-named-block-nodes" { json!({ "flat": true }) } else { Value::Null };
        if let Some(answer) = optional(qmp.execute(question, arguments))? {
            answers.insert(question.into(), answer);
        }
    }
    let devices = optional(qmp.execute("qom-list", json!({ "path": "/machine/peripheral" })))?;
    Ok(file(&json!({
        "source": "qmp",
        "identity": identity,
        "command_line": command_line(peer.pid),
        "devices": devices,
        "qmp": answers,
    })))
}

/// A powered-off VM's: what its images say of themselves.
pub(crate) fn of_images(images: &Value, identity: &VmIdentity) -> SavedFile {
    file(&json!({ "source": "images", "identity": identity, "images": images }))
}

fn file(document: &Value) -> SavedFile {
    SavedFile { name: NAME.into(), content: format!("{document:#}\n").into_bytes() }
}

fn optional(answer: Result<Value>) -> Result<Option<Value>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn command_line(pid: u32) -> Option<Vec<String>> {
    let raw = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = raw.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let words: Vec<String> = words.filter(|word| !word.is_empty()).collect();
    (!words.is_empty()).then_some(words)
}
