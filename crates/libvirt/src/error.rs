//! What can go wrong with a domain, and what each of it means to the caller of the program.

use std::path::PathBuf;
use std::time::Duration;

use keepmark_model::pushing::CannotPush;
use keepmark_model::{Failure, FailureClass};

use crate::api::{Fault, Kind};
use crate::define::Problem;

/// What this crate's functions return.
pub type Result<T> = std::result::Result<T, Error>;

// An error's source that is of another module's private type.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// A failure of or around one domain.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No libvirt answers.
    #[error("cannot connect to libvirt{}", uri.as_ref().map_or_else(String::new, |uri| format!(" at {uri}")))]
    Unreachable {
        /// The URI, where one was given.
        uri: Option<String>,
        /// Whether somebody answers who does not let this user in.
        is_denied: bool,
        /// libvirt's own words.
        #[source]
        source: Source,
    },
    /// It is another host's, or another hypervisor's.
    #[error("libvirt at {uri} is not that of a QEMU on this host")]
    Elsewhere {
        /// The URI.
        uri: String,
    },
    /// There is no such domain.
    #[error("libvirt has no domain {name:?}{}", if known.is_empty() { String::new() } else { format!("; it has: {}", known.join(", ")) })]
    NoDomain {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A call failed.
    #[error("{message}")]
    Refused {
        /// The call and libvirt's own words.
        message: String,
        /// Whether the domain's lock was not free within libvirt's patience.
        is_lock: bool,
    },
    /// Nobody answered: QEMU stands still, or libvirtd.
    #[error("{message}")]
    Unanswered {
        /// The call, and how long was waited.
        message: String,
        /// Whether it was given up since the user wanted to stop.
        is_interrupted: bool,
    },
    /// A dead job holds the domain's lock.
    #[error("domain {domain} is wedged: libvirt was killed while it began a backup, and the dead job holds the domain")]
    Wedged {
        /// Which.
        domain: String,
    },
    /// Nor could the moment be fixed without libvirt's job.
    #[error("libvirt holds domain {domain} for a dead job, and its QEMU did not take the backup either")]
    NoDetour {
        /// Which.
        domain: String,
        /// Why not.
        #[source]
        source: Box<keepmark_qemu::Error>,
    },
    /// A disk that only a running QEMU reads rightly.
    #[error("disk {disk} of domain {domain} cannot be read while the domain is shut off: {why}")]
    Unreadable {
        /// Which.
        domain: String,
        /// Which of its disks.
        disk: String,
        /// Why not, in words.
        why: String,
    },
    /// Somebody else's job runs.
    #[error("domain {domain} has a running {what}")]
    Busy {
        /// Which.
        domain: String,
        /// What runs.
        what: &'static str,
    },
    /// XML that cannot be read.
    #[error("cannot read libvirt's XML of {subject}")]
    Xml {
        /// Of what.
        subject: String,
        /// What is wrong with it.
        #[source]
        source: Source,
    },
    /// XML without what is always there.
    #[error("libvirt's XML of {subject} lacks <{what}>")]
    Lacks {
        /// Of what.
        subject: &'static str,
        /// Which element.
        what: &'static str,
    },
    /// QEMU's answer has not the documented shape.
    #[error("QEMU's reply to {command} has an unknown shape")]
    Reply {
        /// What was asked.
        command: String,
        /// What was expected.
        #[source]
        source: serde_json::Error,
    },
    /// QEMU refused a question.
    #[error("QEMU refused {command}: {description}")]
    Question {
        /// What was asked.
        command: String,
        /// QEMU's own words.
        description: String,
    },
    /// This QEMU would come to harm.
    #[error("this QEMU ({version}) cannot export disk {disk} from its iothread: it would crash when the backup disconnects")]
    Iothread {
        /// Its version.
        version: String,
        /// Which disk.
        disk: String,
    },
    /// A delta that was believed is no longer to be believed.
    #[error("disk {disk} changed since the backup was planned: {doubt}")]
    Changed {
        /// Which.
        disk: String,
        /// What is wrong now, in words.
        doubt: String,
    },
    /// A checkpoint's name is in use.
    #[error("domain {domain} has a checkpoint {checkpoint} already")]
    Taken {
        /// Which domain.
        domain: String,
        /// Which checkpoint.
        checkpoint: String,
    },
    /// The frozen moment is over before all was read: what was read last may be of later.
    #[error("libvirt's backup of domain {domain} ended while it was read")]
    MomentOver {
        /// Which.
        domain: String,
    },
    /// The guest would have come to harm by a push.
    #[error("the file system of {} is nearly full: libvirt's backup into it was ended before the guest's writes failed", folder.display())]
    TargetFull {
        /// Where it wrote.
        folder: PathBuf,
    },
    /// A push did not end well, or nobody knows how.
    #[error("libvirt's push backup of domain {domain} failed: {problem}")]
    NotPushed {
        /// Which.
        domain: String,
        /// Why, in QEMU's words.
        problem: String,
    },
    /// What is pushed cannot be read.
    #[error("the moment of domain {domain} consists of the images that its QEMU writes")]
    OnlyPushed {
        /// Which.
        domain: String,
    },
    /// Push mode cannot be had.
    #[error(transparent)]
    CannotPush(#[from] CannotPush),
    /// An image cannot be made.
    #[error("{0}")]
    Image(Failure),
    /// There is no such disk.
    #[error("domain {domain} has no disk {disk}")]
    NoDisk {
        /// Which domain.
        domain: String,
        /// Which disk.
        disk: String,
    },
    /// The domain's name or UUID cannot be used.
    #[error("the identity of domain {domain} cannot be used")]
    Identity {
        /// Which.
        domain: String,
        /// Why.
        #[source]
        source: keepmark_model::names::NameError,
    },
    /// A file or folder cannot be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The backup job did not end.
    #[error("libvirt's backup of domain {domain} did not end within {seconds} s")]
    NotEnded {
        /// Which.
        domain: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A domain that would be gone when it is off.
    #[error("domain {domain} is transient: it would be gone when it is shut down")]
    Transient {
        /// Which.
        domain: String,
    },
    /// The guest goes on running.
    #[error("the guest of domain {domain} did not power down within {} s and goes on running", waited.as_secs())]
    NotDown {
        /// Which.
        domain: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The user did not want to wait any longer.
    #[error("interrupted while the guest was powering down; it may still do so")]
    Interrupted,
    /// What the domain has at its next start is not what it has.
    #[error("disk {disk} of domain {domain} {what}")]
    OtherImages {
        /// Which.
        domain: String,
        /// Which of its disks.
        disk: String,
        /// What becomes of it, in words.
        what: String,
    },
    /// A running guest's disks cannot be written.
    #[error("domain {domain} runs: its disks cannot be written in place")]
    Runs {
        /// Which.
        domain: String,
    },
    /// A domain cannot be defined from a backup.
    #[error(transparent)]
    Define(#[from] Problem),
    /// Reading, folders and locks: what all drivers share.
    #[error(transparent)]
    Qemu(#[from] keepmark_qemu::Error),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        if matches!(fault.kind, Kind::Lost | Kind::Denied) {
            return unreachable(None, fault);
        }
        if matches!(fault.kind, Kind::Unanswered | Kind::Interrupted) {
            return Self::Unanswered { is_interrupted: fault.kind == Kind::Interrupted, message: fault.to_string() };
        }
        Self::Refused { is_lock: fault.kind == Kind::Timeout, message: fault.to_string() }
    }
}

/// A connection that broke or was never made.
pub(crate) fn unreachable(uri: Option<&str>, fault: Fault) -> Error {
    let is_denied = fault.kind == Kind::Denied;
    Error::Unreachable { uri: uri.map(str::to_owned), is_denied, source: Box::new(fault) }
}

/// Gives an I/O error its subject.
pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::File { action, path, source }
}

impl Error {
    fn class(&self) -> FailureClass {
        match self {
            Self::Define(problem) => problem.class(),
            Self::Image(failure) => failure.class(),
            Self::CannotPush(_) => FailureClass::Usage,
            Self::Interrupted | Self::Unanswered { is_interrupted: true, .. } => FailureClass::Interrupted,
            Self::Unreachable { .. } | Self::NoDomain { .. } | Self::Unanswered { .. } => FailureClass::Unreachable,
            Self::Busy { .. } | Self::Refused { is_lock: true, .. } => FailureClass::Locked,
            Self::NoDisk { .. } | Self::Identity { .. } | Self::Elsewhere { .. } | Self::Transient { .. } => FailureClass::Usage,
            Self::Refused { .. }
            | Self::Wedged { .. }
            | Self::Unreadable { .. }
            | Self::NoDetour { .. }
            | Self::Xml { .. }
            | Self::Lacks { .. }
            | Self::Reply { .. }
            | Self::Question { .. }
            | Self::Iothread { .. }
            | Self::Changed { .. }
            | Self::Taken { .. }
            | Self::MomentOver { .. }
            | Self::File { .. }
            | Self::TargetFull { .. }
            | Self::NotPushed { .. }
            | Self::OnlyPushed { .. }
            | Self::NotEnded { .. }
            | Self::NotDown { .. }
            | Self::OtherImages { .. }
            | Self::Runs { .. }
            | Self::Qemu(_) => FailureClass::Failed,
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "most failures say all there is to say")]
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Define(problem) => return problem.hint(),
            Self::Unreachable { is_denied: true, .. } => "run as root, or as a member of the group libvirt".into(),
            Self::Unreachable { .. } => {
                "is libvirtd (or virtqemud) running? `--connect URI` or LIBVIRT_DEFAULT_URI names another one (qemu:///system, \
                 qemu:///session); a QEMU without libvirt is named `qmp:SOCKET`"
                    .into()
            }
            Self::Unanswered { .. } => {
                "the domain's QEMU stands still (stopped, or its storage does not answer), or libvirtd does: `ps -o pid,stat,args -C \
                 qemu-system-x86_64`; the next run of keepmark takes back what was begun"
                    .into()
            }
            Self::Elsewhere { .. } => "run keepmark on the host of the VM, with qemu:///system or qemu:///session".into(),
            Self::NoDomain { .. } => "`virsh list --all` tells the names; qemu:///system and qemu:///session have their own".into(),
            Self::Wedged { domain } => format!("`keepmark backup {domain}` goes around it. What ends that job: {}", cure(domain)),
            Self::NoDetour { domain, .. } => format!("what ends that job: {}", cure(domain)),
            Self::Unreadable { .. } => "start the domain: a running QEMU has read it as its definition says".into(),
            Self::Busy { domain, .. } => format!("wait for it to end, or end it with `virsh domjobabort {domain}`"),
            Self::Refused { is_lock: true, .. } => {
                "another job holds the domain (`virsh domjobinfo` tells which), or its QEMU stands still".into()
            }
            Self::Iothread { .. } => "use QEMU 9.0 or newer, or the disk without iothread".into(),
            Self::Changed { .. } => "run the backup again".into(),
            Self::MomentOver { .. } => "somebody ended it, or the domain was stopped; run the backup again".into(),
            Self::Transient { domain } => {
                format!("make it lasting first: `virsh dumpxml {domain} >{domain}.xml; virsh define {domain}.xml`")
            }
            Self::NotDown { domain, .. } => format!(
                "shut it down yourself (in the guest, or `virsh shutdown {domain}`) and revert then, or give it longer with \
                 --shutdown-timeout; it must have a guest agent or obey its power button"
            ),
            Self::OtherImages { domain, disk, .. } => format!(
                "make its definition (`virsh edit {domain}`) say what it runs with, or leave {disk} out: --disk NAME names the disks that go back"
            ),
            Self::TargetFull { .. } => {
                "make room in the store, or pull (--mode pull), which lets the guest go on when the store is full".into()
            }
            Self::NotPushed { .. } => "run the backup again, or pull it (--mode pull)".into(),
            Self::NotEnded { .. } => "the next run of keepmark on this domain ends it".into(),
            _ => return None,
        })
    }
}

/// What ends a dead job that holds a domain.
pub(crate) fn cure(domain: &str) -> String {
    format!(
        "shut the VM down (in the guest, or `virsh destroy {domain}`), then restart libvirtd or virtqemud, then start the VM again; where \
         the VM must go on: stop libvirtd, delete the line `<job ... async='backup' .../>` from /run/libvirt/qemu/{domain}.xml, start libvirtd"
    )
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Error::Qemu(inner) = error {
            return inner.into();
        }
        if let Error::Image(failure) = error {
            return failure;
        }
        if let Error::CannotPush(reason) = error {
            return Self::new(FailureClass::Usage, reason);
        }
        let (class, hint) = (error.class(), error.hint());
        let failure = Self::new(class, error);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_still_is_as_good_as_gone_and_who_was_stopped_is_interrupted() {
        let class = |is_interrupted| {
            let fault = Fault::unanswered("ask QEMU's monitor", Duration::from_secs(40), is_interrupted);
            assert_eq!(fault.to_string(), "libvirt was asked to ask QEMU's monitor: no answer for 40 s");
            let failure = Failure::from(Error::from(fault));
            assert!(failure.hint().is_some_and(|hint| hint.contains("stands still")));
            failure.class()
        };
        assert_eq!((class(false), class(true)), (FailureClass::Unreachable, FailureClass::Interrupted));
    }
}
