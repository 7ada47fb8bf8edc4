//! What is saved beside a domain's disks: its definitions and the files that it boots with.

use std::fs::File;
use std::io::Read;

use keepmark_model::seam::SavedFile;

use crate::api::{Domain, View};
use crate::error::Result;
use crate::link::Link;
use crate::xml::DomainXml;

// Kernels and initial file systems are a few tens of MiB; what is larger is no firmware.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// The domain's definitions, and its NVRAM, loader, kernel and initrd as far as they are files that can be read.
pub(crate) fn saved(link: &mut Link, is_active: bool) -> Result<Vec<SavedFile>> {
    let next = link.call(|domain: &Domain| domain.xml(View::Next))?;
    let current = if is_active { Some(link.call(|domain: &Domain| domain.xml(View::Current))?) } else { None };
    let parsed = DomainXml::parse(current.as_deref().unwrap_or(&next))?;
    let mut files = vec![SavedFile { name: "domain.xml".into(), content: next.into_bytes() }];
    files.extend(current.map(|xml| SavedFile { name: "domain-active.xml".into(), content: xml.into_bytes() }));
    let firmware = parsed.firmware.iter().filter_map(|file| Some(SavedFile { name: file.role.into(), content: read(&file.path)? }));
    files.extend(firmware);
    Ok(files)
}

// A domain that never ran has no NVRAM yet, and the files may be another host's.
fn read(path: &str) -> Option<Vec<u8>> {
    let file = File::open(path).ok().filter(|file| file.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= FILE_BYTES_MAX))?;
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut content).ok()?;
    Some(content)
}
