//! `keepmark backup VM`: one backup of one VM.

use clap::{Args, ValueEnum};
use keepmark_engine::BackupReport;
use keepmark_engine::backup::{BackupJob, backup};
use keepmark_model::audit::AuditWish;
use keepmark_model::plan::{Request, WantedKind};
use keepmark_model::{DiskName, Failure, FailureClass};

use crate::context::{self, Context};
use crate::exit::Outcome;
use crate::vm::VmArguments;
use crate::{hypervisor, output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark backup qmp:/run/web01.qmp                      incremental where provably complete
  keepmark backup qmp:/run/web01.qmp --disk vda --kind full
  keepmark backup image:vda=/vms/web01.qcow2 --name web01 powered off
  keepmark backup qmp:/run/web01.qmp --json | tail -n 1 | jq .kind

The kind is chosen by what QEMU's bitmaps prove: 'keepmark plan VM' tells it beforehand, with the reason.
--no-checkpoint leaves no mark in the VM: the next backup builds on an earlier one, or reads everything.";

/// Back a VM up: incrementally where that is provably complete, else by reading and comparing everything.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BackupArguments {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArguments,
    /// What, and how.
    #[command(flatten)]
    pub request: RequestArguments,
    /// Blocks called clean that are read again and compared: off, N chunks or P% of each disk (default: under 5 % of the cost)
    #[arg(long, value_name = "N|P%|off", value_parser = audit_wish)]
    pub audit: Option<AuditWish>,
}

fn audit_wish(text: &str) -> Result<AuditWish, String> {
    let wrong = |_| format!("{text:?} is neither 'off', a number of chunks nor a percentage such as 5%");
    match text.strip_suffix('%') {
        _ if text == "off" => Ok(AuditWish::Off),
        Some(percent) => percent.parse().map_err(wrong).map(AuditWish::Percent),
        None => text.parse().map_err(wrong).map(AuditWish::Chunks),
    }
}

/// Kind, checkpoint and disks.
#[derive(Debug, Args)]
pub struct RequestArguments {
    /// How to capture
    #[arg(long, value_enum, default_value_t = KindArgument::Auto)]
    pub kind: KindArgument,
    /// Start no checkpoint
    #[arg(long)]
    pub no_checkpoint: bool,
    /// Only this disk (may be given several times)
    #[arg(long = "disk", value_name = "NAME")]
    pub disks: Vec<String>,
}

/// `--kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArgument {
    /// Incremental where provably complete, else what it takes
    Auto,
    /// Read everything
    Full,
    /// As auto, said explicitly
    Incremental,
}

impl RequestArguments {
    /// As the planner wants it.
    ///
    /// # Errors
    /// When a disk's name cannot be one.
    pub fn request(&self) -> Result<Request, Failure> {
        let kind = match self.kind {
            KindArgument::Auto => WantedKind::Auto,
            KindArgument::Full => WantedKind::Full,
            KindArgument::Incremental => WantedKind::Incremental,
        };
        Ok(Request { kind, checkpoint: !self.no_checkpoint, disks: disk_names(&self.disks)? })
    }
}

/// Names of disks from the command line.
///
/// # Errors
/// When one cannot be a disk's name.
pub fn disk_names(names: &[String]) -> Result<Vec<DiskName>, Failure> {
    names.iter().map(|name| DiskName::new(name).map_err(|error| Failure::new(FailureClass::Usage, error))).collect()
}

/// Runs it.
pub fn run(context: &Context, arguments: &BackupArguments) -> Result<Outcome, Failure> {
    let request = arguments.request.request()?;
    let store = store::open(context)?;
    let mut vm = hypervisor::open(context, &arguments.vm)?;
    let job = BackupJob {
        request,
        freeze: context.freeze(),
        audit: arguments.audit.unwrap_or(AuditWish::Default),
        hold_checkpoints: context.hold_checkpoints(),
        program: context::program(),
    };
    let result = backup(vm.as_mut(), &store, &job, context::world(), &context.screen);
    let closed = vm.close();
    let report = result?;
    if let Err(failure) = closed {
        use keepmark_model::seam::Monitor;
        context.screen.finding(&format!("the new checkpoint may be lost, then the next backup reads everything: {failure}"));
    }
    if context.global.json {
        output::json(&report)?;
    } else {
        output::text(&human(&report))?;
    }
    Ok(context.screen.outcome())
}

fn human(report: &BackupReport) -> String {
    let mut lines = format!("backup {} of {}: {} ({})\n", report.backup.short(), report.vm, report.kind, report.reason);
    for disk in &report.disks {
        lines.push_str(&format!(
            "  {:12} {:>10}  {:12} changed {:>10}, read {:>10}, stored {:>10}\n",
            disk.name,
            text::size(disk.size),
            disk.kind,
            text::size(disk.dirty_bytes),
            text::size(disk.read_bytes),
            text::size(disk.stored_bytes)
        ));
    }
    let checkpoint = report.checkpoint.as_deref().unwrap_or("none");
    lines.push_str(&format!(
        "  {}-consistent, guest paused {} ms, took {}, checkpoint {checkpoint}\n",
        report.consistency,
        report.pause_ms,
        text::millis(report.duration_ms)
    ));
    lines
}
