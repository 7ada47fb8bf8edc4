//! Servers that lie, fall silent or die: each ends in an error that says so, and none in a panic or a hang.

use std::time::{Duration, Instant};

use keepmark_nbd::wire::{Command, Mode, OptionReply, RequestHeader, chunk_kind, option_code, option_reply};
use keepmark_nbd::{Address, BufferPool, Client, Error, Options, Request};

use crate::common::fake::{Claims, Fake, Peer, counting, report};
use crate::common::{chain, folder, options};

const CONTEXTS: [&str; 2] = ["base:allocation", "qemu:dirty-bitmap:b"];
const READ: u64 = 4096;

fn connect(fake: &Fake) -> Result<Client, Error> {
    Client::connect(&fake.address, &options("", &CONTEXTS))
}

/// What a client says that reads 4096 bytes at 4096 from a server that answers as `lie` does.
fn lied_to_read(mode: Mode, lie: impl Fn(&mut Peer, RequestHeader) + Send + Sync + 'static) -> String {
    let fake = Fake::honest(Claims { mode, ..Claims::default() }, move |peer| {
        while let Some((request, _)) = peer.request() {
            lie(peer, request);
        }
    });
    let mut client = connect(&fake).expect("connects");
    let error = client.read_exact_at(READ, &mut [0; 4096]).expect_err("a lie");
    let again = client.read_exact_at(READ, &mut [0; 4096]);
    assert!(matches!(again, Err(Error::Unusable { .. })), "usable after {error}: {again:?}");
    chain(&error)
}

#[test]
fn about_reads() {
    type Lie = fn(&mut Peer, RequestHeader);
    let lies: [(&str, Lie); 14] = [
        ("not outstanding", |p, r| p.data(r.cookie ^ 1, READ, &[0; 4096], true)),
        ("not outstanding", |p, r| p.data(r.cookie ^ (1 << 32), READ, &[0; 4096], true)),
        ("outside of the 4096 bytes", |p, r| p.data(r.cookie, READ - 1, &[0; 4096], true)),
        ("data chunk of 4097 bytes, 4096 at most", |p, r| p.data(r.cookie, READ, &[0; 4097], true)),
        ("outside of the 4096 bytes", |p, r| p.data(r.cookie, u64::MAX, &[0; 10], true)),
        ("outside of the 4096 bytes", |p, r| p.data(r.cookie, READ, &[], false)),
        ("outside of the 4096 bytes", |p, r| {
            p.chunk(r.cookie, chunk_kind::OFFSET_HOLE, true, &[&READ.to_be_bytes()[..], &[0xff; 4]].concat());
        }),
        ("sent twice", |p, r| {
            p.data(r.cookie, READ, &[0; 100], false);
            p.data(r.cookie, READ + 99, &[0; 100], false);
        }),
        ("before all of the 4096 bytes", |p, r| p.data(r.cookie, READ, &[0; 4095], true)),
        ("before all of the 4096 bytes", |p, r| p.chunk(r.cookie, chunk_kind::NONE, true, &[])),
        ("does not end the reply", |p, r| p.chunk(r.cookie, chunk_kind::NONE, false, &[])),
        ("cut short", |p, r| p.chunk(r.cookie, chunk_kind::OFFSET_DATA, true, &[0; 7])),
        ("chunk of kind 0x5", |p, r| p.status(r.cookie, 1, &[(4096, 0)], true)),
        ("not with its magic number", |p, _| p.say(&[0x55; 64])),
    ];
    for (expected, lie) in lies {
        let said = lied_to_read(Mode::Structured, lie);
        assert!(said.contains("broke the protocol") && said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn about_the_framing_of_reads() {
    let said = lied_to_read(Mode::Structured, |p, r| p.simple(r.cookie, 0, &[0; 4096]));
    assert!(said.contains("a simple reply to a read"), "{said}");
    let said = lied_to_read(Mode::Extended, |p, r| p.simple(r.cookie, 0, &[0; 4096]));
    assert!(said.contains("a simple reply, which was not negotiated"), "{said}");
    let said = lied_to_read(Mode::Extended, |p, r| p.claim_chunk(r.cookie, chunk_kind::OFFSET_DATA, true, u64::MAX));
    assert!(said.contains("data chunk of 18446744073709551607 bytes"), "{said}");
    let said = lied_to_read(Mode::Structured, |p, r| p.claim_chunk(r.cookie, chunk_kind::ERROR, true, u64::from(u32::MAX)));
    assert!(said.contains("error chunk of 4294967295 bytes"), "{said}");
}

#[test]
fn repeating_themselves() {
    let fake = Fake::honest(Claims::default(), |peer| {
        while let Some((request, _)) = peer.request() {
            peer.serve_read(request);
            peer.serve_read(request);
        }
    });
    let mut client = connect(&fake).expect("connects");
    client.read_exact_at(0, &mut [0; 512]).expect("the first answer is right");
    let error = client.read_exact_at(512, &mut [0; 512]).expect_err("the second is none");
    assert!(chain(&error).contains("not outstanding"), "{error}");
}

fn lied_to_status(lie: impl Fn(&mut Peer, RequestHeader) + Send + Sync + 'static) -> String {
    let fake = Fake::honest(Claims::default(), move |peer| {
        while let Some((request, _)) = peer.request() {
            lie(peer, request);
        }
    });
    let mut client = connect(&fake).expect("connects");
    chain(&client.block_status("qemu:dirty-bitmap:b", 0, 1 << 20).expect_err("a lie"))
}

#[test]
fn about_block_status() {
    type Lie = fn(&mut Peer, RequestHeader);
    let lies: [(&str, Lie); 8] = [
        ("an extent of no bytes", |p, r| p.status(r.cookie, 2, &[(4096, 0), (0, 1)], true)),
        ("without any extent", |p, r| p.status(r.cookie, 2, &[], true)),
        ("goes on beyond the 1048576 bytes", |p, r| p.status(r.cookie, 2, &[(u32::MAX, 0), (1, 1)], true)),
        ("context 99", |p, r| p.status(r.cookie, 99, &[(1 << 20, 0)], false)),
        ("without the context that was asked for", |p, r| p.status(r.cookie, 1, &[(1 << 20, 0)], true)),
        ("context 2, which", |p, r| (0..2).for_each(|_| p.status(r.cookie, 2, &[(1 << 20, 0)], false))),
        ("block status chunk of 4294967295 bytes", |p, r| p.claim_chunk(r.cookie, chunk_kind::BLOCK_STATUS, true, u64::from(u32::MAX))),
        ("chunk of kind 0x6", |p, r| p.chunk(r.cookie, chunk_kind::BLOCK_STATUS_EXT, true, &[0; 24])),
    ];
    for (expected, lie) in lies {
        let said = lied_to_status(lie);
        assert!(said.contains("broke the protocol") && said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn in_the_handshake() {
    type Lie = fn(&mut Peer);
    let lies: [(&str, Lie); 8] = [
        ("greeting starts with", |p| p.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        ("old style", |p| p.say(&[&b"NBDMAGIC"[..], &0x0000_4202_8186_1253_u64.to_be_bytes(), &[0; 200]].concat())),
        ("closed the connection during the handshake", |p| p.say(b"NBDMAGIC")),
        ("insists on TLS", |p| to_each_option(p, &|p, o| p.answer(o, option_reply::ERR_TLS_REQD, b""))),
        ("option reply of 4294967295 bytes", |p| {
            to_each_option(p, &|p, o| p.say(&OptionReply { kind: option_reply::ACK, length: u32::MAX }.encode(o)));
        }),
        ("answer to option 1 where option 11 was sent", |p| to_each_option(p, &|p, _| p.answer(1, option_reply::ACK, b""))),
        ("answer of kind 0x3", |p| to_each_option(p, &|p, o| p.answer(o, option_reply::INFO, b""))),
        ("the export's size was not told", |p| to_each_option(p, &|p, o| p.answer(o, option_reply::ACK, b""))),
    ];
    for (expected, lie) in lies {
        let fake = Fake::raw(lie);
        let said = chain(&connect(&fake).expect_err("a lie"));
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

fn to_each_option(peer: &mut Peer, answer: &dyn Fn(&mut Peer, u32)) {
    peer.greet();
    // The client's flags.
    let mut skipped = false;
    while let Some((option, _)) = peer.option_after_flags(&mut skipped) {
        answer(peer, option);
    }
}

#[test]
fn endless_contexts() {
    let fake = Fake::raw(|peer| {
        to_each_option(peer, &|peer, option| {
            if option != option_code::SET_META_CONTEXT {
                return peer.answer(option, option_reply::ACK, b"");
            }
            (0..20_000_u32)
                .for_each(|id| peer.answer(option, option_reply::META_CONTEXT, &[&id.to_be_bytes()[..], b"base:allocation"].concat()));
        });
    });
    assert!(chain(&connect(&fake).expect_err("endless")).contains("more than 16384 replies"));
}

#[test]
fn about_sizes() {
    let too_large = Fake::honest(Claims { size: 1 << 63, ..Claims::default() }, |_| {});
    assert!(chain(&connect(&too_large).expect_err("too large")).contains("size of 9223372036854775808 bytes"));
    let blocks = Fake::honest(Claims { block_sizes: Some([3, 4, 5]), ..Claims::default() }, |_| {});
    assert!(chain(&connect(&blocks).expect_err("no power of two")).contains("impossible block sizes"));
    let multi = 1 | 1 << 8;
    let changing =
        Fake::differing(move |n| Claims { size: (1 << 20) + 512 * n as u64, flags: multi, ..Claims::default() }, |peer| peer.mute());
    let wide = Options { connections_max: 2, ..options("", &[]) };
    let error = Client::connect(&changing.address, &wide).expect_err("sizes differ");
    assert!(matches!(error, Error::Differs { what: "size", .. }), "{error}");
}

#[test]
fn mute_ones_time_out() {
    let hasty = Options { timeout: Some(Duration::from_millis(200)), ..options("", &["base:allocation"]) };
    let began = Instant::now();
    let mute = Fake::raw(Peer::mute);
    assert!(matches!(Client::connect(&mute.address, &hasty), Err(Error::Timeout { .. })));
    let later = Fake::honest(Claims::default(), Peer::mute);
    let mut client = Client::connect(&later.address, &hasty).expect("connects");
    let error = client.read_exact_at(0, &mut [0; 512]).expect_err("mute");
    assert!(error.to_string().contains("did not answer for 0.2 s"), "{error}");
    let multi = Fake::honest(Claims { flags: 1 | 1 << 8, ..Claims::default() }, Peer::mute);
    let wide = Options { connections_max: 3, ..hasty };
    let mut client = Client::connect(&multi.address, &wide).expect("connects");
    assert_eq!(client.connections(), 3);
    assert!(matches!(client.read_exact_at(0, &mut [0; 512]), Err(Error::Timeout { .. })));
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// A server that neither reads nor answers while we have much to write.
#[test]
fn deaf_ones_time_out() {
    let fake = Fake::honest(Claims { size: 64 << 20, ..Claims::default() }, |_| std::thread::sleep(Duration::from_secs(5)));
    let hasty = Options { timeout: Some(Duration::from_millis(200)), ..options("", &[]) };
    let mut client = Client::connect(&fake.address, &hasty).expect("connects");
    assert!(matches!(client.write_all_at(0, &vec![1; 16 << 20]), Err(Error::Timeout { .. })));
}

#[test]
fn dying_ones_disconnect() {
    let fake = Fake::honest(Claims::default(), |peer| {
        let first = peer.request();
        peer.claim_chunk(first.expect("a request").0.cookie, chunk_kind::OFFSET_DATA, true, 8 + 512);
        peer.say(&[0; 100]);
    });
    let mut client = connect(&fake).expect("connects");
    let error = client.read_exact_at(0, &mut [0; 512]).expect_err("dead");
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    client.disconnect().expect("nothing left to end");
}

#[test]
fn nobody_there() {
    let nowhere = Address::Unix(folder().path().join("none"));
    assert!(matches!(Client::connect(&nowhere, &Options::default()), Err(Error::Connect { .. })));
    let long = Address::Unix(folder().path().join("x".repeat(200)));
    assert!(matches!(Client::connect(&long, &Options::default()), Err(Error::Connect { .. })));
    let fake = Fake::honest(Claims::default(), Peer::mute);
    let too_long = Client::connect(&fake.address, &options(&"x".repeat(5000), &[]));
    assert!(matches!(too_long, Err(Error::Invalid { .. })));
    let no_port = Address::Tcp("localhost".to_owned());
    assert!(matches!(Client::connect(&no_port, &Options::default()), Err(Error::Connect { .. })));
}

#[test]
fn messages_are_made_harmless() {
    let fake = Fake::honest(Claims::default(), |peer| {
        while let Some((request, _)) = peer.request() {
            peer.error(request.cookie, 5, &[b"\x1b[2J\x07bad\nsector ".to_vec(), vec![b'x'; 5000]].concat());
        }
    });
    let mut client = connect(&fake).expect("connects");
    let text = client.read_exact_at(4096, &mut [0; 512]).expect_err("an error").to_string();
    assert!(text.contains("could not read 512 bytes at offset 4096: input/output error: [2J bad sector xxx"), "{text}");
    assert!(!text.chars().any(char::is_control) && text.len() < 600, "{text}");
    // The connection lives on.
    assert!(matches!(client.read_exact_at(0, &mut [0; 512]), Err(Error::Request { errno: 5, .. })));
}

#[test]
fn shutting_down() {
    let fake = Fake::honest(Claims { mode: Mode::Simple, ..Claims::default() }, |peer| {
        while let Some((request, _)) = peer.request() {
            peer.simple(request.cookie, 108, b"");
        }
    });
    let error = connect(&fake).expect("connects").read_exact_at(0, &mut [0; 512]).expect_err("an error");
    assert!(error.to_string().ends_with("server is shutting down"), "{error}");
}

#[test]
fn old_but_honest_ones_are_read() {
    for predates_go in [false, true] {
        let fake = Fake::honest(Claims { mode: Mode::Simple, predates_go, ..Claims::default() }, |peer| {
            while let Some((request, _)) = peer.request() {
                peer.serve_read(request);
            }
        });
        let mut client = connect(&fake).expect("connects");
        assert_eq!((client.info().structured, client.info().size), (false, 1 << 20));
        assert!(matches!(client.block_status("base:allocation", 0, 1), Err(Error::ContextMissing { .. })));
        let mut bytes = vec![0; 70_000];
        client.read_exact_at(123, &mut bytes).expect("reads");
        assert_eq!(bytes, counting(123, 70_000));
    }
}

/// Requests are rounded to the server's blocks and cut at its maximum; the caller sees none of it.
#[test]
fn block_sizes_are_honoured() {
    let (send, seen) = report();
    let claims = Claims { size: (1 << 20) + 100, block_sizes: Some([512, 4096, 2048]), ..Claims::default() };
    let fake = Fake::honest(claims, move |peer| {
        while let Some((request, _)) = peer.request() {
            send((request.offset, request.length));
            peer.serve_read(request);
        }
    });
    let mut client = connect(&fake).expect("connects");
    let mut bytes = vec![0; 3000];
    client.read_exact_at(500, &mut bytes).expect("reads");
    assert_eq!(bytes, counting(500, 3000));
    client.read_exact_at((1 << 20) + 90, &mut bytes[..10]).expect("reads");
    assert_eq!(bytes[..10], counting((1 << 20) + 90, 10));
    assert!(matches!(client.read_exact_at(1 << 20, &mut [0; 101]), Err(Error::OutOfRange { .. })));
    let asked: Vec<(u64, u64)> = seen.try_iter().collect();
    assert_eq!(asked, [(0, 2048), (2048, 1536), (1 << 20, 100)]);
    assert!(matches!(client.write_all_at(100, &[0; 512]), Err(Error::Unaligned { minimum: 512, .. })));
}

#[test]
fn block_status_is_asked_again_until_covered() {
    let (send, seen) = report();
    let fake = Fake::honest(Claims { block_sizes: Some([512, 512, 4096]), ..Claims::default() }, move |peer| {
        while let Some((request, _)) = peer.request() {
            send((request.offset, request.length));
            peer.status(request.cookie, 1, &[(1 << 30, 3)], false);
            let flag = u32::from(request.offset >= 8192);
            peer.status(request.cookie, 2, &[(2048, flag), (2048, flag)], true);
        }
    });
    let mut client = connect(&fake).expect("connects");
    let map = client.block_status("qemu:dirty-bitmap:b", 100, 16_000).expect("status");
    let map: Vec<_> = map.into_iter().map(|s| (s.offset, s.length, s.flags)).collect();
    assert_eq!(map, [(100, 8092, 0), (8192, 7908, 1)]);
    assert_eq!(seen.try_iter().collect::<Vec<_>>(), [(0, 16_384), (4096, 12_288), (8192, 8192), (12_288, 4096)]);
    assert_eq!(client.block_status("base:allocation", 0, 1 << 20).expect("status").len(), 1);
    assert!(client.block_status("base:allocation", 5, 0).expect("status").is_empty());
}

/// A sink that gives up leaves answers on the wire, which the next call must not take for its own.
#[test]
fn a_sink_that_gives_up() {
    let fake = Fake::honest(Claims::default(), |peer| {
        while let Some((request, _)) = peer.request() {
            peer.serve_read(request);
        }
    });
    let mut client = connect(&fake).expect("connects");
    let mut requests = (0..100).map(|n| Request { offset: n * 4096, length: 4096 });
    let mut calls = 0;
    let result = client.read_many(&mut requests, 16, &BufferPool::new(16), &mut |_, _| {
        calls += 1;
        Err(Error::Unusable { server: "sink".to_owned() })
    });
    assert!(result.is_err() && calls == 1);
    let mut bytes = [0; 300];
    client.read_exact_at(77, &mut bytes).expect("reads");
    assert_eq!(bytes[..], counting(77, 300));
}

/// Many requests are out before the first is answered, and answers may come in any order.
#[test]
fn answers_in_reverse_order() {
    let fake = Fake::honest(Claims { mode: Mode::Extended, ..Claims::default() }, |peer| {
        let mut batch = Vec::new();
        while let Some((request, _)) = peer.request() {
            batch.push(request);
            if batch.len() == 8 {
                batch.drain(..).rev().for_each(|request| peer.serve_read(request));
            }
        }
    });
    let mut client = connect(&fake).expect("connects");
    let mut requests = (0..64).map(|n| Request { offset: n * 10, length: 10 });
    let mut order = Vec::new();
    let pool = BufferPool::new(8);
    client
        .read_many(&mut requests, 8, &pool, &mut |request, bytes| {
            assert_eq!(bytes, counting(request.offset, 10));
            order.push(request.offset / 10);
            pool.put(bytes);
            // The next eight go out only when all of these were answered.
            Ok::<_, Error>(())
        })
        .expect("reads");
    assert_eq!(order[..8], [7, 6, 5, 4, 3, 2, 1, 0]);
    order.sort_unstable();
    assert_eq!(order, (0..64).collect::<Vec<_>>());
}

#[test]
fn writes_are_split_and_failures_named() {
    let (send, seen) = report();
    let fake = Fake::honest(Claims { block_sizes: Some([1, 1, 1000]), ..Claims::default() }, move |peer| {
        while let Some((request, payload)) = peer.request() {
            send((request.command, request.offset, payload));
            let errno = if request.offset == 2100 { 28 } else { 0 };
            peer.simple(request.cookie, errno, b"");
        }
    });
    let mut client = connect(&fake).expect("connects");
    let error = client.write_all_at(100, &counting(100, 2500)).expect_err("full");
    assert!(error.to_string().contains("could not write 500 bytes at offset 2100: no space left"), "{error}");
    let written: Vec<_> = seen.try_iter().collect();
    assert_eq!(written.iter().map(|w| w.1).collect::<Vec<_>>(), [100, 1100, 2100]);
    assert!(written.iter().all(|w| w.0 == Command::Write && w.2 == counting(w.1, w.2.len() as u64)));
    client.write_all_at(0, &[1; 10]).expect("usable after an error");
    assert!(matches!(client.trim(0, 10), Err(Error::NotOffered { command: "trim", .. })));
    assert!(matches!(client.flush(), Err(Error::NotOffered { .. })));
}

#[test]
fn a_flush_takes_as_long_as_it_takes_unless_nobody_waits_for_it_any_more() {
    const HAS_FLUSH: u16 = 1 << 2;
    let fake = Fake::honest(Claims { flags: 1 | HAS_FLUSH, ..Claims::default() }, |peer| {
        while let Some((request, _)) = peer.request() {
            std::thread::sleep(Duration::from_millis(600));
            peer.simple(request.cookie, 0, b"");
        }
    });
    let hasty = Options { timeout: Some(Duration::from_millis(150)), ..options("", &CONTEXTS) };
    let mut client = Client::connect(&fake.address, &hasty).expect("connects");
    client.flush().expect("waits longer than for anything else");
    let asked = std::cell::Cell::new(0);
    let begun = Instant::now();
    let interrupted = client.flush_unless(&|| asked.replace(asked.get() + 1) > 0);
    assert!(matches!(interrupted, Err(Error::Interrupted { .. })) && begun.elapsed() < Duration::from_millis(500), "{interrupted:?}");
}
