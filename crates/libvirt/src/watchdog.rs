//! The watchdog's part for libvirt: when keepmark dies, its guest is thawed, and its backup ended, whose scratch nobody watches any more.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{Read, Write};
use std::path::Path;

use keepmark_qemu::watchdog::{Rescue, end_jobs_over, run_with};

use crate::api::{Connect, Domain, DomainState, Kind};
use crate::detour;
use crate::error::Error;
use crate::link::Link;
use crate::point::end_backup;

const PREFIX: &str = "libvirt:";
const OF_MONITOR: &str = "libvirt-monitor:";

/// What stands in the watchdog's arguments where QEMU's monitor stands for others.
pub(crate) fn subject(uri: &str) -> String {
    format!("{PREFIX}{uri}")
}

/// The same for a domain's monitor that is reached through libvirt.
pub(crate) fn subject_of_monitor(uri: &str, uuid: &str) -> String {
    format!("{OF_MONITOR}{uuid}:{uri}")
}

/// Whether a watchdog with these arguments is for libvirt.
#[must_use]
pub fn is_for_libvirt(arguments: &[OsString]) -> bool {
    watched(arguments).is_some()
}

// Of what the arguments tell: libvirt's URI, and the domain where it is a monitor.
fn watched(arguments: &[OsString]) -> Option<(&str, Option<&str>)> {
    let subject = arguments.first()?.to_str()?;
    let monitor = subject.strip_prefix(OF_MONITOR).and_then(|rest| rest.split_once(':'));
    monitor.map(|(uuid, uri)| (uri, Some(uuid))).or_else(|| Some((subject.strip_prefix(PREFIX)?, None)))
}

/// The watchdog's whole life, as [`keepmark_qemu::watchdog::run`].
///
/// # Errors
/// When the arguments make no sense, or the guest could not be thawed.
pub fn run(arguments: &[OsString], input: impl Read + Send + 'static, ready: &mut dyn Write) -> crate::Result<()> {
    let (uri, uuid) = watched(arguments).unwrap_or_default();
    let (uri, uuid) = (uri.to_owned(), uuid.map(str::to_owned));
    let end_jobs = |copied: &str| uuid.as_ref().map_or_else(|| end(&uri, copied), |uuid| end_detour(&uri, uuid, copied));
    // libvirt pauses a guest only within its own calls, and a detour not at all.
    let rescue = Rescue { resume: &|_| Ok(()), thaw: &|uuid| thaw(&uri, uuid), end_jobs: &|_, copied| end_jobs(copied) };
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

fn end_detour(uri: &str, uuid: &str, run: &str) -> keepmark_qemu::Result<()> {
    let relay = || {
        let mut link = Link::open(Some(uri), uuid)?;
        if link.call(Domain::state)? == DomainState::Off { Ok(None) } else { detour::relay(link).map(Some) }
    };
    match relay() {
        Err(Error::NoDomain { .. }) | Ok(None) => Ok(()),
        Ok(Some(stream)) => end_jobs_over(stream, run),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_told_apart() {
        let read = |subject: &str| watched(&[subject.into()]).map(|(uri, uuid)| (uri.to_owned(), uuid.map(str::to_owned)));
        assert_eq!(read(&subject("qemu+unix:///system?socket=/a")), Some(("qemu+unix:///system?socket=/a".into(), None)));
        assert_eq!(read(&subject_of_monitor("qemu:///system", "u-1")), Some(("qemu:///system".into(), Some("u-1".into()))));
        assert_eq!(read("/run/web01.qmp"), None);
    }
}
