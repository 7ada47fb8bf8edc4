//! The client against nbdkit, with the filters that make a server fail, wait and be choosy.

use std::time::{Duration, Instant};

use keepmark_nbd::{Client, Error, Options};

use crate::common::{Server, folder, image, options, read_whole};

const ALLOCATION: &str = "base:allocation";

/// nbdkit with the image of [`image`] and what is in `more`.
fn image_with(more: &[&str]) -> (Server, Vec<u8>) {
    let folder = folder();
    let (_, content) = image(folder.path());
    let (switches, parameters): (Vec<&str>, Vec<&str>) = more.iter().partition(|argument| argument.starts_with('-'));
    let arguments =
        [&["-f", "--exit-with-parent", "-U", "{socket}"], &switches[..], &["file", "file={dir}/disk.raw"], &parameters].concat();
    (Server::start(folder, "nbdkit", &arguments), content)
}

#[test]
fn a_file_is_read() {
    let (server, content) = image_with(&["-r"]);
    let mut client = server.connect("", &[ALLOCATION]);
    assert!(client.info().structured && client.info().read_only);
    for (length, in_flight) in [(1 << 20, 8), (65_000, 16)] {
        assert!(read_whole(&mut client, length, in_flight).expect("reads") == content);
    }
    let map = client.block_status(ALLOCATION, 0, 8 << 20).expect("status");
    assert!(map.len() >= 4 && map[0].flags == 0 && map[1].flags == 3, "{map:?}");
}

#[test]
fn simple_replies_only() {
    let (server, content) = image_with(&["--no-sr"]);
    let mut client = server.connect("", &[ALLOCATION]);
    assert!(!client.info().structured && client.info().contexts.is_empty());
    assert!(read_whole(&mut client, 100_000, 16).expect("reads") == content);
}

/// A server that refuses whatever does not fit its blocks.
#[test]
fn block_sizes_are_honoured() {
    let filter = "--filter=blocksize-policy";
    let policy = ["blocksize-error-policy=error", "blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=131072"];
    let (server, mut content) = image_with(&[&[filter][..], &policy].concat());
    let mut client = server.connect("", &[ALLOCATION]);
    let sizes = client.info().block_sizes;
    assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (4096, 65_536, 131_072));
    for length in [1 << 20, 100_001, 8 << 20] {
        assert!(read_whole(&mut client, length, 8).expect("reads") == content, "requests of {length} bytes differ");
    }
    let mut few = [0; 9];
    client.read_exact_at(5000, &mut few).expect("reads");
    assert_eq!(few, content[5000..5009]);
    let all = client.block_status(ALLOCATION, 0, 8 << 20).expect("status");
    let part = client.block_status(ALLOCATION, 4097, (8 << 20) - 5000).expect("status");
    assert_eq!((all.len(), part[0].offset), (part.len(), 4097));
    client.write_all_at(4096, &[7; 300 * 4096]).expect("writes");
    content[4096..301 * 4096].fill(7);
    assert!(read_whole(&mut client, 1 << 20, 8).expect("reads") == content);
    assert!(matches!(client.write_all_at(1, &[7; 4096]), Err(Error::Unaligned { .. })));
}

#[test]
fn errors_are_named() {
    let (server, _) = image_with(&["--filter=error", "error-pread=EIO", "error-pread-rate=100%"]);
    let error = read_whole(&mut server.connect("", &[]), 1 << 20, 4).expect_err("fails");
    let text = error.to_string();
    assert!(matches!(error, Error::Request { errno: 5, length: 1_048_576, .. }), "{text}");
    assert!(text.contains("could not read 1048576 bytes at offset ") && text.contains("input/output error"), "{text}");
    let (server, _) = image_with(&["--filter=error", "error-pwrite=ENOSPC", "error-pwrite-rate=1"]);
    let error = server.connect("", &[]).write_all_at(0, &[1; 512]).expect_err("fails");
    assert!(matches!(error, Error::Request { errno: 28, .. }), "{error}");
}

/// Whatever fails in between, the same connection goes on, and what it then reads is right.
#[test]
fn errors_leave_the_client_usable() {
    let (server, content) = image_with(&["--filter=error", "error-pread-rate=3%"]);
    let mut client = server.connect("", &[]);
    let (mut failures, mut successes) = (0, 0);
    while failures < 5 || successes < 5 {
        match read_whole(&mut client, 256 << 10, 16) {
            Ok(read) => {
                assert!(read == content);
                successes += 1;
            }
            Err(Error::Request { errno: 5, .. }) => failures += 1,
            Err(other) => panic!("{other}"),
        }
        assert!(failures + successes < 2000);
    }
}

#[test]
fn failing_block_status() {
    let (server, _) = image_with(&["--filter=error", "error-extents-rate=100%"]);
    let error = server.connect("", &[ALLOCATION]).block_status(ALLOCATION, 0, 4096).expect_err("fails");
    assert!(error.to_string().contains("could not tell the status of 4096 bytes at offset 0"), "{error}");
}

/// Each read takes 100 ms; 32 of them, 16 at a time, must not take 3.2 s.
#[test]
fn slow_reads_overlap() {
    let (server, content) = image_with(&["-t16", "--filter=delay", "rdelay=100ms"]);
    let began = Instant::now();
    assert!(read_whole(&mut server.connect("", &[]), 256 << 10, 16).expect("reads") == content);
    assert!(began.elapsed() < Duration::from_millis(1600), "{:?}", began.elapsed());
}

#[test]
fn slow_reads_time_out() {
    let (server, _) = image_with(&["--filter=delay", "rdelay=10"]);
    let hasty = Options { timeout: Some(Duration::from_millis(300)), ..options("", &[]) };
    let mut client = Client::connect(&server.address, &hasty).expect("connects");
    let error = client.read_exact_at(0, &mut [0; 512]).expect_err("slow");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[test]
fn what_is_not_offered_is_refused() {
    let (server, _) = image_with(&["--filter=nozero"]);
    let mut client = server.connect("", &[]);
    assert!(!client.info().can_zero);
    assert!(matches!(client.write_zeroes(0, 512), Err(Error::NotOffered { command: "write zeroes", .. })));
    let (server, _) = image_with(&["--filter=noextents"]);
    assert_eq!(server.connect("", &[ALLOCATION]).block_status(ALLOCATION, 0, 8 << 20).expect("status").len(), 1);
}

/// Both the sparse answers and the data of a disk larger than 4 GiB, beyond 32 bits.
#[test]
fn beyond_four_gibibytes() {
    let arguments = ["-f", "--exit-with-parent", "-U", "{socket}", "memory", "size=20G"];
    let server = Server::start(folder(), "nbdkit", &arguments);
    let mut client = server.connect("", &[ALLOCATION]);
    let place = (17 << 30) + 4096;
    client.write_all_at(place, &[5; 10_000]).expect("writes");
    let map = client.block_status(ALLOCATION, 0, 20 << 30).expect("status");
    assert_eq!(map.len(), 3, "{map:?}");
    assert!(map[1].flags == 0 && map[1].offset <= place && map[1].offset + map[1].length >= place + 10_000);
    client.write_zeroes(0, 20 << 30).expect("zeroes");
    let mut bytes = [1; 10_000];
    client.read_exact_at(place, &mut bytes).expect("reads");
    assert_eq!(bytes, [0; 10_000]);
}
