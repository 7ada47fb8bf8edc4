//! What can go wrong with a QEMU, and what each of it means to the caller of the program.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use keepmark_model::moment::Overtaken;
use keepmark_model::opening::Refusal;
use keepmark_model::{Failure, FailureClass};

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of or around one QEMU.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket cannot be connected to.
    #[error("cannot connect to QEMU's monitor {peer}")]
    Connect {
        /// The socket.
        peer: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing came within the time-out.
    #[error("QEMU's monitor {peer} did not answer {command} within {} s", waited.as_secs_f32())]
    Mute {
        /// The socket.
        peer: String,
        /// What was asked.
        command: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The connection broke.
    #[error("the connection to QEMU's monitor {peer} broke during {command}")]
    Gone {
        /// The socket.
        peer: String,
        /// What was asked.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What came is not QMP.
    #[error("what answers at {peer} does not speak QMP: {problem}")]
    Rubbish {
        /// The socket.
        peer: String,
        /// What is wrong with it.
        problem: String,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's own words.
        description: String,
    },
    /// A reply does not have the documented shape.
    #[error("QEMU's reply to {command} has an unknown shape")]
    Reply {
        /// The command.
        command: String,
        /// What was expected.
        #[source]
        source: serde_json::Error,
    },
    /// This QEMU cannot do what is needed.
    #[error("this QEMU ({version}) cannot {what}")]
    Unsupported {
        /// Its version.
        version: String,
        /// What is missing.
        what: String,
    },
    /// There is no such disk.
    #[error("there is no disk {name:?}; disks are: {known}")]
    UnknownDisk {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The bitmap of a checkpoint is not where a delta was asked for.
    #[error("disk {disk} has no bitmap of checkpoint {checkpoint}")]
    NoBitmap {
        /// Which disk.
        disk: String,
        /// Which checkpoint.
        checkpoint: String,
    },
    /// What the plan believed is no longer so at the moment itself.
    #[error("disk {disk} is not as it was when the backup was planned: {change}")]
    Changed {
        /// Which disk.
        disk: String,
        /// What has changed, in words.
        change: String,
    },
    /// A delta was asked of a disk that was opened without.
    #[error("disk {disk} was opened without a checkpoint to compare with")]
    NoDelta {
        /// Which disk.
        disk: String,
    },
    /// Another keepmark works on this VM.
    #[error("another keepmark{} works on {subject}", holder.map_or_else(String::new, |pid| format!(" (process {pid})")))]
    Busy {
        /// The VM's socket or image.
        subject: String,
        /// Whose lock it is, where it says so.
        holder: Option<u32>,
    },
    /// A job of somebody else's works on a disk.
    #[error("{kind} job {job:?} works on disk {disk}")]
    JobRuns {
        /// Which disk.
        disk: String,
        /// The job.
        job: String,
        /// What it does, in QEMU's word.
        kind: String,
    },
    /// Two devices use one image.
    #[error("disks {disk} and {other} are one image: a moment of it cannot be kept while both devices write to it")]
    SharedNode {
        /// Which disk.
        disk: String,
        /// The other one.
        other: String,
    },
    /// Somebody made a snapshot through a device while a filter of ours was there.
    #[error(
        "somebody made a snapshot through the device meanwhile; its overlay {overlays} named keepmark's filter as its backing format and has been repaired"
    )]
    Snapshotted {
        /// The overlays' images.
        overlays: String,
    },
    /// Another keepmark, perhaps another user's or another container's, works on this VM.
    #[error("another keepmark ({holder}) works on {subject}")]
    Claimed {
        /// The VM.
        subject: String,
        /// Whose claim it is, as it says itself.
        holder: String,
    },
    /// An image is open in another process.
    #[error("image {} is in use by {}", image.display(), crate::holders::describe(holders))]
    ImageInUse {
        /// The image.
        image: PathBuf,
        /// Who has it open, as far as this user may see.
        holders: Vec<crate::holders::Holder>,
    },
    /// QEMU's only NBD server serves somebody else.
    #[error("QEMU's NBD server is already in use{}", if exports.is_empty() { String::new() } else { format!(" by exports {exports}") })]
    ServerTaken {
        /// Names of foreign exports.
        exports: String,
    },
    /// An image cannot be used as it is.
    #[error("image {} cannot be used: {problem}", image.display())]
    Image {
        /// The image.
        image: PathBuf,
        /// Why, in words.
        problem: String,
    },
    /// An image may not be opened.
    #[error(transparent)]
    Refusal(#[from] Refusal),
    /// A name or option makes no sense.
    #[error("{what} {value:?} cannot be used: {problem}")]
    Usage {
        /// What it is.
        what: &'static str,
        /// As it came.
        value: String,
        /// Why.
        problem: String,
    },
    /// A helper program failed.
    #[error("{program} failed: {message}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        message: String,
    },
    /// A helper program was ended, since it took too long.
    #[error("{program} did not end within {} s, and was ended", waited.as_secs())]
    Slow {
        /// Which.
        program: String,
        /// How long was waited.
        waited: Duration,
    },
    /// A helper program cannot be started.
    #[error("cannot run {program}")]
    Spawn {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest agent did not do what it was asked.
    #[error("the guest agent at {} {problem}", socket.display())]
    Agent {
        /// Its socket.
        socket: PathBuf,
        /// What happened.
        problem: String,
    },
    /// A file or folder of ours cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A folder or file of keepmark's may be in somebody else's hands.
    #[error("keepmark does not work in {}: {why}", path.display())]
    ForeignFolder {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, in words.
        why: String,
    },
    /// Another keepmark makes or removes folders there, for long.
    #[error("folder {} is locked by {} for {} s already", path.display(), crate::holders::describe(holders), waited.as_secs())]
    FolderLocked {
        /// Which.
        path: PathBuf,
        /// Who has it open, as far as this user may see.
        holders: Vec<crate::holders::Holder>,
        /// How long was waited.
        waited: Duration,
    },
    /// A job of QEMU's failed.
    #[error("QEMU's job {job} failed: {message}")]
    Job {
        /// Which.
        job: String,
        /// QEMU's own words.
        message: String,
    },
    /// A guest may be standing still because of us.
    #[error("the VM was paused and could not be resumed")]
    NotResumed {
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// Clean-up left something behind.
    #[error("could not remove {subject} from QEMU")]
    LeftBehind {
        /// What.
        subject: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// The scratch is nearly full, and this QEMU would fail the guest's writes next.
    #[error(
        "the scratch folder {} has less than {} MiB left, so the frozen moment was given up before the guest's writes fail",
        folder.display(),
        crate::space::SPACE_BYTES_MIN >> 20
    )]
    ScratchFull {
        /// Which.
        folder: PathBuf,
    },
    /// What keepmark has in QEMU cannot be removed without stopping the guest.
    #[error("the folder {} does not answer, so what keepmark has in QEMU stays there: the guest would wait while it is removed", folder.display())]
    Stuck {
        /// Which.
        folder: PathBuf,
    },
    /// Reading the frozen disk failed.
    #[error("cannot read disk {disk}")]
    Read {
        /// Which.
        disk: String,
        /// Why.
        #[source]
        source: keepmark_nbd::Error,
    },
    /// Writing an image failed.
    #[error("cannot write image {}", image.display())]
    Write {
        /// Which.
        image: PathBuf,
        /// Why.
        #[source]
        source: keepmark_nbd::Error,
    },
    /// Writing a disk in place failed.
    #[error("cannot write disk {disk}")]
    DiskWrite {
        /// Which.
        disk: String,
        /// Why.
        #[source]
        source: keepmark_nbd::Error,
    },
    /// An earlier revert of this VM did not finish.
    #[error("{subject} is half reverted to backup {backup}")]
    HalfReverted {
        /// The image or disk.
        subject: String,
        /// The first characters of the backup's id.
        backup: String,
    },
    /// An image cannot be kept from being started while it is half written.
    #[error("cannot rename image {}, as is done while it is half reverted so that nobody can start it", image.display())]
    Guard {
        /// Which.
        image: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Disks cannot be written under a guest.
    #[error("the disks cannot be written in place: {why}")]
    NotAtRest {
        /// Why not, in words.
        why: String,
    },
    /// The guest goes on running.
    #[error("the guest did not power down within {} s and goes on running", waited.as_secs())]
    NotDown {
        /// How long was waited.
        waited: Duration,
    },
    /// The user did not want to wait any longer.
    #[error("interrupted while the guest was powering down; it may still do so")]
    Interrupted,
    /// qemu-storage-daemon did not end as it should.
    #[error("qemu-storage-daemon ended badly: {message}")]
    Daemon {
        /// Status and messages.
        message: String,
    },
}

impl Error {
    /// Whether the peer is dead, mute or no QMP: asking on is pointless.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Mute { .. } | Self::Gone { .. } | Self::Rubbish { .. })
    }

    fn class(&self) -> FailureClass {
        match self {
            Self::Connect { .. } | Self::Mute { .. } | Self::Gone { .. } | Self::Rubbish { .. } => FailureClass::Unreachable,
            Self::Busy { .. }
            | Self::Claimed { .. }
            | Self::JobRuns { .. }
            | Self::ImageInUse { .. }
            | Self::ServerTaken { .. }
            | Self::FolderLocked { .. } => FailureClass::Locked,
            Self::Interrupted => FailureClass::Interrupted,
            Self::Write { source: keepmark_nbd::Error::Interrupted { .. }, .. }
            | Self::DiskWrite { source: keepmark_nbd::Error::Interrupted { .. }, .. } => FailureClass::Interrupted,
            Self::UnknownDisk { .. } | Self::Usage { .. } | Self::Refusal(_) => FailureClass::Usage,
            Self::Refused { .. }
            | Self::Reply { .. }
            | Self::Unsupported { .. }
            | Self::NoBitmap { .. }
            | Self::Changed { .. }
            | Self::NoDelta { .. }
            | Self::Image { .. }
            | Self::Program { .. }
            | Self::Spawn { .. }
            | Self::Slow { .. }
            | Self::Agent { .. }
            | Self::File { .. }
            | Self::ForeignFolder { .. }
            | Self::Job { .. }
            | Self::NotResumed { .. }
            | Self::LeftBehind { .. }
            | Self::SharedNode { .. }
            | Self::Snapshotted { .. }
            | Self::ScratchFull { .. }
            | Self::Stuck { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::DiskWrite { .. }
            | Self::HalfReverted { .. }
            | Self::Guard { .. }
            | Self::NotAtRest { .. }
            | Self::NotDown { .. }
            | Self::Daemon { .. } => FailureClass::Failed,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most failures say all there is to say")]
    fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Connect { .. } => "is the VM running, and is it started with `-qmp unix:SOCKET,server=on,wait=off`?",
            Self::Mute { .. } => {
                "QEMU serves one client per monitor: another program (libvirt, a shell, another backup) may be connected to this \
                 socket; give keepmark a monitor of its own with a second `-qmp unix:SOCKET,server=on,wait=off`"
            }
            Self::Rubbish { .. } => "the socket must be a QMP monitor (`-qmp`), not a human monitor, console or guest agent",
            Self::Busy { .. } => "wait for it to end",
            Self::JobRuns { .. } => {
                "wait until the job has ended, or end it (`block-job-complete`, `block-job-cancel`), and run keepmark again"
            }
            Self::SharedNode { .. } => "leave both out with --exclude-disk, or give the image one device only",
            Self::Snapshotted { .. } => "run the backup again: it judges the disk with its new image",
            Self::Claimed { .. } => {
                "wait for it to end; if it hangs, end that process (it may be one of another user or container): its claim ends with it"
            }
            Self::FolderLocked { .. } => "end that process, or name other folders with `scratch_dir` and `run_dir` in the configuration",
            Self::ForeignFolder { .. } => {
                "remove it if nobody needs it, or name a folder that only this user may write into with `scratch_dir` or `run_dir` in \
                 the configuration"
            }
            Self::Changed { .. } => "somebody else worked on the VM's disks meanwhile; run the backup again: it judges them anew",
            Self::ImageInUse { .. } => "back the VM up while it runs with `qmp:SOCKET`, or stop the process first",
            Self::ServerTaken { .. } => "end the other backup or export, or `nbd-server-stop` if nobody needs it",
            Self::NotResumed { .. } => "resume it with `cont` in its monitor",
            Self::LeftBehind { .. } => "the next run of keepmark on this VM removes it",
            Self::ScratchFull { .. } => "give the scratch folder (`scratch_dir`) more space, and run the backup again",
            Self::Stuck { .. } => "see what its file system waits for; once it answers, the next run of keepmark removes what is left",
            Self::Read { .. } => {
                "when the scratch folder is full or too slow, the frozen moment is given up in the guest's favour: \
                 give it more space or a faster place, and run the backup again"
            }
            Self::HalfReverted { .. } => {
                "'keepmark revert VM BACKUP' finishes it, to that backup or to any other ('keepmark list' has them, the one that was \
                 made just before the revert too)"
            }
            Self::Guard { .. } => {
                "keepmark needs to write in the image's folder; or get the disks back as new files with 'keepmark restore'"
            }
            Self::NotDown { .. } => {
                "shut it down yourself and revert then, or give it longer with --shutdown-timeout; it must obey its power button"
            }
            Self::Spawn { program, .. } if program == crate::watchdog::NAME => {
                "nothing is frozen or paused without it; run the backup again"
            }
            Self::Spawn { program, .. } if program.starts_with("qemu-") => "install qemu-utils",
            _ => return None,
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Error::Refusal(refusal) = error {
            return refusal.into();
        }
        let (class, hint) = (error.class(), error.hint());
        let failure = if matches!(error, Error::Snapshotted { .. }) {
            Self::new(class, Overtaken { what: error.to_string() })
        } else {
            Self::new(class, error)
        };
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

/// Gives an I/O error its subject.
pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}

/// A path for QMP, which speaks UTF-8 only.
pub(crate) fn text(path: &std::path::Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::Usage { what: "path", value: path.display().to_string(), problem: "it is not UTF-8".into() })
}
