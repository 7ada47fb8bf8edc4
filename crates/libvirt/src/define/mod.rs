//! A domain brought back from a backup: its definition rewritten for this host, its files placed, then defined and started.
//!
//! Reading order: [`Destination::plan`] refuses what cannot work before anything is written, [`Plan::define`] does the rest once the
//! disks are there. `rewrite` is the pure part: definition and facts in, definition and remarks out.

mod allow;
mod audio;
mod boot;
mod devices;
mod disks;
mod facts;
mod identity;
mod interfaces;
mod look;
mod place;
mod ports;
mod problem;
mod reach;
mod rewrite;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_reach;
mod tpm;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use keepmark_model::seam::{self, BackupReader};

pub use allow::{Allow, Reach};
pub use facts::{OtherBackup, Remark, RestoredDisk};
pub use problem::Problem;

use crate::api::{Connect, Domain};
use crate::error::{self, Error, Result};
use crate::folders::{Folders, UserFolders};
use crate::link::is_local_qemu;
use crate::saved::DOMAIN;
use facts::{Rewritten, Wish};
use keepmark_qemu::folder::take_back;

/// What is to become of a backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// The domain's name here.
    pub name: String,
    /// libvirt's URI; its own default without.
    pub uri: Option<String>,
    /// Where its files go; a folder of its name beside libvirt's other images without.
    pub to: Option<PathBuf>,
    /// Networks and bridges that stand for others: old name, new name.
    pub networks: BTreeMap<String, String>,
    /// What of the definition may reach to the host beyond its restored disks.
    pub allowed: BTreeSet<Allow>,
    /// Disks that it goes without, by target.
    pub without: BTreeSet<String>,
    /// Other backups of the VM, newest first.
    pub backups: Vec<OtherBackup>,
    /// The user's folders, for `qemu:///session`.
    pub user: UserFolders,
    /// Whether files that are there may be overwritten.
    pub force: bool,
}

/// A libvirt in which a domain is to be defined.
#[derive(Debug)]
pub struct Destination {
    connect: Connect,
    uri: String,
    order: Order,
    folders: Folders,
    folder: PathBuf,
}

/// A domain that can be defined when its disks are restored.
#[derive(Debug)]
pub struct Plan {
    uri: String,
    name: String,
    folder: PathBuf,
    disks: Vec<PathBuf>,
    rewritten: Rewritten,
}

/// A domain that is defined.
#[derive(Debug)]
pub struct Defined {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    domain: Domain,
}

impl Destination {
    /// Connects to libvirt.
    ///
    /// # Errors
    /// When it does not answer, is another host's, or the name cannot be one.
    pub fn open(order: Order) -> Result<Self> {
        if !can_be_name(&order.name) {
            return Err(Problem::Name { name: order.name }.into());
        }
        let connect = Connect::open(order.uri.as_deref()).map_err(|fault| error::unreachable(order.uri.as_deref(), fault))?;
        let uri = connect.uri()?;
        if !is_local_qemu(&uri) {
            return Err(Error::Elsewhere { uri });
        }
        let folders = Folders::of(&uri, &order.user);
        let folder = order.to.clone().unwrap_or_else(|| folders.images.join(&order.name));
        let folder = std::path::absolute(&folder).map_err(error::file("find", &folder))?;
        Ok(Self { connect, uri, order, folders, folder })
    }

    /// Where the domain's files go, absolute.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Rewrites the definition in a backup whose disks are going to be at the given places. Writes nothing.
    ///
    /// # Errors
    /// When the backup has no definition, the name is taken, a network is missing, a file is in the way, or the definition reaches to the
    /// host beyond what is allowed.
    pub fn plan(self, backup: &dyn BackupReader, disks: Vec<RestoredDisk>, random: &mut dyn FnMut() -> u32) -> seam::Result<Plan> {
        let saved = backup.files();
        let manifest = backup.manifest();
        if !saved.iter().any(|name| name == DOMAIN) {
            return Err(Error::from(Problem::NoDefinition { vm: manifest.vm.name.clone() }).into());
        }
        let definition = text(backup.file(DOMAIN)?)?;
        let facts = look::facts(&self.connect, &definition, &self.folders.swtpm)?;
        let wish = Wish {
            name: self.order.name.clone(),
            folder: self.folder.clone(),
            left_out: manifest.skipped.iter().map(|skipped| (skipped.name.clone(), skipped.why.clone())).collect(),
            saved: saved.into_iter().collect(),
            networks: self.order.networks.clone(),
            allowed: self.order.allowed.clone(),
            without: self.order.without.clone(),
            backups: self.order.backups.clone(),
            disks: disks.clone(),
        };
        let rewritten = rewrite::rewrite(&definition, &facts, &wish, random)?;
        let disks = disks.into_iter().map(|disk| disk.path).collect();
        let plan = Plan { uri: self.uri, name: self.order.name, folder: self.folder, disks, rewritten };
        if !self.order.force {
            plan.refuse_existing()?;
        }
        Ok(plan)
    }
}

impl Plan {
    /// What the user should know of the definition.
    #[must_use]
    pub fn remarks(&self) -> &[Remark] {
        &self.rewritten.remarks
    }

    /// Makes the folder of the domain's files, as the disks' own restore would not: others get through it, but do not see what is in it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_folder(&self) -> Result<()> {
        place::folder(&self.folder)
    }

    fn refuse_existing(&self) -> Result<()> {
        let files = self.rewritten.files.iter().map(|file| &file.path);
        let definition = self.definition();
        let in_the_way = std::iter::once(&definition).chain(files).chain(&self.disks).find(|path| path.symlink_metadata().is_ok());
        in_the_way.map_or(Ok(()), |path| Err(Problem::Exists { path: path.clone() }.into()))
    }

    fn definition(&self) -> PathBuf {
        self.folder.join(DOMAIN)
    }

    /// Places the domain's other files and defines it. All disks must be complete.
    ///
    /// # Errors
    /// When a file cannot be read or written, or libvirt refuses; what was restored stays.
    pub fn define(self, backup: &dyn BackupReader) -> seam::Result<Defined> {
        self.disks.iter().try_for_each(|disk| take_back(disk)).map_err(Error::from)?;
        for file in &self.rewritten.files {
            place::write(&file.path, &backup.file(&file.saved)?)?;
        }
        place::write(&self.definition(), self.rewritten.xml.as_bytes())?;
        let domain = self.make().map_err(|source| Problem::NotDefined { folder: self.folder.clone(), source }).map_err(Error::from)?;
        Ok(Defined { name: self.name, uuid: self.rewritten.uuid, domain })
    }

    // Hours may have gone by: libvirtd may have been restarted, and somebody may have defined the domain, which libvirt would replace.
    fn make(&self) -> std::result::Result<Domain, Box<dyn std::error::Error + Send + Sync>> {
        let connect = Connect::open(Some(&self.uri))?;
        if connect.by_name(&self.name).is_ok() || connect.by_uuid(&self.rewritten.uuid).is_ok() {
            return Err(Problem::NameTaken { name: self.name.clone() }.into());
        }
        Ok(connect.define(&self.rewritten.xml)?)
    }
}

impl Defined {
    /// Starts it.
    ///
    /// # Errors
    /// When libvirt cannot.
    pub fn start(&self) -> Result<()> {
        let failed = |fault| Problem::NotStarted { name: self.name.clone(), source: Box::new(fault) }.into();
        self.domain.create().map_err(failed)
    }
}

// It is also the name of a folder.
fn can_be_name(name: &str) -> bool {
    !name.is_empty() && !matches!(name, "." | "..") && !name.contains('/') && !name.chars().any(char::is_control)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|source| Error::Xml { subject: "the domain in the backup".into(), source: Box::new(source) })
}
