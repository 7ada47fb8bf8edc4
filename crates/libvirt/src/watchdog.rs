//! The watchdog's part for libvirt: thawing a guest by its UUID when keepmark dies while it holds it frozen.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;

use crate::api::{Connect, Domain, DomainState, Kind};

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
    Ok(keepmark_qemu::watchdog::run_with(arguments, input, ready, &|_| Ok(()), &|uuid| thaw(&uri, uuid))?)
}

fn thaw(uri: &str, uuid: &Path) -> keepmark_qemu::Result<()> {
    let frozen = || {
        let domain = Connect::open(Some(uri))?.by_uuid(&uuid.to_string_lossy())?;
        if domain.state()? == DomainState::Off { Ok(()) } else { Domain::thaw(&domain).map(drop) }
    };
    match frozen() {
        Err(fault) if fault.kind != Kind::NoDomain => {
            Err(keepmark_qemu::Error::Agent { socket: uuid.to_owned(), problem: format!("cannot be reached: {fault}") })
        }
        _ => Ok(()),
    }
}
