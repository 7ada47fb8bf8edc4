//! The client against qemu-nbd and qemu-storage-daemon.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use keepmark_nbd::{Address, BufferPool, Client, Error, Options, Request, list_contexts};

use crate::common::{Server, folder, image, noise, options, ranges, read_whole, run};

const ALLOCATION: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";
const DATA: u64 = 0;
const HOLE: u64 = 3;

/// qemu-nbd on the raw image of [`image`], with more options.
fn raw_image(more: &[&str]) -> (Server, Vec<u8>) {
    let folder = folder();
    let (_, content) = image(folder.path());
    let arguments = [&["-t", "-f", "raw", "-k", "{socket}", "-x", "disk"], more, &["{dir}/disk.raw"]].concat();
    (Server::start(folder, "qemu-nbd", &arguments), content)
}

#[test]
fn a_raw_image_is_read() {
    let (server, content) = raw_image(&["-r"]);
    let mut client = server.connect("disk", &[ALLOCATION]);
    let info = client.info();
    assert_eq!((info.size, info.read_only, info.structured, info.contexts.as_slice()), (8 << 20, true, true, &[ALLOCATION.to_owned()][..]));
    for (length, in_flight) in [(1 << 20, 1), (64 << 10, 16), (777_777, 4), (8 << 20, 300)] {
        assert!(read_whole(&mut client, length, in_flight).expect("reads") == content, "requests of {length} bytes differ");
    }
    let mut part = vec![0; 300_001];
    client.read_exact_at((4 << 20) + 1, &mut part).expect("reads");
    assert!(part == content[(4 << 20) + 1..][..300_001]);
    assert!(matches!(client.write_all_at(0, &[1; 512]), Err(Error::NotOffered { command: "write", .. })));
    assert!(matches!(client.read_exact_at(8 << 20, &mut [0]), Err(Error::OutOfRange { .. })));
    client.disconnect().expect("disconnects");
}

#[test]
fn holes_are_told() {
    let (server, content) = raw_image(&["-r"]);
    let mut client = server.connect("disk", &[ALLOCATION]);
    let map = client.block_status(ALLOCATION, 0, 8 << 20).expect("status");
    assert!(map.iter().filter(|s| s.flags == HOLE).map(|s| s.length).sum::<u64>() > 6 << 20, "{map:?}");
    for hole in map.iter().filter(|s| s.flags != DATA) {
        let range = usize::try_from(hole.offset).expect("small")..usize::try_from(hole.offset + hole.length).expect("small");
        assert!(content[range].iter().all(|byte| *byte == 0), "{hole:?}");
    }
    let inner = client.block_status(ALLOCATION, 100, 1000).expect("status");
    assert_eq!((inner.len(), inner[0].offset, inner[0].length, inner[0].flags), (1, 100, 1000, DATA));
}

#[test]
fn several_connections() {
    let (server, content) = raw_image(&["-r", "-e", "8"]);
    let wide = |connections_max| Options { connections_max, ..options("disk", &[ALLOCATION]) };
    let mut client = Client::connect(&server.address, &wide(4)).expect("connects");
    assert!(client.info().multi_conn);
    assert_eq!(client.connections(), 4);
    for (length, in_flight) in [(64 << 10, 16), (1 << 20, 3), (100_000, 1)] {
        assert!(read_whole(&mut client, length, in_flight).expect("reads") == content);
    }
    assert_eq!(client.block_status(ALLOCATION, 0, 4096).expect("status").len(), 1);
    client.disconnect().expect("disconnects");
}

/// qemu-nbd serves one client at a time by default; the second connection is accepted by nobody.
#[test]
fn fewer_connections_than_wished() {
    let (server, content) = raw_image(&["-r"]);
    let wide = Options { connections_max: 4, ..options("disk", &[]) };
    let mut client = Client::connect(&server.address, &wide).expect("connects");
    assert_eq!(client.connections(), 1);
    assert!(read_whole(&mut client, 1 << 20, 8).expect("reads") == content);
}

#[test]
fn over_tcp() {
    let folder = folder();
    let (path, content) = image(folder.path());
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let (port, path) = (port.to_string(), path.to_str().expect("UTF-8").to_owned());
    // The PID file stands in for the socket: it is written when the server listens.
    let arguments = ["-t", "-r", "-f", "raw", "-b", "127.0.0.1", "-p", &port, "--pid-file", "{socket}", &path];
    let _server = Server::start(folder, "qemu-nbd", &arguments);
    let mut client = Client::connect(&Address::Tcp(format!("127.0.0.1:{port}")), &options("", &[])).expect("connects");
    assert!(read_whole(&mut client, 1 << 20, 8).expect("reads") == content);
}

#[test]
fn an_export_that_is_not_there() {
    let (server, _) = raw_image(&["-r"]);
    for contexts in [&[][..], &[ALLOCATION]] {
        let error = Client::connect(&server.address, &options("other", contexts)).expect_err("no such export");
        assert!(matches!(&error, Error::ExportUnknown { export, .. } if export == "other"), "{error}");
    }
}

#[test]
fn a_server_killed_in_the_middle() {
    let (mut server, _) = raw_image(&["-r"]);
    let mut client = server.connect("disk", &[]);
    let mut requests = std::iter::repeat_n(Request { offset: 0, length: 1 << 20 }, 1000);
    let began = Instant::now();
    let error = client
        .read_many(&mut requests, 8, &BufferPool::new(8), &mut |_, _| {
            server.kill();
            Ok::<_, Error>(())
        })
        .expect_err("dead");
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

/// A qcow2 image with a recording bitmap, over a backing file, with writes at 1 MiB and 5 MiB since.
fn dirty_image(size: &str) -> Server {
    let folder = folder();
    let at = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let (base, top) = (at("base.qcow2"), at("top.qcow2"));
    run("qemu-img", &["create", "-q", "-f", "qcow2", &base, size]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 128k", &base]);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &top]);
    run("qemu-img", &["bitmap", "--add", "-g", "64k", &top, "km1-a"]);
    run("qemu-img", &["bitmap", "--add", "-g", "64k", &top, "km1-b"]);
    run("qemu-io", &["-f", "qcow2", "-c", "write -P 2 1M 64k", "-c", "write -P 3 5M 128k", &top]);
    let image = format!("driver=qcow2,node-name=top,file.driver=file,file.filename={top}");
    let export = "nbd,id=e,node-name=top,name=disk,bitmaps.0=km1-a,bitmaps.1=km1-b,allocation-depth=on,writable=on";
    let server = "addr.type=unix,addr.path={socket},max-connections=4";
    Server::start(folder, "qemu-storage-daemon", &["--blockdev", &image, "--nbd-server", server, "--export", export])
}

#[test]
fn several_contexts_at_once() {
    let server = dirty_image("8M");
    let wanted = ["qemu:dirty-bitmap:km1-b", ALLOCATION, "qemu:dirty-bitmap:none", DEPTH, "qemu:dirty-bitmap:km1-a"];
    let mut client = server.connect("disk", &wanted);
    assert_eq!(client.info().contexts, [wanted[0], wanted[1], wanted[3], wanted[4]]);
    let (kib, mib) = (1_u64 << 10, 1_u64 << 20);
    let dirty = [(0, mib, 0), (mib, 64 * kib, 1), (mib + 64 * kib, 4 * mib - 64 * kib, 0), (5 * mib, 128 * kib, 1)];
    for bitmap in [wanted[0], wanted[4]] {
        let map = ranges(&mut client, bitmap);
        assert_eq!((&map[..4], map.len()), (&dirty[..], 5));
    }
    let allocated: u64 = ranges(&mut client, ALLOCATION).iter().filter(|r| r.2 == DATA).map(|r| r.1).sum();
    assert_eq!(allocated, (128 + 64 + 128) * kib);
    let depths = ranges(&mut client, DEPTH);
    assert_eq!(depths[0], (0, 128 * kib, 2));
    assert!(depths.contains(&(mib, 64 * kib, 1)), "{depths:?}");
    assert!(matches!(client.block_status(wanted[2], 0, 1), Err(Error::ContextMissing { .. })));
    let mut names = list_contexts(&server.address, "disk").expect("lists");
    names.sort();
    assert_eq!(names, [ALLOCATION, DEPTH, wanted[4], wanted[0]]);
    assert!(matches!(list_contexts(&server.address, "none"), Err(Error::ExportUnknown { .. })));
}

/// The cost of a map follows the extents, not the disk.
#[test]
fn a_map_of_a_huge_disk() {
    let server = dirty_image("16T");
    let mut client = server.connect("disk", &["qemu:dirty-bitmap:km1-a", ALLOCATION]);
    let began = Instant::now();
    let map = ranges(&mut client, "qemu:dirty-bitmap:km1-a");
    assert_eq!((client.info().size, map.len()), (16 << 40, 5));
    assert!(ranges(&mut client, ALLOCATION).len() < 10);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn writing_through_qemu() {
    let folder = folder();
    let target = folder.path().join("target.qcow2").to_str().expect("UTF-8").to_owned();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &target, "8M"]);
    let image = format!("driver=qcow2,node-name=t,discard=unmap,file.driver=file,file.filename={target}");
    let server = "addr.type=unix,addr.path={socket}";
    let export = "nbd,id=e,node-name=t,name=disk,writable=on";
    let server = Server::start(folder, "qemu-storage-daemon", &["--blockdev", &image, "--nbd-server", server, "--export", export]);
    let mut client = server.connect("disk", &[ALLOCATION]);
    let mut content = noise(3, 8 << 20);
    let mut items = content.chunks(300_000).enumerate().map(|(n, part)| Ok::<_, Error>((n as u64 * 300_000, part)));
    client.write_many(&mut items, 16).expect("writes");
    assert!(read_whole(&mut client, 1 << 20, 8).expect("reads") == content);
    client.write_zeroes(1 << 20, 1 << 20).expect("zeroes");
    client.trim(4 << 20, 1 << 20).expect("trims");
    content[1 << 20..2 << 20].fill(0);
    content[4 << 20..5 << 20].fill(0);
    client.write_all_at(12_345, b"small").expect("writes");
    content[12_345..12_350].copy_from_slice(b"small");
    client.flush().expect("flushes");
    assert!(read_whole(&mut client, 1 << 20, 8).expect("reads") == content);
    let holes: u64 = ranges(&mut client, ALLOCATION).iter().filter(|r| r.2 & 2 != 0).map(|r| r.1).sum();
    assert_eq!(holes, 2 << 20);
    client.disconnect().expect("disconnects");
}

#[test]
fn a_write_whose_source_fails() {
    let (server, mut content) = raw_image(&[]);
    let mut client = server.connect("disk", &[]);
    let items = [Ok((0, vec![9_u8; 4096])), Err(Error::Unusable { server: "source".to_owned() }), Ok((8192, vec![9; 4096]))];
    let error = client.write_many(&mut items.into_iter(), 4).expect_err("the source's");
    assert!(matches!(&error, Error::Unusable { server } if server == "source"), "{error}");
    content[..4096].fill(9);
    assert!(read_whole(&mut client, 1 << 20, 8).expect("usable") == content);
}
