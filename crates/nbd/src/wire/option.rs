//! The handshake: the server's greeting, options and the replies to them.

use super::{Fields, Violation, errno_in_words, option_reply, sanitise};

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const FLAG_FIXED: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
/// The specification's longest string.
const STRING_MAX: usize = 4096;

/// The longest payload accepted of one reply to an option: two strings and some numbers.
pub const OPTION_PAYLOAD_MAX: u32 = 16 << 10;
/// What follows `NBD_OPT_EXPORT_NAME` without the padding: size and flags.
pub const ACK_EXPORT_NAME_LENGTH: usize = 10;

/// The first 18 bytes from a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// It predates options.
    pub old_style: bool,
    /// It answers options that it does not know.
    pub fixed: bool,
    /// It can leave out 124 bytes of padding.
    pub no_zeroes: bool,
}

impl Greeting {
    /// Bytes of a greeting.
    pub const LENGTH: usize = 18;

    /// Reads the greeting.
    pub fn decode(bytes: &[u8]) -> Result<Greeting, Violation> {
        let mut fields = Fields::new("greeting", bytes);
        let (first, second, flags) = (fields.u64()?, fields.u64()?, fields.u16()?);
        if first != GREETING_MAGIC {
            return Err(Violation::Magic { what: "greeting", found: first });
        }
        if second != OPTION_MAGIC && second != OLD_STYLE_MAGIC {
            return Err(Violation::Magic { what: "greeting", found: second });
        }
        let old_style = second == OLD_STYLE_MAGIC;
        let has = |flag| !old_style && flags & flag != 0;
        Ok(Greeting { old_style, fixed: has(FLAG_FIXED), no_zeroes: has(FLAG_NO_ZEROES) })
    }

    /// Writes a greeting of a fixed newstyle server.
    pub fn encode(&self) -> Vec<u8> {
        let second = if self.old_style { OLD_STYLE_MAGIC } else { OPTION_MAGIC };
        let flags = u16::from(self.fixed) * FLAG_FIXED + u16::from(self.no_zeroes) * FLAG_NO_ZEROES;
        [&GREETING_MAGIC.to_be_bytes()[..], &second.to_be_bytes(), &flags.to_be_bytes()].concat()
    }
}

/// The client's answer to a greeting.
pub fn encode_client_flags(greeting: Greeting) -> [u8; 4] {
    let flags = u32::from(FLAG_FIXED) + if greeting.no_zeroes { u32::from(FLAG_NO_ZEROES) } else { 0 };
    flags.to_be_bytes()
}

/// One option with its data.
pub fn encode_option(code: u32, data: &[u8]) -> Result<Vec<u8>, Violation> {
    let length = short_length("option", data.len(), 1 << 20)?;
    Ok([&OPTION_MAGIC.to_be_bytes()[..], &code.to_be_bytes(), &length.to_be_bytes(), data].concat())
}

/// The data of `NBD_OPT_GO`: the export's name, and that block sizes are of interest.
pub fn go(export: &str) -> Result<Vec<u8>, Violation> {
    let mut data = string("export name", export)?;
    data.extend(1_u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    Ok(data)
}

/// The data of `NBD_OPT_SET_META_CONTEXT` and `NBD_OPT_LIST_META_CONTEXT`.
pub fn context_queries(export: &str, queries: &[String]) -> Result<Vec<u8>, Violation> {
    let mut data = string("export name", export)?;
    data.extend(short_length("context query", queries.len(), 1 << 10)?.to_be_bytes());
    for query in queries {
        data.extend(string("context query", query)?);
    }
    Ok(data)
}

fn string(what: &'static str, text: &str) -> Result<Vec<u8>, Violation> {
    let length = short_length(what, text.len(), STRING_MAX)?;
    Ok([&length.to_be_bytes()[..], text.as_bytes()].concat())
}

fn short_length(what: &'static str, length: usize, limit: usize) -> Result<u32, Violation> {
    let too_long = Violation::TooLong { what, length: length as u64, limit: limit as u64 };
    u32::try_from(length).ok().filter(|_| length <= limit).ok_or(too_long)
}

/// The head of a reply to an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReply {
    /// One of [`option_reply`].
    pub kind: u32,
    /// Bytes of payload that follow; at most [`OPTION_PAYLOAD_MAX`].
    pub length: u32,
}

impl OptionReply {
    /// Bytes of the head.
    pub const LENGTH: usize = 20;

    /// Reads the head of the reply to option `sent`.
    pub fn decode(bytes: &[u8], sent: u32) -> Result<OptionReply, Violation> {
        let mut fields = Fields::new("option reply", bytes);
        let (magic, option, kind, length) = (fields.u64()?, fields.u32()?, fields.u32()?, fields.u32()?);
        if magic != REPLY_MAGIC {
            return Err(Violation::Magic { what: "option reply", found: magic });
        }
        if option != sent {
            return Err(Violation::OptionMismatch { sent, found: option });
        }
        if length > OPTION_PAYLOAD_MAX {
            let limit = u64::from(OPTION_PAYLOAD_MAX);
            return Err(Violation::TooLong { what: "option reply", length: u64::from(length), limit });
        }
        Ok(OptionReply { kind, length })
    }

    /// Writes the head of a reply to option `sent`.
    pub fn encode(&self, sent: u32) -> Vec<u8> {
        let numbers = [sent, self.kind, self.length].map(u32::to_be_bytes);
        [&REPLY_MAGIC.to_be_bytes()[..], &numbers.concat()].concat()
    }

    /// The server refuses.
    pub fn is_error(&self) -> bool {
        self.kind & (1 << 31) != 0
    }
}

/// A fact about an export, from `NBD_REP_INFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Info {
    /// Its size in bytes and its transmission flags.
    Export {
        /// In bytes; fits a signed 64-bit number.
        size: u64,
        /// See [`super::export_flag`].
        flags: u16,
    },
    /// Its block sizes.
    BlockSizes {
        /// A power of two, 64 KiB at most.
        minimum: u32,
        /// At least the minimum.
        preferred: u32,
        /// At least the minimum.
        maximum: u32,
    },
    /// Something else; to be ignored.
    Other,
}

impl Info {
    /// Reads the payload of `NBD_REP_INFO`.
    pub fn decode(payload: &[u8]) -> Result<Info, Violation> {
        let mut fields = Fields::new("export information", payload);
        let info = match fields.u16()? {
            INFO_EXPORT => Info::Export { size: checked_size(fields.u64()?)?, flags: fields.u16()? },
            INFO_BLOCK_SIZE => checked_sizes(fields.u32()?, fields.u32()?, fields.u32()?)?,
            _ => return Ok(Info::Other),
        };
        fields.end().map(|()| info)
    }
}

fn checked_size(size: u64) -> Result<u64, Violation> {
    i64::try_from(size).map(|_| size).map_err(|_| Violation::Size { size })
}

/// Some servers state a preferred size below the minimum or no power of two; it is a hint, so that is mended.
fn checked_sizes(minimum: u32, preferred: u32, maximum: u32) -> Result<Info, Violation> {
    if !minimum.is_power_of_two() || minimum > 65_536 || maximum < minimum {
        return Err(Violation::BlockSizes { minimum, preferred, maximum });
    }
    Ok(Info::BlockSizes { minimum, preferred: preferred.clamp(minimum, maximum), maximum })
}

/// Reads what follows `NBD_OPT_EXPORT_NAME`: size and flags.
pub fn decode_export_name(bytes: &[u8]) -> Result<(u64, u16), Violation> {
    let mut fields = Fields::new("export information", bytes);
    Ok((checked_size(fields.u64()?)?, fields.u16()?))
}

/// Reads the payload of `NBD_REP_META_CONTEXT`: the context's number and name.
pub fn decode_context(payload: &[u8]) -> Result<(u32, String), Violation> {
    let mut fields = Fields::new("meta context", payload);
    let id = fields.u32()?;
    let name = fields.rest();
    if name.len() > STRING_MAX {
        let (length, limit) = (name.len() as u64, STRING_MAX as u64);
        return Err(Violation::TooLong { what: "meta context", length, limit });
    }
    let name = std::str::from_utf8(name).map_err(|_| Violation::Text { what: "meta context" })?;
    Ok((id, name.to_owned()))
}

/// A refusal in words, with the server's message.
pub fn option_error(kind: u32, message: &[u8]) -> String {
    let words = match kind {
        option_reply::ERR_UNSUP => "not supported".to_owned(),
        option_reply::ERR_POLICY => "forbidden by the server's policy".to_owned(),
        option_reply::ERR_INVALID => "invalid".to_owned(),
        option_reply::ERR_PLATFORM => "not supported on the server's platform".to_owned(),
        option_reply::ERR_TLS_REQD => "TLS is required".to_owned(),
        option_reply::ERR_UNKNOWN => "no such export".to_owned(),
        option_reply::ERR_SHUTDOWN => "the server is shutting down".to_owned(),
        option_reply::ERR_BLOCK_SIZE_REQD => "block sizes must be honoured".to_owned(),
        option_reply::ERR_TOO_BIG => "the option is too long".to_owned(),
        option_reply::ERR_EXT_HEADER_REQD => "extended headers are required".to_owned(),
        other => errno_in_words(other & !(1 << 31)),
    };
    let message = sanitise(message);
    if message.is_empty() { words } else { format!("{words}: {message}") }
}
