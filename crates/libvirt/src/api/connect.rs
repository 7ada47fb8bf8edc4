//! A connection to a hypervisor's libvirt daemon.

use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::fmt;
use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once, mpsc};
use std::thread;
use std::time::Duration;

use super::bounded::{Calls, Patience};
use super::{Domain, Fault, Result, c_text, number, owned_text};

// A daemon that answers no ping for half a minute is as good as dead: calls that wait for it fail.
const PING_SECONDS: c_int = 5;
const PINGS_LOST: c_uint = 6;
// Pings begin when the connection stands, so that has a time-out of its own.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// An open connection. Dropping it closes it once its domains are dropped too.
#[derive(Debug)]
pub(crate) struct Connect {
    raw: Arc<Raw>,
    calls: Arc<Calls>,
}

/// The library's handle, shared with a call that is under way.
#[derive(Debug)]
struct Raw(virt_sys::virConnectPtr);

/// A version as libvirt counts: `11.3.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u64,
    pub(crate) minor: u64,
    pub(crate) micro: u64,
}

impl From<c_ulong> for Version {
    fn from(number: c_ulong) -> Self {
        Self { major: number / 1_000_000, minor: number / 1000 % 1000, micro: number % 1000 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

// SAFETY: libvirt's handles may be used from any thread; only the last error belongs to the thread that called.
#[expect(unsafe_code, reason = "the library says so of its handles")]
unsafe impl Send for Raw {}
// SAFETY: as above, by several at once.
#[expect(unsafe_code, reason = "the library says so of its handles")]
unsafe impl Sync for Raw {}

// Without a handler of its own the library prints every failure to standard error.
extern "C" fn silent(_: *mut c_void, _: virt_sys::virErrorPtr) {}

#[expect(unsafe_code, reason = "the library's global set-up")]
fn initialise() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: called once, before any other call; a failure shows again at the first connection.
        unsafe {
            virt_sys::virInitialize();
            virt_sys::virSetErrorFunc(ptr::null_mut(), Some(silent));
            virt_sys::virEventRegisterDefaultImpl();
        }
        // Sends and receives the pings, as long as the process lives.
        thread::spawn(|| {
            // SAFETY: the loop was registered above, and is run by this thread alone.
            while unsafe { virt_sys::virEventRunDefaultImpl() } == 0 {}
        });
    });
}

impl Connect {
    /// Makes a call over this connection; it stays open until the call returns.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(virt_sys::virConnectPtr) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let raw = Arc::clone(&self.raw);
        self.calls.make(call, Patience::Question, move || work(raw.as_ref().0))
    }

    pub(super) fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// From now on a call without answer is given up soon after this becomes true.
    pub(crate) fn heed(&self, interrupted: &Arc<AtomicBool>) {
        self.calls.heed(Arc::clone(interrupted));
    }

    /// Connects; without a URI libvirt's own default is taken (`LIBVIRT_DEFAULT_URI`, its configuration, what it finds).
    ///
    /// A daemon that takes the connection and then says nothing is given up after a while, and the thread that waits for it left.
    pub(crate) fn open(uri: Option<&str>) -> Result<Self> {
        initialise();
        let uri = uri.map(str::to_owned);
        let (tell, told) = mpsc::sync_channel(1);
        thread::spawn(move || tell.send(Self::open_now(uri.as_deref())));
        told.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(|_| Err(Fault::mute("connect", OPEN_TIMEOUT)))
    }

    #[expect(unsafe_code, reason = "calls of the library")]
    fn open_now(uri: Option<&str>) -> Result<Self> {
        const CALL: &str = "connect";
        let uri = uri.map(|uri| c_text(CALL, uri)).transpose()?;
        let name = uri.as_ref().map_or(ptr::null(), |uri| uri.as_ptr());
        // SAFETY: the name is null or lives until after the call; without `auth` the library asks nobody for a password.
        let raw = unsafe { virt_sys::virConnectOpenAuth(name, ptr::null_mut(), 0) };
        if raw.is_null() {
            return Err(Fault::last(CALL));
        }
        let connect = Self { raw: Arc::new(Raw(raw)), calls: Arc::default() };
        // SAFETY: the handle is open. A driver without a daemon needs no pings, and says so.
        number("watch the connection", unsafe { virt_sys::virConnectSetKeepAlive(raw, PING_SECONDS, PINGS_LOST) })?;
        Ok(connect)
    }

    /// The URI that is really used.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn uri(&self) -> Result<String> {
        const CALL: &str = "tell its URI";
        // SAFETY: the handle is open as long as the call goes on.
        self.ask(CALL, |raw| owned_text(CALL, unsafe { virt_sys::virConnectGetURI(raw) }))
    }

    /// libvirtd's version.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn version(&self) -> Result<Version> {
        const CALL: &str = "tell its version";
        self.ask(CALL, |raw| {
            let mut version: c_ulong = 0;
            // SAFETY: the handle is open, the number outlives the call.
            number(CALL, unsafe { virt_sys::virConnectGetLibVersion(raw, &raw mut version) })?;
            Ok(version.into())
        })
    }

    /// What it can run, as XML.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn capabilities(&self) -> Result<String> {
        const CALL: &str = "tell what it can run";
        // SAFETY: as above.
        self.ask(CALL, |raw| owned_text(CALL, unsafe { virt_sys::virConnectGetCapabilities(raw) }))
    }

    /// All domains, running or not.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn domains(&self) -> Result<Vec<Domain>> {
        const CALL: &str = "list the domains";
        let calls = Arc::clone(&self.calls);
        self.ask(CALL, move |raw| {
            let mut list: *mut virt_sys::virDomainPtr = ptr::null_mut();
            // SAFETY: the handle is open; the library allocates the list and says how long it is.
            let count = number(CALL, unsafe { virt_sys::virConnectListAllDomains(raw, &raw mut list, 0) })?;
            // SAFETY: that many handles stand there, each ours to free.
            let domains = (0..count as usize).map(|at| Domain::from_raw(unsafe { *list.add(at) }, Arc::clone(&calls))).collect();
            // SAFETY: the list itself is ours to free, the handles live on.
            unsafe { libc::free(list.cast()) };
            Ok(domains)
        })
    }

    /// A domain by its name.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn by_name(&self, name: &str) -> Result<Domain> {
        const CALL: &str = "look up the domain";
        let name = c_text(CALL, name)?;
        let calls = Arc::clone(&self.calls);
        self.ask(CALL, move |raw| {
            // SAFETY: the handle is open, the text outlives the call.
            let raw = unsafe { virt_sys::virDomainLookupByName(raw, name.as_ptr()) };
            if raw.is_null() { Err(Fault::last(CALL)) } else { Ok(Domain::from_raw(raw, calls)) }
        })
    }

    /// A domain by its UUID.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn by_uuid(&self, uuid: &str) -> Result<Domain> {
        const CALL: &str = "look up the domain";
        let uuid = c_text(CALL, uuid)?;
        let calls = Arc::clone(&self.calls);
        self.ask(CALL, move |raw| {
            // SAFETY: the handle is open, the text outlives the call.
            let raw = unsafe { virt_sys::virDomainLookupByUUIDString(raw, uuid.as_ptr()) };
            if raw.is_null() { Err(Fault::last(CALL)) } else { Ok(Domain::from_raw(raw, calls)) }
        })
    }
}

impl Connect {
    /// Where a volume of a storage pool is on this host.
    #[expect(unsafe_code, reason = "calls of the library")]
    pub(crate) fn volume_path(&self, pool: &str, volume: &str) -> Result<String> {
        const CALL: &str = "find the volume of a storage pool";
        let (pool, volume) = (c_text(CALL, pool)?, c_text(CALL, volume)?);
        self.ask(CALL, move |raw| {
            // SAFETY: the handle is open, the text outlives the call.
            let pool = unsafe { virt_sys::virStoragePoolLookupByName(raw, pool.as_ptr()) };
            if pool.is_null() {
                return Err(Fault::last(CALL));
            }
            // SAFETY: the pool's handle is not null and ours until freed, the text outlives the call.
            let found = unsafe { virt_sys::virStorageVolLookupByName(pool, volume.as_ptr()) };
            let path = if found.is_null() {
                Err(Fault::last(CALL))
            } else {
                // SAFETY: the volume's handle is not null and ours until freed.
                owned_text(CALL, unsafe { virt_sys::virStorageVolGetPath(found) })
            };
            // SAFETY: both are ours and freed once; freeing none is not done.
            unsafe {
                if !found.is_null() {
                    virt_sys::virStorageVolFree(found);
                }
                virt_sys::virStoragePoolFree(pool);
            }
            path
        })
    }
}

impl Drop for Raw {
    #[expect(unsafe_code, reason = "a call of the library")]
    fn drop(&mut self) {
        // SAFETY: opened by us and closed once; domains hold references of their own.
        unsafe { virt_sys::virConnectClose(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(Version::from(11_003_000).to_string(), "11.3.0");
        assert!(Version::from(7_002_022) < Version::from(9_000_000));
    }

    #[test]
    fn a_daemon_that_is_not_there_is_a_lost_connection() {
        let fault = Connect::open(Some("qemu+unix:///system?socket=/nonexistent/libvirt-sock")).unwrap_err();
        assert_eq!(fault.kind, super::super::Kind::Lost, "{fault}");
    }
}
