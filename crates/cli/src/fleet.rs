//! Several VMs in one command: so many at a time, a bad one does not stop the others, and a table at the end.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use keepmark_engine::{BackupReport, DiskReport};
use keepmark_model::failure::in_one_line;
use keepmark_model::seam::Monitor;
use keepmark_model::{Failure, FailureClass};
use serde_json::json;

use crate::context::Context;
use crate::screen::Screen;
use crate::vm::VmPlace;
use crate::{exit, output, table, text};

/// Backs one VM up; what it has to say goes to the monitor.
type BackUp<'f> = dyn Fn(&VmPlace, &dyn Monitor) -> Result<BackupReport, Failure> + Sync + 'f;

#[derive(Debug, thiserror::Error)]
#[error("{failed} of {of} VMs were not backed up")]
struct SomeFailed {
    failed: usize,
    of: usize,
}

/// Backs all of them up, in the order in which they were named, and shows each failure as it comes.
///
/// # Errors
/// When any of them failed.
pub fn run(context: &Context, places: &[VmPlace], jobs: NonZeroUsize, back_up: &BackUp<'_>) -> Result<(), Failure> {
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.get().min(places.len()) {
            scope.spawn(|| {
                while let Some((place, name)) = take(places, &next).filter(|_| !context.screen.interrupted()) {
                    let outcome = back_up(place, &Labelled { screen: &context.screen, label: &name });
                    let outcome = outcome.map_err(|failure| tell(context, &name, &failure));
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((name, outcome));
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !context.global.json {
        output::text(&summary(&outcomes))?;
    }
    let done = outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).count();
    let (failed, of) = (places.len() - done, places.len());
    match failed {
        0 => Ok(()),
        _ if context.screen.interrupted() => Err(Failure::new(FailureClass::Interrupted, SomeFailed { failed, of })),
        _ => Err(Failure::new(FailureClass::Failed, SomeFailed { failed, of })),
    }
}

fn take<'p>(places: &'p [VmPlace], next: &AtomicUsize) -> Option<(&'p VmPlace, String)> {
    places.get(next.fetch_add(1, Ordering::Relaxed)).map(|place| (place, place.to_string()))
}

/// Shows a failure at once, and returns it in one line.
fn tell(context: &Context, name: &str, failure: &Failure) -> String {
    context.screen.line(&format!("{name}: {}", exit::told(failure).trim_end().replace('\n', &format!("\n{name}: "))));
    let line = in_one_line(failure);
    if context.global.json {
        // Standard output is for the results; if it is closed, the exit code still tells.
        drop(output::json(&json!({"event": "failed", "vm": name, "error": line})));
    }
    line
}

fn summary(outcomes: &[(String, Result<BackupReport, String>)]) -> String {
    let rows = outcomes.iter().map(|(name, outcome)| match outcome {
        Err(error) => vec![name.clone(), "-".into(), "-".into(), "-".into(), "-".into(), format!("failed: {error}")],
        Ok(report) => {
            let sum = |bytes: fn(&DiskReport) -> u64| text::size(report.disks.iter().map(bytes).fold(0, u64::saturating_add));
            let (read, stored) = (sum(|disk| disk.read_bytes), sum(|disk| disk.stored_bytes));
            vec![report.vm.clone(), report.kind.into(), read, stored, text::millis(report.duration_ms), report.backup.short().into()]
        }
    });
    table::plain(&["VM", "KIND", "READ", "STORED", "TOOK", "RESULT"], rows)
}

/// What one of several VMs has to say, with its name before it.
struct Labelled<'s> {
    screen: &'s Screen,
    label: &'s str,
}

impl Labelled<'_> {
    fn of(&self, text: &str) -> String {
        format!("{} {text}", self.label)
    }
}

impl Monitor for Labelled<'_> {
    fn progress(&self, subject: &str, done: u64, total: u64) {
        self.screen.progress(&self.of(subject), done, total);
    }

    fn finished(&self, subject: &str) {
        self.screen.finished(&self.of(subject));
    }

    fn finding(&self, text: &str) {
        self.screen.finding(&format!("{}: {text}", self.label));
    }

    fn note(&self, text: &str) {
        self.screen.note(&format!("{}: {text}", self.label));
    }

    fn interrupted(&self) -> bool {
        self.screen.interrupted()
    }
}
