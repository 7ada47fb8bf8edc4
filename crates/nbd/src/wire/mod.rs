//! The bytes of the NBD protocol: values to bytes and back, without sockets and without trust.
//!
//! Everything here is a pure function of slices. Numbers are big-endian. A decoder either returns a value whose
//! parts are in bounds or a [`Violation`]; none allocates more than a small multiple of the slice it was given.
//! Names and numbers are those of the specification (`doc/proto.md` of the NBD project).

mod chunk;
mod field;
mod option;
mod reply;
mod request;
mod text;
mod violation;

pub use chunk::{ErrorChunk, Hole, STATUS_EXTENTS_MAX, StatusDescriptor, decode_status, status_limit};
pub use field::Fields;
pub use option::{
    ACK_EXPORT_NAME_LENGTH, Greeting, Info, OPTION_PAYLOAD_MAX, OptionReply, context_queries, decode_context, decode_export_name,
    encode_client_flags, encode_option, go, option_error,
};
pub use reply::{ChunkHeader, REPLY_PREFIX_LENGTH, Reply, Simple, rest_length};
pub use request::{Command, RequestHeader};
pub use text::{errno_in_words, sanitise};
pub use violation::Violation;

/// How requests and replies are framed; fixed by the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Compact requests, simple replies only.
    Simple,
    /// Compact requests; reads and block status are answered in structured chunks.
    Structured,
    /// 64-bit requests and chunks throughout.
    Extended,
}

/// Handshake options, `NBD_OPT_*`.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod option_code {
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Kinds of replies to options, `NBD_REP_*`.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod option_reply {
    pub const ACK: u32 = 1;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    pub const ERR_PLATFORM: u32 = (1 << 31) + 4;
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    pub const ERR_BLOCK_SIZE_REQD: u32 = (1 << 31) + 8;
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Transmission flags of an export, `NBD_FLAG_*`.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod export_flag {
    pub const READ_ONLY: u16 = 1 << 1;
    pub const FLUSH: u16 = 1 << 2;
    pub const FUA: u16 = 1 << 3;
    pub const TRIM: u16 = 1 << 5;
    pub const WRITE_ZEROES: u16 = 1 << 6;
    pub const MULTI_CONN: u16 = 1 << 8;
    pub const STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Flags of requests, `NBD_CMD_FLAG_*`.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod command_flag {
    pub const FUA: u16 = 1 << 0;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Kinds of reply chunks, `NBD_REPLY_TYPE_*`, and the flag that ends a reply.
#[expect(missing_docs, reason = "the names are the specification's")]
pub mod chunk_kind {
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = (1 << 15) + 1;
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
    /// Every kind with this bit is an error.
    pub const ERROR_BIT: u16 = 1 << 15;
    /// The flag (not kind) of a reply's last chunk.
    pub const FLAG_DONE: u16 = 1 << 0;
}

#[cfg(test)]
mod tests;
