//! `keepmark init STORE`: makes a new, empty store.

use clap::Args;
use keepmark_model::Failure;
use serde_json::json;

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store};

const EXAMPLES: &str = "\
Examples:
  keepmark init /backup/vms                       asks for a password
  keepmark init repo:/backup/vms --password-file /etc/keepmark/password
  keepmark init images:/backup/images             plain qcow2 images, not encrypted

Keep a repository's password in a second place: without it nobody can read the backups.";

/// Make a new store: an encrypted, deduplicated repository in restic's format, or a folder of plain qcow2 images.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InitArguments {
    /// Where to make it: a folder that does not exist or is empty, with images: before it for an image store (else --store)
    #[arg(value_name = "STORE")]
    pub place: Option<String>,
}

/// Runs it.
pub fn run(context: &Context, arguments: &InitArguments) -> Result<Outcome, Failure> {
    let place = store::place(context, arguments.place.as_deref())?;
    let id = store::create(context, &place)?;
    if context.global.json {
        output::json(&json!({"event": "initialized", "store": place.path(), "id": id}))?;
    } else {
        output::text(&format!("made a new store at {} (id {})\n", place, id.as_str().get(..8).unwrap_or(id.as_str())))?;
    }
    Ok(Outcome::Done)
}
