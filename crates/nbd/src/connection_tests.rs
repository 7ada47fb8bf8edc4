//! A connection that is fed arbitrary and nearly right bytes: it answers with an error, or with what was sent.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use crate::address::Options;
use crate::connection::{Body, Connection, Order, StatusBody};
use crate::coverage::Coverage;
use crate::error::Result;
use crate::handshake::{self, Context};
use crate::link::Link;
use crate::socket::Socket;
use crate::wire::{ChunkHeader, Command, Mode, Reply, chunk_kind};

const READ_OFFSET: u64 = 1000;
const READ_LENGTH: usize = 64;
const READ_COOKIE: u64 = 1 << 32;
const STATUS_COOKIE: u64 = 2 << 32 | 1;

/// A link whose other end says `bytes` and then nothing more. The other end is returned so that it stays open.
fn link_saying(bytes: &[u8]) -> (Link, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
    theirs.write_all(bytes).expect("fits the socket");
    theirs.shutdown(Shutdown::Write).expect("shutdown");
    (Link::new(Socket::Unix(ours), "test", Some(Duration::from_secs(5))), theirs)
}

/// Submits a read and a block status, and receives until the bytes end or offend. The bytes of the read, if it
/// was completed.
fn feed(mode: Mode, bytes: &[u8]) -> Result<Option<Vec<u8>>> {
    let (link, _theirs) = link_saying(bytes);
    let mut connection = Connection::new(link, mode, vec![Context { id: 7, name: "c".to_owned() }]);
    let order = |command, length| Order { command, offset: READ_OFFSET, length, tag: 0 };
    let body = Body::Read { buffer: vec![0xee; READ_LENGTH], coverage: Coverage::default() };
    connection.submit(order(Command::Read, READ_LENGTH as u64), &[], body)?;
    let status = StatusBody { wanted: 7, due: vec![7], extents: Vec::new() };
    connection.submit(order(Command::BlockStatus, 1 << 20), &[], Body::Status(status))?;
    let mut read = None;
    while connection.outstanding() > 0 {
        let received = connection.receive();
        assert!(connection.scratch.capacity() <= 2 * bytes.len() + (128 << 10), "memory for bytes that never came");
        if let Some(completion) = received?
            && let Ok(Body::Read { buffer, .. }) = completion.outcome
        {
            read = Some(buffer);
        }
    }
    Ok(read)
}

fn chunk(mode: Mode, cookie: u64, kind: u16, done: bool, payload: &[u8], excess: u64) -> Vec<u8> {
    let header = ChunkHeader { cookie, done, kind, length: payload.len() as u64 + excess };
    let head = Reply::Chunk(header).encode((mode == Mode::Extended).then_some(READ_OFFSET)).expect("encodes");
    [&head, payload].concat()
}

/// One chunk that is right, or nearly.
fn nearly_right(mode: Mode) -> impl Strategy<Value = Vec<u8>> {
    let cookie = prop_oneof![5 => Just(READ_COOKIE), 3 => Just(STATUS_COOKIE), 1 => any::<u64>()];
    let kind = prop_oneof![8 => 0_u16..7, 2 => 0x8001_u16..0x8004, 1 => any::<u16>()];
    let excess = prop_oneof![8 => Just(0_u64), 1 => 0_u64..9, 1 => any::<u64>()];
    let numbers = (READ_OFFSET..READ_OFFSET + 70, 0_u32..70, prop::collection::vec(any::<u8>(), 0..70));
    (cookie, kind, any::<bool>(), excess, numbers).prop_map(move |(cookie, kind, done, excess, (offset, number, bytes))| {
        let payload = match kind {
            chunk_kind::NONE => Vec::new(),
            chunk_kind::OFFSET_DATA => [&offset.to_be_bytes()[..], &bytes].concat(),
            chunk_kind::OFFSET_HOLE => [&offset.to_be_bytes()[..], &number.to_be_bytes()].concat(),
            chunk_kind::BLOCK_STATUS => [&7_u32.to_be_bytes()[..], &bytes[..bytes.len() / 8 * 8]].concat(),
            chunk_kind::BLOCK_STATUS_EXT => {
                let count = u32::try_from(bytes.len() / 16).expect("small");
                [&7_u32.to_be_bytes()[..], &count.to_be_bytes(), &bytes[..bytes.len() / 16 * 16]].concat()
            }
            _ => [&number.to_be_bytes()[..], &[0, 3], b"why"].concat(),
        };
        let excess = if mode == Mode::Extended { excess } else { excess >> 32 };
        chunk(mode, cookie, kind, done, &payload, excess)
    })
}

fn chunked() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Structured), Just(Mode::Extended)]
}

proptest! {
    #[test]
    fn arbitrary_replies_end(bytes in prop::collection::vec(any::<u8>(), 0..500), mode in chunked()) {
        prop_assert!(feed(mode, &bytes).is_err());
        prop_assert!(feed(Mode::Simple, &bytes).is_err());
    }

    #[test]
    fn nearly_right_replies_end(
        (mode, chunks) in chunked().prop_flat_map(|m| (Just(m), prop::collection::vec(nearly_right(m), 0..12)))
    ) {
        drop(feed(mode, &chunks.concat()));
    }

    /// However a reply is cut, ordered and filled, the read gets the bytes that were sent.
    #[test]
    fn right_replies_are_read(
        mode in chunked(),
        cuts in prop::collection::btree_set(1_usize..READ_LENGTH, 0..10),
        holes: u16,
        order in Just((0..11_usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut wanted = [0_u8; READ_LENGTH];
        let bounds: Vec<usize> = std::iter::once(0).chain(cuts).chain([READ_LENGTH]).collect();
        let mut chunks = Vec::new();
        for (i, pair) in bounds.windows(2).enumerate() {
            let at = READ_OFFSET + pair[0] as u64;
            if holes >> i & 1 == 1 {
                let length = u32::try_from(pair[1] - pair[0]).expect("small");
                let payload = [&at.to_be_bytes()[..], &length.to_be_bytes()].concat();
                chunks.push(chunk(mode, READ_COOKIE, chunk_kind::OFFSET_HOLE, false, &payload, 0));
            } else {
                wanted[pair[0]..pair[1]].iter_mut().zip(1..).for_each(|(byte, n)| *byte = n);
                let payload = [&at.to_be_bytes()[..], &wanted[pair[0]..pair[1]]].concat();
                chunks.push(chunk(mode, READ_COOKIE, chunk_kind::OFFSET_DATA, false, &payload, 0));
            }
        }
        let mut bytes: Vec<u8> = order.iter().filter_map(|i| chunks.get(*i)).flatten().copied().collect();
        bytes.extend(chunk(mode, READ_COOKIE, chunk_kind::NONE, true, &[], 0));
        bytes.extend(chunk(mode, STATUS_COOKIE, chunk_kind::ERROR, true, &[0, 0, 0, 5, 0, 0], 0));
        prop_assert_eq!(feed(mode, &bytes).expect("valid"), Some(wanted.to_vec()));
    }

    #[test]
    fn arbitrary_handshakes_end(bytes in prop::collection::vec(any::<u8>(), 0..300), replies in prop::collection::vec((7_u32..12, 1_u32..6, 0_u32..40), 0..8)) {
        let greeting = crate::wire::Greeting { old_style: false, fixed: true, no_zeroes: true }.encode();
        let heads = replies.iter().flat_map(|(option, kind, length)| {
            let head = crate::wire::OptionReply { kind: *kind, length: *length };
            [head.encode(*option), bytes.iter().copied().take(*length as usize).collect()].concat()
        });
        let said: Vec<u8> = greeting.into_iter().chain(heads).chain(bytes.iter().copied()).collect();
        for said in [&said[..], &bytes[..]] {
            let (mut link, _theirs) = link_saying(said);
            let options = Options { contexts: vec!["base:allocation".to_owned()], ..Options::new("x") };
            prop_assert!(handshake::negotiate(&mut link, &options).is_err());
        }
    }
}
