//! Requests, in the compact and in the extended form.

use super::{Fields, Mode, Violation};

const COMPACT_MAGIC: u32 = 0x2560_9513;
const EXTENDED_MAGIC: u32 = 0x21e4_1c71;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
    BlockStatus = 7,
}

impl Command {
    const ALL: [Command; 7] =
        [Command::Read, Command::Write, Command::Disconnect, Command::Flush, Command::Trim, Command::WriteZeroes, Command::BlockStatus];

    /// A verb for messages.
    pub fn verb(self) -> &'static str {
        match self {
            Command::Read => "read",
            Command::Write => "write",
            Command::Disconnect => "disconnect",
            Command::Flush => "flush",
            Command::Trim => "trim",
            Command::WriteZeroes => "write zeroes",
            Command::BlockStatus => "tell the status of",
        }
    }
}

/// A request without the payload that may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// What to do.
    pub command: Command,
    /// See [`super::command_flag`].
    pub flags: u16,
    /// Chosen by the client; comes back in the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes. The compact form has 32 bits for it.
    pub length: u64,
}

impl RequestHeader {
    /// Bytes of a request in this mode.
    pub fn encoded_length(mode: Mode) -> usize {
        if mode == Mode::Extended { 32 } else { 28 }
    }

    /// Appends the request to `out`.
    pub fn encode(&self, mode: Mode, out: &mut Vec<u8>) -> Result<(), Violation> {
        let limit = u64::from(u32::MAX);
        let compact = u32::try_from(self.length);
        let too_long = |_| Violation::TooLong { what: "request", length: self.length, limit };
        let (magic, length) = match mode {
            Mode::Extended => (EXTENDED_MAGIC, self.length.to_be_bytes().to_vec()),
            Mode::Simple | Mode::Structured => (COMPACT_MAGIC, compact.map_err(too_long)?.to_be_bytes().to_vec()),
        };
        out.extend(magic.to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend((self.command as u16).to_be_bytes());
        out.extend(self.cookie.to_be_bytes());
        out.extend(self.offset.to_be_bytes());
        out.extend(length);
        Ok(())
    }

    /// Reads a request, as a server does.
    pub fn decode(mode: Mode, bytes: &[u8]) -> Result<RequestHeader, Violation> {
        let mut fields = Fields::new("request", bytes);
        let magic = fields.u32()?;
        if magic != if mode == Mode::Extended { EXTENDED_MAGIC } else { COMPACT_MAGIC } {
            return Err(Violation::Magic { what: "request", found: u64::from(magic) });
        }
        let (flags, code) = (fields.u16()?, fields.u16()?);
        let known = Command::ALL.into_iter().find(|command| *command as u16 == code);
        let command = known.ok_or(Violation::Command { code })?;
        let (cookie, offset) = (fields.u64()?, fields.u64()?);
        let length = if mode == Mode::Extended { fields.u64()? } else { u64::from(fields.u32()?) };
        fields.end()?;
        Ok(RequestHeader { command, flags, cookie, offset, length })
    }
}
