//! `keepmark list [VM]`: the backups of a store, a VM's as the sequence that it is.

use clap::Args;
use keepmark_model::Failure;
use keepmark_model::manifest::{ManifestDisk, StoredBackup};
use keepmark_model::seam::Monitor;
use serde_json::{Value, json};

use crate::context::Context;
use crate::dependencies::tree;
use crate::exit::Outcome;
use crate::{output, store, table, text};

const EXAMPLES: &str = "\
Examples:
  keepmark list
  keepmark list web01                               the sequence: F full, D differential, I incremental, R resync
  keepmark list web01 --dependencies                what cannot be restored without what
  keepmark list --json | jq -r 'select(.kind == \"full\") | .id'";

/// List backups, oldest first.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ListArguments {
    /// Only this VM's, by name or UUID
    #[arg(value_name = "VM")]
    pub vm: Option<String>,
    /// Draw which backup builds on which; in a repository each is complete in itself
    #[arg(long)]
    pub dependencies: bool,
}

/// Runs it.
pub fn run(context: &Context, arguments: &ListArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let (backups, damaged) = store.backups(None)?;
    damaged.iter().for_each(|text| context.screen.finding(text));
    let shown: Vec<&StoredBackup> = match &arguments.vm {
        None => backups.iter().collect(),
        Some(vm) => store::of_vm(&backups, vm)?,
    };
    if context.global.json {
        shown.iter().try_for_each(|backup| output::json(&as_json(backup)))?;
    } else if shown.is_empty() {
        context.screen.say("no backups yet");
    } else if arguments.dependencies {
        output::text(&tree(&shown, &line))?;
    } else {
        let sequence = if arguments.vm.is_some() { sequence(&shown, &store::place(context, None)?.to_string()) } else { String::new() };
        output::text(&(sequence + &human(&shown)))?;
    }
    Ok(context.screen.outcome())
}

fn as_json(backup: &StoredBackup) -> Value {
    let manifest = &backup.manifest;
    json!({"id": backup.id, "vm": manifest.vm.name, "uuid": manifest.vm.uuid, "time": manifest.time, "kind": manifest.kind,
        "wanted": manifest.role(), "reason": manifest.reason, "checkpoint": manifest.checkpoint, "consistency": manifest.consistency,
        "size": manifest.size(), "stored_bytes": manifest.stored_bytes(), "pinned": backup.pinned, "tags": manifest.tags,
        "builds_on": backup.builds_on, "left_out": manifest.left_out, "disks": manifest.disks.iter().map(disk_as_json).collect::<Vec<_>>()})
}

fn disk_as_json(disk: &ManifestDisk) -> Value {
    json!({"name": disk.name, "kind": disk.kind, "checkpointed": disk.checkpointed})
}

/// `web01 in /backup/vms: F I I I I D I`.
fn sequence(backups: &[&StoredBackup], place: &str) -> String {
    let letters: Vec<String> = backups.iter().map(|backup| backup.manifest.kind.letter().to_string()).collect();
    let name = backups.last().map_or("", |backup| backup.manifest.vm.name.as_str());
    format!("{name} in {place}: {}\n", letters.join(" "))
}

fn line(backup: &StoredBackup) -> String {
    let manifest = &backup.manifest;
    let stored = text::size(manifest.stored_bytes());
    format!("{} {} {} {stored}{}", manifest.kind.letter(), backup.id.short(), text::time(manifest.time), marks(backup))
}

fn marks(backup: &StoredBackup) -> String {
    let pinned = backup.pinned.then(|| "pinned".to_owned());
    pinned.into_iter().chain(backup.manifest.partial()).chain(backup.manifest.tags.iter().cloned()).map(|mark| format!(" {mark}")).collect()
}

fn human(backups: &[&StoredBackup]) -> String {
    let rows = backups.iter().map(|backup| {
        let manifest = &backup.manifest;
        vec![
            backup.id.short().to_owned(),
            manifest.vm.name.clone(),
            text::time(manifest.time),
            manifest.kind.word().to_owned(),
            manifest.consistency.word().to_owned(),
            text::size(manifest.size()),
            text::size(manifest.stored_bytes()),
            marks(backup).trim().to_owned(),
        ]
    });
    table::plain(&["ID", "VM", "TIME", "KIND", "CONSISTENCY", "SIZE", "STORED", "MARKS"], rows)
}
