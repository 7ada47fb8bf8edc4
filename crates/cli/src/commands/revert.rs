//! `keepmark revert VM BACKUP`: a VM's own disks go back to a backup, in place, and only what differs is written.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use keepmark_engine::RevertReport;
use keepmark_engine::backup::BackupJob;
use keepmark_engine::push::Mode;
use keepmark_engine::revert::{RevertJob, RevertedDisk, check, preview, revert};
use keepmark_model::audit::AuditWish;
use keepmark_model::choice::DiskChoice;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::plan::{Request, WantedKind};
use keepmark_model::revert::Wish;
use keepmark_model::seam::{Hypervisor, Monitor, Store};
use keepmark_model::writing::Rest;
use keepmark_model::{DiskName, Failure, FailureClass};

use crate::context::{self, Context};
use crate::exit::Outcome;
use crate::hypervisor::About;
use crate::vm::VmArguments;
use crate::{hypervisor, output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark revert web01 web01@2026-11-20 --dry-run       what would be written, disk by disk, and why; changes nothing
  keepmark revert web01 web01@-1 --shutdown              shut down, back up as it is, go back, start again
  keepmark revert image:/vms/web01.qcow2 --name web01 web01@latest
  keepmark revert qmp:/run/web01.qmp 3f9a1c0d --disk vda --shutdown

Only what differs is written, by QEMU as if the guest had written it: the next backup is an incremental, and all backups stay. Before that
the VM is backed up as it is, so that you can go back again; --no-safety-backup goes without. Never under a running guest: --shutdown (or
your answer on a terminal) powers it down, and it is started again afterwards; one that does not obey goes on running.

While it is written, an image file is called IMAGE.keepmark-reverting-BACKUP, so that nobody can start it half reverted. If keepmark dies
then, 'keepmark revert' with this or another backup finishes it. Disks that the backup has not stay as they are.";

/// Take a VM's own disks back to a backup, in place: only what differs is written, and the sequence of backups goes on.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RevertArguments {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArguments,
    /// An id or its first letters, VM@latest, VM@-1 or VM@TIME
    #[arg(value_name = "BACKUP")]
    pub backup: String,
    /// Only this disk (may be given several times); all of the backup's without
    #[arg(long = "disk", value_name = "NAME", value_parser = DiskName::new)]
    pub disks: Vec<DiskName>,
    /// Say what would be written; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not back the VM up as it is before
    #[arg(long)]
    pub no_safety_backup: bool,
    /// Read and compare whole disks, whatever their bitmaps say
    #[arg(long)]
    pub compare_all: bool,
    /// Power a running guest down for it, and start it again
    #[arg(long)]
    pub shutdown: bool,
    /// How long the guest may take to power down, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub shutdown_timeout: u64,
}

/// Marks backups that were made before a revert.
const SAFETY_TAG: &str = "before-revert";

#[derive(Debug, thiserror::Error)]
enum RevertError {
    #[error("the VM runs, and is to go on running")]
    Declined,
    #[error("cannot ask whether the VM may be shut down")]
    Ask(#[source] std::io::Error),
}

/// Runs it.
pub fn run(context: &Context, arguments: &RevertArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let job = RevertJob {
        target: store::select(context, store.as_ref(), &arguments.backup)?,
        wish: Wish { only: arguments.disks.clone(), compare_all: arguments.compare_all },
        safety: (!arguments.no_safety_backup).then(|| safety(context)),
    };
    let report = if arguments.dry_run {
        let mut vm = hypervisor::open(context, &arguments.vm, Some(store.as_ref()))?;
        let found = preview(vm.as_mut(), store.as_ref(), &job, context::world(), &context.screen);
        vm.close()?;
        found?
    } else {
        go_back(context, arguments, store.as_ref(), &job)?
    };
    if context.global.json {
        output::json(&report)?
    } else {
        output::text(&human(&report))?
    }
    Ok(context.screen.outcome())
}

/// Whatever the scheme says: the guest waits for it.
fn safety(context: &Context) -> BackupJob {
    BackupJob {
        request: Request { kind: WantedKind::Incremental, checkpoint: true, disks: DiskChoice::All },
        tags: vec![SAFETY_TAG.to_owned()],
        freeze: context.freeze(),
        mode: Mode::Auto,
        audit: AuditWish::Default,
        hold_checkpoints: context.hold_checkpoints(),
        program: context::program(),
    }
}

fn go_back(context: &Context, arguments: &RevertArguments, store: &dyn Store, job: &RevertJob) -> Result<RevertReport, Failure> {
    let mut vm = hypervisor::open_as(context, &arguments.vm.vm, About { half_reverted: true, ..About::of(&arguments.vm, Some(store)) })?;
    let otherwise = check(vm.as_mut(), store, job)?;
    if vm.rest()? == Rest::Running && (arguments.shutdown || confirmed(&vm.facts()?.identity.name, &job.target)?) {
        otherwise.iter().for_each(|text| context.screen.note(text));
        context.screen.note("shutting the guest down");
        let within = Duration::from_secs(arguments.shutdown_timeout);
        vm = vm.power_down(within, &|| context.screen.interrupted())?;
    }
    let result = revert(vm.as_mut(), store, job, context::world(), &context.screen);
    leave(context, vm, result)
}

/// Starts again what was shut down, unless its disks are half written.
fn leave(context: &Context, mut vm: Box<dyn Hypervisor>, result: Result<RevertReport, Failure>) -> Result<RevertReport, Failure> {
    let is_half = !vm.unfinished().is_ok_and(|left| left.is_empty());
    let by_us = vm.rest().is_ok_and(|rest| rest == Rest::Resting { by_us: true });
    let left = if by_us && !is_half { vm.start() } else { vm.close() };
    let report = result?;
    match left {
        Ok(()) if by_us => context.screen.note("the guest is started again"),
        Ok(()) => {}
        Err(failure) => context.screen.finding(&format!("reverted, but it does not start: {failure}")),
    }
    Ok(report)
}

/// On a terminal, asks; elsewhere the engine refuses and names the option.
fn confirmed(vm: &str, target: &StoredBackup) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let time = text::time(target.manifest.time);
    let question = format!("{vm} runs. Shut it down, take it back to {} of {time}, and start it again? [y/N] ", target.id.short());
    let failed = |error| Failure::new(FailureClass::Failed, RevertError::Ask(error));
    std::io::stderr().write_all(question.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(failed)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(true) } else { Err(Failure::new(FailureClass::Usage, RevertError::Declined)) }
}

fn human(report: &RevertReport) -> String {
    let (done, would) = if report.event == "plan" { ("would go back", "would be ") } else { ("went back", "") };
    let mut lines = format!("{} {done} to {} of {}\n", report.vm, report.backup.short(), text::time(report.time));
    for disk in &report.disks {
        let RevertedDisk { name, size, reason, compared_bytes, written_bytes, zeroed_bytes } = disk;
        let [size, compared, written, zeroed] = [size, compared_bytes, written_bytes, zeroed_bytes].map(|bytes| text::size(*bytes));
        lines.push_str(&format!("  {name:12} {size:>10}  {would}written {written}, {would}zeroed {zeroed}; {compared} compared\n"));
        lines.push_str(&format!("  {:12} {:>10}  {reason}\n", "", ""));
    }
    for name in &report.kept {
        lines.push_str(&format!("  {name:12} stays as it is\n"));
    }
    if let Some(safety) = &report.safety_backup {
        lines.push_str(&format!("  as it was before, it is backup {}\n", safety.short()));
    }
    lines.push_str(&format!("  took {}\n", text::millis(report.duration_ms)));
    lines
}
