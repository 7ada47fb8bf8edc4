//! What the rewriting of a definition needs to know: of this host, of what was restored, and what is wanted. Values only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::allow::Allow;

/// This host, as far as a definition can refer to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Names of its domains.
    pub(crate) names: BTreeSet<String>,
    /// UUIDs of its domains, in lower case.
    pub(crate) uuids: BTreeSet<String>,
    /// Names of libvirt's networks.
    pub(crate) networks: BTreeSet<String>,
    /// Names of its network interfaces, bridges among them.
    pub(crate) links: BTreeSet<String>,
    /// Those of the definition's paths that are there.
    pub(crate) present: BTreeSet<String>,
    /// Those of the definition's volumes that are there: pool and volume.
    pub(crate) volumes: BTreeSet<(String, String)>,
    /// Those of the definition's secrets that are there: UUID or usage.
    pub(crate) secrets: BTreeSet<String>,
    /// The emulators that its libvirt lists.
    pub(crate) emulators: BTreeSet<String>,
    /// Where libvirt keeps the state of emulated TPMs.
    pub(crate) swtpm: PathBuf,
}

/// What is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The domain's name here.
    pub(crate) name: String,
    /// Where its files go, absolute.
    pub(crate) folder: PathBuf,
    /// Its restored disks.
    pub(crate) disks: Vec<RestoredDisk>,
    /// Why others were left out of the backup, by target.
    pub(crate) left_out: BTreeMap<String, String>,
    /// Files that the backup has beside the disks.
    pub(crate) saved: BTreeSet<String>,
    /// Which network or bridge stands for which: old name, new name.
    pub(crate) networks: BTreeMap<String, String>,
    /// What may reach to the host.
    pub(crate) allowed: BTreeSet<Allow>,
    /// Disks that it goes without, by target.
    pub(crate) without: BTreeSet<String>,
    /// Other backups of the VM, newest first.
    pub(crate) backups: Vec<OtherBackup>,
}

/// Another backup of the VM, to be named where this one lacks a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherBackup {
    /// As it is named on the command line.
    pub name: String,
    /// Its disks.
    pub disks: BTreeSet<String>,
}

/// A disk as it is restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredDisk {
    /// Its target.
    pub name: String,
    /// Its new image, absolute.
    pub path: PathBuf,
    /// `raw` or `qcow2`.
    pub format: &'static str,
}

/// Something that the user should know of a rewritten definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Whether somebody has to look at it; the others only say what was done.
    pub is_finding: bool,
    /// In words.
    pub text: String,
}

/// Remarks, as they come.
#[derive(Debug, Default)]
pub(crate) struct Remarks(pub(crate) Vec<Remark>);

impl Remarks {
    /// What was done.
    pub(crate) fn note(&mut self, text: String) {
        self.0.push(Remark { is_finding: false, text });
    }

    /// What somebody has to look at.
    pub(crate) fn finding(&mut self, text: String) {
        self.0.push(Remark { is_finding: true, text });
    }
}

/// A file of the backup and where it has to be on this host before the domain starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Its name in the backup.
    pub(crate) saved: String,
    /// Where it goes.
    pub(crate) path: PathBuf,
}

/// A rewritten definition and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewritten {
    pub(crate) uuid: String,
    pub(crate) xml: String,
    pub(crate) files: Vec<Placed>,
    pub(crate) remarks: Vec<Remark>,
}
