//! `keepmark adopt-copy STORE`: makes the copy of a store a store of its own.

use clap::Args;
use keepmark_model::Failure;
use serde_json::json;

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store};

const EXAMPLES: &str = "\
Examples:
  cp -a /backup/vms /mnt/usb/vms && keepmark adopt-copy /mnt/usb/vms
  keepmark adopt-copy images:/backup/new-disk      moved to another disk by copying: the same command

Its backups stay as they are, and the next one is an incremental. The original's checkpoints stay the original's.";

/// Make the copy of a store a store of its own, so that backups into both do not disturb each other.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AdoptCopyArguments {
    /// The copy (else --store)
    #[arg(value_name = "STORE")]
    pub place: Option<String>,
}

/// Runs it.
pub fn run(context: &Context, arguments: &AdoptCopyArguments) -> Result<Outcome, Failure> {
    let place = store::place(context, arguments.place.as_deref())?;
    let id = store::adopt(context, &place)?;
    if context.global.json {
        output::json(&json!({"event": "adopted", "store": place.path(), "id": id}))?;
    } else {
        output::text(&format!("the store at {} is one of its own now (id {})\n", place, id.as_str().get(..8).unwrap_or(id.as_str())))?;
    }
    Ok(Outcome::Done)
}
