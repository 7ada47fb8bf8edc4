//! The demonstration behind `make demo`: a guest is backed up, changed, broken and restored, and every claim is checked.
//!
//! usage: demo FOLDER (empty, removed by the caller); `KEEP=1` in the environment says that the folder will stay.
//!
//! Whatever is not as it should be ends it with exit code 1 and the step in which that was seen.

mod answer;
mod changes;
mod domain;
mod lab;
mod screen;
mod story;
mod watched;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use keepmark_testkit::fail;
use screen::Screen;

fn main() -> ExitCode {
    let screen = Screen::default();
    screen.report_failures();
    let keep = std::env::var_os("KEEP").is_some_and(|value| value == "1");
    let story = AssertUnwindSafe(|| match std::env::args_os().nth(1) {
        Some(folder) => story::tell(&screen, &PathBuf::from(folder), keep),
        None => fail("usage: demo FOLDER (`make demo` calls it)"),
    });
    if catch_unwind(story).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
