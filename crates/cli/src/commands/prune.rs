//! `keepmark prune`: frees the space of what no backup needs.

use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;
use keepmark_model::Failure;
use keepmark_model::seam::{Monitor, PruneRequest, Pruned};
use serde_json::json;

use crate::context::Context;
use crate::exit::Outcome;
use crate::{output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark prune                          free what no backup needs any more
  keepmark prune --dry-run                say how much that would be
  keepmark prune --max-unused 20%         copy less, leave more unused
  keepmark prune --max-repack 50G         take at most 50 GiB more for a while

Deleting a backup takes it off the list; its space is freed here. It may run at any time, beside backups on any host, and may be
interrupted. What a running backup may still use is only marked; the next prune after that backup removes it. Files that are partly
used are copied together first, those with most waste first. A dry run counts what running work may still hold as free.
An image store frees the space of a deleted backup at once; there 'prune' finishes what was interrupted or in use then.";

/// Free the space of what no backup needs.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PruneArguments {
    /// Say what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// How much of the store may stay unused rather than be copied together
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent)]
    pub max_unused: f64,
    /// Most space that copying together may take in addition, until the old files go (else no limit)
    #[arg(long, value_name = "SIZE", value_parser = text::parse_size)]
    pub max_repack: Option<u64>,
    /// Longer than the longest backup: how long what a silent host may still need is kept
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = delay)]
    pub delay: Duration,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim_end_matches('%').parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    number.ok_or_else(|| "expected a percentage from 0% to 100%".to_owned())
}

fn delay(text: &str) -> Result<Duration, String> {
    let delay = text.parse::<SignedDuration>().ok().and_then(|delay| Duration::try_from(delay).ok());
    delay.ok_or_else(|| "expected a time such as 24h or 90min".to_owned())
}

/// Runs it.
pub fn run(context: &Context, arguments: &PruneArguments) -> Result<Outcome, Failure> {
    let request = PruneRequest {
        dry_run: arguments.dry_run,
        unused_max_percent: arguments.max_unused,
        repack_max: arguments.max_repack,
        delay: arguments.delay,
    };
    let pruned = store::open(context)?.prune(&request, &context.screen)?;
    for whom in &pruned.waiting {
        context.screen.note(&format!("some of it waits for {whom}"));
    }
    if context.global.json {
        show_json(&pruned, arguments.dry_run)?;
    } else {
        output::text(&human(&pruned, arguments.dry_run))?;
    }
    Ok(context.screen.outcome())
}

fn human(pruned: &Pruned, dry_run: bool) -> String {
    let Pruned { removed_files, removed_bytes, marked_bytes, repacked_bytes, unused_bytes, used_bytes, waiting: _ } = pruned;
    let [removed, marked, repacked, unused, used] =
        [removed_bytes, marked_bytes, repacked_bytes, unused_bytes, used_bytes].map(|b| text::size(*b));
    let words = if dry_run { ["would be removed", "would be copied"] } else { ["removed", "copied"] };
    let mut lines = format!("{removed_files} files with {removed} {}, {repacked} {} together\n", words[0], words[1]);
    if *marked_bytes > 0 {
        lines.push_str(&format!("{marked} marked: the next prune removes them when nobody can need them\n"));
    }
    lines.push_str(&format!("{used} are used by backups, {unused} stay unused\n"));
    lines
}

fn show_json(pruned: &Pruned, dry_run: bool) -> Result<(), Failure> {
    let Pruned { removed_files, removed_bytes, marked_bytes, repacked_bytes, unused_bytes, used_bytes, waiting } = pruned;
    output::json(&json!({
        "event": "finished",
        "dry_run": dry_run,
        "removed_files": removed_files,
        "removed_bytes": removed_bytes,
        "marked_bytes": marked_bytes,
        "repacked_bytes": repacked_bytes,
        "unused_bytes": unused_bytes,
        "used_bytes": used_bytes,
        "waiting": waiting,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        assert_eq!([percent("5%"), percent("12.5"), percent("100%")], [Ok(5.0), Ok(12.5), Ok(100.0)]);
        assert!(percent("101%").is_err() && percent("x").is_err() && percent("-1").is_err() && percent("NaN").is_err());
        assert_eq!([delay("24h"), delay("90min")], [Ok(Duration::from_hours(24)), Ok(Duration::from_mins(90))]);
        assert!(delay("-1h").is_err() && delay("soon").is_err());
    }
}
