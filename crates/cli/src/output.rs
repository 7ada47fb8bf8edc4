//! Standard output: data only, as text or one JSON object per line; a closed pipe ends the output quietly.

use std::io::Write;

use keepmark_model::{Failure, FailureClass};
use serde::Serialize;

#[derive(Debug, thiserror::Error)]
enum OutputError {
    #[error("cannot write to standard output")]
    Write(#[source] std::io::Error),
    #[error("cannot write the result as JSON")]
    Json(#[source] serde_json::Error),
}

/// Prints text as it is.
///
/// # Errors
/// When standard output cannot be written, other than by a closed pipe.
pub fn text(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Prints bytes as they are.
///
/// # Errors
/// As [`text`].
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(FailureClass::Failed, OutputError::Write(source)))
        }
        _ => Ok(()),
    }
}

/// Prints one object on one line.
///
/// # Errors
/// As [`text`].
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|source| Failure::new(FailureClass::Failed, OutputError::Json(source)))?;
    text(&format!("{line}\n"))
}
