//! The heads of replies: simple, structured and extended.

use super::{Fields, Mode, Violation, chunk_kind};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_MAGIC: u32 = 0x6e8a_278c;

/// Every reply starts with at least so many bytes; [`rest_length`] tells how many more its head has.
pub const REPLY_PREFIX_LENGTH: usize = 16;

/// How many bytes of the head follow the prefix, for the framing that `mode` allows.
pub fn rest_length(prefix: &[u8; REPLY_PREFIX_LENGTH], mode: Mode) -> Result<usize, Violation> {
    let magic = Fields::new("reply", prefix).u32()?;
    let (kind, rest, allowed) = match magic {
        SIMPLE_MAGIC => ("simple", 0, mode != Mode::Extended),
        STRUCTURED_MAGIC => ("structured", 4, mode == Mode::Structured),
        EXTENDED_MAGIC => ("extended", 16, mode == Mode::Extended),
        found => return Err(Violation::Magic { what: "reply", found: u64::from(found) }),
    };
    if allowed { Ok(rest) } else { Err(Violation::Framing { kind }) }
}

/// A reply without chunks; after a read without error its bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Simple {
    /// Which request it answers.
    pub cookie: u64,
    /// Zero, or an error number.
    pub errno: u32,
}

/// The head of a chunk of a structured or extended reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Which request it answers.
    pub cookie: u64,
    /// This chunk is the request's last.
    pub done: bool,
    /// One of [`chunk_kind`].
    pub kind: u16,
    /// Bytes of payload that follow, as claimed.
    pub length: u64,
}

/// The head of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// A reply without chunks.
    Simple(Simple),
    /// A chunk of a reply.
    Chunk(ChunkHeader),
}

impl Reply {
    /// Reads a whole head.
    pub fn decode(bytes: &[u8]) -> Result<Reply, Violation> {
        let mut fields = Fields::new("reply", bytes);
        let reply = match fields.u32()? {
            SIMPLE_MAGIC => {
                let errno = fields.u32()?;
                Reply::Simple(Simple { cookie: fields.u64()?, errno })
            }
            STRUCTURED_MAGIC => Reply::Chunk(chunk(&mut fields, false)?),
            EXTENDED_MAGIC => Reply::Chunk(chunk(&mut fields, true)?),
            found => return Err(Violation::Magic { what: "reply", found: u64::from(found) }),
        };
        fields.end().map(|()| reply)
    }

    /// Writes a head, as a server does; `extended` carries the request's offset.
    pub fn encode(&self, extended: Option<u64>) -> Result<Vec<u8>, Violation> {
        match self {
            Reply::Simple(simple) => {
                let numbers = [SIMPLE_MAGIC, simple.errno].map(u32::to_be_bytes);
                Ok([&numbers.concat()[..], &simple.cookie.to_be_bytes()].concat())
            }
            Reply::Chunk(chunk) => chunk.encode(extended),
        }
    }
}

fn chunk(fields: &mut Fields<'_>, extended: bool) -> Result<ChunkHeader, Violation> {
    let (flags, kind, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
    if extended {
        // The request's offset again. The cookie says the same, and not every server fills it in.
        fields.u64()?;
    }
    let length = if extended { fields.u64()? } else { u64::from(fields.u32()?) };
    Ok(ChunkHeader { cookie, done: flags & chunk_kind::FLAG_DONE != 0, kind, length })
}

impl ChunkHeader {
    fn encode(&self, extended: Option<u64>) -> Result<Vec<u8>, Violation> {
        let magic = if extended.is_some() { EXTENDED_MAGIC } else { STRUCTURED_MAGIC };
        let flags = if self.done { chunk_kind::FLAG_DONE } else { 0 };
        let mut out = magic.to_be_bytes().to_vec();
        out.extend(flags.to_be_bytes());
        out.extend(self.kind.to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        if let Some(offset) = extended {
            out.extend(offset.to_be_bytes());
            out.extend(self.length.to_be_bytes());
            return Ok(out);
        }
        let limit = u64::from(u32::MAX);
        let too_long = |_| Violation::TooLong { what: "chunk", length: self.length, limit };
        out.extend(u32::try_from(self.length).map_err(too_long)?.to_be_bytes());
        Ok(out)
    }
}
