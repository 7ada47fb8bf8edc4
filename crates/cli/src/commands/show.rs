//! `keepmark show BACKUP`: what is known of one backup.

use clap::Args;
use keepmark_model::failure::in_one_line;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::seam::Monitor;
use keepmark_model::{DiskName, Failure};

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark show 3f9a1c0d
  keepmark show web01@latest --json | jq .disks
  keepmark show web01@latest --file domain.xml          the VM's definition, as it was";

/// Show what is known of one backup.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArguments {
    /// An id or its first letters, VM@latest, VM@-1 or VM@TIME
    #[arg(value_name = "BACKUP")]
    pub backup: String,
    /// Print a file that was saved beside the disks, as it is, and nothing else
    #[arg(long, value_name = "NAME")]
    pub file: Option<String>,
}

/// Runs it.
pub fn run(context: &Context, arguments: &ShowArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let backup = store::select(context, store.as_ref(), &arguments.backup)?;
    let reader = store.open(&backup.id);
    if let Some(name) = &arguments.file {
        output::bytes(&reader?.file(name)?)?;
        return Ok(context.screen.outcome());
    }
    // What is known of a damaged backup is told all the same.
    let files = reader.map(|reader| reader.files()).unwrap_or_else(|failure| {
        context.screen.finding(&format!("the backup cannot be opened: {}", in_one_line(&failure)));
        Vec::new()
    });
    if context.global.json {
        output::json(&as_json(&backup, files)?)?;
    } else {
        output::text(&human(&backup, &files))?;
    }
    Ok(context.screen.outcome())
}

fn as_json(backup: &StoredBackup, files: Vec<String>) -> Result<serde_json::Value, Failure> {
    let failed = |error| Failure::new(keepmark_model::FailureClass::Failed, error);
    let mut object = serde_json::to_value(&backup.manifest).map_err(failed)?;
    if let Some(fields) = object.as_object_mut() {
        fields.insert("id".into(), backup.id.as_str().into());
        fields.insert("files".into(), files.into());
        fields.insert("size".into(), backup.manifest.size().into());
        fields.insert("stored_bytes".into(), backup.manifest.stored_bytes().into());
    }
    Ok(object)
}

fn human(backup: &StoredBackup, files: &[String]) -> String {
    let manifest = &backup.manifest;
    let mut lines = format!("backup       {}\n", backup.id);
    let mut line = |label: &str, value: &str| lines.push_str(&format!("{label:12} {value}\n"));
    line("VM", &manifest.vm.name);
    line("UUID", manifest.vm.uuid.as_deref().unwrap_or("unknown"));
    line("time", &format!("{} ({})", text::time(manifest.time), manifest.time));
    line("kind", &format!("{} ({})", manifest.kind.word(), manifest.reason));
    if let Some(partial) = manifest.partial() {
        let left_out: Vec<&str> = manifest.left_out.iter().map(DiskName::as_str).collect();
        line("has", &format!("{partial}; the VM also had {}", left_out.join(", ")));
    }
    line("consistency", manifest.consistency.word());
    line("checkpoint", manifest.checkpoint.as_ref().map_or("none", |name| name.as_str()));
    line("pause", &format!("{} ms", manifest.pause_ms));
    line("frozen", &manifest.freeze_ms.map_or_else(|| "not".to_owned(), |ms| format!("{ms} ms")));
    line("took", &text::millis(manifest.duration_ms));
    line("hypervisor", &format!("{}, written by {}", manifest.hypervisor, manifest.program));
    for disk in &manifest.disks {
        line(
            "disk",
            &format!(
                "{} {} {}: {} ({}), changed {}, read {}, stored {}; image {}",
                disk.name,
                text::size(disk.size.0),
                disk.format,
                disk.kind.word(),
                disk.reason,
                text::size(disk.dirty_bytes),
                text::size(disk.read_bytes),
                text::size(disk.stored_bytes),
                disk.image
            ),
        );
    }
    line("files", &files.join(", "));
    manifest.skipped.iter().for_each(|skipped| line("left out", &format!("{}: {}", skipped.name, skipped.why)));
    manifest.findings.iter().for_each(|finding| line("finding", finding));
    lines
}
