//! `keepmark consolidate BACKUP`: makes a full out of a chain, without touching the VM.

use clap::Args;
use keepmark_model::Failure;
use serde_json::json;

use crate::context::{self, Context};
use crate::exit::Outcome;
use crate::{output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark consolidate web01@latest            a full in the place of the newest backup; the VM is not asked for anything
  keepmark consolidate 3f9a1c0d

In an image store the backup's images take in what those below them hold, so that it needs no other backup any more. It restores to
the same bytes as before. In a repository every backup is whole by itself, and there is nothing to do.";

/// Make a backup need no other one (a synthetic full).
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ConsolidateArguments {
    /// An id or its first letters, VM@latest, VM@-1 or VM@TIME
    #[arg(value_name = "BACKUP")]
    pub backup: String,
}

/// Runs it.
pub fn run(context: &Context, arguments: &ConsolidateArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let chosen = store::select(context, store.as_ref(), &arguments.backup)?;
    let started = (context::world().elapsed)();
    store.consolidate(&chosen.id, &context.screen)?;
    let took = (context::world().elapsed)().saturating_sub(started).as_millis();
    if context.global.json {
        output::json(&json!({"event": "finished", "backup": chosen.id, "vm": chosen.manifest.vm.name, "duration_ms": took}))?;
    } else {
        let took = text::millis(u64::try_from(took).unwrap_or(u64::MAX));
        output::text(&format!("backup {} needs no other one (took {took})\n", chosen.id.short()))?;
    }
    Ok(context.screen.outcome())
}
