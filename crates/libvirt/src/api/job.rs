//! A domain's job: whether one runs, and how the last one ended.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::ptr;
use std::time::Duration;

use super::bounded::Patience;
use super::{Domain, Result, number};

const CALL: &str = "tell of the domain's job";

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All was done.
    Done,
    /// Something went wrong.
    Failed,
    /// Somebody ended it.
    Aborted,
}

/// The last job that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EndedJob {
    /// How.
    pub(crate) outcome: Outcome,
    /// Whether it was a backup.
    pub(crate) is_backup: bool,
    /// How long it went on.
    pub(crate) elapsed: Duration,
    /// What went wrong, in QEMU's words.
    pub(crate) problem: Option<String>,
}

/// What libvirt answers; freed when dropped.
struct Stats {
    kind: u32,
    parameters: virt_sys::virTypedParameterPtr,
    count: c_int,
}

impl Domain {
    /// Whether a job (backup, migration, save ...) runs.
    pub(crate) fn has_job(&self) -> Result<bool> {
        Ok(self.job_stats(0)?.kind != virt_sys::VIR_DOMAIN_JOB_NONE)
    }

    /// How the last job ended; libvirt forgets it by being asked, and when it is restarted.
    pub(crate) fn take_ended_job(&self) -> Result<Option<EndedJob>> {
        let stats = self.job_stats(virt_sys::VIR_DOMAIN_JOB_STATS_COMPLETED)?;
        let outcome = match stats.kind {
            virt_sys::VIR_DOMAIN_JOB_NONE => return Ok(None),
            virt_sys::VIR_DOMAIN_JOB_COMPLETED => Outcome::Done,
            virt_sys::VIR_DOMAIN_JOB_CANCELLED => Outcome::Aborted,
            _ => Outcome::Failed,
        };
        let backup = c_int::try_from(virt_sys::VIR_DOMAIN_JOB_OPERATION_BACKUP).ok();
        Ok(Some(EndedJob {
            outcome,
            is_backup: stats.operation() == backup,
            elapsed: Duration::from_millis(stats.elapsed_ms()),
            problem: stats.problem(),
        }))
    }

    #[expect(unsafe_code, reason = "a call of the library")]
    fn job_stats(&self, flags: c_uint) -> Result<Stats> {
        self.ask(CALL, Patience::Question, move |raw| {
            let mut kind: c_int = 0;
            let mut stats = Stats { kind: 0, parameters: ptr::null_mut(), count: 0 };
            // SAFETY: the handle lives, the places for the answer outlive the call.
            let answer =
                unsafe { virt_sys::virDomainGetJobStats(raw, &raw mut kind, &raw mut stats.parameters, &raw mut stats.count, flags) };
            number(CALL, answer)?;
            stats.kind = u32::try_from(kind).unwrap_or(virt_sys::VIR_DOMAIN_JOB_NONE);
            Ok(stats)
        })
    }
}

// SAFETY: a list of the library's that belongs to nobody else.
#[expect(unsafe_code, reason = "the list has one owner")]
unsafe impl Send for Stats {}

impl Stats {
    #[expect(unsafe_code, reason = "a call of the library")]
    fn operation(&self) -> Option<c_int> {
        let mut value: c_int = 0;
        let name = virt_sys::VIR_DOMAIN_JOB_OPERATION.as_ptr();
        // SAFETY: the list is as long as the library said, the place for the answer outlives the call.
        let found = unsafe { virt_sys::virTypedParamsGetInt(self.parameters, self.count, name, &raw mut value) };
        (found == 1).then_some(value)
    }

    #[expect(unsafe_code, reason = "a call of the library")]
    fn elapsed_ms(&self) -> u64 {
        let mut value: c_ulonglong = 0;
        let name = virt_sys::VIR_DOMAIN_JOB_TIME_ELAPSED.as_ptr();
        // SAFETY: as above.
        let found = unsafe { virt_sys::virTypedParamsGetULLong(self.parameters, self.count, name, &raw mut value) };
        if found == 1 { value } else { 0 }
    }

    #[expect(unsafe_code, reason = "a call of the library")]
    fn problem(&self) -> Option<String> {
        let mut value: *const c_char = ptr::null();
        let name = virt_sys::VIR_DOMAIN_JOB_ERRMSG.as_ptr();
        // SAFETY: as above.
        let found = unsafe { virt_sys::virTypedParamsGetString(self.parameters, self.count, name, &raw mut value) };
        // SAFETY: a text that ends with zero and belongs to the list; it is copied at once.
        (found == 1 && !value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
    }
}

impl Drop for Stats {
    #[expect(unsafe_code, reason = "a call of the library")]
    fn drop(&mut self) {
        // SAFETY: the library allocated that many; null and none is fine.
        unsafe { virt_sys::virTypedParamsFree(self.parameters, self.count) };
    }
}
