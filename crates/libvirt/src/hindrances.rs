//! What keeps a running domain's QEMU from the folders that a backup uses, or libvirt from beginning one: found before the first backup.
//!
//! libvirt lets a confined QEMU (AppArmor, SELinux) use the scratch images that a backup names, and keepmark's socket lies in the folder
//! that libvirt gave it; but nobody opens the folders above, which QEMU's user has to get through.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Options;
use crate::api::{Domain, DomainState, View};
use crate::error::{self, Error, Result};
use crate::link::Link;
use crate::running::is_wedged;
use crate::xml::DomainXml;

/// Something in the way of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hindrance {
    /// What has it.
    pub subject: &'static str,
    /// What is wrong.
    pub text: String,
    /// What would help.
    pub help: String,
}

/// What is in the way of a domain's backups; nothing is told of one that does not run, since its images are read without its QEMU.
///
/// # Errors
/// When libvirt cannot be reached, or has no such domain.
pub fn hindrances(options: &Options) -> Result<Vec<Hindrance>> {
    let mut link = Link::open(options.uri.as_deref(), &options.domain)?.heeding(options.interrupted.clone());
    let xml = DomainXml::parse(&link.call(|domain: &Domain| domain.xml(View::Current))?)?;
    let mut found: Vec<Hindrance> = dead_job(&mut link)?.into_iter().collect();
    let Some(user) = xml.owner else { return Ok(found) };
    let folders = [Some(&options.scratch_dir), Some(&options.run_dir).filter(|_| !xml.confined)];
    found.extend(folders.into_iter().flatten().filter_map(|folder| Some(hindrance(folder, &closed(folder, user)?, user))));
    Ok(found)
}

// Backups go around it, but snapshots, saves and migrations cannot.
fn dead_job(link: &mut Link) -> Result<Option<Hindrance>> {
    if link.call(Domain::state)? == DomainState::Off || !is_wedged(link)? {
        return Ok(None);
    }
    let (domain, text) = (link.name().to_owned(), Error::Wedged { domain: link.name().to_owned() }.to_string());
    Ok(Some(Hindrance { subject: "libvirt", text, help: error::cure(&domain) }))
}

fn hindrance(folder: &Path, closed: &Path, (user, _): (u32, u32)) -> Hindrance {
    Hindrance {
        subject: "QEMU's user",
        text: format!("QEMU runs as user {user}, who cannot get through {} to {}", closed.display(), folder.display()),
        help: format!("chmod o+x {}, or choose another folder in the configuration", closed.display()),
    }
}

/// QEMU's user and group. Without a word of libvirt's they are this process's (qemu:///session).
pub(crate) fn user_of(xml: &DomainXml) -> (u32, u32) {
    xml.owner.unwrap_or_else(own)
}

/// The user and group of this process.
pub(crate) fn own() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// The highest folder on the way to `folder`, itself among them, that this user and group may not pass. What does not exist yet is made
/// so that they may.
pub(crate) fn closed(folder: &Path, user: (u32, u32)) -> Option<PathBuf> {
    let mut way: Vec<&Path> = folder.ancestors().collect();
    way.reverse();
    let is_closed = |folder: &&Path| std::fs::metadata(folder).is_ok_and(|found| !may_pass(&found, user));
    way.into_iter().find(is_closed).map(Path::to_owned)
}

fn may_pass(folder: &Metadata, (user, group): (u32, u32)) -> bool {
    let bit = match (folder.uid() == user, folder.gid() == group) {
        (true, _) => 0o100,
        (false, true) => 0o010,
        (false, false) => 0o001,
    };
    user == 0 || folder.mode() & bit != 0
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_folder_that_cannot_be_passed_is_named() {
        let top = tempfile::tempdir().unwrap();
        let inner = top.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let mode = |folder: &Path, mode| std::fs::set_permissions(folder, Permissions::from_mode(mode)).unwrap();
        let own = std::fs::metadata(top.path()).unwrap();
        let (stranger, fellow) = ((own.uid() + 1, own.gid() + 1), (own.uid() + 1, own.gid()));
        mode(top.path(), 0o711);
        mode(&top.path().join("a"), 0o710);
        assert_eq!(closed(&inner.join("not yet"), stranger), Some(top.path().join("a")));
        assert_eq!(closed(&inner, fellow), None);
        assert_eq!(closed(&inner, (0, 0)), None);
        mode(&top.path().join("a"), 0o711);
        assert_eq!(closed(&inner, stranger), None);
        mode(&inner, 0o700);
        assert_eq!(closed(&inner, stranger), Some(inner));
    }
}
