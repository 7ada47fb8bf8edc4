//! Questions to QEMU's monitor through libvirt, for what libvirt has no call for: which bitmaps are on which image.
//!
//! Only questions, with three exceptions (docs/decisions/0004): the claim on the VM (0013), which changes nothing of it; what a dead backup left,
//! which libvirt has forgotten and has no call for; and the commands of a backup around a dead job that libvirt cannot end. libvirt marks the domain as tainted by it (`custom-monitor`).

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use keepmark_qemu::claim::{Claim, Claimed};
use keepmark_qemu::disks::{Replies, Survey, survey};

use crate::api::{Domain, Version};
use crate::error::{Error, Result};
use crate::link::Link;

const JOB_END_WAIT: Duration = Duration::from_secs(30);
const JOB_END_POLL: Duration = Duration::from_millis(5);

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
    Ok(survey(Replies {
        blocks: ask(link, "query-block", Value::Null)?,
        nodes: ask(link, "query-named-block-nodes", json!({ "flat": true }))?,
        graph: ask(link, "x-debug-query-block-graph", Value::Null)?,
        // libvirt itself refuses disks with jobs, and its definition says what is passed through.
        ..Replies::default()
    }))
}

fn backup_jobs(link: &mut Link) -> Result<Vec<Value>> {
    let mut jobs: Vec<Value> = ask(link, "query-jobs", Value::Null)?;
    jobs.retain(|job| job["type"] == "backup");
    Ok(jobs)
}

/// How many of libvirt's backup jobs do their work without a failure so far.
pub(crate) fn healthy_backups(link: &mut Link) -> Result<usize> {
    let is_healthy = |job: &&Value| job["status"] == "running" && job["error"].is_null();
    Ok(backup_jobs(link)?.iter().filter(is_healthy).count())
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copying {
    /// Bytes done.
    pub(crate) done: u64,
    /// Bytes to be done in all, as far as is known.
    pub(crate) due: u64,
}

/// The backup jobs by name, and how far they are.
pub(crate) fn copying(link: &mut Link) -> Result<Vec<(String, Copying)>> {
    let of = |job: &Value| {
        let number = |key: &str| job[key].as_u64().unwrap_or_default();
        Some((job["id"].as_str()?.to_owned(), Copying { done: number("current-progress"), due: number("total-progress") }))
    };
    Ok(backup_jobs(link)?.iter().filter_map(of).collect())
}

/// QEMU's version.
pub(crate) fn version(link: &mut Link) -> Result<Version> {
    let reply: Value = ask(link, "query-version", Value::Null)?;
    let part = |name: &str| reply["qemu"][name].as_u64().unwrap_or_default();
    Ok(Version { major: part("major"), minor: part("minor"), micro: part("micro") })
}

/// Removes nodes that nothing uses: QEMU refuses what is in use. Those of an image come before that of its file.
pub(crate) fn remove_nodes(link: &mut Link, nodes: &[&str]) -> Result<()> {
    nodes.iter().try_for_each(|node| tell(link, "blockdev-del", json!({ "node-name": node })))
}

/// What a dead backup of libvirt's left besides nodes and is unknown to libvirt by now: copying onto one of these nodes, which would fail
/// the guest's writes when the scratch is full, and a server that exports nothing. Says in words what was ended.
pub(crate) fn end_dead_backup(link: &mut Link, nodes: &[&str]) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let jobs = backup_jobs(link)?;
    let names = jobs.iter().filter_map(|job| job["id"].as_str());
    for job in names.filter(|name| name.starts_with("backup-") && nodes.iter().any(|node| name.ends_with(&format!("-{node}")))) {
        end_job(link, job)?;
        said.push(format!("job {job} of libvirt's"));
    }
    let exports: Vec<Value> = ask(link, "query-block-exports", Value::Null)?;
    if !exports.iter().any(|export| export["type"] == "nbd") && tell(link, "nbd-server-stop", Value::Null).is_ok() {
        said.push("NBD server of a backup of libvirt's".into());
    }
    Ok(said)
}

fn end_job(link: &mut Link, id: &str) -> Result<()> {
    let end = Instant::now() + JOB_END_WAIT;
    // A concluded one cannot be cancelled.
    drop(tell(link, "block-job-cancel", json!({ "device": id, "force": true })));
    loop {
        match tell(link, "job-dismiss", json!({ "id": id })) {
            Err(Error::Question { .. }) if Instant::now() < end => std::thread::sleep(JOB_END_POLL),
            other => return other,
        }
    }
}

/// Passes a command of a detour's on. One that changes something is sent once, over a connection that was just seen to work.
pub(crate) fn pass(link: &mut Link, command: &str, text: &str) -> Result<String> {
    if command.starts_with("query-") || command.starts_with("x-debug-query-") {
        return link.call(|domain| domain.ask_monitor(text));
    }
    link.call(Domain::state)?;
    link.once(|domain| domain.ask_monitor(text))
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

/// A claim on a domain's VM, with a connection of its own to end it by.
#[derive(Debug)]
pub(crate) struct DomainClaim {
    claim: Option<Claim>,
    link: Link,
}

impl DomainClaim {
    /// Claims the VM, if nobody else has; none where QEMU cannot be passed a file through this libvirt.
    pub(crate) fn take(link: &Link) -> Result<Option<Self>> {
        let link = link.again()?;
        let subject = link.name().to_owned();
        let is_impossible = |error: &Error| !matches!(error, Error::Unreachable { .. });
        match Claim::take(&subject, &mut |command, arguments, open| say(&link, command, &arguments, open), is_impossible)? {
            Claimed::Ours(claim) => Ok(Some(Self { claim: Some(claim), link })),
            Claimed::Unmarked => Ok(None),
        }
    }
}

impl Drop for DomainClaim {
    fn drop(&mut self) {
        let link = &self.link;
        if let Some(claim) = self.claim.take() {
            claim.give_up(&mut |command, arguments, open| say(link, command, &arguments, open));
        }
    }
}

fn say(link: &Link, command: &str, arguments: &Value, open: Option<BorrowedFd<'_>>) -> Result<Value> {
    let mut said = json!({ "execute": command });
    if !arguments.is_null() {
        said["arguments"] = arguments.clone();
    }
    let said = said.to_string();
    let text = link.once(|domain| match open {
        Some(open) => domain.ask_monitor_with(&said, open),
        None => domain.ask_monitor(&said),
    })?;
    read(command, &text)
}

fn tell(link: &mut Link, command: &str, arguments: Value) -> Result<()> {
    ask::<Value>(link, command, arguments).map(drop)
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
    fn only_questions_are_asked_but_for_three_exceptions_and_only_here() {
        let shipped = include_str!("monitor.rs").split("#[cfg(test)]").next().unwrap();
        let asked: Vec<&str> = shipped.split("ask(link, \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(
            asked.len() >= 6 && asked.iter().all(|command| command.starts_with("query-") || command.starts_with("x-debug-query-")),
            "{asked:?}"
        );
        let told: Vec<&str> = shipped.split("tell(link, \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(shipped.matches("say(").count(), 3, "only a claim says more, its own commands");
        assert!(
            keepmark_qemu::claim::COMMANDS
                .iter()
                .all(|command| ["getfd", "query-chardev"].contains(command) || command.starts_with("chardev-"))
        );
        assert_eq!(told, ["blockdev-del", "nbd-server-stop", "block-job-cancel", "job-dismiss"]);
        let users = |call: &str| {
            let files = ["", "detour", "running", "xml", "define"].into_iter().flat_map(|folder| {
                std::fs::read_dir(format!("{}/src/{folder}", env!("CARGO_MANIFEST_DIR"))).unwrap().map(|entry| entry.unwrap().path())
            });
            let users = files.filter(|path| path.is_file() && std::fs::read_to_string(path).unwrap().contains(call));
            users.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(users("ask_monitor("), ["monitor.rs".to_owned()].into());
        assert_eq!(users("monitor::pass("), ["monitor.rs", "relay.rs"].map(str::to_owned).into());
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
