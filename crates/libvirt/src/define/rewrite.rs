//! A definition rewritten for this host: restored disks, a free identity, networks that exist. Pure.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::allow::Reach;
use super::facts::{Facts, OtherBackup, Placed, Remarks, Rewritten, Wish};
use super::problem::Problem;
use super::tree::Element;
use super::{boot, devices, disks, identity, interfaces, reach, tpm};
use crate::error::Result;

/// Fresh random bits at every call.
pub(crate) type Random<'a> = &'a mut dyn FnMut() -> u32;

/// What all parts of the rewriting share.
pub(crate) struct Work<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) wish: &'a Wish,
    /// Whether the domain stays the same one: its name, UUID and MAC addresses.
    pub(crate) stays: bool,
    /// The domain's UUID here.
    pub(crate) uuid: String,
    pub(crate) files: Vec<Placed>,
    pub(crate) remarks: Remarks,
    /// What reaches to the host and was not allowed.
    pub(crate) refused: Vec<Reach>,
    /// Disks of another machine, which this one would write to: target and source.
    pub(crate) foreign: Vec<(String, String)>,
}

impl Work<'_> {
    /// Whether a path of the definition is on this host.
    pub(crate) fn is_here(&self, path: &str) -> bool {
        self.facts.present.contains(path)
    }

    /// Has a file of the backup put into the domain's folder; none if the backup does not have it.
    pub(crate) fn place(&mut self, saved: &str, name: &str) -> Option<String> {
        if !self.wish.saved.contains(saved) {
            return None;
        }
        let path = self.place_in(&self.wish.folder.clone(), saved, name)?;
        Some(path.to_string_lossy().into_owned())
    }

    /// The same into any folder. Names come from the backup and its definition: one that leads out of the folder is no name.
    pub(crate) fn place_in(&mut self, folder: &Path, saved: &str, name: &str) -> Option<PathBuf> {
        if !is_plain(name) {
            self.remarks.finding(format!("{saved:?} of the backup is left out: it would not be a file in {}", folder.display()));
            return None;
        }
        let path = folder.join(name);
        self.files.push(Placed { saved: saved.to_owned(), path: path.clone() });
        Some(path)
    }
}

/// Whether a name is that of a file in a folder, and leads nowhere else.
pub(super) fn is_plain(name: &str) -> bool {
    Path::new(name).file_name() == Some(OsStr::new(name)) && !name.contains('\0')
}

/// Rewrites a definition.
///
/// # Errors
/// When it is no definition, its name is taken, a network is missing, or it reaches to the host beyond what was allowed.
pub(crate) fn rewrite(definition: &str, facts: &Facts, wish: &Wish, random: Random<'_>) -> Result<Rewritten> {
    let mut domain = Element::parse(definition)?;
    if facts.names.contains(&wish.name) {
        return Err(Problem::NameTaken { name: wish.name.clone() }.into());
    }
    let mut work = Work {
        facts,
        wish,
        stays: false,
        uuid: String::new(),
        files: Vec::new(),
        remarks: Remarks::default(),
        refused: Vec::new(),
        foreign: Vec::new(),
    };
    without(&domain, wish)?;
    identity::rewrite(&mut domain, &mut work, random)?;
    boot::rewrite(&mut domain, &mut work);
    interfaces::rewrite(&mut domain, &mut work, random)?;
    domain.edit("devices", |devices| {
        disks::rewrite(devices, &mut work);
        tpm::rewrite(devices, &mut work);
        devices::rewrite(devices, &mut work);
    });
    secrets(&domain, &mut work);
    reach::judge(&mut domain, &mut work);
    if !work.refused.is_empty() || !work.foreign.is_empty() {
        let complete = complete(&work);
        return Err(Problem::Reaches { reaches: work.refused, foreign: work.foreign, complete }.into());
    }
    Ok(Rewritten { uuid: work.uuid, xml: domain.write(), files: work.files, remarks: work.remarks.0 })
}

// A wish that nothing answers to is a slip.
fn without(domain: &Element, wish: &Wish) -> Result<()> {
    let disks = domain.child("devices").into_iter().flat_map(Element::elements).filter(|element| element.name() == "disk");
    let known: BTreeSet<&str> = disks.filter_map(|disk| disk.get_of("target", "dev")).collect();
    let Some(name) = wish.without.iter().find(|name| !known.contains(name.as_str())) else { return Ok(()) };
    Err(Problem::NoSuchDisk { name: name.clone(), known: known.into_iter().map(str::to_owned).collect() }.into())
}

// The newest other backup that has all that this one has, and what it lacks.
fn complete(work: &Work<'_>) -> Option<String> {
    let has = |backup: &&OtherBackup| {
        let own = work.wish.disks.iter().map(|disk| &disk.name);
        own.chain(work.foreign.iter().map(|(target, _)| target)).all(|name| backup.disks.contains(name))
    };
    work.wish.backups.iter().find(has).filter(|_| !work.foreign.is_empty()).map(|backup| backup.name.clone())
}

// What the definition still refers to, after disks that were encrypted have become plain.
fn secrets(domain: &Element, work: &mut Work<'_>) {
    let missing: BTreeSet<String> = secrets_of(domain).into_iter().filter(|secret| !work.facts.secrets.contains(secret)).collect();
    for secret in missing {
        let file = format!("secret-{secret}.xml");
        let how = match work.place(&file, &file) {
            Some(path) => format!(": `virsh secret-define {path}`, then `virsh secret-set-value`"),
            None => String::new(),
        };
        work.remarks.finding(format!("secret {secret} is not on this host; the VM does not start before it is{how}"));
    }
}

/// UUIDs, or usages, of the secrets that a definition refers to.
pub(crate) fn secrets_of(domain: &Element) -> Vec<String> {
    let mut found = Vec::new();
    domain.visit(&mut |element| {
        let named = match element.name() {
            "secret" => element.get("uuid").or_else(|| element.get("usage")),
            // An emulated TPM's.
            "encryption" => element.get("secret"),
            _ => None,
        };
        found.extend(named.map(str::to_owned));
    });
    found
}
