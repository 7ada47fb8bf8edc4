//! `keepmark plan VM`: what a backup would do, and why.

use clap::Args;
use jiff::Timestamp;
use keepmark_engine::backup::{Outlook, outlook};
use keepmark_model::Failure;
use serde_json::{Value, json};

use super::backup::RequestArguments;
use crate::context::Context;
use crate::exit::Outcome;
use crate::vm::VmArguments;
use crate::{hypervisor, output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark plan qmp:/run/web01.qmp
  keepmark plan image:/vms/web01.qcow2 --name web01 --json";

/// Say what a backup would do, disk by disk, and why; changes nothing.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PlanArguments {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArguments,
    /// What, and how.
    #[command(flatten)]
    pub request: RequestArguments,
}

/// Runs it.
pub fn run(context: &Context, arguments: &PlanArguments) -> Result<Outcome, Failure> {
    let request = arguments.request.request(context)?;
    let store = store::open(context)?;
    let mut vm = hypervisor::open(context, &arguments.vm, Some(store.as_ref()))?;
    let found = outlook(vm.as_mut(), store.as_ref(), &request, Timestamp::now(), &context.screen);
    vm.close()?;
    let found = found?;
    if context.global.json {
        output::json(&as_json(&found))?;
    } else {
        output::text(&human(&found))?;
    }
    Ok(context.screen.outcome())
}

fn as_json(found: &Outlook) -> Value {
    let disks: Vec<Value> = found
        .plan
        .disks
        .iter()
        .map(|disk| {
            json!({"name": disk.name, "size": disk.size, "kind": disk.kind, "reason": disk.reason,
                "base": disk.since.as_ref().map(|base| &base.backup), "checkpoint": disk.since.as_ref().map(|base| &base.checkpoint),
                "dirty_bytes": disk.since.as_ref().map(|base| base.dirty)})
        })
        .collect();
    json!({"event": "plan", "vm": found.facts.identity.name, "uuid": found.facts.identity.uuid, "power": found.facts.power,
        "kind": found.plan.kind, "reason": found.plan.reason, "wanted": found.plan.due.role, "due": found.plan.due.reason, "new_checkpoint": found.plan.checkpoint,
        "backups": found.sequence.len(), "disks": disks, "skipped": found.facts.skipped})
}

fn human(found: &Outlook) -> String {
    let plan = &found.plan;
    let mut lines = format!("{}: {} backup ({})\n", found.facts.identity.name, plan.kind.word(), plan.reason);
    if plan.due.reason != plan.reason {
        lines.push_str(&format!("  wanted: {} ({})\n", plan.due.role.word(), plan.due.reason));
    }
    for disk in &found.plan.disks {
        let changed = disk.since.as_ref().map_or_else(String::new, |base| format!(", {} changed", text::size(base.dirty.0)));
        lines.push_str(&format!("  {:12} {:>10}  {:12} {}{changed}\n", disk.name, text::size(disk.size.0), disk.kind.word(), disk.reason));
    }
    for skipped in &found.facts.skipped {
        lines.push_str(&format!("  {:12} left out: {}\n", skipped.name, skipped.why));
    }
    lines
}
