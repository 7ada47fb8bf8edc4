//! The way to one domain: looked up once, found again by its UUID when libvirtd was restarted.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::api::{self, Connect, Domain, Fault, Kind};
use crate::error::{self, Error, Result};

// libvirtd is back within seconds where something restarts it.
const RECONNECT_FOR: Duration = Duration::from_secs(20);
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

/// A connection and a domain on it.
#[derive(Debug)]
pub(crate) struct Link {
    uri: String,
    uuid: String,
    name: String,
    domain: Domain,
    connect: Connect,
    interrupted: Option<Arc<AtomicBool>>,
}

impl Link {
    /// Connects and looks a domain up by its UUID or name.
    pub(crate) fn open(uri: Option<&str>, wanted: &str) -> Result<Self> {
        let connect = Connect::open(uri).map_err(|fault| error::unreachable(uri, fault))?;
        let uri = connect.uri()?;
        if !is_local_qemu(&uri) {
            return Err(Error::Elsewhere { uri });
        }
        let domain = look_up(&connect, wanted)?;
        let (uuid, name) = (domain.uuid()?, domain.name()?);
        Ok(Self { uri, uuid, name, domain, connect, interrupted: None })
    }

    /// From now on a call without answer is given up soon after this becomes true.
    pub(crate) fn heeding(self, interrupted: Option<Arc<AtomicBool>>) -> Self {
        interrupted.iter().for_each(|flag| self.connect.heed(flag));
        Self { interrupted, ..self }
    }

    /// Another way to the same domain, for another thread.
    pub(crate) fn again(&self) -> Result<Self> {
        Ok(Self::open(Some(&self.uri), &self.uuid)?.heeding(self.interrupted.clone()))
    }

    pub(crate) fn uri(&self) -> &str {
        &self.uri
    }

    pub(crate) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The connection, for what is no domain.
    pub(crate) fn connect(&self) -> &Connect {
        &self.connect
    }

    /// libvirtd's version.
    pub(crate) fn version(&self) -> Result<api::Version> {
        Ok(self.connect.version()?)
    }

    /// Where a volume of a storage pool is on this host.
    pub(crate) fn volume_path(&self, pool: &str, volume: &str) -> Result<String> {
        Ok(self.connect.volume_path(pool, volume)?)
    }

    /// Calls something that may be done twice: if the connection breaks, it is done again on a new one.
    pub(crate) fn call<T>(&mut self, call: impl Fn(&Domain) -> api::Result<T>) -> Result<T> {
        Ok(self.attempt(call)??)
    }

    /// As `call`, with libvirt's refusal kept apart from a connection that does not come back.
    pub(crate) fn attempt<T>(&mut self, call: impl Fn(&Domain) -> api::Result<T>) -> Result<api::Result<T>> {
        match call(&self.domain) {
            Err(fault) if fault.kind == Kind::Lost => {
                self.reconnect(fault)?;
                Ok(call(&self.domain))
            }
            other => Ok(other),
        }
    }

    /// Calls something that may be done only once: a connection that breaks is a failure.
    pub(crate) fn once<T>(&self, call: impl FnOnce(&Domain) -> api::Result<T>) -> Result<T> {
        Ok(call(&self.domain)?)
    }

    /// As `once`, with libvirt's refusal as it is.
    pub(crate) fn attempt_once<T>(&self, call: impl FnOnce(&Domain) -> api::Result<T>) -> api::Result<T> {
        call(&self.domain)
    }

    fn reconnect(&mut self, lost: Fault) -> Result<()> {
        let end = Instant::now() + RECONNECT_FOR;
        loop {
            match Connect::open(Some(&self.uri)).and_then(|connect| Ok((connect.by_uuid(&self.uuid)?, connect))) {
                Ok((domain, connect)) => {
                    self.interrupted.iter().for_each(|flag| connect.heed(flag));
                    self.domain = domain;
                    self.connect = connect;
                    return Ok(());
                }
                Err(fault) if fault.kind == Kind::NoDomain => {
                    return Err(Error::NoDomain { name: self.name.clone(), known: Vec::new() });
                }
                Err(_) if Instant::now() >= end => return Err(error::unreachable(Some(&self.uri), lost)),
                Err(_) => std::thread::sleep(RECONNECT_PAUSE),
            }
        }
    }
}

// Disks are read over a unix socket, and scratch images are files: all of it must be on this host.
pub(crate) fn is_local_qemu(uri: &str) -> bool {
    uri.split_once("://").is_some_and(|(scheme, rest)| matches!(scheme, "qemu" | "qemu+unix") && rest.starts_with('/'))
}

// A name can look like a UUID; the name wins, as in virsh.
fn look_up(connect: &Connect, wanted: &str) -> Result<Domain> {
    let found = connect.by_name(wanted).or_else(|fault| match connect.by_uuid(wanted) {
        Ok(domain) => Ok(domain),
        Err(_) => Err(fault),
    });
    match found {
        Err(fault) if fault.kind == Kind::NoDomain => {
            let known = connect.domains()?.iter().filter_map(|domain| domain.name().ok()).collect();
            Err(Error::NoDomain { name: wanted.to_owned(), known })
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::is_local_qemu;

    #[test]
    fn only_qemu_on_this_host_can_be_read() {
        for uri in ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/a"] {
            assert!(is_local_qemu(uri), "{uri}");
        }
        for uri in ["qemu+ssh://host/system", "qemu://host/system", "qemu+tcp://127.0.0.1/system", "xen:///", "test:///default", ""] {
            assert!(!is_local_qemu(uri), "{uri}");
        }
    }
}
