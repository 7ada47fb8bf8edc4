//! `keepmark backup VM...`: one backup of each VM that was named.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum};
use keepmark_engine::BackupReport;
use keepmark_engine::backup::{BackupJob, backup};
use keepmark_engine::push::Mode;
use keepmark_model::audit::AuditWish;
use keepmark_model::choice::DiskChoice;
use keepmark_model::plan::{Request, WantedKind};
use keepmark_model::seam::{Hypervisor, Monitor, Store};
use keepmark_model::{DiskName, Failure, FailureClass};

use crate::context::{self, Context};
use crate::exit::Outcome;
use crate::hypervisor::About;
use crate::vm::{IdentityArguments, ImageArguments, VmPlace};
use crate::{calendar, fleet, hypervisor, output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark backup qmp:/run/web01.qmp                      what the scheme says is due
  keepmark backup qmp:/run/web01.qmp --disk vda --kind full
  keepmark backup web01 --exclude-disk vdb                all of a libvirt domain's disks but one
  keepmark backup image:vda=/vms/web01.qcow2 --name web01 powered off
  keepmark backup qmp:/run/web01.qmp --json | tail -n 1 | jq .kind
  keepmark backup 'web*' db01 --jobs 4                     several; a bad one does not stop the others

The scheme says which kind is due, and QEMU's bitmaps what of it they can prove: 'keepmark plan VM' tells it beforehand, with the reasons.
--no-checkpoint leaves no mark in the VM: the next backup builds on an earlier one, or reads everything.";

/// Back a VM up: as the scheme says, by what changed where that is provably complete, else by reading and comparing everything.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BackupArguments {
    /// A libvirt domain's NAME (or a pattern such as 'web*') or UUID, qmp:SOCKET (running) or image:[LABEL=]FILE[,[LABEL=]FILE] (powered
    /// off); several are backed up beside each other
    #[arg(id = "vm", value_name = "VM", required = true)]
    pub vms: Vec<VmPlace>,
    /// Whose it is.
    #[command(flatten)]
    pub identity: IdentityArguments,
    /// What its images are.
    #[command(flatten)]
    pub images: ImageArguments,
    /// How many VMs at a time
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN.saturating_add(1))]
    pub jobs: NonZeroUsize,
    /// What, and how.
    #[command(flatten)]
    pub request: RequestArguments,
    /// Who moves the data: keepmark, reading the frozen disks (pull), or QEMU, writing an image store's images itself (push)
    /// [default: push where VM and store can at no price for the guest, else pull]
    #[arg(long, value_enum)]
    pub mode: Option<ModeArgument>,
    /// Compress the new images (an image store's; a repository always compresses)
    #[arg(long)]
    pub compress: bool,
    /// Blocks called clean that are read again and compared: off, N chunks or P% of each disk (default: under 5 % of the cost)
    #[arg(long, value_name = "N|P%|off", value_parser = audit_wish)]
    pub audit: Option<AuditWish>,
    /// A word for this backup, by which 'forget --keep-tag' can keep it (may be given several times)
    #[arg(long = "tag", value_name = "TAG", value_parser = tag)]
    pub tags: Vec<String>,
}

fn tag(text: &str) -> Result<String, String> {
    let own = ["keepmark", "vm", "kind", "checkpoint"].contains(&text.split(':').next().unwrap_or_default());
    match text {
        "" => Err("a tag cannot be empty".to_owned()),
        _ if own => Err(format!("{text:?} would look like a tag of keepmark's own")),
        _ if text.contains([',', '\n']) => Err("a tag has no comma and no line break".to_owned()),
        _ => Ok(text.to_owned()),
    }
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
    /// Which disks.
    #[command(flatten)]
    pub disks: DiskArguments,
}

/// Which of a VM's disks; all without a word.
#[derive(Debug, Args)]
#[group(multiple = true)]
pub struct DiskArguments {
    /// Only this disk (may be given several times)
    #[arg(long = "disk", value_name = "NAME", value_parser = DiskName::new)]
    pub only: Vec<DiskName>,
    /// All disks but this one (may be given several times)
    #[arg(long = "exclude-disk", value_name = "NAME", value_parser = DiskName::new, conflicts_with = "only")]
    pub except: Vec<DiskName>,
    /// All disks that can be backed up, as without a word
    #[arg(long, conflicts_with_all = ["only", "except"])]
    pub all_disks: bool,
}

impl DiskArguments {
    fn choice(&self) -> DiskChoice {
        match (self.only.as_slice(), self.except.as_slice()) {
            ([], []) => DiskChoice::All,
            ([], except) => DiskChoice::Except(except.to_vec()),
            (only, _) => DiskChoice::Only(only.to_vec()),
        }
    }
}

/// `--kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KindArgument {
    /// What the scheme says is due
    Auto,
    /// Read everything
    Full,
    /// What changed since the last full, where that is provably complete, else what it takes
    Differential,
    /// What changed since the last backup, where that is provably complete, else what it takes
    Incremental,
}

/// `--mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeArgument {
    /// keepmark reads the frozen disks and writes the store
    Pull,
    /// QEMU writes the store's images
    Push,
}

impl From<ModeArgument> for Mode {
    fn from(argument: ModeArgument) -> Self {
        match argument {
            ModeArgument::Pull => Self::Pull,
            ModeArgument::Push => Self::Push,
        }
    }
}

impl RequestArguments {
    /// As the planner wants it.
    ///
    /// # Errors
    /// When the scheme is needed and its configuration is wrong.
    pub fn request(&self, context: &Context) -> Result<Request, Failure> {
        let kind = match self.kind {
            KindArgument::Auto => WantedKind::Auto(Box::new(calendar::scheme(&context.config.scheme)?)),
            KindArgument::Full => WantedKind::Full,
            KindArgument::Differential => WantedKind::Differential,
            KindArgument::Incremental => WantedKind::Incremental,
        };
        Ok(Request { kind, checkpoint: !self.no_checkpoint, disks: self.disks.choice() })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("--name and --uuid name one VM, and {given} were given")]
struct OneName {
    given: usize,
}

/// Runs it.
pub fn run(context: &Context, arguments: &BackupArguments) -> Result<Outcome, Failure> {
    let request = arguments.request.request(context)?;
    let places = hypervisor::expand(context, &arguments.vms)?;
    let given = places.len();
    let IdentityArguments { name, uuid } = &arguments.identity;
    if given > 1 && (name.is_some() || uuid.is_some()) {
        return Err(Failure::new(FailureClass::Usage, OneName { given }));
    }
    let store = store::open_for_writing(context, arguments.compress)?;
    let job = BackupJob {
        request,
        freeze: context.freeze(),
        mode: arguments.mode.map_or(Mode::Auto, Mode::from),
        audit: arguments.audit.unwrap_or(AuditWish::Default),
        hold_checkpoints: context.hold_checkpoints(),
        tags: arguments.tags.clone(),
        program: context::program(),
    };
    let about = About { identity: &arguments.identity, images: &arguments.images, store: Some(store.as_ref()), half_reverted: false };
    match places.as_slice() {
        [place] => {
            let vm = hypervisor::open_as(context, place, about)?;
            show(context, &back_up(vm, store.as_ref(), &job, &context.screen)?)?;
        }
        places => fleet::run(context, places, arguments.jobs, &|place, monitor| {
            let report = back_up(hypervisor::open_as(context, place, about)?, store.as_ref(), &job, monitor)?;
            show(context, &report).map(|()| report)
        })?,
    }
    Ok(context.screen.outcome())
}

fn back_up(mut vm: Box<dyn Hypervisor>, store: &dyn Store, job: &BackupJob, monitor: &dyn Monitor) -> Result<BackupReport, Failure> {
    let result = backup(vm.as_mut(), store, job, context::world(), monitor);
    let closed = vm.close();
    let report = result?;
    if let Err(failure) = closed {
        monitor.finding(&format!("the new checkpoint may be lost, then the next backup reads everything: {failure}"));
    }
    Ok(report)
}

fn show(context: &Context, report: &BackupReport) -> Result<(), Failure> {
    if context.global.json { output::json(report) } else { output::text(&human(report)) }
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
