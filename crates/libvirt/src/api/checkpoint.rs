//! libvirt's own record of a checkpoint.

use std::ffi::CStr;
use std::sync::Arc;

use super::bounded::{Calls, Patience};
use super::{Domain, Fault, Result, c_text, number};

/// A checkpoint's handle.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    raw: Arc<Raw>,
    calls: Arc<Calls>,
}

/// The library's handle, shared with a call that is under way.
#[derive(Debug)]
struct Raw(virt_sys::virDomainCheckpointPtr);

// SAFETY: libvirt's handles may be used from any thread; only the last error belongs to the thread that called.
#[expect(unsafe_code, reason = "the library says so of its handles")]
unsafe impl Send for Raw {}
// SAFETY: as above, by several at once.
#[expect(unsafe_code, reason = "the library says so of its handles")]
unsafe impl Sync for Raw {}

/// How a checkpoint is made known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redefine {
    /// Only if its bitmaps are there and whole.
    Validated,
    /// In any case: so that it can be deleted by the ordinary call.
    Unchecked,
}

impl Checkpoint {
    pub(super) fn from_raw(raw: virt_sys::virDomainCheckpointPtr, calls: Arc<Calls>) -> Self {
        Self { raw: Arc::new(Raw(raw)), calls }
    }

    fn ask(&self, call: &'static str, work: impl FnOnce(virt_sys::virDomainCheckpointPtr) -> Result<()> + Send + 'static) -> Result<()> {
        let raw = Arc::clone(&self.raw);
        self.calls.make(call, Patience::Work, move || work(raw.as_ref().0))
    }

    /// Makes one with its bitmaps, at one moment on all of its disks.
    pub(crate) fn create(domain: &Domain, xml: &str) -> Result<Self> {
        const CALL: &str = "create the checkpoint";
        Self::make(CALL, domain, xml, 0)
    }

    /// Makes one known whose bitmaps are there already; nothing changes in QEMU.
    pub(crate) fn redefine(domain: &Domain, xml: &str, how: Redefine) -> Result<Self> {
        const CALL: &str = "redefine the checkpoint";
        let flags = virt_sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
            | match how {
                Redefine::Validated => virt_sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE,
                Redefine::Unchecked => 0,
            };
        Self::make(CALL, domain, xml, flags)
    }

    #[expect(unsafe_code, reason = "a call of the library")]
    fn make(call: &'static str, domain: &Domain, xml: &str, flags: u32) -> Result<Self> {
        let xml = c_text(call, xml)?;
        let calls = Arc::clone(domain.calls());
        domain.ask(call, Patience::Work, move |raw| {
            // SAFETY: the domain's handle lives, the text outlives the call.
            let raw = unsafe { virt_sys::virDomainCheckpointCreateXML(raw, xml.as_ptr(), flags) };
            if raw.is_null() { Err(Fault::last(call)) } else { Ok(Self::from_raw(raw, calls)) }
        })
    }

    /// Its name.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn name(&self) -> Result<String> {
        // SAFETY: the handle lives; the text belongs to it and is copied at once.
        let raw = unsafe { virt_sys::virDomainCheckpointGetName(self.raw.0) };
        if raw.is_null() {
            return Err(Fault::last("tell the checkpoint's name"));
        }
        // SAFETY: not null, ends with zero.
        Ok(unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned())
    }

    /// Removes it and its bitmaps.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn delete(&self) -> Result<()> {
        const CALL: &str = "delete the checkpoint";
        // SAFETY: the handle lives.
        self.ask(CALL, |raw| number(CALL, unsafe { virt_sys::virDomainCheckpointDelete(raw, 0) }).map(drop))
    }

    /// Makes libvirt forget it; bitmaps stay.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn forget(&self) -> Result<()> {
        const CALL: &str = "forget the checkpoint";
        let flags = virt_sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY;
        // SAFETY: the handle lives.
        self.ask(CALL, move |raw| number(CALL, unsafe { virt_sys::virDomainCheckpointDelete(raw, flags) }).map(drop))
    }
}

impl Drop for Raw {
    #[expect(unsafe_code, reason = "a call of the library")]
    fn drop(&mut self) {
        // SAFETY: ours, freed once.
        unsafe { virt_sys::virDomainCheckpointFree(self.0) };
    }
}
