//! libvirt's C library, wrapped so that nothing outside of this module is unsafe: handles that free themselves, texts, faults.
//!
//! Only what the driver needs is wrapped. Every call that asks libvirtd has an end (`bounded`).

mod bounded;
mod checkpoint;
mod connect;
mod domain;
mod fault;
mod job;
mod related;

pub(crate) use checkpoint::{Checkpoint, Redefine};
pub(crate) use connect::{Connect, Version};
pub(crate) use domain::{Domain, DomainState, View};
pub(crate) use fault::{Fault, Kind};
pub(crate) use job::{EndedJob, Outcome};

use std::ffi::{CStr, CString, c_char, c_int};

/// What every call returns.
pub(crate) type Result<T> = std::result::Result<T, Fault>;

/// A text for libvirt; a zero byte inside would cut it off, so that is refused.
fn c_text(call: &'static str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Fault::of_text(call))
}

/// Takes over a text that libvirt allocated; null is the call's failure.
#[expect(unsafe_code, reason = "the library hands over C strings")]
fn owned_text(call: &'static str, raw: *mut c_char) -> Result<String> {
    if raw.is_null() {
        return Err(Fault::last(call));
    }
    // SAFETY: libvirt returned it as a text that ends with zero and belongs to us until freed.
    let text = unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned();
    // SAFETY: as above; the copy is made, nobody else has the pointer.
    unsafe { libc::free(raw.cast()) };
    Ok(text)
}

/// A number that is negative when the call failed.
fn number(call: &'static str, value: c_int) -> Result<u32> {
    u32::try_from(value).map_err(|_| Fault::last(call))
}
