//! Standard error: progress (bars with rate and time left on a terminal, plain lines elsewhere), notes and findings.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use keepmark_model::seam::Monitor;

use crate::arguments::Global;
use crate::exit::Outcome;
use crate::text;

/// Work shorter than this shows no plain progress lines.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two plain lines about one subject.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// The monitor of the command line.
pub struct Screen {
    mode: Mode,
    verbose: bool,
    findings: AtomicUsize,
    interrupted: Arc<AtomicBool>,
}

enum Mode {
    Quiet,
    Lines(Mutex<HashMap<String, Line>>),
    Bars(MultiProgress, Mutex<HashMap<String, ProgressBar>>),
}

struct Line {
    started: Instant,
    shown: Option<Instant>,
}

impl Screen {
    /// A screen as the user wants it.
    pub fn new(global: &Global, interrupted: Arc<AtomicBool>) -> Self {
        let mode = if global.quiet {
            Mode::Quiet
        } else if std::io::stderr().is_terminal() {
            Mode::Bars(MultiProgress::new(), Mutex::default())
        } else {
            Mode::Lines(Mutex::default())
        };
        Self { mode, verbose: global.verbose, findings: AtomicUsize::new(0), interrupted }
    }

    /// What becomes true when the user wants to stop, for whoever waits where no monitor is at hand.
    #[must_use]
    #[cfg(feature = "libvirt")]
    pub fn interrupt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// How it ended, by what was found.
    pub fn outcome(&self) -> Outcome {
        if self.findings.load(Ordering::Relaxed) == 0 { Outcome::Done } else { Outcome::Findings }
    }

    /// A line for people that quiet suppresses.
    pub fn say(&self, message: &str) {
        if !matches!(self.mode, Mode::Quiet) {
            self.line(message);
        }
    }

    /// A line that even quiet shows.
    pub fn line(&self, message: &str) {
        let write = || {
            if writeln!(std::io::stderr(), "{message}").is_err() {
                // Nobody listens on standard error; the work goes on.
            }
        };
        match &self.mode {
            Mode::Bars(bars, _) => bars.suspend(write),
            Mode::Quiet | Mode::Lines(_) => write(),
        }
    }
}

impl Monitor for Screen {
    fn progress(&self, subject: &str, done: u64, total: u64) {
        match &self.mode {
            Mode::Quiet => {}
            Mode::Lines(lines) => {
                let text = lines
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(subject.to_owned())
                    .or_insert_with(Line::new)
                    .due(subject, done, total);
                if let Some(text) = text {
                    self.line(&text);
                }
            }
            Mode::Bars(bars, known) => {
                let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
                let bar = known.entry(subject.to_owned()).or_insert_with(|| new_bar(bars, subject, total));
                bar.set_length(total);
                bar.set_position(done);
            }
        }
    }

    fn finished(&self, subject: &str) {
        match &self.mode {
            Mode::Quiet => {}
            Mode::Lines(lines) => drop(lines.lock().unwrap_or_else(PoisonError::into_inner).remove(subject)),
            Mode::Bars(_, known) => {
                if let Some(bar) = known.lock().unwrap_or_else(PoisonError::into_inner).remove(subject) {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn finding(&self, text: &str) {
        self.findings.fetch_add(1, Ordering::Relaxed);
        self.line(&format!("Finding: {text}"));
    }

    fn note(&self, text: &str) {
        if self.verbose || !matches!(self.mode, Mode::Quiet) {
            self.line(&format!("Note: {text}"));
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

impl Line {
    fn new() -> Self {
        Self { started: Instant::now(), shown: None }
    }

    /// The line to show now, if one is due.
    fn due(&mut self, subject: &str, done: u64, total: u64) -> Option<String> {
        let elapsed = self.started.elapsed();
        let rested = self.shown.is_none_or(|shown| shown.elapsed() >= LINE_INTERVAL);
        if elapsed < PATIENCE || !rested {
            return None;
        }
        self.shown = Some(Instant::now());
        Some(progress_line(subject, done, total, elapsed))
    }
}

fn progress_line(subject: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let percent = u128::from(done) * 100 / u128::from(total.max(1));
    let millis = elapsed.as_millis().max(1);
    let rate = u64::try_from(u128::from(done) * 1000 / millis).unwrap_or(u64::MAX);
    let left =
        total.saturating_sub(done).checked_div(rate).map_or_else(|| "?".to_owned(), |seconds| text::span(Duration::from_secs(seconds)));
    format!("{subject}: {percent} % ({} of {}, {}/s, {left} left)", text::size(done), text::size(total), text::size(rate))
}

fn new_bar(bars: &MultiProgress, subject: &str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{prefix:12} [{bar:30}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left",
    );
    let bar = bars.add(ProgressBar::new(total)).with_prefix(subject.to_owned());
    if let Ok(style) = style {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_has_share_rate_and_time_left() {
        let line = progress_line("vda", 1 << 30, 4 << 30, Duration::from_secs(2));
        assert_eq!(line, "vda: 25 % (1.0 GiB of 4.0 GiB, 512.0 MiB/s, 6 s left)");
        assert!(progress_line("vda", 0, 0, Duration::ZERO).contains("? left"));
    }
}
