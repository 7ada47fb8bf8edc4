//! The handshake: from a fresh stream to an export that can be read.

use crate::address::Options;
use crate::error::{Error, Result};
use crate::info::{BlockSizes, ExportInfo};
use crate::link::Link;
use crate::wire::{self, Greeting, Info, Mode, OptionReply, Violation, option_code, option_reply};

const DOING: &str = "the handshake";
/// Replies to one option that are accepted; a VM with hundreds of bitmaps has a context for each.
const REPLIES_MAX: usize = 16_384;
/// Bytes of all replies to one option that are accepted.
const REPLY_BYTES_MAX: u64 = 4 << 20;
/// The padding after `NBD_OPT_EXPORT_NAME` of servers that cannot leave it out.
const PADDING: usize = 124;

/// A granted meta context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Context {
    /// Valid on one connection only.
    pub(crate) id: u32,
    pub(crate) name: String,
}

/// What the handshake achieved.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) info: ExportInfo,
    pub(crate) mode: Mode,
    pub(crate) contexts: Vec<Context>,
}

/// Takes the kind and the payload of a reply to an option.
type EachReply<'a> = &'a mut dyn FnMut(u32, &[u8]) -> Result<(), Violation>;

/// How a server answered an option.
enum Answer {
    Ack,
    Refused { kind: u32, message: Vec<u8> },
}

/// Negotiates the best that both sides know, and enters the transmission phase.
pub(crate) fn negotiate(link: &mut Link, options: &Options) -> Result<Granted> {
    let greeting = greet(link)?;
    let mode = choose_mode(link)?;
    let contexts = match mode {
        Mode::Simple => Vec::new(),
        Mode::Structured | Mode::Extended => set_contexts(link, &options.export, &options.contexts)?,
    };
    let mut info = go(link, &options.export, mode, greeting)?;
    info.contexts = contexts.iter().map(|context| context.name.clone()).collect();
    Ok(Granted { info, mode, contexts })
}

/// Names of all contexts of an export, then an orderly end of the connection.
pub(crate) fn list_contexts(link: &mut Link, export: &str) -> Result<Vec<String>> {
    greet(link)?;
    let mut names = Vec::new();
    if choose_mode(link)? > Mode::Simple {
        let code = option_code::LIST_META_CONTEXT;
        names = ask_contexts(link, code, "NBD_OPT_LIST_META_CONTEXT", export, &[])?;
    }
    let abort = wire::encode_option(option_code::ABORT, &[]).map_err(|v| link.invalid(v))?;
    link.write_all(&abort, DOING)?;
    Ok(names.into_iter().map(|context| context.name).collect())
}

fn greet(link: &mut Link) -> Result<Greeting> {
    let mut bytes = [0; Greeting::LENGTH];
    link.read_exact(&mut bytes, DOING)?;
    let greeting = Greeting::decode(&bytes).map_err(|v| link.protocol(v))?;
    if greeting.old_style || !greeting.fixed {
        return Err(Error::Unsupported { server: link.server(), what: "it speaks an old style of the protocol only" });
    }
    link.write_all(&wire::encode_client_flags(greeting), DOING)?;
    Ok(greeting)
}

fn choose_mode(link: &mut Link) -> Result<Mode> {
    for (code, mode) in [(option_code::EXTENDED_HEADERS, Mode::Extended), (option_code::STRUCTURED_REPLY, Mode::Structured)] {
        match option(link, code, &[], &mut |kind, _| Err(unexpected("the choice of replies", kind)))? {
            Answer::Ack => return Ok(mode),
            Answer::Refused { kind, message } if is_final(kind) => {
                return Err(refusal(link, "the choice of replies", kind, &message));
            }
            Answer::Refused { .. } => {}
        }
    }
    Ok(Mode::Simple)
}

/// Refusals after which nothing else will be granted either.
fn is_final(kind: u32) -> bool {
    matches!(kind, option_reply::ERR_TLS_REQD | option_reply::ERR_SHUTDOWN)
}

fn set_contexts(link: &mut Link, export: &str, wanted: &[String]) -> Result<Vec<Context>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let code = option_code::SET_META_CONTEXT;
    let mut granted = ask_contexts(link, code, "NBD_OPT_SET_META_CONTEXT", export, wanted)?;
    let place = |context: &Context| wanted.iter().position(|name| *name == context.name);
    if let Some(stranger) = granted.iter().find(|context| place(context).is_none()) {
        return Err(link.protocol(Violation::ContextName { name: wire::sanitise(stranger.name.as_bytes()) }));
    }
    granted.sort_by_key(place);
    let mut ids: Vec<u32> = granted.iter().map(|context| context.id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(link.protocol(Violation::ContextTwice { id: pair[0] })),
        None => Ok(granted),
    }
}

fn ask_contexts(link: &mut Link, code: u32, name: &'static str, export: &str, queries: &[String]) -> Result<Vec<Context>> {
    let data = wire::context_queries(export, queries).map_err(|v| link.invalid(v))?;
    let mut contexts = Vec::new();
    let answer = option(link, code, &data, &mut |kind, payload| {
        if kind != option_reply::META_CONTEXT {
            return Err(unexpected(name, kind));
        }
        let (id, name) = wire::decode_context(payload)?;
        contexts.push(Context { id, name });
        Ok(())
    })?;
    match answer {
        Answer::Ack => Ok(contexts),
        // A server without contexts refuses the option; that is no reason not to read from it.
        Answer::Refused { kind: option_reply::ERR_UNSUP, .. } => Ok(Vec::new()),
        Answer::Refused { kind: option_reply::ERR_UNKNOWN, message } => Err(unknown(link, export, &message)),
        Answer::Refused { kind, message } => Err(refusal(link, name, kind, &message)),
    }
}

fn go(link: &mut Link, export: &str, mode: Mode, greeting: Greeting) -> Result<ExportInfo> {
    let data = wire::go(export).map_err(|v| link.invalid(v))?;
    let (mut told, mut sizes) = (None, BlockSizes::DEFAULT);
    let answer = option(link, option_code::GO, &data, &mut |kind, payload| {
        if kind != option_reply::INFO {
            return Err(unexpected("NBD_OPT_GO", kind));
        }
        match Info::decode(payload)? {
            Info::Export { size, flags } => told = Some((size, flags)),
            Info::BlockSizes { minimum, preferred, maximum } => sizes = BlockSizes { minimum, preferred, maximum },
            Info::Other => {}
        }
        Ok(())
    })?;
    match answer {
        Answer::Ack => {}
        Answer::Refused { kind: option_reply::ERR_UNSUP, .. } => told = Some(choose_by_name(link, export, greeting)?),
        Answer::Refused { kind: option_reply::ERR_UNKNOWN, message } => return Err(unknown(link, export, &message)),
        Answer::Refused { kind, message } => return Err(refusal(link, "NBD_OPT_GO", kind, &message)),
    }
    let (size, flags) = told.ok_or_else(|| link.protocol(Violation::NoSize))?;
    let info = ExportInfo::from_flags(size, flags, mode >= Mode::Structured, mode == Mode::Extended);
    Ok(ExportInfo { block_sizes: sizes, ..info })
}

/// The way of servers that predate `NBD_OPT_GO`: if they do not have the export, they hang up.
fn choose_by_name(link: &mut Link, export: &str, greeting: Greeting) -> Result<(u64, u16)> {
    let request = wire::encode_option(option_code::EXPORT_NAME, export.as_bytes()).map_err(|v| link.invalid(v))?;
    link.write_all(&request, DOING)?;
    let mut bytes = [0; wire::ACK_EXPORT_NAME_LENGTH];
    link.read_exact(&mut bytes, DOING)?;
    if !greeting.no_zeroes {
        link.read_exact(&mut [0; PADDING], DOING)?;
    }
    wire::decode_export_name(&bytes).map_err(|v| link.protocol(v))
}

/// Sends one option and hands every reply but the last to `each`.
fn option(link: &mut Link, code: u32, data: &[u8], each: EachReply<'_>) -> Result<Answer> {
    let request = wire::encode_option(code, data).map_err(|v| link.invalid(v))?;
    link.write_all(&request, DOING)?;
    let (mut payload, mut bytes) = (Vec::new(), 0);
    for _ in 0..REPLIES_MAX {
        let reply = option_reply_head(link, code)?;
        bytes += u64::from(reply.length);
        if bytes > REPLY_BYTES_MAX {
            let too_long = Violation::TooLong { what: "answer to an option", length: bytes, limit: REPLY_BYTES_MAX };
            return Err(link.protocol(too_long));
        }
        link.read_claimed(u64::from(reply.length), &mut payload, DOING)?;
        if reply.is_error() {
            return Ok(Answer::Refused { kind: reply.kind, message: payload });
        }
        if reply.kind == option_reply::ACK {
            return Ok(Answer::Ack);
        }
        each(reply.kind, &payload).map_err(|v| link.protocol(v))?;
    }
    Err(link.protocol(Violation::TooMany { what: "replies to an option", limit: REPLIES_MAX }))
}

fn option_reply_head(link: &mut Link, code: u32) -> Result<OptionReply> {
    let mut head = [0; OptionReply::LENGTH];
    link.read_exact(&mut head, DOING)?;
    OptionReply::decode(&head, code).map_err(|v| link.protocol(v))
}

fn unexpected(option: &'static str, kind: u32) -> Violation {
    Violation::OptionReply { option, kind }
}

fn unknown(link: &Link, export: &str, message: &[u8]) -> Error {
    let said = wire::sanitise(message);
    let message = if said.is_empty() { said } else { format!(": {said}") };
    Error::ExportUnknown { server: link.server(), export: export.to_owned(), message }
}

fn refusal(link: &Link, option: &'static str, kind: u32, message: &[u8]) -> Error {
    if kind == option_reply::ERR_TLS_REQD {
        return Error::Unsupported { server: link.server(), what: "it insists on TLS" };
    }
    Error::Refused { server: link.server(), option, reason: wire::option_error(kind, message) }
}
