//! `keepmark verify [BACKUP]`: whether backups are whole.

use clap::Args;
use keepmark_model::seam::{Damage, Monitor, Store, Verification};
use keepmark_model::{BackupId, Failure};
use serde_json::json;

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark verify                         is everything there that the backups need?
  keepmark verify --read-data             read and hash every byte
  keepmark verify web01@latest --read-data

Damage ends in exit code 3 and names the backups that it hits; all others still restore.";

/// Check that backups are whole.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct VerifyArguments {
    /// An id or its first letters, VM@latest, VM@-1 or VM@TIME (else all)
    #[arg(value_name = "BACKUP")]
    pub backup: Option<String>,
    /// Read and hash every byte that the backups need
    #[arg(long)]
    pub read_data: bool,
}

/// Runs it.
pub fn run(context: &Context, arguments: &VerifyArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let ids = wanted(context, store.as_ref(), arguments)?;
    let result = store.verify(&ids, arguments.read_data, &|done, total| context.screen.progress("verify", done, total))?;
    context.screen.finished("verify");
    result.damages.iter().for_each(|damage| context.screen.finding(&human(damage)));
    if context.global.json {
        show_json(&result)?;
    } else {
        let read = if arguments.read_data { format!(", {} read and hashed", text::size(result.bytes_read)) } else { String::new() };
        output::text(&format!("{} of {} backups are whole{read}\n", result.good.len(), result.good.len() + hit(&result).len()))?;
    }
    Ok(context.screen.outcome())
}

/// One backup, or all of them; those whose snapshot cannot be read are findings already.
fn wanted(context: &Context, store: &dyn Store, arguments: &VerifyArguments) -> Result<Vec<BackupId>, Failure> {
    if let Some(backup) = &arguments.backup {
        return Ok(vec![store::select(context, store, backup)?.id]);
    }
    Ok(Vec::new())
}

fn hit(result: &Verification) -> Vec<&BackupId> {
    let mut hit: Vec<&BackupId> = result.damages.iter().flat_map(|damage| &damage.backups).collect();
    hit.sort_unstable();
    hit.dedup();
    hit
}

fn human(damage: &Damage) -> String {
    let backups = damage.backups.iter().map(BackupId::short).collect::<Vec<_>>().join(", ");
    let hits = if backups.is_empty() { "hits no backup".to_owned() } else { format!("hits backups {backups}") };
    format!("{}: {} ({hits})", damage.subject, damage.problem)
}

fn show_json(result: &Verification) -> Result<(), Failure> {
    for damage in &result.damages {
        output::json(&json!({"event": "damage", "subject": damage.subject, "problem": damage.problem, "backups": damage.backups}))?;
    }
    output::json(&json!({"event": "finished", "good": result.good, "damaged": hit(result), "bytes_read": result.bytes_read}))
}
