//! What the demonstration prints: numbered steps, what was done and answered, and a check mark with what was compared.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The screen, and where the story is.
pub struct Screen {
    started: Instant,
    colour: bool,
    step: Arc<Mutex<(u32, String)>>,
}

impl Default for Screen {
    fn default() -> Self {
        Self { started: Instant::now(), colour: std::io::stdout().is_terminal(), step: Arc::default() }
    }
}

impl Screen {
    /// Opens the next step.
    pub fn step(&self, title: &str) {
        let mut step = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        *step = (step.0 + 1, title.to_owned());
        let time = format!("{:>7}", seconds(self.elapsed()));
        print(&format!("{} {} {}", self.paint("2", &time), self.paint("1", &format!("{:>2}", step.0)), self.paint("1", title)));
    }

    /// A line about what is done or answered; `who` is `guest`, `keepmark`, ...
    pub fn line(&self, who: &str, text: &str) {
        print(&format!("{:11}{} {text}", "", self.paint("36", &format!("{who:9}"))));
    }

    /// What was compared, and found right.
    pub fn right(&self, text: &str) {
        print(&format!("{:11}{} {text}", "", self.paint("32", "✓")));
    }

    /// A line of its own.
    pub fn plain(&self, text: &str) {
        print(text);
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// From now on the first panic of any thread is told as the failure of the step that it happened in.
    pub fn report_failures(&self) {
        let step = Arc::clone(&self.step);
        let told = Mutex::new(false);
        let (before, after) = if self.colour { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
        std::panic::set_hook(Box::new(move |panic| {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            if !std::mem::replace(&mut *told, true) {
                let (number, title) = step.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let message = panic.payload_as_str().unwrap_or("unknown failure");
                complain(&format!("{before}✗ FAILED in step {number} ({title}){after}\n{message}"));
            }
        }));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Bytes as MiB or KiB with one digit.
pub fn bytes(bytes: u64) -> String {
    let (unit, name) = if bytes >= 1 << 20 { (1 << 20, "MiB") } else { (1 << 10, "KiB") };
    let tenths = (bytes * 10 + unit / 2) / unit;
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// Seconds with one digit.
pub fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Cuts a text that is too long for its place.
pub fn short(text: &str, characters: usize) -> String {
    if text.chars().count() <= characters {
        return text.to_owned();
    }
    text.chars().take(characters.saturating_sub(3)).chain("...".chars()).collect()
}

/// A reader that has gone away does not stop the checks.
fn print(line: &str) {
    writeln!(std::io::stdout(), "{line}").ok();
}

fn complain(text: &str) {
    writeln!(std::io::stderr(), "{text}").ok();
}
