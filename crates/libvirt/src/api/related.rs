//! What a domain refers to (networks, storage pools, secrets), and making a domain known.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;
use std::sync::Arc;

use super::bounded::Patience;
use super::{Connect, Domain, Fault, Kind, Result, c_text, number, owned_text};

// volume, ceph, iscsi, tls, vtpm: who refers to a secret by its usage says the kind, which is one of these.
const SECRET_USAGES: std::ops::RangeInclusive<c_int> = 1..=5;

impl Connect {
    /// Names of the networks, active or not. A libvirt that knows no networks has none.
    #[expect(unsafe_code, reason = "calls of the library")]
    pub(crate) fn networks(&self) -> Result<Vec<String>> {
        const CALL: &str = "list the networks";
        let listed = self.ask(CALL, |raw| {
            let mut list: *mut virt_sys::virNetworkPtr = ptr::null_mut();
            // SAFETY: the handle is open; the library allocates the list and says how long it is.
            let count = number(CALL, unsafe { virt_sys::virConnectListAllNetworks(raw, &raw mut list, 0) })?;
            let mut names = Vec::new();
            for at in 0..count as usize {
                // SAFETY: that many handles stand there; each is ours, its name is copied before it is freed, once.
                unsafe {
                    let network = *list.add(at);
                    let name = virt_sys::virNetworkGetName(network);
                    if !name.is_null() {
                        names.push(CStr::from_ptr(name).to_string_lossy().into_owned());
                    }
                    virt_sys::virNetworkFree(network);
                }
            }
            // SAFETY: the list itself is ours to free.
            unsafe { libc::free(list.cast()) };
            Ok(names)
        });
        match listed {
            Err(fault) if fault.kind == Kind::NoSupport => Ok(Vec::new()),
            other => other,
        }
    }

    /// A network's definition.
    #[expect(unsafe_code, reason = "calls of the library")]
    pub(crate) fn network_xml(&self, name: &str) -> Result<String> {
        const CALL: &str = "tell the network's definition";
        let name = c_text(CALL, name)?;
        // SAFETY: the handle is open, the texts live until after the calls, what was found is freed once.
        self.ask(CALL, move |raw| unsafe {
            described(
                CALL,
                &name,
                |name| virt_sys::virNetworkLookupByName(raw, name),
                |found| virt_sys::virNetworkGetXMLDesc(found, virt_sys::VIR_NETWORK_XML_INACTIVE),
                |found| virt_sys::virNetworkFree(found),
            )
        })
    }

    /// A storage pool's definition.
    #[expect(unsafe_code, reason = "calls of the library")]
    pub(crate) fn pool_xml(&self, name: &str) -> Result<String> {
        const CALL: &str = "tell the storage pool's definition";
        let name = c_text(CALL, name)?;
        // SAFETY: as above.
        self.ask(CALL, move |raw| unsafe {
            described(
                CALL,
                &name,
                |name| virt_sys::virStoragePoolLookupByName(raw, name),
                |found| virt_sys::virStoragePoolGetXMLDesc(found, virt_sys::VIR_STORAGE_XML_INACTIVE),
                |found| virt_sys::virStoragePoolFree(found),
            )
        })
    }

    /// A secret's definition, by its UUID or usage; never its value.
    #[expect(unsafe_code, reason = "calls of the library")]
    pub(crate) fn secret_xml(&self, named: &str) -> Result<String> {
        const CALL: &str = "tell the secret's definition";
        let named = c_text(CALL, named)?;
        self.ask(CALL, move |raw| {
            let look_up = |name: *const c_char| {
                // SAFETY: as above.
                let by_usage = |kind| unsafe { virt_sys::virSecretLookupByUsage(raw, kind, name) };
                // SAFETY: as above.
                let by_uuid = unsafe { virt_sys::virSecretLookupByUUIDString(raw, name) };
                if !by_uuid.is_null() {
                    return by_uuid;
                }
                SECRET_USAGES.map(by_usage).find(|found| !found.is_null()).unwrap_or(ptr::null_mut())
            };
            // SAFETY: as above.
            unsafe {
                described(CALL, &named, look_up, |found| virt_sys::virSecretGetXMLDesc(found, 0), |found| virt_sys::virSecretFree(found))
            }
        })
    }

    /// Defines a domain, checked against libvirt's schema.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn define(&self, xml: &str) -> Result<Domain> {
        const CALL: &str = "define the domain";
        let xml = c_text(CALL, xml)?;
        let calls = Arc::clone(self.calls());
        self.ask(CALL, move |raw| {
            // SAFETY: the handle is open, the text outlives the call.
            let raw = unsafe { virt_sys::virDomainDefineXMLFlags(raw, xml.as_ptr(), virt_sys::VIR_DOMAIN_DEFINE_VALIDATE) };
            if raw.is_null() { Err(Fault::last(CALL)) } else { Ok(Domain::from_raw(raw, calls)) }
        })
    }
}

impl Domain {
    /// Starts it.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn create(&self) -> Result<()> {
        const CALL: &str = "start the domain";
        // SAFETY: the handle lives.
        self.ask(CALL, Patience::Start, |raw| number(CALL, unsafe { virt_sys::virDomainCreateWithFlags(raw, 0) }).map(drop))
    }

    /// Asks its guest to power down, by its agent or its power button; returns at once.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn shutdown(&self) -> Result<()> {
        const CALL: &str = "shut the domain down";
        // SAFETY: the handle lives.
        self.ask(CALL, Patience::Work, |raw| number(CALL, unsafe { virt_sys::virDomainShutdown(raw) }).map(drop))
    }

    /// Whether libvirt still knows it when it is off.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn is_persistent(&self) -> Result<bool> {
        const CALL: &str = "tell whether the domain is persistent";
        // SAFETY: the handle lives.
        Ok(self.ask(CALL, Patience::Question, |raw| number(CALL, unsafe { virt_sys::virDomainIsPersistent(raw) }))? > 0)
    }
}

/// Looks something up by its name, takes its description and frees it. `look_up` gives null or a handle that is freed once.
fn described<T>(
    call: &'static str,
    name: &CStr,
    look_up: impl Fn(*const c_char) -> *mut T,
    describe: impl Fn(*mut T) -> *mut c_char,
    free: impl Fn(*mut T) -> c_int,
) -> Result<String> {
    let found = look_up(name.as_ptr());
    if found.is_null() {
        return Err(Fault::last(call));
    }
    let text = owned_text(call, describe(found));
    free(found);
    text
}
