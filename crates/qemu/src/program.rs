//! Running helper programs, each with a time limit: their failure as an error that says what they said.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

// Enough of a program's message to understand it.
const MESSAGE_CHARS_MAX: usize = 600;

/// How long making an empty image may take.
pub(crate) const CREATE_WAIT: Duration = Duration::from_secs(120);
/// How long it may take to read all of an image's tables.
pub(crate) const CHECK_WAIT: Duration = Duration::from_secs(3600);

const POLL_MIN: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(100);

/// Runs a program to its end; gives what it printed.
///
/// # Errors
/// When it cannot be started, fails, or takes longer than `limit`.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>, limit: Duration) -> Result<Vec<u8>> {
    check(program, Ok(output(program, arguments, limit)?))
}

/// Runs a program to its end, whatever that is.
///
/// # Errors
/// When it cannot be started, or takes longer than `limit`: then it is ended.
pub(crate) fn output<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>, limit: Duration) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| Error::Spawn { program: program.into(), source })?;
    end(program, child, limit)
}

/// Waits for the end of a program whose streams are pipes.
///
/// # Errors
/// When it takes longer than `limit`: then it is ended.
pub(crate) fn end(program: &str, mut child: Child, limit: Duration) -> Result<Output> {
    let failed = |source| Error::Spawn { program: program.into(), source };
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let (deadline, mut poll) = (Instant::now() + limit, POLL_MIN);
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if Instant::now() < deadline => thread::sleep(poll),
            None => {
                child.kill().map_err(failed)?;
                return Err(Error::Slow { program: program.into(), waited: limit });
            }
        }
        poll = (poll * 2).min(POLL_MAX);
    };
    Ok(Output { status, stdout: read(stdout), stderr: read(stderr) })
}

fn drain(stream: Option<impl Read + Send + 'static>) -> Option<JoinHandle<Vec<u8>>> {
    let mut stream = stream?;
    Some(thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before it broke is all there is.
        drop(stream.read_to_end(&mut bytes));
        bytes
    }))
}

fn read(stream: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    stream.and_then(|reader| reader.join().ok()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_ended() {
        let error = run("sleep", ["60"], Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::Slow { .. }), "{error}");
        assert_eq!(run("echo", ["a"], Duration::from_secs(60)).unwrap(), b"a\n");
        assert!(run("false", [""; 0], Duration::from_secs(60)).is_err());
    }
}
