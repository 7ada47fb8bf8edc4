//! The watchdog's part for libvirt: when keepmark dies, its guest is thawed, and its backup ended, whose scratch nobody watches any more.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{Read, Write};
use std::path::Path;

use keepmark_qemu::watchdog::{Rescue, run_with};

use crate::api::{Connect, Domain, DomainState, Kind};
use crate::error::Error;
use crate::link::Link;
use crate::point::end_backup;

const PREFIX: &str = "libvirt:";

/// What stands in the watchdog's arguments where QEMU's monitor stands for others.
pub(crate) fn subject(uri: &str) -> String {
    format!("{PREFIX}{uri}")
}

/// Whether a watchdog with these arguments is for libvirt.
#[must_use]
pub fn is_for_libvirt(arguments: &[OsString]) -> bool {
    uri(arguments).is_some()
}

fn uri(arguments: &[OsString]) -> Option<&str> {
    arguments.first()?.to_str()?.strip_prefix(PREFIX)
}

/// The watchdog's whole life, as [`keepmark_qemu::watchdog::run`].
///
/// # Errors
/// When the arguments make no sense, or the guest could not be thawed.
pub fn run(arguments: &[OsString], input: impl Read + Send + 'static, ready: &mut dyn Write) -> crate::Result<()> {
    let uri = uri(arguments).unwrap_or_default().to_owned();
    // libvirt pauses a guest only within its own calls.
    let rescue = Rescue { resume: &|_| Ok(()), thaw: &|uuid| thaw(&uri, uuid), end_jobs: &|_, copied| end(&uri, copied) };
    Ok(run_with(arguments, input, ready, &rescue)?)
}

/// What [`keepmark_qemu::watchdog::Watchdog::copying`] is told: whose backup, and its run.
pub(crate) fn copied(uuid: &str, run: &str) -> String {
    format!("{uuid}/{run}")
}

fn end(uri: &str, copied: &str) -> keepmark_qemu::Result<()> {
    let (uuid, run) = copied.split_once('/').unwrap_or_default();
    let ended = Link::open(Some(uri), uuid).and_then(|mut link| end_backup(&mut link, |socket| socket.contains(run)));
    match ended {
        Err(Error::NoDomain { .. }) | Ok(_) => Ok(()),
        Err(error) => Err(failed(uuid.as_ref(), &error)),
    }
}

fn failed(uuid: &Path, problem: &dyn Display) -> keepmark_qemu::Error {
    keepmark_qemu::Error::Agent { socket: uuid.to_owned(), problem: format!("cannot be reached: {problem}") }
}

fn thaw(uri: &str, uuid: &Path) -> keepmark_qemu::Result<()> {
    let frozen = || {
        let domain = Connect::open(Some(uri))?.by_uuid(&uuid.to_string_lossy())?;
        if domain.state()? == DomainState::Off { Ok(()) } else { Domain::thaw(&domain).map(drop) }
    };
    match frozen() {
        Err(fault) if fault.kind != Kind::NoDomain => Err(failed(uuid, &fault)),
        _ => Ok(()),
    }
}
