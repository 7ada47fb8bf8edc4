//! Exit codes, and the one place where a failure is shown.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use keepmark_model::{Failure, FailureClass};

/// How a subcommand ended when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Done,
    /// It is done, but something was found that someone should look at.
    Findings,
}

/// The exit code of an outcome; a failure is shown with its causes and what helps.
pub fn code(result: Result<Outcome, Failure>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Findings) => ExitCode::from(3),
        Err(failure) => {
            show(&failure);
            ExitCode::from(code_of(failure.class()))
        }
    }
}

fn code_of(class: FailureClass) -> u8 {
    match class {
        FailureClass::Failed => 1,
        FailureClass::Usage => 2,
        FailureClass::NoStore => 10,
        FailureClass::Locked => 11,
        FailureClass::WrongPassword => 12,
        FailureClass::Unreachable => 13,
        FailureClass::Interrupted => 130,
    }
}

fn show(failure: &Failure) {
    if std::io::stderr().write_all(told(failure).as_bytes()).is_err() {
        // Nobody listens on standard error; the exit code still tells.
    }
}

/// A failure with its causes and what helps, a line each.
pub fn told(failure: &Failure) -> String {
    let mut text = format!("Error: {failure}\n");
    let mut cause = failure.source();
    while let Some(error) = cause {
        text.push_str(&format!("Caused by: {error}\n"));
        cause = error.source();
    }
    if let Some(hint) = failure.hint() {
        text.push_str(&format!("Hint: {hint}\n"));
    }
    text
}
