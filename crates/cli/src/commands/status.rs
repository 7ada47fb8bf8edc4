//! `keepmark status [VM...]`: how each VM is protected: its last backup, and what the next one would do.

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use keepmark_model::choice::DiskChoice;
use keepmark_model::clock;
use keepmark_model::facts::VmFacts;
use keepmark_model::failure::in_one_line;
use keepmark_model::manifest::{Kind, StoredBackup};
use keepmark_model::plan::{Request, WantedKind, plan};
use keepmark_model::seam::Monitor;
use keepmark_model::{Failure, VmId};
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Outcome;
use crate::hypervisor::About;
use crate::vm::{IdentityArguments, ImageArguments, VmPlace};
use crate::{calendar, hypervisor, output, store, table, text};

const EXAMPLES: &str = "\
Examples:
  keepmark status                                   all VMs that the store or libvirt knows
  keepmark status web01 qmp:/run/web02.qmp          these, with what the next backup would do
  keepmark status --json | jq -r 'select(.last == null) | .vm'          those without any backup";

/// Show how each VM is protected: its last backup, and what the next one would do and why; changes nothing.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct StatusArguments {
    /// Which VMs (else libvirt's, and all that the store has backups of)
    #[arg(value_name = "VM")]
    pub vms: Vec<VmPlace>,
    /// What its images are.
    #[command(flatten)]
    pub images: ImageArguments,
}

/// How one VM is protected.
struct Protection {
    vm: String,
    id: Option<VmId>,
    backups: usize,
    last: Option<StoredBackup>,
    next: Next,
}

enum Next {
    Planned(Kind, String),
    Unknown(String),
    NotAsked,
}

/// Runs it.
pub fn run(context: &Context, arguments: &StatusArguments) -> Result<Outcome, Failure> {
    let store = store::open(context)?;
    let (backups, damaged) = store.backups(None)?;
    damaged.iter().for_each(|text| context.screen.finding(text));
    let places = if arguments.vms.is_empty() { domains(context) } else { hypervisor::expand(context, &arguments.vms)? };
    let now = Timestamp::now();
    let sequences = sequences(&backups);
    let dated_ahead = sequences.iter().filter_map(|(_, sequence)| clock::finding(sequence, now));
    dated_ahead.for_each(|text| context.screen.finding(&text));
    let request =
        Request { kind: WantedKind::Auto(Box::new(calendar::scheme(&context.config.scheme)?)), checkpoint: true, disks: DiskChoice::All };
    let nobody = IdentityArguments { name: None, uuid: None };
    let images = ImageArguments::default();
    let about = About { identity: &nobody, images: &arguments.images, store: Some(store.as_ref()), half_reverted: false };
    // What is said of images is not said of domains beside them.
    let about_of = |place: &VmPlace| if matches!(place, VmPlace::Images(_)) { about } else { About { images: &images, ..about } };
    let mut found: Vec<Protection> = places.iter().map(|place| look(context, about_of(place), &backups, place, &request, now)).collect();
    if arguments.vms.is_empty() {
        let looked_at: Vec<VmId> = found.iter().filter_map(|vm| vm.id.clone()).collect();
        let others = sequences.into_iter().filter(|(id, _)| !looked_at.contains(id));
        found.extend(others.map(|of_vm| stored(of_vm, now)));
    }
    if context.global.json {
        found.iter().try_for_each(|vm| output::json(&as_json(vm, now)))?;
    } else if found.is_empty() {
        context.screen.say("no VMs yet");
    } else {
        output::text(&human(&found, now))?;
    }
    Ok(context.screen.outcome())
}

/// All of libvirt's; a host without libvirt has none.
fn domains(context: &Context) -> Vec<VmPlace> {
    let asked = hypervisor::domains(context);
    asked.inspect_err(|failure| context.screen.note(&in_one_line(failure))).unwrap_or_default().into_iter().map(VmPlace::Libvirt).collect()
}

fn look(context: &Context, about: About<'_>, backups: &[StoredBackup], place: &VmPlace, request: &Request, now: Timestamp) -> Protection {
    match asked(context, about, place).and_then(|facts| planned(&facts, backups, request, now)) {
        Ok(protection) => protection,
        Err(failure) => {
            let why = in_one_line(&failure);
            context.screen.finding(&format!("{place}: {why}"));
            Protection { vm: place.to_string(), id: None, backups: 0, last: None, next: Next::Unknown(why) }
        }
    }
}

fn asked(context: &Context, about: About<'_>, place: &VmPlace) -> Result<VmFacts, Failure> {
    let mut vm = hypervisor::open_as(context, place, about)?;
    let facts = vm.facts();
    vm.close()?;
    facts
}

fn planned(facts: &VmFacts, backups: &[StoredBackup], request: &Request, now: Timestamp) -> Result<Protection, Failure> {
    let sequence = sequence(backups, &facts.identity.id());
    let plan = plan(facts, &sequence, request, now)?;
    let next = Next::Planned(plan.kind, plan.reason);
    Ok(Protection { next, ..protection(facts.identity.name.clone(), facts.identity.id(), &sequence, now) })
}

fn sequence(backups: &[StoredBackup], id: &VmId) -> Vec<StoredBackup> {
    backups.iter().filter(|backup| backup.manifest.vm_id() == *id).cloned().collect()
}

/// The last backup is the newest that protects: one of some disks does not, nor does one that is dated ahead.
fn protection(vm: String, id: VmId, sequence: &[StoredBackup], now: Timestamp) -> Protection {
    Protection { vm, id: Some(id), backups: sequence.len(), last: clock::protecting(sequence, now).cloned(), next: Next::NotAsked }
}

/// A store's backups by VM, in the order of their first backup.
fn sequences(backups: &[StoredBackup]) -> Vec<(VmId, Vec<StoredBackup>)> {
    let mut found: Vec<(VmId, Vec<StoredBackup>)> = Vec::new();
    for backup in backups {
        let id = backup.manifest.vm_id();
        match found.iter_mut().find(|(known, _)| *known == id) {
            Some((_, sequence)) => sequence.push(backup.clone()),
            None => found.push((id, vec![backup.clone()])),
        }
    }
    found
}

/// A VM that the store has backups of, under its newest name.
fn stored((id, sequence): (VmId, Vec<StoredBackup>), now: Timestamp) -> Protection {
    let name = sequence.last().map_or_else(String::new, |last| last.manifest.vm.name.clone());
    protection(name, id, &sequence, now)
}

fn age(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

fn human(found: &[Protection], now: Timestamp) -> String {
    let rows = found.iter().map(|vm| {
        let last = vm.last.as_ref().map(|last| &last.manifest);
        let of_last = |tell: &dyn Fn(&keepmark_model::manifest::Manifest) -> String| last.map_or_else(|| "-".to_owned(), tell);
        let (next, why) = match &vm.next {
            Next::Planned(kind, why) => (kind.word(), why.as_str()),
            Next::Unknown(why) => ("?", why.as_str()),
            Next::NotAsked => ("-", ""),
        };
        vec![
            vm.vm.clone(),
            of_last(&|last| text::time(last.time)),
            of_last(&|last| text::span(age(last.time, now))),
            of_last(&|last| last.kind.word().to_owned()),
            vm.backups.to_string(),
            next.to_owned(),
            why.to_owned(),
        ]
    });
    table::plain(&["VM", "LAST BACKUP", "AGE", "KIND", "BACKUPS", "NEXT", "WHY"], rows)
}

fn as_json(vm: &Protection, now: Timestamp) -> Value {
    let last = vm.last.as_ref().map(|last| {
        let manifest = &last.manifest;
        json!({"id": last.id, "time": manifest.time, "kind": manifest.kind, "age_s": age(manifest.time, now).as_secs(),
            "consistency": manifest.consistency})
    });
    let (next, error) = match &vm.next {
        Next::Planned(kind, reason) => (Some(json!({"kind": kind, "reason": reason})), None),
        Next::Unknown(why) => (None, Some(why)),
        Next::NotAsked => (None, None),
    };
    json!({"event": "status", "vm": vm.vm, "backups": vm.backups, "last": last, "next": next, "error": error})
}
