//! `keepmark delete BACKUP...`: deletes the named backups; what others need of them stays.

use clap::Args;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::plan::bases;
use keepmark_model::seam::Monitor;
use keepmark_model::{Failure, FailureClass, VmId};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark delete 3f9a1c0d --dry-run                what depends on it
  keepmark delete 3f9a1c0d web01@-3
  keepmark delete web01@2026-11-22 --json

In a repository every backup is complete in itself. In an image store what others build on is merged into them first.";

/// Delete backups; every other one restores as before.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DeleteArguments {
    /// Ids or their first letters, VM@latest, VM@-1 or VM@TIME
    #[arg(value_name = "BACKUP", required = true)]
    pub backups: Vec<String>,
    /// Only show what depends on what
    #[arg(long)]
    pub dry_run: bool,
    /// Delete the last backup of a VM, too
    #[arg(long)]
    pub yes_the_last: bool,
}

#[derive(Debug, thiserror::Error)]
enum DeleteError {
    #[error("VM {vm} would have no backup any more")]
    TheLast { vm: String },
    #[error("backup {id} is pinned")]
    Pinned { id: String },
}

/// One that is to go, and whom that concerns.
struct Going<'a> {
    backup: &'a StoredBackup,
    /// Those that stay and build on it.
    dependants: Vec<&'a StoredBackup>,
    /// Whether the next backup would build on it.
    is_base: bool,
}

/// Runs it.
pub fn run(context: &Context, arguments: &DeleteArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let (all, damaged) = store.backups(None)?;
    damaged.iter().for_each(|text| context.screen.note(text));
    let mut named: Vec<StoredBackup> = Vec::new();
    for text in &arguments.backups {
        let found = store::find(&all, text)?;
        if !named.contains(found) {
            named.push(found.clone());
        }
    }
    check(&all, &named, arguments.yes_the_last)?;
    let going: Vec<Going<'_>> = named.iter().map(|backup| going(backup, &all, &named)).collect();
    show(context, &going)?;
    if arguments.dry_run {
        return Ok(context.screen.outcome());
    }
    let ids: Vec<_> = named.iter().map(|backup| backup.id.clone()).collect();
    store.delete(&ids, &context.screen)?;
    if context.global.json {
        output::json(&json!({"event": "deleted", "backups": ids}))?;
    } else {
        output::text(&format!("{} deleted\n", text::count(ids.len(), "backup")))?;
    }
    Ok(context.screen.outcome())
}

fn check(all: &[StoredBackup], named: &[StoredBackup], yes_the_last: bool) -> Result<(), Failure> {
    let usage = |error, hint: &str| Err(Failure::new(FailureClass::Usage, error).with_hint(hint));
    if let Some(pinned) = named.iter().find(|backup| backup.pinned) {
        let id = pinned.id.short().to_owned();
        return usage(DeleteError::Pinned { id }, "take the pin away: keepmark unpin BACKUP");
    }
    let stays = |vm: &VmId| all.iter().any(|backup| backup.manifest.vm_id() == *vm && !named.contains(backup));
    match named.iter().find(|backup| !yes_the_last && !stays(&backup.manifest.vm_id())) {
        None => Ok(()),
        Some(last) => usage(DeleteError::TheLast { vm: last.manifest.vm.name.clone() }, "if that is meant, say --yes-the-last"),
    }
}

fn going<'a>(backup: &'a StoredBackup, all: &'a [StoredBackup], named: &[StoredBackup]) -> Going<'a> {
    let dependants = all.iter().filter(|other| other.builds_on.contains(&backup.id) && !named.contains(other)).collect();
    let sequence: Vec<StoredBackup> = all.iter().filter(|other| other.manifest.vm_id() == backup.manifest.vm_id()).cloned().collect();
    let is_base = bases(&sequence).iter().any(|base| base.id == backup.id);
    Going { backup, dependants, is_base }
}

fn show(context: &Context, going: &[Going<'_>]) -> Result<(), Failure> {
    if context.global.json { going.iter().try_for_each(|going| output::json(&as_json(going))) } else { output::text(&human(going)) }
}

fn as_json(going: &Going<'_>) -> Value {
    let manifest = &going.backup.manifest;
    json!({"event": "going", "id": going.backup.id, "vm": manifest.vm.name, "time": manifest.time, "kind": manifest.kind,
        "dependants": going.dependants.iter().map(|backup| &backup.id).collect::<Vec<_>>(), "base": going.is_base})
}

fn human(going: &[Going<'_>]) -> String {
    let line = |going: &Going<'_>| {
        let manifest = &going.backup.manifest;
        let names: Vec<&str> = going.dependants.iter().map(|backup| backup.id.short()).collect();
        let dependants = match names.as_slice() {
            [] => "nothing depends on it".to_owned(),
            names => format!("what {} need of it is merged into them first", names.join(", ")),
        };
        let base = if going.is_base { "; the next backup would build on it and will read more" } else { "" };
        format!(
            "{} of {}, {}, {}: {dependants}{base}\n",
            going.backup.id.short(),
            manifest.vm.name,
            text::time(manifest.time),
            manifest.kind.word()
        )
    };
    going.iter().map(line).collect()
}
