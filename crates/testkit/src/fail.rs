//! The one place where a fixture gives up: a panic that names what could not be done.

use std::fmt::Display;

/// Ends the test with `message`.
#[track_caller]
#[expect(clippy::panic, reason = "a fixture that cannot be made is a failed test")]
pub fn fail(message: impl Display) -> ! {
    panic!("{message}")
}

/// Unwraps what must be there, or ends the test saying what was attempted.
pub trait OrFail<T> {
    /// The value, or a failed test whose message is `what` and the error.
    fn or_fail(self, what: impl Display) -> T;
}

impl<T, E: Display> OrFail<T> for Result<T, E> {
    #[track_caller]
    fn or_fail(self, what: impl Display) -> T {
        match self {
            Ok(value) => value,
            Err(error) => fail(format_args!("{what}: {error}")),
        }
    }
}

impl<T> OrFail<T> for Option<T> {
    #[track_caller]
    fn or_fail(self, what: impl Display) -> T {
        match self {
            Some(value) => value,
            None => fail(what),
        }
    }
}
