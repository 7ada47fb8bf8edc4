//! Questions to QEMU's monitor through libvirt, for what libvirt has no call for: which bitmaps are on which image.
//!
//! Only questions, with one exception: nodes of a dead backup's scratch images, which libvirt has forgotten and has no call for
//! (docs/decisions/0004). libvirt marks the domain as tainted by it (`custom-monitor`).

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use keepmark_qemu::disks::{Survey, survey};

use crate::api::Version;
use crate::error::{Error, Result};
use crate::link::Link;

#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    desc: String,
}

/// QEMU's disks, as its block layer tells them.
pub(crate) fn look(link: &mut Link) -> Result<Survey> {
    let blocks = ask(link, "query-block", Value::Null)?;
    let nodes = ask(link, "query-named-block-nodes", json!({ "flat": true }))?;
    let graph = ask(link, "x-debug-query-block-graph", Value::Null)?;
    Ok(survey(blocks, nodes, &graph))
}

/// How many of libvirt's backup jobs do their work without a failure so far.
pub(crate) fn healthy_backups(link: &mut Link) -> Result<usize> {
    let jobs: Vec<Value> = ask(link, "query-jobs", Value::Null)?;
    let is_healthy = |job: &&Value| job["type"] == "backup" && job["status"] == "running" && job["error"].is_null();
    Ok(jobs.iter().filter(is_healthy).count())
}

/// QEMU's version.
pub(crate) fn version(link: &mut Link) -> Result<Version> {
    let reply: Value = ask(link, "query-version", Value::Null)?;
    let part = |name: &str| reply["qemu"][name].as_u64().unwrap_or_default();
    Ok(Version { major: part("major"), minor: part("minor"), micro: part("micro") })
}

/// Removes nodes that nothing uses: QEMU refuses what is in use. Those of an image come before that of its file.
pub(crate) fn remove_nodes(link: &mut Link, nodes: &[&str]) -> Result<()> {
    nodes.iter().try_for_each(|node| ask::<Value>(link, "blockdev-del", json!({ "node-name": node })).map(drop))
}

/// The unix sockets of QEMU's character devices: (label, path).
pub(crate) fn sockets(link: &mut Link) -> Result<Vec<(String, String)>> {
    let devices: Vec<Value> = ask(link, "query-chardev", Value::Null)?;
    let socket = |device: &Value| {
        let name = device["filename"].as_str()?;
        let path = name.strip_prefix("disconnected:").unwrap_or(name).strip_prefix("unix:")?;
        Some((device["label"].as_str()?.to_owned(), path.split(",server").next().unwrap_or(path).to_owned()))
    };
    Ok(devices.iter().filter_map(socket).collect())
}

fn ask<T: DeserializeOwned>(link: &mut Link, command: &str, arguments: Value) -> Result<T> {
    let mut question = json!({ "execute": command });
    if !arguments.is_null() {
        question["arguments"] = arguments;
    }
    let question = question.to_string();
    let text = link.call(|domain| domain.ask_monitor(&question))?;
    read(command, &text)
}

fn read<T: DeserializeOwned>(command: &str, text: &str) -> Result<T> {
    let shape = |source| Error::Reply { command: command.to_owned(), source };
    let reply: Reply = serde_json::from_str(text).map_err(shape)?;
    if let Some(refusal) = reply.error {
        return Err(Error::Question { command: command.to_owned(), description: refusal.desc.chars().take(300).collect() });
    }
    serde_json::from_value(reply.value.unwrap_or(Value::Null)).map_err(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_questions_are_asked_but_for_one_exception_and_only_here() {
        let shipped = include_str!("monitor.rs").split("#[cfg(test)]").next().unwrap();
        let asked: Vec<&str> = shipped.split("ask(link, \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(
            asked.len() >= 6 && asked.iter().all(|command| command.starts_with("query-") || command.starts_with("x-debug-query-")),
            "{asked:?}"
        );
        let told: Vec<&str> = shipped.split("ask::<Value>(link, \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(told, ["blockdev-del"]);
        let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap().map(|entry| entry.unwrap().path());
        let users = sources.filter(|path| path.is_file() && std::fs::read_to_string(path).unwrap().contains("ask_monitor("));
        assert_eq!(users.map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>(), ["monitor.rs"]);
    }

    #[test]
    fn answers_refusals_and_rubbish_are_told_apart() {
        assert_eq!(read::<u32>("q", r#"{"return": 7, "id": "libvirt-9"}"#).unwrap(), 7);
        assert!(matches!(read::<u32>("q", r#"{"error": {"class": "x", "desc": "no"}}"#), Err(Error::Question { .. })));
        for rubbish in ["", "[]", r#"{"return": "x"}"#, "{}"] {
            assert!(matches!(read::<u32>("q", rubbish), Err(Error::Reply { .. })), "{rubbish}");
        }
    }
}
