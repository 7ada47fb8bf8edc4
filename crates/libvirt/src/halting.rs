//! Shutting a domain's guest down for a revert, and starting it again, by libvirt's own calls.

use std::time::{Duration, Instant};

use keepmark_model::DiskName;
use keepmark_model::facts::DiskFacts;
use keepmark_model::seam;

use crate::Options;
use crate::api::{Domain, DomainState};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::look::facts;
use crate::next_start;
use crate::shut_off::ShutOff;

const POLL: Duration = Duration::from_millis(200);

/// Asks the guest to power down (by its agent or its power button, as libvirt does) and opens the domain without it.
///
/// # Errors
/// When it does not within the time, the domain would be gone then, or its disks are others when it is off. It goes on running, or
/// is started again.
pub(crate) fn shut_down(
    mut link: Link,
    options: Options,
    wanted: &[DiskName],
    within: Duration,
    interrupted: &dyn Fn() -> bool,
) -> seam::Result<ShutOff> {
    let (uri, uuid) = (link.uri().to_owned(), link.uuid().to_owned());
    let before = facts(&mut link)?;
    check(&mut link, &before, wanted)?;
    if let Err(refused) = link.once(Domain::shutdown) {
        // It may have powered down by itself meanwhile.
        if link.call(Domain::state)? != DomainState::Off {
            return Err(refused.into());
        }
    }
    wait_off(&mut link, within, interrupted)?;
    // Somebody may have changed its definition meanwhile.
    let same = next_start::compare(&mut link, &before, wanted);
    let opened = same.map_err(Into::into).and_then(|_| ShutOff::open(link, options).map(ShutOff::halted).map_err(Into::into));
    if opened.is_err() {
        // Nothing has been done to it, and its failure is what counts.
        drop(Link::open(Some(&uri), &uuid).and_then(|mut link| start(&mut link)));
    }
    opened
}

/// Looks whether a domain comes back with these disks (all, if none are named); says in words what becomes of others.
///
/// # Errors
/// When it would be gone, or one of them other than now.
pub(crate) fn check(link: &mut Link, now: &[DiskFacts], wanted: &[DiskName]) -> Result<Vec<String>> {
    if !link.call(Domain::is_persistent)? {
        return Err(Error::Transient { domain: link.name().to_owned() });
    }
    next_start::compare(link, now, wanted)
}

/// Starts a domain that is off.
///
/// # Errors
/// When libvirt cannot.
pub(crate) fn start(link: &mut Link) -> Result<()> {
    if link.call(Domain::state)? == DomainState::Off { link.once(Domain::create) } else { Ok(()) }
}

fn wait_off(link: &mut Link, within: Duration, interrupted: &dyn Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + within;
    while link.call(Domain::state)? != DomainState::Off {
        if interrupted() {
            return Err(Error::Interrupted);
        }
        if Instant::now() >= deadline {
            return Err(Error::NotDown { domain: link.name().to_owned(), waited: within });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
