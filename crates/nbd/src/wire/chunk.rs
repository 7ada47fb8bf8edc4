//! The payloads of reply chunks: errors, holes and block status.

use super::{Fields, Violation, chunk_kind, errno_in_words, sanitise};

/// Extents in one block status chunk that are accepted: eight times what QEMU sends, and as many as nbdkit does.
pub const STATUS_EXTENTS_MAX: usize = 1 << 20;

/// A range that reads as zeros, in the reply to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// In bytes from the start of the export.
    pub offset: u64,
    /// In bytes.
    pub length: u32,
}

impl Hole {
    /// Bytes of payload.
    pub const LENGTH: usize = 12;

    /// Reads the payload of `NBD_REPLY_TYPE_OFFSET_HOLE`.
    pub fn decode(payload: &[u8]) -> Result<Hole, Violation> {
        let mut fields = Fields::new("hole chunk", payload);
        let hole = Hole { offset: fields.u64()?, length: fields.u32()? };
        fields.end().map(|()| hole)
    }
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorChunk {
    /// The protocol's error number, never zero.
    pub errno: u32,
    /// What the server says, sanitised; may be empty.
    pub message: String,
}

impl ErrorChunk {
    /// The longest payload: number, length of text, the longest text that fits it, offset.
    pub const LENGTH_MAX: u64 = 4 + 2 + 65_535 + 8;

    /// Reads the payload of an error chunk of this kind.
    pub fn decode(kind: u16, payload: &[u8]) -> Result<ErrorChunk, Violation> {
        let mut fields = Fields::new("error chunk", payload);
        let (errno, length) = (fields.u32()?, fields.u16()?);
        let message = sanitise(fields.bytes(usize::from(length))?);
        match kind {
            chunk_kind::ERROR => fields.end()?,
            chunk_kind::ERROR_OFFSET => fields.u64().and_then(|_| fields.end())?,
            // Kinds of errors yet to be invented may carry more.
            _ => {}
        }
        if errno == 0 {
            return Err(Violation::ErrorZero);
        }
        Ok(ErrorChunk { errno, message })
    }

    /// The error in words, with the server's message.
    pub fn reason(&self) -> String {
        let words = errno_in_words(self.errno);
        if self.message.is_empty() { words } else { format!("{words}: {}", self.message) }
    }
}

/// One extent of a block status chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusDescriptor {
    /// In bytes.
    pub length: u64,
    /// Their meaning depends on the context.
    pub flags: u64,
}

/// The longest payload of a block status chunk.
pub fn status_limit(extended: bool) -> u64 {
    let (head, each) = if extended { (8, 16) } else { (4, 8) };
    head + each * STATUS_EXTENTS_MAX as u64
}

/// Reads a block status chunk: the context's number, then hands each extent to `each`.
pub fn decode_status<E: From<Violation>>(
    extended: bool,
    payload: &[u8],
    each: &mut dyn FnMut(StatusDescriptor) -> Result<(), E>,
) -> Result<u32, E> {
    let mut fields = Fields::new("block status chunk", payload);
    let id = fields.u32()?;
    if extended {
        let (count, bytes) = (u64::from(fields.u32()?), fields.clone().rest().len() as u64);
        if count.checked_mul(16) != Some(bytes) {
            return Err(Violation::Short { what: "block status chunk", length: payload.len() }.into());
        }
    }
    let mut rest = fields.rest();
    if rest.is_empty() {
        return Err(Violation::StatusEmpty.into());
    }
    while !rest.is_empty() {
        let mut fields = Fields::new("block status chunk", rest);
        let (length, flags) = if extended { (fields.u64()?, fields.u64()?) } else { (u64::from(fields.u32()?), u64::from(fields.u32()?)) };
        each(StatusDescriptor { length, flags })?;
        rest = fields.rest();
    }
    Ok(id)
}
