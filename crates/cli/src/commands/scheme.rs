//! `keepmark scheme preview [VM]`: the calendar ahead, with what will be kept until when, and the space that it takes.

use clap::{Args, Subcommand};
use jiff::{Timestamp, ToSpan};
use keepmark_model::Failure;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::scheme::preview::{Ahead, preview};
use keepmark_model::seam::Monitor;
use serde_json::{Value, json};

use crate::context::Context;
use crate::exit::Outcome;
use crate::{calendar, output, retention, store, table, text};

const EXAMPLES: &str = "\
Examples:
  keepmark scheme preview                       the configured scheme and retention, three months ahead
  keepmark scheme preview web01 --months 12     going on from the backups that there are, with the space that they took
  keepmark scheme preview web01 --json | jq -r 'select(.kind == \"full\") | .time'";

/// Look at the scheme.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct SchemeArguments {
    /// What to do.
    #[command(subcommand)]
    pub command: SchemeCommand,
}

/// `keepmark scheme ...`
#[derive(Debug, Subcommand)]
pub enum SchemeCommand {
    /// Print the calendar ahead: which kind falls when, and until when it will be kept by which rule
    #[command(after_help = EXAMPLES)]
    Preview(PreviewArguments),
}

/// How far ahead.
#[derive(Debug, Args)]
pub struct PreviewArguments {
    /// Go on from this VM's backups, by name or UUID
    #[arg(value_name = "VM")]
    pub vm: Option<String>,
    /// How many months ahead
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=120))]
    pub months: u8,
}

/// Runs it.
pub fn run(context: &Context, arguments: &SchemeArguments) -> Result<Outcome, Failure> {
    let SchemeCommand::Preview(arguments) = &arguments.command;
    let scheme = calendar::scheme(&context.config.scheme)?;
    let policy = Some(retention::configured(&context.config, None)?).filter(|policy| !policy.is_empty());
    let sequence = sequence(context, arguments.vm.as_deref())?;
    let now = Timestamp::now();
    let end = now.to_zoned(scheme.zone.clone()).saturating_add(i32::from(arguments.months).months()).timestamp();
    let ahead = preview(&sequence, &scheme, policy.as_ref(), now, end);
    if context.global.json {
        ahead.iter().try_for_each(|one| output::json(&as_json(one)))?;
        return Ok(context.screen.outcome());
    }
    if policy.is_none() {
        context.screen.say("[retention] of the configuration has no rule: everything stays");
    }
    output::text(&human(&ahead, &scheme.zone))?;
    Ok(context.screen.outcome())
}

fn sequence(context: &Context, vm: Option<&str>) -> Result<Vec<StoredBackup>, Failure> {
    let Some(vm) = vm else { return Ok(Vec::new()) };
    let (backups, damaged) = store::open(context)?.backups(None)?;
    damaged.iter().for_each(|text| context.screen.finding(text));
    let named = store::of_vm(&backups, vm)?;
    Ok(named.into_iter().cloned().collect())
}

fn as_json(one: &Ahead) -> Value {
    json!({"event": "ahead", "time": one.time, "kind": one.role, "until": one.until, "bytes": one.bytes,
        "kept_by": one.kept_by.iter().map(ToString::to_string).collect::<Vec<_>>()})
}

fn human(ahead: &[Ahead], zone: &jiff::tz::TimeZone) -> String {
    let rows = ahead.iter().map(|one| {
        vec![
            text::time_in(one.time, zone),
            one.role.word().to_owned(),
            one.until.map_or_else(|| "stays".to_owned(), |until| text::time_in(until, zone)),
            one.kept_by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            one.bytes.map_or_else(|| "?".to_owned(), text::size),
        ]
    });
    let stays: Vec<&Ahead> = ahead.iter().filter(|one| one.until.is_none()).collect();
    let bytes = stays.iter().filter_map(|one| one.bytes).fold(0, u64::saturating_add);
    let sum = format!("of {} ahead {} stay at the end and add {}\n", text::count(ahead.len(), "backup"), stays.len(), text::size(bytes));
    table::plain(&["TIME", "KIND", "UNTIL", "KEPT BY", "ADDS"], rows) + &sum
}
