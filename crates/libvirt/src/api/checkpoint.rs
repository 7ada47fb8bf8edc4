//! libvirt's own record of a checkpoint.

use std::ffi::CStr;

use super::{Domain, Fault, Result, c_text, number};

/// A checkpoint's handle.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    raw: virt_sys::virDomainCheckpointPtr,
}

/// How a checkpoint is made known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redefine {
    /// Only if its bitmaps are there and whole.
    Validated,
    /// In any case: so that it can be deleted by the ordinary call.
    Unchecked,
}

impl Checkpoint {
    pub(super) fn from_raw(raw: virt_sys::virDomainCheckpointPtr) -> Self {
        Self { raw }
    }

    /// Makes one with its bitmaps, at one moment on all of its disks.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn create(domain: &Domain, xml: &str) -> Result<Self> {
        const CALL: &str = "create the checkpoint";
        let xml = c_text(CALL, xml)?;
        // SAFETY: the domain's handle lives, the text outlives the call.
        let raw = unsafe { virt_sys::virDomainCheckpointCreateXML(domain.raw(), xml.as_ptr(), 0) };
        if raw.is_null() { Err(Fault::last(CALL)) } else { Ok(Self { raw }) }
    }

    /// Makes one known whose bitmaps are there already; nothing changes in QEMU.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn redefine(domain: &Domain, xml: &str, how: Redefine) -> Result<Self> {
        const CALL: &str = "redefine the checkpoint";
        let xml = c_text(CALL, xml)?;
        let flags = virt_sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
            | match how {
                Redefine::Validated => virt_sys::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE,
                Redefine::Unchecked => 0,
            };
        // SAFETY: the domain's handle lives, the text outlives the call.
        let raw = unsafe { virt_sys::virDomainCheckpointCreateXML(domain.raw(), xml.as_ptr(), flags) };
        if raw.is_null() { Err(Fault::last(CALL)) } else { Ok(Self { raw }) }
    }

    /// Its name.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn name(&self) -> Result<String> {
        // SAFETY: the handle lives; the text belongs to it and is copied at once.
        let raw = unsafe { virt_sys::virDomainCheckpointGetName(self.raw) };
        if raw.is_null() {
            return Err(Fault::last("tell the checkpoint's name"));
        }
        // SAFETY: not null, ends with zero.
        Ok(unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned())
    }

    /// Removes it and its bitmaps.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn delete(&self) -> Result<()> {
        // SAFETY: the handle lives.
        number("delete the checkpoint", unsafe { virt_sys::virDomainCheckpointDelete(self.raw, 0) }).map(drop)
    }

    /// Makes libvirt forget it; bitmaps stay.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn forget(&self) -> Result<()> {
        let flags = virt_sys::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY;
        // SAFETY: the handle lives.
        number("forget the checkpoint", unsafe { virt_sys::virDomainCheckpointDelete(self.raw, flags) }).map(drop)
    }
}

impl Drop for Checkpoint {
    #[expect(unsafe_code, reason = "a call of the library")]
    fn drop(&mut self) {
        // SAFETY: ours, freed once.
        unsafe { virt_sys::virDomainCheckpointFree(self.raw) };
    }
}
