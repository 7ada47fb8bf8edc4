//! `keepmark pin BACKUP...` and `keepmark unpin BACKUP...`: whether a backup stays whatever the rules of retention say.

use clap::Args;
use keepmark_model::Failure;
use serde_json::json;

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store};

const EXAMPLES: &str = "\
Examples:
  keepmark pin web01@latest           stays until it is unpinned: 'forget' keeps it, 'delete' refuses it
  keepmark unpin 3f9a1c0d
  keepmark list web01                 pinned ones are marked \"pinned\"";

/// Say that backups stay, or that they need not.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PinArguments {
    /// Ids or their first letters, VM@latest, VM@-1 or VM@TIME
    #[arg(value_name = "BACKUP", required = true)]
    pub backups: Vec<String>,
}

/// Runs it.
pub fn run(context: &Context, arguments: &PinArguments, pinned: bool) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    for text in &arguments.backups {
        let backup = store::select(context, store.as_ref(), text)?;
        store.pin(&backup.id, pinned)?;
        if context.global.json {
            output::json(&json!({"event": "pin", "id": backup.id, "pinned": pinned}))?;
        } else {
            output::text(&format!("backup {} is {}\n", backup.id.short(), if pinned { "pinned" } else { "not pinned any more" }))?;
        }
    }
    Ok(context.screen.outcome())
}
