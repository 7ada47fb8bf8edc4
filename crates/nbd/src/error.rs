//! Everything that can go wrong with an NBD server, by subject.

use std::io;

use crate::wire::Violation;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed. `server` is the address as [`crate::Address`] displays it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No connection could be made.
    #[error("cannot connect to the NBD server at {server}")]
    Connect {
        /// The address.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// The server is of a kind that this client cannot use (old style, TLS only).
    #[error("the NBD server at {server} cannot be used: {what}")]
    Unsupported {
        /// The address.
        server: String,
        /// What it lacks or insists on.
        what: &'static str,
    },
    /// The server has no export of that name.
    #[error("the NBD server at {server} has no export {export:?}{message}")]
    ExportUnknown {
        /// The address.
        server: String,
        /// The name asked for.
        export: String,
        /// What the server said, as `: text`, or empty.
        message: String,
    },
    /// The server refused an option of the handshake.
    #[error("the NBD server at {server} refused {option}: {reason}")]
    Refused {
        /// The address.
        server: String,
        /// The option's name in the specification.
        option: &'static str,
        /// Its reason, with its message.
        reason: String,
    },
    /// What was wanted cannot be said in the protocol: a name is too long.
    #[error("this cannot be asked of the NBD server at {server}")]
    Invalid {
        /// The address.
        server: String,
        /// What does not fit.
        source: Violation,
    },
    /// The server sent what the protocol does not allow. The connection is given up.
    #[error("the NBD server at {server} broke the protocol")]
    Protocol {
        /// The address.
        server: String,
        /// What it sent.
        source: Violation,
    },
    /// The caller did not want to wait any longer.
    #[error("interrupted while the NBD server at {server} made durable what was written")]
    Interrupted {
        /// The address.
        server: String,
    },
    /// The server closed the connection, or died.
    #[error("the NBD server at {server} closed the connection during {doing}")]
    Disconnected {
        /// The address.
        server: String,
        /// What was going on.
        doing: &'static str,
    },
    /// The server was silent for longer than [`crate::Options::timeout`].
    #[error("the NBD server at {server} did not answer for {seconds} s during {doing}")]
    Timeout {
        /// The address.
        server: String,
        /// What was going on.
        doing: &'static str,
        /// The limit.
        seconds: f64,
    },
    /// The socket failed.
    #[error("the connection to the NBD server at {server} failed during {doing}")]
    Io {
        /// The address.
        server: String,
        /// What was going on.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The server answered a request with an error. The connection stays usable.
    #[error("the NBD server at {server} could not {command} {length} bytes at offset {offset}: {reason}")]
    Request {
        /// The address.
        server: String,
        /// What was asked: `read`, `write`, ...
        command: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
        /// The protocol's error number (`5` is an I/O error).
        errno: u32,
        /// The error in words, with the server's message.
        reason: String,
    },
    /// A request reaches beyond the export's end.
    #[error("{length} bytes at offset {offset} reach beyond the export of {size} bytes at {server}")]
    OutOfRange {
        /// The address.
        server: String,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
        /// The export's size in bytes.
        size: u64,
    },
    /// A write is not aligned to the server's minimum block size.
    #[error("{length} bytes at offset {offset} are not aligned to the {minimum}-byte blocks that {server} insists on")]
    Unaligned {
        /// The address.
        server: String,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        length: u64,
        /// The minimum block size.
        minimum: u32,
    },
    /// The export does not offer this command.
    #[error("the export at {server} does not offer to {command}")]
    NotOffered {
        /// The address.
        server: String,
        /// `write`, `trim`, `write zeroes`, `flush`.
        command: &'static str,
    },
    /// The server did not grant this meta context.
    #[error("the export at {server} has no meta context {context:?}")]
    ContextMissing {
        /// The address.
        server: String,
        /// The name asked for.
        context: String,
    },
    /// Two connections to the same export were told different things.
    #[error("two connections to {server} disagree about the export's {what}")]
    Differs {
        /// The address.
        server: String,
        /// What differs: `size`, ...
        what: &'static str,
    },
    /// This client failed before; what is on its connection now can no longer be told.
    #[error("the connection to the NBD server at {server} failed earlier")]
    Unusable {
        /// The address.
        server: String,
    },
}
