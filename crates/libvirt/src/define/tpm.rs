//! An emulated TPM of a restored domain: where its state goes.

use super::allow::Allow;
use super::rewrite::{Work, is_plain};
use super::tree::Element;
use crate::tpm::{PREFIX, state_folder};

pub(super) fn rewrite(devices: &mut Element, work: &mut Work<'_>) {
    devices.elements_mut().filter(|element| element.name() == "tpm").for_each(|tpm| one(tpm, work));
}

fn one(tpm: &mut Element, work: &mut Work<'_>) {
    let Some(backend) = tpm.child_mut("backend") else { return };
    if backend.get("type") != Some("emulator") {
        reach(backend, work);
        work.remarks.finding("the VM uses a TPM of the host it came from: what that TPM sealed cannot be opened here".into());
        return;
    }
    let saved: Vec<String> = work.wish.saved.iter().filter(|name| name.starts_with(PREFIX)).cloned().collect();
    if saved.is_empty() {
        backend.remove("source");
        let lost = "the state of the TPM is not in the backup: it starts empty, and what it had sealed (disk keys) needs a recovery key";
        work.remarks.finding(lost.into());
        return;
    }
    let is_file = backend.get_of("source", "type") == Some("file");
    let folder = match backend.child("source") {
        Some(_) => work.wish.folder.join("tpm"),
        None => work.facts.swtpm.join(state_folder(&work.uuid, backend.get("version"))),
    };
    if let Some(source) = backend.child_mut("source") {
        let path = if is_file { folder.join(state_file(&saved)) } else { folder.clone() };
        source.set("path", &path.to_string_lossy());
    }
    for name in &saved {
        work.place_in(&folder, name, bare(name));
    }
}

fn reach(backend: &Element, work: &mut Work<'_>) {
    let kind = backend.get("type").unwrap_or("without type").to_owned();
    let word = if kind == "external" { Allow::Socket } else { Allow::HostDevice };
    let mut places = Vec::new();
    backend.elements().for_each(|below| places.extend(below.get("path").map(str::to_owned)));
    work.reaches(word, format!("a TPM of the host ({kind} {})", places.join(" ")));
}

fn bare(saved: &str) -> &str {
    saved.strip_prefix(PREFIX).unwrap_or(saved)
}

fn state_file(saved: &[String]) -> &str {
    saved.iter().map(|name| bare(name)).find(|name| is_plain(name)).unwrap_or("state")
}
