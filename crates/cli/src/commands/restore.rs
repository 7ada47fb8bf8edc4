//! `keepmark restore BACKUP --to DIR`: disks of a backup as files or onto a device.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use keepmark_engine::restore::{Format, RestoreJob, restore};
use keepmark_model::seam::Store;
use keepmark_model::{DiskName, Failure};
use serde_json::json;

use crate::context::{self, Context};
use crate::exit::Outcome;
use crate::{output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark restore web01@latest --to /restored                   every disk, as /restored/<disk>.raw
  keepmark restore 3f9a1c0d --to /restored --format qcow2 --disk vda
  keepmark restore web01@-1 --disk vda --to /dev/vg0/web01 --force   onto a block device

Every byte is verified while it is written; a file gets its name only when it is complete.";

/// Get disks of a backup back, as new files or onto a block device.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RestoreArguments {
    /// An id or its first letters, VM@latest, VM@-1 or VM@TIME
    #[arg(value_name = "BACKUP")]
    pub backup: String,
    /// A folder (made if it is not there); with one --disk also a block device or an existing file
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Format of the new images
    #[arg(long, value_enum, default_value_t = FormatArgument::Raw)]
    pub format: FormatArgument,
    /// Only this disk (may be given several times)
    #[arg(long = "disk", value_name = "NAME", value_parser = DiskName::new)]
    pub disks: Vec<DiskName>,
    /// Overwrite what is there
    #[arg(long)]
    pub force: bool,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArgument {
    /// The bytes as the guest saw them, sparse
    Raw,
    /// A qcow2 image
    Qcow2,
}

/// Runs it.
pub fn run(context: &Context, arguments: &RestoreArguments) -> Result<Outcome, Failure> {
    let format = match arguments.format {
        FormatArgument::Raw => Format::Raw,
        FormatArgument::Qcow2 => Format::Qcow2,
    };
    let store = store::open(context)?;
    let chosen = store::select(context, &store, &arguments.backup)?;
    let reader = store.open(&chosen.id)?;
    let job =
        RestoreJob { to: arguments.to.clone(), format, disks: arguments.disks.clone(), force: arguments.force, run_dir: context.run_dir() };
    let started = (context::world().elapsed)();
    let restored = restore(reader.as_ref(), &job, &context.screen)?;
    let took = (context::world().elapsed)().saturating_sub(started);
    if context.global.json {
        output::json(
            &json!({"event": "finished", "backup": chosen.id, "vm": chosen.manifest.vm.name, "duration_ms": took.as_millis(), "disks": restored}),
        )?;
    } else {
        let line = |disk: &keepmark_engine::restore::RestoredDisk| {
            format!(
                "restored {} ({}, {} of data) to {}\n",
                disk.name,
                text::size(disk.size),
                text::size(disk.data_bytes),
                disk.path.display()
            )
        };
        output::text(&restored.iter().map(line).collect::<String>())?;
    }
    Ok(context.screen.outcome())
}
