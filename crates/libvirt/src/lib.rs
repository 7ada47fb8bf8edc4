//! VMs that libvirt owns: domains, their disks, checkpoints and backups by libvirt's own calls; shut-off ones through qemu-storage-daemon.
//!
//! Reading order: [`open`] finds the domain and chooses the driver; `running` is one with a QEMU, `shut_off` one without; `point` is
//! a pull backup, `pushed` a push, `detour` one where libvirt cannot begin any more; `checkpoints` heals what libvirt and QEMU disagree about; `saved` is what a backup has beside
//! the disks, [`define`] brings a domain back from it; `xml` reads and writes; `api` is the C library made safe.

mod api;
mod checkpoints;
pub mod define;
mod detour;
mod disks;
mod error;
mod folders;
mod freeze;
mod halting;
mod handed;
mod hindrances;
mod link;
mod look;
mod monitor;
mod next_start;
mod point;
mod pushed;
mod running;
mod said;
mod saved;
mod shut_off;
mod tpm;
pub mod watchdog;
mod watched;
pub mod xml;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use keepmark_model::seam::Hypervisor;
use keepmark_qemu::WatchdogCommand;

use api::{Connect, DomainState};
pub use error::{Error, Result};
pub use folders::UserFolders;
pub use hindrances::{Hindrance, hindrances};
use link::Link;

/// How to reach a domain.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name or UUID.
    pub domain: String,
    /// libvirt's URI; its own default without.
    pub uri: Option<String>,
    /// Where scratch images go; QEMU's user must get through to it. Made when missing.
    pub scratch_dir: PathBuf,
    /// Where locks and, if QEMU may, sockets go. Made when missing.
    pub run_dir: PathBuf,
    /// What thaws the guest when this process dies; without, a later run has to.
    pub watchdog: Option<WatchdogCommand>,
    /// Name that the VM's backups get instead of the domain's.
    pub name: Option<String>,
    /// UUID that the VM's backups get instead of the domain's.
    pub uuid: Option<String>,
    /// Whether libvirt is to know our checkpoints only while we work: some programs work on no domain that has one of somebody
    /// else's. The bitmaps stay, and libvirt is told of them again when they are needed.
    pub hide_checkpoints: bool,
    /// The user's folders, where a `qemu:///session` keeps the state of TPMs.
    pub user: UserFolders,
    /// Becomes true when the user wants to stop: calls that have no answer yet are given up then.
    pub interrupted: Option<Arc<AtomicBool>>,
    /// Whether a domain is opened whose images an earlier revert left half written: for the one who finishes it.
    pub half_reverted: bool,
}

impl Options {
    /// The defaults for a domain, with folders to use.
    #[must_use]
    pub fn new(domain: impl Into<String>, scratch_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            domain: domain.into(),
            uri: None,
            scratch_dir: scratch_dir.into(),
            run_dir: run_dir.into(),
            watchdog: None,
            name: None,
            uuid: None,
            hide_checkpoints: false,
            user: UserFolders::default(),
            interrupted: None,
            half_reverted: false,
        }
    }
}

/// Opens a domain, running or shut off, and locks its images against other keepmarks until dropped.
///
/// # Errors
/// When libvirt cannot be reached, has no such domain, or the domain is held by another keepmark.
pub fn open(options: Options) -> Result<Box<dyn Hypervisor>> {
    let mut link = Link::open(options.uri.as_deref(), &options.domain)?.heeding(options.interrupted.clone());
    match link.call(api::Domain::state)? {
        DomainState::Off => Ok(Box::new(shut_off::ShutOff::open(link, options)?)),
        DomainState::Running | DomainState::Paused => Ok(Box::new(running::Running::open(link, options)?)),
    }
}

/// One domain of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether it has a QEMU.
    pub is_active: bool,
}

/// All domains of a libvirt, by name.
///
/// # Errors
/// When libvirt cannot be reached.
pub fn list(uri: Option<&str>) -> Result<Vec<Listed>> {
    let connect = Connect::open(uri).map_err(|fault| error::unreachable(uri, fault))?;
    let listed =
        |domain: api::Domain| Ok(Listed { name: domain.name()?, uuid: domain.uuid()?, is_active: domain.state()? != DomainState::Off });
    let mut domains: Vec<Listed> = connect.domains()?.into_iter().map(listed).collect::<std::result::Result<_, api::Fault>>()?;
    domains.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(domains)
}
