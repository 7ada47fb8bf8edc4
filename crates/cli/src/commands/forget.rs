//! `keepmark forget VM...`: deletes what no rule of retention keeps.

use clap::Args;
use jiff::Timestamp;
use keepmark_model::clock;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::retention::{Beyond, Policy, Style, Verdict, judge};
use keepmark_model::seam::Monitor;
use keepmark_model::{BackupId, Failure};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Outcome;
use crate::retention::{self, KeepArguments};
use crate::{output, store, table, text};

const EXAMPLES: &str = "\
Examples:
  keepmark forget web01 --dry-run                          what the configured rules keep, and why
  keepmark forget web01 db01 --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --keep-yearly unlimited
  keepmark forget web01 --keep-within 14d --keep-within-monthly 1y --keep-tag release
  keepmark forget web01 --keep-daily 7 --keep-weekly 5 --style proxmox

The rules are restic's, or Proxmox's by --style, in the time zone of [scheme]; [retention] of the configuration holds a policy.
Pinned backups stay, and so does what the next backup builds on. 'keepmark prune' then frees the space of a repository.";

/// Delete the backups of VMs that no rule keeps; the last one of a VM stays.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ForgetArguments {
    /// VMs by the names or UUIDs that 'keepmark list' shows
    #[arg(value_name = "VM", required = true)]
    pub vms: Vec<String>,
    /// Rules.
    #[command(flatten)]
    pub keep: KeepArguments,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Let the last backup of a VM go, too, if no rule keeps it
    #[arg(long)]
    pub yes_the_last: bool,
}

/// Runs it.
pub fn run(context: &Context, arguments: &ForgetArguments) -> Result<Outcome, Failure> {
    let policy = retention::policy(&context.config, &arguments.keep)?;
    let store = store::open(context)?;
    let (backups, damaged) = store.backups(None)?;
    damaged.iter().for_each(|text| context.screen.finding(text));
    let beyond = Beyond { bases: true, the_last: !arguments.yes_the_last };
    for vm in &arguments.vms {
        let sequence: Vec<StoredBackup> = store::of_vm(&backups, vm)?.into_iter().cloned().collect();
        let now = Timestamp::now();
        clock::finding(&sequence, now).iter().for_each(|text| context.screen.finding(text));
        let verdicts = judge(&sequence, &policy, beyond, now);
        show(context, &verdicts, &policy)?;
        let gone: Vec<BackupId> =
            verdicts.iter().filter(|verdict| verdict.reasons.is_empty()).map(|verdict| verdict.backup.id.clone()).collect();
        if !arguments.dry_run && !gone.is_empty() {
            store.delete(&gone, &context.screen)?;
        }
        close(context, vm, &gone, arguments.dry_run)?;
    }
    Ok(context.screen.outcome())
}

fn show(context: &Context, verdicts: &[Verdict<'_>], policy: &Policy) -> Result<(), Failure> {
    if context.global.json {
        return verdicts.iter().try_for_each(|verdict| output::json(&as_json(verdict)));
    }
    output::text(&human(verdicts, policy))
}

fn close(context: &Context, vm: &str, gone: &[BackupId], dry_run: bool) -> Result<(), Failure> {
    if context.global.json {
        return output::json(&json!({"event": "forgotten", "vm": vm, "dry_run": dry_run, "deleted": gone}));
    }
    let word = if dry_run { "would be deleted" } else { "deleted" };
    output::text(&format!("{vm}: {} {word}\n", text::count(gone.len(), "backup")))
}

fn as_json(verdict: &Verdict<'_>) -> Value {
    let manifest = &verdict.backup.manifest;
    json!({"event": "verdict", "vm": manifest.vm.name, "id": verdict.backup.id, "time": manifest.time, "kind": manifest.kind,
        "tags": manifest.tags, "keep": !verdict.reasons.is_empty(),
        "reasons": verdict.reasons.iter().map(ToString::to_string).collect::<Vec<_>>()})
}

fn human(verdicts: &[Verdict<'_>], policy: &Policy) -> String {
    let rules = match policy.style {
        Style::Restic => "restic's rules",
        Style::Proxmox => "Proxmox's rules",
    };
    let zone = policy.zone.iana_name().unwrap_or("the system's zone");
    let rows = verdicts.iter().map(|verdict| {
        let manifest = &verdict.backup.manifest;
        let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
        let fate = if reasons.is_empty() { "goes" } else { "stays" };
        vec![
            verdict.backup.id.short().to_owned(),
            manifest.vm.name.clone(),
            text::time_in(manifest.time, &policy.zone),
            manifest.kind.word().to_owned(),
            fate.to_owned(),
            reasons.join(", "),
        ]
    });
    format!("by {rules}, times in {zone}\n{}", table::plain(&["ID", "VM", "TIME", "KIND", "FATE", "KEPT BY"], rows))
}
