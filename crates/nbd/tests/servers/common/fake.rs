//! A server on a real unix socket that says what a test tells it to, true or not.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, mpsc};

use keepmark_nbd::Address;
use keepmark_nbd::wire::{
    ChunkHeader, Command, Greeting, Mode, OptionReply, Reply, RequestHeader, Simple, chunk_kind, command_flag, option_code, option_reply,
};

/// What a fake server claims during an honest handshake.
#[derive(Debug, Clone)]
pub struct Claims {
    pub mode: Mode,
    pub size: u64,
    pub flags: u16,
    pub block_sizes: Option<[u32; 3]>,
    /// Numbered from 1 in this order.
    pub contexts: Vec<String>,
    /// Knows no `NBD_OPT_GO`.
    pub predates_go: bool,
}

impl Default for Claims {
    fn default() -> Self {
        let contexts = vec!["base:allocation".to_owned(), "qemu:dirty-bitmap:b".to_owned()];
        Claims { mode: Mode::Structured, size: 1 << 20, flags: 1, block_sizes: None, contexts, predates_go: false }
    }
}

/// A fake server; listens for as long as it lives.
pub struct Fake {
    pub address: Address,
    _folder: tempfile::TempDir,
}

/// One connection to a fake server.
pub struct Peer {
    stream: UnixStream,
    mode: Mode,
    /// Counts from 0.
    pub connection: usize,
}

impl Fake {
    /// Shakes hands as claimed, then does what `script` says, for each connection on a thread of its own.
    pub fn honest(claims: Claims, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Fake {
        Fake::differing(move |_| claims.clone(), script)
    }

    /// As [`Self::honest`], with claims that depend on the number of the connection.
    pub fn differing(claims: impl Fn(usize) -> Claims + Send + Sync + 'static, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Fake {
        Fake::raw(move |peer| {
            let claims = claims(peer.connection);
            peer.mode = claims.mode;
            // A client that ended is the test's business.
            if peer.shake_hands(&claims).is_some() {
                script(peer);
            }
        })
    }

    /// Does what `script` says from the first byte on.
    pub fn raw(script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Fake {
        let folder = super::folder();
        let path = folder.path().join("fake.sock");
        let listener = UnixListener::bind(&path).expect("bind");
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let Ok(stream) = stream else { return };
                let script = Arc::clone(&script);
                std::thread::spawn(move || script(&mut Peer { stream, mode: Mode::Simple, connection }));
            }
        });
        Fake { address: Address::Unix(path), _folder: folder }
    }
}

impl Peer {
    fn bytes(&mut self, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).ok().map(|()| bytes)
    }

    /// Says anything at all. A client that is gone is fine.
    pub fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).ok();
    }

    /// Says nothing until the client goes away.
    pub fn mute(&mut self) {
        while self.bytes(1).is_some() {}
    }

    pub fn greet(&mut self) {
        self.say(&Greeting { old_style: false, fixed: true, no_zeroes: true }.encode());
    }

    /// The next option and its data.
    pub fn option(&mut self) -> Option<(u32, Vec<u8>)> {
        let head = self.bytes(16)?;
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four"));
        let data = self.bytes(number(12) as usize)?;
        Some((number(8), data))
    }

    /// As [`Self::option`], after taking the client's flags once.
    pub fn option_after_flags(&mut self, taken: &mut bool) -> Option<(u32, Vec<u8>)> {
        if !std::mem::replace(taken, true) {
            self.bytes(4)?;
        }
        self.option()
    }

    pub fn answer(&mut self, option: u32, kind: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("short");
        self.say(&[OptionReply { kind, length }.encode(option), payload.to_vec()].concat());
    }

    fn shake_hands(&mut self, claims: &Claims) -> Option<()> {
        self.greet();
        self.bytes(4)?;
        loop {
            let (option, data) = self.option()?;
            match option {
                option_code::EXTENDED_HEADERS => self.grant(option, claims.mode == Mode::Extended),
                option_code::STRUCTURED_REPLY => self.grant(option, claims.mode == Mode::Structured),
                option_code::SET_META_CONTEXT | option_code::LIST_META_CONTEXT => self.tell_contexts(option, claims, &data),
                option_code::GO if claims.predates_go => self.answer(option, option_reply::ERR_UNSUP, b""),
                option_code::GO => {
                    self.go(claims);
                    return Some(());
                }
                option_code::EXPORT_NAME => {
                    self.say(&[&claims.size.to_be_bytes()[..], &claims.flags.to_be_bytes()].concat());
                    return Some(());
                }
                _ => return None,
            }
        }
    }

    fn grant(&mut self, option: u32, granted: bool) {
        self.answer(option, if granted { option_reply::ACK } else { option_reply::ERR_UNSUP }, b"");
    }

    fn tell_contexts(&mut self, option: u32, claims: &Claims, data: &[u8]) {
        let asked = String::from_utf8_lossy(data).into_owned();
        for (name, id) in claims.contexts.iter().zip(1_u32..) {
            if option == option_code::LIST_META_CONTEXT || asked.contains(name.as_str()) {
                self.answer(option, option_reply::META_CONTEXT, &[&id.to_be_bytes()[..], name.as_bytes()].concat());
            }
        }
        self.answer(option, option_reply::ACK, b"");
    }

    fn go(&mut self, claims: &Claims) {
        let export = [&[0, 0], &claims.size.to_be_bytes()[..], &claims.flags.to_be_bytes()].concat();
        self.answer(option_code::GO, option_reply::INFO, &export);
        if let Some(sizes) = claims.block_sizes {
            let payload = [&[0, 3][..], &sizes.map(u32::to_be_bytes).concat()].concat();
            self.answer(option_code::GO, option_reply::INFO, &payload);
        }
        self.answer(option_code::GO, option_reply::ACK, b"");
    }

    /// The next request and its payload; nothing when the client is gone or says goodbye.
    pub fn request(&mut self) -> Option<(RequestHeader, Vec<u8>)> {
        let head = self.bytes(RequestHeader::encoded_length(self.mode))?;
        let header = RequestHeader::decode(self.mode, &head).expect("a valid request");
        let has_payload = header.command == Command::Write || header.flags & command_flag::PAYLOAD_LEN != 0;
        let payload = self.bytes(if has_payload { usize::try_from(header.length).expect("small") } else { 0 })?;
        (header.command != Command::Disconnect).then_some((header, payload))
    }

    pub fn simple(&mut self, cookie: u64, errno: u32, payload: &[u8]) {
        let head = Reply::Simple(Simple { cookie, errno }).encode(None).expect("encodes");
        self.say(&[&head, payload].concat());
    }

    /// A chunk of any kind.
    pub fn chunk(&mut self, cookie: u64, kind: u16, done: bool, payload: &[u8]) {
        self.claim_chunk(cookie, kind, done, payload.len() as u64);
        self.say(payload);
    }

    /// The head of a chunk that may never follow.
    pub fn claim_chunk(&mut self, cookie: u64, kind: u16, done: bool, length: u64) {
        let extended = (self.mode == Mode::Extended).then_some(0);
        let head = Reply::Chunk(ChunkHeader { cookie, done, kind, length }).encode(extended).expect("encodes");
        self.say(&head);
    }

    pub fn data(&mut self, cookie: u64, offset: u64, bytes: &[u8], done: bool) {
        self.chunk(cookie, chunk_kind::OFFSET_DATA, done, &[&offset.to_be_bytes()[..], bytes].concat());
    }

    pub fn error(&mut self, cookie: u64, errno: u32, message: &[u8]) {
        let length = u16::try_from(message.len()).expect("short");
        self.chunk(cookie, chunk_kind::ERROR, true, &[&errno.to_be_bytes()[..], &length.to_be_bytes(), message].concat());
    }

    /// Block status of context `id`: lengths and flags.
    pub fn status(&mut self, cookie: u64, id: u32, extents: &[(u32, u32)], done: bool) {
        let extents: Vec<u8> = extents.iter().flat_map(|(length, flags)| [length.to_be_bytes(), flags.to_be_bytes()].concat()).collect();
        self.chunk(cookie, chunk_kind::BLOCK_STATUS, done, &[&id.to_be_bytes()[..], &extents].concat());
    }

    /// Answers a read as it should be: each byte is the low byte of its offset.
    pub fn serve_read(&mut self, request: RequestHeader) {
        let bytes = counting(request.offset, request.length);
        match self.mode {
            Mode::Simple => self.simple(request.cookie, 0, &bytes),
            Mode::Structured | Mode::Extended => self.data(request.cookie, request.offset, &bytes, true),
        }
    }
}

/// Each byte is the low byte of its offset.
pub fn counting(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length).map(|at| u8::try_from(at & 0xff).expect("a byte")).collect()
}

/// A channel on which a script reports what it saw.
pub fn report<T>() -> (Arc<dyn Fn(T) + Send + Sync>, mpsc::Receiver<T>)
where
    T: Send + 'static,
{
    let (sender, receiver) = mpsc::channel();
    let send = move |value: T| {
        sender.send(value).ok();
    };
    (Arc::new(send), receiver)
}
