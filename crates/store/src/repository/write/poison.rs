//! After one failed write nothing more is written: the first failure is told once, everything after it is refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

/// Remembers the first failure of a backup's threads.
#[derive(Debug, Default)]
pub struct Poison {
    failed: AtomicBool,
    first: Mutex<Option<Error>>,
}

impl Poison {
    /// Nothing more is written from now on.
    pub fn fail(&self, error: Error) {
        let mut first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.failed.swap(true, Ordering::SeqCst) {
            *first = Some(error);
        }
    }

    /// Fails if anything failed: with the failure itself the first time, with [`Error::Poisoned`] later.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        if !self.failed.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(self.first.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(Error::Poisoned))
    }

    /// Whether anything failed.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }
}
