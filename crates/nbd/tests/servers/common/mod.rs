//! Real NBD servers in folders of their own, and a fake one; all end with the value that owns them.

pub mod fake;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use keepmark_nbd::{Address, BufferPool, Client, Error, Options, Request};

/// A server that was started for one test.
pub struct Server {
    child: Child,
    _folder: tempfile::TempDir,
    pub address: Address,
}

impl Server {
    /// Runs `program` with `arguments`, in which `{dir}` and `{socket}` are replaced, and waits until it listens.
    /// A program that is missing fails the test.
    pub fn start(folder: tempfile::TempDir, program: &str, arguments: &[&str]) -> Server {
        let socket = folder.path().join("nbd.sock");
        let filled = arguments.iter().map(|a| fill(a, folder.path(), &socket));
        let spawned = Command::new(program).args(filled).stdin(Stdio::null()).spawn();
        let child = spawned.unwrap_or_else(|e| panic!("{program} cannot be started: {e}"));
        let mut server = Server { child, _folder: folder, address: Address::Unix(socket.clone()) };
        server.wait_for(&socket);
        server
    }

    fn wait_for(&mut self, socket: &Path) {
        let began = Instant::now();
        while !listens(socket) {
            assert!(self.child.try_wait().expect("wait").is_none(), "the server ended");
            assert!(began.elapsed() < Duration::from_secs(20), "the server does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn connect(&self, export: &str, contexts: &[&str]) -> Client {
        Client::connect(&self.address, &options(export, contexts)).expect("connects")
    }

    /// Kills it at once, as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A socket exists a moment before it listens; the kernel marks those that do. A plain file stands for itself.
fn listens(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/net/unix").expect("the kernel's table of sockets");
    let name = path.to_str().expect("UTF-8");
    path.is_file() || table.lines().any(|line| line.ends_with(name) && line.contains(" 00010000 "))
}

fn fill(argument: &str, folder: &Path, socket: &Path) -> String {
    let show = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    argument.replace("{dir}", &show(folder)).replace("{socket}", &show(socket))
}

pub fn options(export: &str, contexts: &[&str]) -> Options {
    Options { contexts: contexts.iter().map(|c| (*c).to_owned()).collect(), timeout: Some(Duration::from_secs(20)), ..Options::new(export) }
}

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Runs a program to its end; it must succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
    let status = status.unwrap_or_else(|e| panic!("{program} cannot be started: {e}"));
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

/// A raw image of 8 MiB: noise in its first MiB and at 4 MiB + 3 KiB (200 KiB of it), else a hole.
pub fn image(folder: &Path) -> (PathBuf, Vec<u8>) {
    let path = folder.join("disk.raw");
    let mut content = vec![0; 8 << 20];
    content[..1 << 20].copy_from_slice(&noise(1, 1 << 20));
    let island = (4 << 20) + 3072;
    content[island..island + 200_000].copy_from_slice(&noise(2, 200_000));
    let file = std::fs::File::create(&path).expect("create");
    file.set_len(content.len() as u64).expect("set_len");
    use std::os::unix::fs::FileExt;
    file.write_all_at(&content[..1 << 20], 0).expect("write");
    file.write_all_at(&content[island..island + 200_000], island as u64).expect("write");
    (path, content)
}

/// Reads an export whole in requests of `length` bytes through [`Client::read_many`].
pub fn read_whole(client: &mut Client, length: u32, in_flight: usize) -> Result<Vec<u8>, Error> {
    let size = client.info().size;
    let mut content = vec![0xee; usize::try_from(size).expect("small")];
    let pool = BufferPool::new(in_flight);
    let mut requests = (0..size).step_by(length as usize).map(|offset| {
        let rest = u32::try_from(size - offset).expect("small");
        Request { offset, length: rest.min(length) }
    });
    let mut bytes = 0;
    client.read_many(&mut requests, in_flight, &pool, &mut |request, buffer| {
        assert_eq!(buffer.len(), request.length as usize);
        let start = usize::try_from(request.offset).expect("small");
        content[start..start + buffer.len()].copy_from_slice(&buffer);
        bytes += buffer.len() as u64;
        pool.put(buffer);
        Ok::<_, Error>(())
    })?;
    assert_eq!(bytes, size);
    Ok(content)
}

/// The ranges of `[offset, length, flags]` as a client tells them.
pub fn ranges(client: &mut Client, context: &str) -> Vec<(u64, u64, u64)> {
    let size = client.info().size;
    let map = client.block_status(context, 0, size).expect("block status");
    assert_eq!(map.iter().map(|s| s.length).sum::<u64>(), size);
    map.into_iter().map(|s| (s.offset, s.length, s.flags)).collect()
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}
