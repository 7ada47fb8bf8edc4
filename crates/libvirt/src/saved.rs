//! What is saved beside a domain's disks: its definitions, the files that it boots with, its TPM's state, and what it refers to.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use keepmark_model::seam::{Definition, SavedFile};

use crate::api::{Domain, View};
use crate::error::Result;
use crate::folders::{Folders, UserFolders};
use crate::link::Link;
use crate::tpm;
use crate::xml::DomainXml;
use crate::xml::references::References;

/// The definition as at the next start.
pub(crate) const DOMAIN: &str = "domain.xml";
// Kernels and initial file systems are a few tens of MiB; what is larger is no firmware.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The domain's definitions; its NVRAM, loader, kernel and initrd as far as they are files that can be read; the state of an emulated
/// TPM; and the definitions of networks, storage pools and secrets, without their values, that it refers to.
pub(crate) fn definition(link: &mut Link, is_active: bool, user: &UserFolders) -> Result<Definition> {
    let next = link.call(|domain: &Domain| domain.xml(View::Next))?;
    let current = if is_active { Some(link.call(|domain: &Domain| domain.xml(View::Current))?) } else { None };
    let parsed = DomainXml::parse(current.as_deref().unwrap_or(&next))?;
    let references = References::of(&next)?;
    let mut saved = Definition::from(vec![file(DOMAIN, next)]);
    saved.files.extend(current.map(|xml| file("domain-active.xml", xml)));
    // A domain that never ran has no NVRAM yet, and the files may be another host's.
    let content = |path: &str| read(Path::new(path), FILE_BYTES_MAX).ok();
    let firmware = parsed.firmware.iter().filter_map(|file| Some(SavedFile { name: file.role.into(), content: content(&file.path)? }));
    saved.files.extend(firmware);
    saved.files.extend(related(link, &references));
    if let Some(state) = &references.tpm {
        tpm::save(state, link.uuid(), &Folders::of(link.uri(), user).swtpm, is_active, &mut saved);
    }
    Ok(saved)
}

// What is referred to may be gone, or libvirt's driver for it not be installed: the domain runs all the same.
fn related(link: &Link, references: &References) -> Vec<SavedFile> {
    let connect = link.connect();
    let networks = references.networks.iter().map(|name| ("network", name, connect.network_xml(name)));
    let pools = references.pools.iter().map(|name| ("pool", name, connect.pool_xml(name)));
    let secrets = references.secrets.iter().map(|name| ("secret", name, connect.secret_xml(name)));
    let found = networks.chain(pools).chain(secrets).filter(|(_, name, _)| !name.contains('/'));
    found.filter_map(|(kind, name, xml)| Some(file(&format!("{kind}-{name}.xml"), xml.ok()?))).collect()
}

fn file(name: &str, text: String) -> SavedFile {
    SavedFile { name: name.to_owned(), content: text.into_bytes() }
}

/// The content of a file of at most `bytes_max` bytes; what keeps it from being read, in words.
pub(crate) fn read(path: &Path, bytes_max: u64) -> std::result::Result<Vec<u8>, String> {
    let said = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let meta = std::fs::metadata(path).map_err(said)?;
    if !meta.is_file() || meta.len() > bytes_max {
        return Err(format!("{} is no file of at most {bytes_max} bytes", path.display()));
    }
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(bytes_max).read_to_end(&mut content)).map_err(said)?;
    Ok(content)
}
