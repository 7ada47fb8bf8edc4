//! The one clock and the one randomness, passed in from the edge.

use std::time::Duration;

use jiff::Timestamp;

/// What a job needs of the world besides a VM and a store.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The time now, by the host's clock.
    pub now: &'a (dyn Fn() -> Timestamp + Sync),
    /// Time since some fixed moment, never going back.
    pub elapsed: &'a (dyn Fn() -> Duration + Sync),
    /// Fresh random bits at every call.
    pub random: &'a (dyn Fn() -> u32 + Sync),
}

impl Surroundings<'_> {
    /// What tells one run's temporary names from another's: eight hexadecimal digits, new at every call.
    pub(crate) fn run(&self) -> String {
        format!("{:08x}", (self.random)())
    }

    /// What a sample is drawn by, new at every call.
    pub(crate) fn seed(&self) -> u64 {
        u64::from((self.random)()) << 32 | u64::from((self.random)())
    }
}
