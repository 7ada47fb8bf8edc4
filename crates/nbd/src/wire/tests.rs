//! Properties of the wire format: whatever comes in, a decoder answers; what goes out comes back the same.

use proptest::prelude::*;

use super::*;

fn modes() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Simple), Just(Mode::Structured), Just(Mode::Extended)]
}

fn commands() -> impl Strategy<Value = Command> {
    prop_oneof![Just(Command::Read), Just(Command::Write), Just(Command::BlockStatus), Just(Command::Disconnect), Just(Command::Flush)]
}

/// The lengths and flags of all extents, and the context.
fn status(extended: bool, payload: &[u8]) -> Result<(u32, Vec<StatusDescriptor>), Violation> {
    let mut all = Vec::new();
    let id = decode_status::<Violation>(extended, payload, &mut |extent| {
        all.push(extent);
        Ok(())
    })?;
    Ok((id, all))
}

proptest! {
    #[test]
    fn no_decoder_minds_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), mode in modes(), option: u32, kind: u16) {
        drop(Greeting::decode(&bytes));
        drop(OptionReply::decode(&bytes, option));
        drop(Info::decode(&bytes));
        drop(decode_context(&bytes));
        drop(decode_export_name(&bytes));
        drop(RequestHeader::decode(mode, &bytes));
        drop(Reply::decode(&bytes));
        drop(Hole::decode(&bytes));
        prop_assert!(sanitise(&bytes).chars().all(|c| !c.is_control()));
        if let Ok(error) = ErrorChunk::decode(kind, &bytes) {
            prop_assert!(error.errno != 0 && error.message.len() <= bytes.len() * 3);
        }
        if let Ok((_, extents)) = status(mode == Mode::Extended, &bytes) {
            prop_assert!(!extents.is_empty() && extents.len() * 8 <= bytes.len());
        }
    }

    /// Arbitrary bytes rarely have the right magic number; these do.
    #[test]
    fn nor_do_they_mind_what_looks_right(rest in prop::collection::vec(any::<u8>(), 0..40), mode in modes()) {
        for magic in [0x6744_6698_u32, 0x668e_33ef, 0x6e8a_278c, 0x2560_9513, 0x21e4_1c71] {
            let bytes = [&magic.to_be_bytes()[..], &rest].concat();
            drop(Reply::decode(&bytes));
            drop(RequestHeader::decode(mode, &bytes));
            if let Some(prefix) = bytes.first_chunk() {
                prop_assert!(rest_length(prefix, mode).map_or(0, |n| n) <= 16);
            }
        }
        for info in [0_u16, 3, 7] {
            let bytes = [&info.to_be_bytes()[..], &rest].concat();
            if let Ok(Info::BlockSizes { minimum, preferred, maximum }) = Info::decode(&bytes) {
                prop_assert!(minimum.is_power_of_two() && minimum <= preferred && preferred <= maximum);
            }
        }
    }

    #[test]
    fn requests_come_back(mode in modes(), command in commands(), flags: u16, cookie: u64, offset: u64, length: u64) {
        let length = if mode == Mode::Extended { length } else { length >> 32 };
        let header = RequestHeader { command, flags, cookie, offset, length };
        let mut bytes = Vec::new();
        header.encode(mode, &mut bytes).expect("encodes");
        prop_assert_eq!(bytes.len(), RequestHeader::encoded_length(mode));
        prop_assert_eq!(RequestHeader::decode(mode, &bytes), Ok(header));
    }

    #[test]
    fn replies_come_back(extended: bool, cookie: u64, offset: u64, kind: u16, done: bool, length: u64, errno: u32) {
        let length = if extended { length } else { length >> 32 };
        let simple = Reply::Simple(Simple { cookie, errno });
        prop_assert_eq!(Reply::decode(&simple.encode(None).expect("encodes")), Ok(simple));
        let chunk = Reply::Chunk(ChunkHeader { cookie, done, kind, length });
        let bytes = chunk.encode(extended.then_some(offset)).expect("encodes");
        let mode = if extended { Mode::Extended } else { Mode::Structured };
        prop_assert_eq!(rest_length(bytes.first_chunk().expect("long enough"), mode), Ok(bytes.len() - REPLY_PREFIX_LENGTH));
        prop_assert_eq!(Reply::decode(&bytes), Ok(chunk));
    }

    #[test]
    fn option_replies_come_back(sent: u32, kind: u32, length in 0..=OPTION_PAYLOAD_MAX) {
        let reply = OptionReply { kind, length };
        prop_assert_eq!(OptionReply::decode(&reply.encode(sent), sent), Ok(reply));
        prop_assert!(OptionReply::decode(&reply.encode(sent), !sent).is_err());
    }
}

#[test]
fn framing_must_have_been_negotiated() {
    let simple = Reply::Simple(Simple { cookie: 1, errno: 0 }).encode(None).expect("encodes");
    let chunk = Reply::Chunk(ChunkHeader { cookie: 1, done: true, kind: 0, length: 0 });
    let (structured, extended) = (chunk.encode(None).expect("encodes"), chunk.encode(Some(0)).expect("encodes"));
    let allowed = |bytes: &[u8], mode| rest_length(bytes.first_chunk().expect("long enough"), mode).is_ok();
    let table = [Mode::Simple, Mode::Structured, Mode::Extended]
        .map(|mode| [allowed(&simple, mode), allowed(&structured, mode), allowed(&extended, mode)]);
    assert_eq!(table, [[true, false, false], [true, true, false], [false, false, true]]);
}

#[test]
fn impossible_exports_are_refused() {
    let size = |size: u64| Info::decode(&[&[0, 0], &size.to_be_bytes()[..], &[0, 1]].concat());
    assert_eq!(size(5), Ok(Info::Export { size: 5, flags: 1 }));
    assert_eq!(size(1 << 63), Err(Violation::Size { size: 1 << 63 }));
    let blocks = |sizes: [u32; 3]| Info::decode(&[&[0, 3], &sizes.map(u32::to_be_bytes).concat()[..]].concat());
    assert!(blocks([512, 4096, u32::MAX]).is_ok());
    for impossible in [[0, 1, 1], [3, 4, 8], [1 << 17, 1 << 17, 1 << 17], [512, 512, 256]] {
        assert!(matches!(blocks(impossible), Err(Violation::BlockSizes { .. })), "{impossible:?}");
    }
}

#[test]
fn strings_have_limits() {
    let long = "x".repeat(5000);
    assert!(matches!(go(&long), Err(Violation::TooLong { .. })));
    assert!(context_queries("e", &[long]).is_err());
    let head = OptionReply { kind: option_reply::ACK, length: OPTION_PAYLOAD_MAX + 1 };
    assert!(matches!(OptionReply::decode(&head.encode(7), 7), Err(Violation::TooLong { .. })));
    assert!(decode_context(&[0; 4 + 4097]).is_err());
    assert_eq!(decode_context(&[0, 0, 0, 1, 0xff]), Err(Violation::Text { what: "meta context" }));
}

#[test]
fn status_payloads() {
    let compact = [&[0, 0, 0, 9][..], &[0, 0, 16, 0, 0, 0, 0, 3]].concat();
    assert_eq!(status(false, &compact), Ok((9, vec![StatusDescriptor { length: 4096, flags: 3 }])));
    assert_eq!(status(false, &compact[..4]), Err(Violation::StatusEmpty));
    assert!(matches!(status(false, &compact[..10]), Err(Violation::Short { .. })));
    let claims_two = [&[0, 0, 0, 9, 0, 0, 0, 2][..], &[0; 16]].concat();
    assert!(matches!(status(true, &claims_two), Err(Violation::Short { .. })));
}
