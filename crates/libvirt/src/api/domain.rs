//! One domain's calls.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use super::bounded::{Calls, Patience};
use super::{Checkpoint, Fault, Kind, Result, c_text, number, owned_text};

const UUID_BYTES: usize = 37;

/// A domain's handle. It keeps its connection open.
#[derive(Debug)]
pub(crate) struct Domain {
    raw: Arc<Raw>,
    calls: Arc<Calls>,
}

/// The library's handle, shared with a call that is under way.
#[derive(Debug)]
struct Raw(virt_sys::virDomainPtr);

// SAFETY: libvirt's handles may be used from any thread; only the last error belongs to the thread that called.
#[expect(unsafe_code, reason = "the library says so of its handles")]
unsafe impl Send for Raw {}
// SAFETY: as above, by several at once.
#[expect(unsafe_code, reason = "the library says so of its handles")]
unsafe impl Sync for Raw {}

/// What a domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DomainState {
    /// Its processors run, or would if they had something to do.
    Running,
    /// It has a QEMU, whose processors stand still.
    Paused,
    /// It has none.
    Off,
}

/// Which of a domain's definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// As it is now; of a shut-off domain as it will be.
    Current,
    /// As it will be at its next start, with what secrets the definition holds: without them a display would come back open.
    Next,
}

impl Domain {
    pub(super) fn from_raw(raw: virt_sys::virDomainPtr, calls: Arc<Calls>) -> Self {
        Self { raw: Arc::new(Raw(raw)), calls }
    }

    /// Makes a call about this domain; its handle lives until the call returns.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        call: &'static str,
        patience: Patience,
        work: impl FnOnce(virt_sys::virDomainPtr) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let raw = Arc::clone(&self.raw);
        self.calls.make(call, patience, move || work(raw.as_ref().0))
    }

    pub(super) fn calls(&self) -> &Arc<Calls> {
        &self.calls
    }

    /// Its name.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn name(&self) -> Result<String> {
        // SAFETY: the handle lives; the text belongs to it and is copied at once.
        let raw = unsafe { virt_sys::virDomainGetName(self.raw.0) };
        if raw.is_null() {
            return Err(Fault::last("tell the domain's name"));
        }
        // SAFETY: not null, ends with zero.
        Ok(unsafe { CStr::from_ptr(raw) }.to_string_lossy().into_owned())
    }

    /// Its UUID in 8-4-4-4-12 form.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn uuid(&self) -> Result<String> {
        let mut bytes = [0_u8; UUID_BYTES];
        // SAFETY: the room is as long as the library says a UUID's text is.
        number("tell the domain's UUID", unsafe { virt_sys::virDomainGetUUIDString(self.raw.0, bytes.as_mut_ptr().cast::<c_char>()) })?;
        Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned())
    }

    /// What it does.
    pub(crate) fn state(&self) -> Result<DomainState> {
        let (state, _) = self.state_and_reason()?;
        Ok(match state {
            virt_sys::VIR_DOMAIN_SHUTOFF => DomainState::Off,
            virt_sys::VIR_DOMAIN_RUNNING | virt_sys::VIR_DOMAIN_BLOCKED | virt_sys::VIR_DOMAIN_SHUTDOWN => DomainState::Running,
            _ => DomainState::Paused,
        })
    }

    /// Whether QEMU has stopped it since a write failed.
    pub(crate) fn is_stopped_by_error(&self) -> Result<bool> {
        Ok(self.state_and_reason()? == (virt_sys::VIR_DOMAIN_PAUSED, virt_sys::VIR_DOMAIN_PAUSED_IOERROR))
    }

    #[expect(unsafe_code, reason = "a call of the library")]
    fn state_and_reason(&self) -> Result<(u32, u32)> {
        const CALL: &str = "tell the domain's state";
        self.ask(CALL, Patience::Question, |raw| {
            let (mut state, mut reason): (c_int, c_int) = (0, 0);
            // SAFETY: the handle lives, the numbers outlive the call.
            number(CALL, unsafe { virt_sys::virDomainGetState(raw, &raw mut state, &raw mut reason, 0) })?;
            Ok((u32::try_from(state).unwrap_or(virt_sys::VIR_DOMAIN_NOSTATE), u32::try_from(reason).unwrap_or(0)))
        })
    }

    /// Lets a stopped domain go on.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn resume(&self) -> Result<()> {
        const CALL: &str = "let the domain go on";
        // SAFETY: the handle lives.
        self.ask(CALL, Patience::Work, |raw| number(CALL, unsafe { virt_sys::virDomainResume(raw) }).map(drop))
    }

    /// Whether it has a memory image from which its next start goes on.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn has_managed_save(&self) -> Result<bool> {
        const CALL: &str = "tell whether the domain has a managed save";
        // SAFETY: the handle lives.
        let answer = self.ask(CALL, Patience::Question, |raw| number(CALL, unsafe { virt_sys::virDomainHasManagedSaveImage(raw, 0) }))?;
        Ok(answer > 0)
    }

    /// Its definition.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn xml(&self, view: View) -> Result<String> {
        const CALL: &str = "tell the domain's definition";
        let flags = match view {
            View::Current => 0,
            View::Next => virt_sys::VIR_DOMAIN_XML_INACTIVE | virt_sys::VIR_DOMAIN_XML_SECURE,
        };
        // SAFETY: the handle lives.
        self.ask(CALL, Patience::Question, move |raw| owned_text(CALL, unsafe { virt_sys::virDomainGetXMLDesc(raw, flags) }))
    }

    /// Starts a backup, with a checkpoint at its moment or without, into images that are there, and stay.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn backup_begin(&self, backup: &str, checkpoint: Option<&str>) -> Result<()> {
        const CALL: &str = "begin the backup";
        let flags = virt_sys::VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL;
        let backup = c_text(CALL, backup)?;
        let checkpoint = checkpoint.map(|text| c_text(CALL, text)).transpose()?;
        self.ask(CALL, Patience::Work, move |raw| {
            let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |text| text.as_ptr());
            // SAFETY: the handle lives, the texts outlive the call, null stands for no checkpoint.
            number(CALL, unsafe { virt_sys::virDomainBackupBegin(raw, backup.as_ptr(), checkpoint, flags) }).map(drop)
        })
    }

    /// The running backup's description.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn backup_xml(&self) -> Result<String> {
        const CALL: &str = "describe the running backup";
        // SAFETY: the handle lives.
        self.ask(CALL, Patience::Question, |raw| owned_text(CALL, unsafe { virt_sys::virDomainBackupGetXMLDesc(raw, 0) }))
    }

    /// Ends the running job; it may go on for a moment after this.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn abort_job(&self) -> Result<()> {
        const CALL: &str = "end the backup";
        // SAFETY: the handle lives.
        self.ask(CALL, Patience::Work, |raw| number(CALL, unsafe { virt_sys::virDomainAbortJob(raw) }).map(drop))
    }

    /// Ends the block job of one disk, by its target; returns when it has ended.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn abort_block_job(&self, target: &str) -> Result<()> {
        const CALL: &str = "end the disk's job";
        let target = c_text(CALL, target)?;
        // SAFETY: the handle lives, the text outlives the call.
        self.ask(CALL, Patience::Work, move |raw| {
            number(CALL, unsafe { virt_sys::virDomainBlockJobAbort(raw, target.as_ptr(), 0) }).map(drop)
        })
    }

    /// All its checkpoints.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        const CALL: &str = "list the checkpoints";
        let calls = Arc::clone(&self.calls);
        self.ask(CALL, Patience::Question, move |raw| {
            let mut list: *mut virt_sys::virDomainCheckpointPtr = ptr::null_mut();
            // SAFETY: the handle lives; the library allocates the list and says how long it is.
            let count = number(CALL, unsafe { virt_sys::virDomainListAllCheckpoints(raw, &raw mut list, 0) })?;
            // SAFETY: that many handles stand there, each ours to free.
            let checkpoints = (0..count as usize).map(|at| Checkpoint::from_raw(unsafe { *list.add(at) }, Arc::clone(&calls))).collect();
            // SAFETY: the list itself is ours to free, the handles live on.
            unsafe { libc::free(list.cast()) };
            Ok(checkpoints)
        })
    }

    /// Limits how long libvirt waits for the guest agent's answers; none is libvirt's default, without end.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn limit_agent(&self, limit: Option<Duration>) -> Result<()> {
        let seconds = limit.map_or(virt_sys::VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, |limit| {
            i32::try_from(limit.as_millis().div_ceil(1000)).unwrap_or(i32::MAX).max(1)
        });
        const CALL: &str = "limit the guest agent's time";
        // SAFETY: the handle lives.
        self.ask(CALL, Patience::Question, move |raw| {
            number(CALL, unsafe { virt_sys::virDomainAgentSetResponseTimeout(raw, seconds, 0) }).map(drop)
        })
    }

    /// Freezes the guest's file systems; gives how many.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn freeze(&self) -> Result<u32> {
        const CALL: &str = "freeze the guest's file systems";
        // SAFETY: the handle lives; no list stands for all file systems.
        self.ask(CALL, Patience::Agent, |raw| number(CALL, unsafe { virt_sys::virDomainFSFreeze(raw, ptr::null_mut(), 0, 0) }))
    }

    /// Thaws them; gives how many.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn thaw(&self) -> Result<u32> {
        const CALL: &str = "thaw the guest's file systems";
        // SAFETY: as above.
        self.ask(CALL, Patience::Agent, |raw| number(CALL, unsafe { virt_sys::virDomainFSThaw(raw, ptr::null_mut(), 0, 0) }))
    }

    /// Sends a command to QEMU's monitor. See `monitor`: only for questions that libvirt has no call for.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn ask_monitor(&self, command: &str) -> Result<String> {
        const CALL: &str = "ask QEMU's monitor";
        const FLAGS: c_uint = 0;
        let command = c_text(CALL, command)?;
        self.ask(CALL, Patience::Question, move |raw| {
            let mut reply: *mut c_char = ptr::null_mut();
            // SAFETY: the handle lives, the text and the place for the answer outlive the call.
            number(CALL, unsafe { virt_sys::virDomainQemuMonitorCommand(raw, command.as_ptr(), &raw mut reply, FLAGS) })?;
            owned_text(CALL, reply)
        })
    }
}

impl Domain {
    /// As [`Domain::ask_monitor`] with an open file passed along. libvirt can since 8.2.
    #[expect(unsafe_code, reason = "a call of the library, which may be too old to have it")]
    pub(crate) fn ask_monitor_with(&self, command: &str, open: BorrowedFd<'_>) -> Result<String> {
        type Call = unsafe extern "C" fn(
            virt_sys::virDomainPtr,
            *const c_char,
            c_uint,
            *mut c_int,
            *mut c_uint,
            *mut *mut c_int,
            *mut *mut c_char,
            c_uint,
        ) -> c_int;
        const CALL: &str = "pass a file to QEMU's monitor";
        const FLAGS: c_uint = 0;
        let command = c_text(CALL, command)?;
        // SAFETY: the name is a text that ends with zero; the library is loaded, since it is linked.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"virDomainQemuMonitorCommandWithFiles".as_ptr()) };
        if found.is_null() {
            return Err(Fault { call: CALL, kind: Kind::NoSupport, message: "this libvirt cannot".into() });
        }
        // SAFETY: the library documents the call of this name with this signature.
        let call = unsafe { std::mem::transmute::<*mut libc::c_void, Call>(found) };
        let open = open.try_clone_to_owned().map_err(|error| Fault { call: CALL, kind: Kind::Other, message: error.to_string() })?;
        self.ask(CALL, Patience::Question, move |raw| {
            let mut files = [open.as_raw_fd()];
            let mut reply: *mut c_char = ptr::null_mut();
            // SAFETY: the handle lives; the text, the one file and the place for the answer outlive the call; no files are asked back.
            let answer =
                unsafe { call(raw, command.as_ptr(), 1, files.as_mut_ptr(), ptr::null_mut(), ptr::null_mut(), &raw mut reply, FLAGS) };
            number(CALL, answer)?;
            owned_text(CALL, reply)
        })
    }

    /// Whether the guest's file systems are frozen, as its agent says within this time.
    #[expect(unsafe_code, reason = "a call of the library")]
    pub(crate) fn is_frozen(&self, within: Duration) -> Result<bool> {
        const CALL: &str = "ask the guest agent";
        const FLAGS: c_uint = 0;
        let command = c_text(CALL, r#"{"execute": "guest-fsfreeze-status"}"#)?;
        let seconds = c_int::try_from(within.as_millis().div_ceil(1000)).unwrap_or(c_int::MAX).max(1);
        let told = self.ask(CALL, Patience::Agent, move |raw| {
            // SAFETY: the handle lives, the text outlives the call.
            owned_text(CALL, unsafe { virt_sys::virDomainQemuAgentCommand(raw, command.as_ptr(), seconds, FLAGS) })
        })?;
        Ok(told.contains("\"frozen\""))
    }
}

impl Drop for Raw {
    #[expect(unsafe_code, reason = "a call of the library")]
    fn drop(&mut self) {
        // SAFETY: ours, freed once.
        unsafe { virt_sys::virDomainFree(self.0) };
    }
}
