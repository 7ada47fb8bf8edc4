//! `keepmark list [VM]`: the backups of a store.

use clap::Args;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::seam::Monitor;
use keepmark_model::select::of_vm;
use keepmark_model::{Failure, FailureClass};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store, table, text};

const EXAMPLES: &str = "\
Examples:
  keepmark list
  keepmark list web01
  keepmark list --json | jq -r 'select(.kind == \"full\") | .id'";

/// List backups, oldest first.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ListArguments {
    /// Only this VM's, by name or UUID
    #[arg(value_name = "VM")]
    pub vm: Option<String>,
}

/// Runs it.
pub fn run(context: &Context, arguments: &ListArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let (backups, damaged) = store.backups(None)?;
    damaged.iter().for_each(|text| context.screen.finding(text));
    let shown: Vec<&StoredBackup> = match &arguments.vm {
        None => backups.iter().collect(),
        Some(vm) => {
            of_vm(&backups, vm).map_err(|error| Failure::new(FailureClass::Usage, error).with_hint("see 'keepmark list' for all"))?
        }
    };
    if context.global.json {
        shown.iter().try_for_each(|backup| output::json(&as_json(backup)))?;
    } else if shown.is_empty() {
        context.screen.say("no backups yet");
    } else {
        output::text(&human(&shown))?;
    }
    Ok(context.screen.outcome())
}

fn as_json(backup: &StoredBackup) -> Value {
    let manifest = &backup.manifest;
    json!({"id": backup.id, "vm": manifest.vm.name, "uuid": manifest.vm.uuid, "time": manifest.time, "kind": manifest.kind,
        "reason": manifest.reason, "checkpoint": manifest.checkpoint, "consistency": manifest.consistency,
        "size": manifest.size(), "stored_bytes": manifest.stored_bytes(),
        "disks": manifest.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>()})
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
        ]
    });
    table::plain(&["ID", "VM", "TIME", "KIND", "CONSISTENCY", "SIZE", "STORED"], rows)
}
