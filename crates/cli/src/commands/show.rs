//! `keepmark show BACKUP`: what is known of one backup.

use clap::Args;
use keepmark_model::Failure;
use keepmark_model::manifest::StoredBackup;

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark show 3f9a1c0d
  keepmark show web01@latest --json | jq .disks";

/// Show what is known of one backup.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ShowArguments {
    /// An id or its first letters, VM@latest, VM@-1 or VM@TIME
    #[arg(value_name = "BACKUP")]
    pub backup: String,
}

/// Runs it.
pub fn run(context: &Context, arguments: &ShowArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let backup = store::select(context, &store, &arguments.backup)?;
    if context.global.json {
        output::json(&as_json(&backup)?)?;
    } else {
        output::text(&human(&backup))?;
    }
    Ok(context.screen.outcome())
}

fn as_json(backup: &StoredBackup) -> Result<serde_json::Value, Failure> {
    let failed = |error| Failure::new(keepmark_model::FailureClass::Failed, error);
    let mut object = serde_json::to_value(&backup.manifest).map_err(failed)?;
    if let Some(fields) = object.as_object_mut() {
        fields.insert("id".into(), backup.id.as_str().into());
        fields.insert("size".into(), backup.manifest.size().into());
        fields.insert("stored_bytes".into(), backup.manifest.stored_bytes().into());
    }
    Ok(object)
}

fn human(backup: &StoredBackup) -> String {
    let manifest = &backup.manifest;
    let mut lines = format!("backup       {}\n", backup.id);
    let mut line = |label: &str, value: &str| lines.push_str(&format!("{label:12} {value}\n"));
    line("VM", &manifest.vm.name);
    line("UUID", manifest.vm.uuid.as_deref().unwrap_or("unknown"));
    line("time", &format!("{} ({})", text::time(manifest.time), manifest.time));
    line("kind", &format!("{} ({})", manifest.kind.word(), manifest.reason));
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
    manifest.skipped.iter().for_each(|skipped| line("left out", &format!("{}: {}", skipped.name, skipped.why)));
    manifest.findings.iter().for_each(|finding| line("finding", finding));
    lines
}
