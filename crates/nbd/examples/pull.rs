//! Reads an export whole, holes left out, and prints MB/s and CPU seconds: `pull SOCKET|HOST:PORT [EXPORT [KIB [IN_FLIGHT [CONNECTIONS]]]]`.
#![expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "an example that prints its measurement")]

use std::error::Error;
use std::time::{Duration, Instant};

use keepmark_nbd::{Address, BufferPool, Client, Options, Request};

const HOLE: u64 = 1;
const ZERO: u64 = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let server = args.next().ok_or("usage: pull SOCKET|HOST:PORT [EXPORT [KIB [IN_FLIGHT [CONNECTIONS]]]]")?;
    let address = if server.contains('/') { Address::Unix(server.into()) } else { Address::Tcp(server) };
    let mut options = Options::new(args.next().unwrap_or_default());
    let mut number = |default: u32| args.next().map_or(Ok(default), |text| text.parse());
    let (kib, in_flight, connections) = (number(1024)?, number(8)?, number(1)?);
    options.contexts.push("base:allocation".to_owned());
    options.connections_max = usize::try_from(connections)?;

    let mut client = Client::connect(&address, &options)?;
    println!("{:?}, {} connections", client.info(), client.connections());
    let began = Instant::now();
    let requests = wanted(&mut client, kib << 10)?;
    let mapped = began.elapsed();
    let pool = BufferPool::new(usize::try_from(in_flight)?);
    let mut bytes = 0;
    client.read_many(&mut requests.iter().copied(), usize::try_from(in_flight)?, &pool, &mut |_, buffer| {
        bytes += buffer.len() as u64;
        pool.put(buffer);
        Ok::<_, keepmark_nbd::Error>(())
    })?;
    report(bytes, requests.len(), mapped, began.elapsed());
    client.disconnect()?;
    Ok(())
}

/// The allocated parts in requests of `length` bytes.
fn wanted(client: &mut Client, length: u32) -> Result<Vec<Request>, Box<dyn Error>> {
    let size = client.info().size;
    if client.info().contexts.is_empty() {
        return Ok(cut(0, size, length));
    }
    let map = client.block_status("base:allocation", 0, size)?;
    let data = map.iter().filter(|s| s.flags & (HOLE | ZERO) != HOLE | ZERO);
    Ok(data.flat_map(|s| cut(s.offset, s.offset + s.length, length)).collect())
}

fn cut(start: u64, end: u64, length: u32) -> Vec<Request> {
    let step = usize::try_from(length).unwrap_or(usize::MAX);
    let at = |offset: u64| Request { offset, length: u32::try_from(end - offset).unwrap_or(length).min(length) };
    (start..end).step_by(step).map(at).collect()
}

fn report(bytes: u64, requests: usize, mapped: Duration, all: Duration) {
    let cpu = cpu_seconds().unwrap_or(f64::NAN);
    let gib = bytes as f64 / f64::from(1 << 30);
    println!("{requests} requests, {gib:.2} GiB in {:.3} s ({:.3} s of it for the map)", all.as_secs_f64(), mapped.as_secs_f64());
    println!("{:.0} MB/s, {cpu:.3} CPU-s, {:.3} CPU-s per GiB", bytes as f64 / 1e6 / all.as_secs_f64(), cpu / gib);
}

/// Of the only thread there is.
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}
