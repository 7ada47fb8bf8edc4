//! How failures cross the seams: what kind they are for the caller, what caused them, and what helps.

use std::error::Error;
use std::fmt;

/// What a failure means to whoever called the program; each has an exit code of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureClass {
    /// It did not work.
    Failed,
    /// What was asked for makes no sense (unknown disk, bad name).
    Usage,
    /// There is no store at the place that was named.
    NoStore,
    /// Another process holds what is needed.
    Locked,
    /// The store's password is another one.
    WrongPassword,
    /// The VM does not answer.
    Unreachable,
    /// The user interrupted it.
    Interrupted,
}

/// A failure on its way to the edge, where it is shown once.
///
/// Display says what failed; [`Error::source`] leads on to the causes.
#[derive(Debug)]
pub struct Failure {
    class: FailureClass,
    hint: Option<String>,
    error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// Wraps an error with its meaning.
    pub fn new(class: FailureClass, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class, hint: None, error: error.into() }
    }

    /// Adds the sentence or command that helps.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What it means to the caller.
    #[must_use]
    pub fn class(&self) -> FailureClass {
        self.class
    }

    /// Whether the error inside is of this type.
    #[must_use]
    pub fn is<E: Error + 'static>(&self) -> bool {
        self.error.is::<E>()
    }

    /// The error inside, if it is of this type.
    #[must_use]
    pub fn get<E: Error + 'static>(&self) -> Option<&E> {
        self.error.downcast_ref()
    }

    /// What helps, if anything is known to.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// An error and its causes on one line.
#[must_use]
pub fn in_one_line(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do it")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("it is broken")]
    struct Inner;

    #[test]
    fn a_failure_is_shown_by_what_is_inside() {
        let failure = Failure::new(FailureClass::Locked, Outer(Inner));
        assert_eq!((failure.to_string(), failure.source().unwrap().to_string()), ("cannot do it".to_owned(), "it is broken".to_owned()));
        assert!(failure.source().unwrap().is::<Inner>() && Failure::new(FailureClass::Failed, Inner).source().is_none());
        assert_eq!((failure.class(), failure.hint()), (FailureClass::Locked, None));
        assert_eq!(failure.with_hint("wait").hint(), Some("wait"));
    }

    #[test]
    fn a_failure_is_told_on_one_line_with_its_causes() {
        assert_eq!(in_one_line(&Failure::new(FailureClass::Failed, Outer(Inner))), "cannot do it: it is broken");
        assert_eq!(in_one_line(&Inner), "it is broken");
    }

    #[test]
    fn a_failure_knows_the_type_inside() {
        let failure = Failure::new(FailureClass::Failed, Inner);
        assert!(failure.is::<Inner>() && failure.get::<Inner>().is_some());
        assert!(!failure.is::<Outer>() && failure.get::<Outer>().is_none());
    }
}
