//! What libvirt says when a call fails.

use std::ffi::CStr;
use std::time::Duration;

const MESSAGE_CHARS_MAX: usize = 600;

/// A call that failed, in libvirt's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libvirt {} {call}: {message}", kind.verb())]
pub(crate) struct Fault {
    /// What was asked, as a verb with its object: `look up the domain`.
    pub(crate) call: &'static str,
    /// What it means.
    pub(crate) kind: Kind,
    /// libvirt's own words.
    pub(crate) message: String,
}

/// What a fault means to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The connection broke or could not be made.
    Lost,
    /// This user may not.
    Denied,
    /// There is no such domain.
    NoDomain,
    /// There is no such checkpoint.
    NoCheckpoint,
    /// There is no backup job.
    NoBackup,
    /// A checkpoint's bitmap is missing or broken.
    BrokenCheckpoint,
    /// Nobody answered within our patience: QEMU or the daemon stands still.
    Unanswered,
    /// Nor did anybody when the user wanted to stop.
    Interrupted,
    /// The domain's lock was not free within libvirt's patience.
    Timeout,
    /// The domain is in the wrong state for the call.
    Invalid,
    /// The guest agent does not answer.
    AgentMute,
    /// This libvirt has no such thing.
    NoSupport,
    /// Anything else.
    Other,
}

impl Kind {
    fn verb(self) -> &'static str {
        if matches!(self, Self::Unanswered | Self::Interrupted) { "was asked to" } else { "refused to" }
    }
}

impl Fault {
    /// The daemon has not said a word for so long.
    pub(crate) fn mute(call: &'static str, waited: Duration) -> Self {
        Self { call, kind: Kind::Lost, message: format!("the daemon has not answered for {} s", waited.as_secs()) }
    }

    /// A call that was given up.
    pub(crate) fn unanswered(call: &'static str, waited: Duration, is_interrupted: bool) -> Self {
        let kind = if is_interrupted { Kind::Interrupted } else { Kind::Unanswered };
        Self { call, kind, message: format!("no answer for {} s", waited.as_secs()) }
    }

    /// Of a system that has no thread for a call.
    pub(crate) fn of_system(call: &'static str) -> Self {
        Self { call, kind: Kind::Other, message: "the system has no thread for it".into() }
    }

    /// The last failure on this thread.
    #[expect(unsafe_code, reason = "the library keeps its last error behind a pointer")]
    pub(crate) fn last(call: &'static str) -> Self {
        // SAFETY: the pointer is null or valid until this thread's next call; everything is copied at once.
        let error = unsafe { virt_sys::virGetLastError().as_ref() };
        let Some(error) = error else { return Self { call, kind: Kind::Other, message: "no reason was given".into() } };
        let message = if error.message.is_null() {
            "no reason was given".into()
        } else {
            // SAFETY: not null, and a text that ends with zero by libvirt's promise.
            unsafe { CStr::from_ptr(error.message) }.to_string_lossy().into_owned()
        };
        let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect();
        Self { call, kind: kind(error.code, error.domain, &message), message }
    }

    /// Of a text that cannot be given to libvirt.
    pub(crate) fn of_text(call: &'static str) -> Self {
        Self { call, kind: Kind::Other, message: "a text has a zero byte in it".into() }
    }
}

// What a broken connection looks like depends on the moment at which it broke.
fn kind(code: i32, domain: i32, message: &str) -> Kind {
    let (code, from_rpc) = (u32::try_from(code).unwrap_or(0), u32::try_from(domain) == Ok(virt_sys::VIR_FROM_RPC));
    match code {
        virt_sys::VIR_ERR_NO_DOMAIN => Kind::NoDomain,
        virt_sys::VIR_ERR_NO_DOMAIN_CHECKPOINT => Kind::NoCheckpoint,
        virt_sys::VIR_ERR_NO_DOMAIN_BACKUP => Kind::NoBackup,
        virt_sys::VIR_ERR_CHECKPOINT_INCONSISTENT => Kind::BrokenCheckpoint,
        virt_sys::VIR_ERR_OPERATION_TIMEOUT => Kind::Timeout,
        virt_sys::VIR_ERR_OPERATION_INVALID => Kind::Invalid,
        virt_sys::VIR_ERR_AGENT_UNRESPONSIVE | virt_sys::VIR_ERR_AGENT_COMMAND_TIMEOUT => Kind::AgentMute,
        virt_sys::VIR_ERR_NO_SUPPORT => Kind::NoSupport,
        virt_sys::VIR_ERR_AUTH_FAILED
        | virt_sys::VIR_ERR_AUTH_CANCELLED
        | virt_sys::VIR_ERR_AUTH_UNAVAILABLE
        | virt_sys::VIR_ERR_ACCESS_DENIED => Kind::Denied,
        virt_sys::VIR_ERR_NO_CONNECT | virt_sys::VIR_ERR_INVALID_CONN => Kind::Lost,
        virt_sys::VIR_ERR_SYSTEM_ERROR | virt_sys::VIR_ERR_INTERNAL_ERROR | virt_sys::VIR_ERR_RPC if from_rpc => {
            if message.contains("Permission denied") { Kind::Denied } else { Kind::Lost }
        }
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_is_told_from_a_refusal() {
        let code = |code: u32| i32::try_from(code).unwrap();
        let rpc = code(virt_sys::VIR_FROM_RPC);
        assert_eq!(kind(code(virt_sys::VIR_ERR_SYSTEM_ERROR), rpc, "End of file while reading data"), Kind::Lost);
        assert_eq!(kind(code(virt_sys::VIR_ERR_SYSTEM_ERROR), rpc, "socket: Permission denied"), Kind::Denied);
        assert_eq!(kind(code(virt_sys::VIR_ERR_INTERNAL_ERROR), rpc, "client socket is closed"), Kind::Lost);
        assert_eq!(kind(code(virt_sys::VIR_ERR_INTERNAL_ERROR), 10, "QEMU said no"), Kind::Other);
        assert_eq!(kind(code(virt_sys::VIR_ERR_NO_DOMAIN), 10, ""), Kind::NoDomain);
        assert_eq!(kind(-1, -1, ""), Kind::Other);
    }
}
