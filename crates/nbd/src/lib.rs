//! The NBD protocol: a client for what QEMU, nbdkit and others serve, the wire format separate from sockets.
//!
//! Reading order: [`Client`] is what the rest of keepmark uses; [`wire`] turns bytes into values and back and
//! knows no socket; `handshake` and `connection` put the two together. Everything blocks, nothing spawns a
//! thread, and no allocation is sized by what a server claims before it has sent it.

mod address;
mod client;
mod connection;
mod coverage;
mod error;
mod handshake;
mod incoming;
mod info;
mod link;
mod list;
mod modify;
mod pool;
mod read;
mod socket;
mod split;
mod status;
pub mod wire;

pub use address::{Address, Options};
pub use client::Client;
pub use error::{Error, Result};
pub use info::{BlockSizes, ExportInfo};
pub use list::list_contexts;
pub use pool::BufferPool;
pub use read::Request;
pub use status::Status;

#[cfg(test)]
mod connection_tests;
