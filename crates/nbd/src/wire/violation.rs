//! What a peer can do against the protocol, one variant each.

/// What a peer sent that the protocol does not allow, or that is larger than this client accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are named by each message")]
pub enum Violation {
    #[error("{what} starts with {found:#x}, not with its magic number")]
    Magic { what: &'static str, found: u64 },
    #[error("{what} of {length} bytes, {limit} at most are accepted")]
    TooLong { what: &'static str, length: u64, limit: u64 },
    #[error("{what} is cut short after {length} bytes")]
    Short { what: &'static str, length: usize },
    #[error("{what} has {extra} bytes too many")]
    Excess { what: &'static str, extra: usize },
    #[error("{what} is not UTF-8")]
    Text { what: &'static str },
    #[error("more than {limit} {what}")]
    TooMany { what: &'static str, limit: usize },
    #[error("answer to option {found} where option {sent} was sent")]
    OptionMismatch { sent: u32, found: u32 },
    #[error("answer of kind {kind:#x} to {option}")]
    OptionReply { option: &'static str, kind: u32 },
    #[error("the export's size was not told")]
    NoSize,
    #[error("size of {size} bytes")]
    Size { size: u64 },
    #[error("impossible block sizes: minimum {minimum}, preferred {preferred}, maximum {maximum}")]
    BlockSizes { minimum: u32, preferred: u32, maximum: u32 },
    #[error("meta context number {id} twice")]
    ContextTwice { id: u32 },
    #[error("meta context {name:?}, which was not asked for")]
    ContextName { name: String },
    #[error("a {kind} reply, which was not negotiated")]
    Framing { kind: &'static str },
    #[error("a reply to request {cookie:#x}, which is not outstanding")]
    Cookie { cookie: u64 },
    #[error("command {code} is unknown")]
    Command { code: u16 },
    #[error("a chunk of kind {kind:#x} in the reply to {command}")]
    Chunk { command: &'static str, kind: u16 },
    #[error("a simple reply to a {command}, which needs a structured one")]
    SimpleReply { command: &'static str },
    #[error("an empty chunk that does not end the reply")]
    Endless,
    #[error("an error chunk without an error number")]
    ErrorZero,
    #[error("{length} bytes for offset {offset}, outside of the {request_length} bytes asked for at {request_offset}")]
    Outside { offset: u64, length: u64, request_offset: u64, request_length: u64 },
    #[error("bytes at {start} of a request sent twice")]
    Overlap { start: u64 },
    #[error("a reply in too many scattered pieces")]
    Fragmented,
    #[error("a reply that ended before all of the {length} bytes at offset {offset} were sent")]
    Incomplete { offset: u64, length: u64 },
    #[error("block status for context {id}, which was not asked for or has been told")]
    StatusContext { id: u32 },
    #[error("block status without any extent")]
    StatusEmpty,
    #[error("block status with an extent of no bytes")]
    StatusZeroLength,
    #[error("block status that goes on beyond the {length} bytes asked for at offset {offset}")]
    StatusBeyond { offset: u64, length: u64 },
    #[error("block status without the context that was asked for")]
    StatusMissing,
}
