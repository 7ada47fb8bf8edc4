//! The client against real servers, honest and lying ones.

#[cfg(test)]
mod common;
#[cfg(test)]
mod liars;
#[cfg(test)]
mod nbdkit;
#[cfg(test)]
mod qemu;
