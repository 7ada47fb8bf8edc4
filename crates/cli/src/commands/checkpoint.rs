//! `keepmark checkpoint create|list|delete VM [NAME]`: the checkpoints that keepmark has on a VM.

use clap::{Args, Subcommand};
use keepmark_engine::checkpoint;
use keepmark_model::facts::{BitmapFacts, VmFacts};
use keepmark_model::plan::present_checkpoints;
use keepmark_model::seam::Hypervisor;
use keepmark_model::{CheckpointName, Failure, FailureClass};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::exit::Outcome;
use crate::vm::VmArguments;
use crate::{hypervisor, output, store, table, text};

const EXAMPLES: &str = "\
Examples:
  keepmark checkpoint create web01      from now on 'list' tells how much changes
  keepmark checkpoint list qmp:/run/web01.qmp
  keepmark checkpoint delete qmp:/run/web01.qmp km1-20261122T180000Z-3f9a1c0d7be2
  keepmark checkpoint delete image:/vms/web01.qcow2      all of keepmark's; bitmaps of others stay

Each backup starts a checkpoint of its own, and the next one builds on that. One that is created here belongs to no backup: it counts what
changes until it is deleted, or as old as hold_checkpoints_days. Deleting a checkpoint never harms a backup; if it was the one to build on,
the next backup reads and compares everything.";

/// Create, list or delete the checkpoints that keepmark has on a VM.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CheckpointArguments {
    /// What to do.
    #[command(subcommand)]
    pub command: CheckpointCommand,
}

/// `create`, `list` or `delete`.
#[derive(Debug, Subcommand)]
pub enum CheckpointCommand {
    /// Start a checkpoint that belongs to no backup, on all disks at one moment
    Create {
        /// Which VM.
        #[command(flatten)]
        vm: VmArguments,
    },
    /// List keepmark's checkpoints on a VM
    List {
        /// Which VM.
        #[command(flatten)]
        vm: VmArguments,
    },
    /// Delete one of keepmark's checkpoints, or all of them
    Delete {
        /// Which VM.
        #[command(flatten)]
        vm: VmArguments,
        /// Which one (else all)
        #[arg(value_name = "NAME")]
        checkpoint: Option<String>,
    },
}

/// Runs it.
pub fn run(context: &Context, arguments: &CheckpointArguments) -> Result<Outcome, Failure> {
    match &arguments.command {
        CheckpointCommand::Create { vm } => with_vm(context, vm, |vm| create(context, vm)),
        CheckpointCommand::List { vm } => with_vm(context, vm, |vm| list(context, &vm.facts()?)),
        CheckpointCommand::Delete { vm, checkpoint } => with_vm(context, vm, |vm| delete(context, vm, checkpoint.as_deref())),
    }
}

fn with_vm(
    context: &Context,
    arguments: &VmArguments,
    act: impl FnOnce(&mut dyn Hypervisor) -> Result<Outcome, Failure>,
) -> Result<Outcome, Failure> {
    let store = store::remembering(context, &arguments.vm);
    let mut vm = hypervisor::open(context, arguments, store.as_deref())?;
    let result = act(vm.as_mut());
    let closed = vm.close();
    let outcome = result?;
    closed.map(|()| outcome)
}

fn create(context: &Context, vm: &mut dyn Hypervisor) -> Result<Outcome, Failure> {
    let (name, moment) = checkpoint::create(vm, context.freeze(), context::world(), &context.screen)?;
    if context.global.json {
        output::json(
            &json!({"event": "created", "checkpoint": name, "consistency": moment.consistency, "pause_ms": moment.pause.as_millis()}),
        )?;
    } else {
        output::text(&format!("created checkpoint {name}\n"))?;
    }
    Ok(context.screen.outcome())
}

fn list(context: &Context, facts: &VmFacts) -> Result<Outcome, Failure> {
    let names: Vec<CheckpointName> = present_checkpoints(facts).into_iter().map(|(name, _)| name).collect();
    if context.global.json {
        names.iter().try_for_each(|name| output::json(&as_json(facts, name)))?;
    } else if names.is_empty() {
        context.screen.say("no checkpoints of keepmark");
    } else {
        let rows = names.iter().flat_map(|name| on_disks(facts, name).map(|(disk, bitmap)| row(name, disk, bitmap)).collect::<Vec<_>>());
        output::text(&table::plain(&["CHECKPOINT", "DISK", "STATE", "CHANGED SINCE"], rows))?;
    }
    Ok(Outcome::Done)
}

fn on_disks<'a>(facts: &'a VmFacts, name: &'a CheckpointName) -> impl Iterator<Item = (&'a str, &'a BitmapFacts)> {
    let bitmaps = facts.disks.iter().flat_map(|disk| disk.own_bitmaps().map(|bitmap| (disk.name.as_str(), bitmap)));
    bitmaps.filter(move |(_, bitmap)| bitmap.name == name.as_str())
}

fn state(bitmap: &BitmapFacts) -> &'static str {
    match (bitmap.inconsistent, bitmap.recording, bitmap.busy) {
        (true, _, _) => "inconsistent",
        (_, false, _) => "disabled",
        (_, _, true) => "busy",
        (false, true, false) => "recording",
    }
}

fn row(name: &CheckpointName, disk: &str, bitmap: &BitmapFacts) -> Vec<String> {
    vec![name.to_string(), disk.to_owned(), state(bitmap).to_owned(), text::size(bitmap.dirty.0)]
}

fn as_json(facts: &VmFacts, name: &CheckpointName) -> Value {
    let disks: Vec<Value> = on_disks(facts, name)
        .map(|(disk, bitmap)| json!({"name": disk, "state": state(bitmap), "dirty_bytes": bitmap.dirty, "persistent": bitmap.persistent}))
        .collect();
    json!({"checkpoint": name, "disks": disks})
}

#[derive(Debug, thiserror::Error)]
#[error("the VM has no checkpoint {name}")]
struct NoSuchCheckpoint {
    name: CheckpointName,
}

fn delete(context: &Context, vm: &mut dyn Hypervisor, wanted: Option<&str>) -> Result<Outcome, Failure> {
    let usage = |error| Failure::new(FailureClass::Usage, error);
    let present: Vec<CheckpointName> = present_checkpoints(&vm.facts()?).into_iter().map(|(name, _)| name).collect();
    let names = match wanted.map(CheckpointName::parse).transpose().map_err(usage)? {
        None => present,
        Some(name) if present.contains(&name) => vec![name],
        Some(name) => {
            return Err(Failure::new(FailureClass::Usage, NoSuchCheckpoint { name }).with_hint("see 'keepmark checkpoint list VM'"));
        }
    };
    if !names.is_empty() {
        vm.remove_checkpoints(&names)?;
    }
    for name in &names {
        if context.global.json {
            output::json(&json!({"event": "deleted", "checkpoint": name}))?;
        } else {
            output::text(&format!("deleted checkpoint {name}\n"))?;
        }
    }
    Ok(Outcome::Done)
}
