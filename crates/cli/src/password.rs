//! The store's password: a file, the environment, or a prompt on a terminal; never an argument.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use keepmark_model::{Failure, FailureClass};

#[derive(Debug, thiserror::Error)]
enum PasswordError {
    #[error("cannot read the password file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the password file {} has no password on its first line", path.display())]
    Empty { path: PathBuf },
    #[error("no password for the store was given")]
    None,
    #[error("cannot ask for the password")]
    Prompt(#[source] std::io::Error),
    #[error("the two passwords differ")]
    Differ,
}

impl From<PasswordError> for Failure {
    fn from(error: PasswordError) -> Self {
        Self::new(FailureClass::Usage, error).with_hint("give it by --password-file FILE, KEEPMARK_PASSWORD_FILE or KEEPMARK_PASSWORD")
    }
}

/// Whether a password is being chosen or asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// For a store that exists.
    Open,
    /// For a new store: a prompt asks twice.
    Choose,
}

/// Finds the password: in the file, else in the environment, else by asking.
///
/// # Errors
/// When the file cannot be read, or there is nothing and nobody to ask.
pub fn find(file: Option<&Path>, environment: Option<String>, purpose: Purpose) -> Result<String, Failure> {
    match (file, environment) {
        (Some(path), _) => from_file(path),
        (None, Some(password)) if !password.is_empty() => Ok(password),
        (None, _) if std::io::stdin().is_terminal() => ask(purpose),
        (None, _) => Err(PasswordError::None.into()),
    }
}

fn from_file(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path).map_err(|source| PasswordError::Read { path: path.to_owned(), source })?;
    match text.lines().next() {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(PasswordError::Empty { path: path.to_owned() }.into()),
    }
}

fn ask(purpose: Purpose) -> Result<String, Failure> {
    let prompt = |text| rpassword::prompt_password(text).map_err(PasswordError::Prompt);
    let password = prompt("Password of the store: ")?;
    if purpose == Purpose::Choose && prompt("The same again: ")? != password {
        return Err(PasswordError::Differ.into());
    }
    if password.is_empty() { Err(PasswordError::None.into()) } else { Ok(password) }
}
