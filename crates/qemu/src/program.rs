//! Running helper programs: their failure as an error that says what they said.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Output, Stdio};

use crate::error::{Error, Result};

// Enough of a program's message to understand it.
const MESSAGE_CHARS_MAX: usize = 600;

/// Runs a program to its end; gives what it printed.
///
/// # Errors
/// When it cannot be started or fails.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Result<Vec<u8>> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    check(program, output)
}

/// What a program printed, if it ended well.
///
/// # Errors
/// When it could not be started or failed.
pub(crate) fn check(program: &str, output: io::Result<Output>) -> Result<Vec<u8>> {
    let name = program.split(' ').next().unwrap_or(program);
    let output = output.map_err(|source| Error::Spawn { program: name.into(), source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let message: String = words.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect();
    let message = if message.is_empty() { output.status.to_string() } else { message };
    Err(Error::Program { program: program.into(), message })
}
