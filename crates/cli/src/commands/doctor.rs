//! `keepmark doctor [VM]`: checks host, store and VM, and names what would help.

use std::process::Command;

use clap::Args;
use keepmark_model::Failure;
use keepmark_model::facts::{Persistence, VmFacts};
use keepmark_model::seam::Monitor;
use keepmark_qemu::folder::HeldFolder;
use serde_json::json;

use crate::context::Context;
use crate::exit::Outcome;
use crate::hypervisor::About;
use crate::vm::{IdentityArguments, ImageArguments, VmPlace};
use crate::{hypervisor, output, store};

const EXAMPLES: &str = "\
Examples:
  keepmark doctor
  keepmark --store /backup/vms doctor qmp:/run/web01.qmp

Every line is 'ok' or 'problem'; a problem names what would help and ends in exit code 3.";

/// Check this host, the store and a VM, and name what would help.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct DoctorArguments {
    /// A libvirt domain's NAME or UUID, qmp:SOCKET or image:[LABEL=]FILE[,[LABEL=]FILE]
    #[arg(value_name = "VM")]
    pub vm: Option<VmPlace>,
    /// Whose it is.
    #[command(flatten)]
    pub identity: IdentityArguments,
    /// What its images are.
    #[command(flatten)]
    pub images: ImageArguments,
}

/// One thing that was checked.
#[derive(Clone)]
struct Check {
    subject: String,
    /// What is there, or what is wrong.
    text: String,
    /// What would help, where something is wrong.
    problem: Option<String>,
}

impl Check {
    fn ok(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), text: text.into(), problem: None }
    }

    fn problem(subject: impl Into<String>, text: impl Into<String>, help: impl Into<String>) -> Self {
        Self { subject: subject.into(), text: text.into(), problem: Some(help.into()) }
    }

    fn failure(subject: &str, failure: &Failure) -> Self {
        let help = failure.hint().unwrap_or("see the message").to_owned();
        Self::problem(subject, keepmark_model::failure::in_one_line(failure), help)
    }
}

/// Runs it.
pub fn run(context: &Context, arguments: &DoctorArguments) -> Result<Outcome, Failure> {
    let mut checks = vec![program("qemu-img"), program("qemu-storage-daemon")];
    checks.extend(folders(context));
    checks.extend(store_checks(context));
    checks.extend(vm_checks(context, arguments));
    checks.iter().try_for_each(|check| show(context, check))?;
    let problems = checks.iter().filter(|check| check.problem.is_some()).count();
    if problems > 0 {
        context.screen.finding(&format!("{problems} of {} checks found a problem", checks.len()));
    }
    Ok(context.screen.outcome())
}

fn show(context: &Context, check: &Check) -> Result<(), Failure> {
    if context.global.json {
        return output::json(
            &json!({"event": "check", "subject": check.subject, "ok": check.problem.is_none(), "text": check.text, "help": check.problem}),
        );
    }
    let help = check.problem.as_ref().map_or_else(String::new, |help| format!("\n         {:22} -> {help}", ""));
    let state = if check.problem.is_none() { "ok" } else { "problem" };
    output::text(&format!("{state:8} {:22} {}{help}\n", check.subject, check.text))
}

fn program(name: &str) -> Check {
    match Command::new(name).arg("--version").output() {
        Ok(result) => Check::ok(name, String::from_utf8_lossy(&result.stdout).lines().next().unwrap_or_default()),
        Err(error) => Check::problem(name, error.to_string(), "install QEMU's tools (Debian: qemu-utils, qemu-system-common)"),
    }
}

fn folders(context: &Context) -> Vec<Check> {
    let writable = |(subject, path): (&str, std::path::PathBuf)| match try_folder(&path) {
        Ok(()) => Check::ok(subject, path.display().to_string()),
        Err(error) => Check::failure(subject, &error.into()),
    };
    [("scratch folder", context.scratch_dir()), ("run folder", context.run_dir()), ("cache folder", context.cache_dir())]
        .map(writable)
        .into()
}

fn try_folder(path: &std::path::Path) -> keepmark_qemu::Result<()> {
    let folder = HeldFolder::own(path, 0o711)?;
    let probe = format!("probe-{}", std::process::id());
    folder.make_file(&probe, 0o600)?;
    folder.remove(&probe)
}

fn store_checks(context: &Context) -> Vec<Check> {
    if context.global.store.is_none() && context.config.store.is_none() {
        return vec![Check::ok("store", "none named, not checked")];
    }
    let checked = store::open(context).and_then(|store| Ok((store.id(), store.backups(None)?)));
    match checked {
        Err(failure) => vec![Check::failure("store", &failure)],
        Ok((id, (backups, damaged))) => {
            let healthy = Check::ok("store", format!("id {}, {} backups", id.as_str().get(..8).unwrap_or_default(), backups.len()));
            let hurt = damaged.iter().map(|text| Check::problem("store", text.clone(), "keepmark verify tells what it costs"));
            std::iter::once(healthy).chain(hurt).collect()
        }
    }
}

fn vm_checks(context: &Context, arguments: &DoctorArguments) -> Vec<Check> {
    let Some(place) = &arguments.vm else { return Vec::new() };
    let store = store::remembering(context, place);
    let about = About { identity: &arguments.identity, images: &arguments.images, store: store.as_deref(), half_reverted: false };
    let opened = hypervisor::open_as(context, place, about);
    let facts = opened.and_then(|mut vm| {
        let facts = vm.facts();
        vm.close()?;
        facts
    });
    match facts {
        Ok(facts) => [about_vm(&facts), hindrances(context, place)].concat(),
        Err(failure) => vec![Check::failure("VM", &failure)],
    }
}

fn hindrances(context: &Context, place: &VmPlace) -> Vec<Check> {
    match hypervisor::hindrances(context, place) {
        Ok(found) => found.into_iter().map(|[subject, text, help]| Check::problem(subject, text, help)).collect(),
        Err(failure) => vec![Check::failure("VM", &failure)],
    }
}

fn about_vm(facts: &VmFacts) -> Vec<Check> {
    let uuid = facts.identity.uuid.as_deref().unwrap_or("no UUID");
    let mut checks = vec![Check::ok("VM", format!("{} ({uuid}), {}", facts.identity.name, facts.hypervisor))];
    checks.push(if facts.agent {
        Check::ok("guest agent", "configured")
    } else {
        Check::ok("guest agent", "none: backups are as after a power cut")
    });
    for disk in &facts.disks {
        let subject = format!("disk {}", disk.name);
        checks.push(match &disk.persistence {
            Persistence::Stored => Check::ok(subject, format!("{}, {} bytes, {}", disk.format, disk.size, disk.image)),
            Persistence::MemoryOnly { why } => Check::problem(
                subject,
                format!("{}, {} bytes, {}: {why}", disk.format, disk.size, disk.image),
                "after each end of QEMU the next backup reads the whole disk; a qcow2 image (compat=1.1) avoids that",
            ),
        });
    }
    checks.extend(facts.skipped.iter().map(|skipped| Check::ok(format!("disk {}", skipped.name), format!("left out: {}", skipped.why))));
    checks
}
