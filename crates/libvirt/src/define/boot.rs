//! What a restored domain boots with: firmware, its variables, kernel and initrd.

use super::allow::Allow;
use super::rewrite::Work;
use super::tree::Element;

// Where distributions have their firmware.
const FIRMWARE: &[&str] = &["/usr/share/", "/usr/local/share/", "/usr/lib/", "/run/libvirt/nix-ovmf/"];

pub(super) fn rewrite(domain: &mut Element, work: &mut Work<'_>) {
    domain.edit("os", |os| {
        loader(os, work);
        nvram(os, work);
        for role in ["kernel", "initrd"] {
            if let Some(element) = os.child_mut(role) {
                keep_or_place(element, role, false, work);
            }
        }
    });
}

// Firmware that is not the host's own cannot be found by features: the descriptions that libvirt chooses from do not name it.
fn loader(os: &mut Element, work: &mut Work<'_>) {
    let was_chosen = os.get("firmware").is_some();
    let Some(loader) = os.child_mut("loader") else { return };
    let is_own =
        is_own(loader.text().unwrap_or_default()) && (loader.get("type") != Some("pflash") || loader.get("readonly") == Some("yes"));
    if keep_or_place(loader, "loader", is_own, work) == Kept::Placed && was_chosen {
        os.unset("firmware");
        os.remove("firmware");
    }
}

#[derive(PartialEq, Eq)]
enum Kept {
    AsItWas,
    Placed,
    Lost,
}

/// Whether a path is where a host has its firmware, which everybody may read.
fn is_own(path: &str) -> bool {
    FIRMWARE.iter().any(|folder| path.starts_with(folder)) && !path.split('/').any(|part| part == "..")
}

fn keep_or_place(element: &mut Element, role: &str, is_own: bool, work: &mut Work<'_>) -> Kept {
    let Some(path) = element.text().map(str::to_owned) else { return Kept::AsItWas };
    let is_here = work.is_here(&path);
    if is_here && (is_own || work.allows(Allow::HostFile)) {
        if !is_own {
            work.reaches(Allow::HostFile, format!("{role} {path}"));
        }
        return Kept::AsItWas;
    }
    match work.place(role, role) {
        Some(new) => {
            element.set_text(&new);
            let why = if is_here { "may be another one by now, --allow host-file takes it" } else { "is not on this host" };
            work.remarks.note(format!("{role} {path} {why}: the one of the backup is taken"));
            Kept::Placed
        }
        None if is_here => {
            work.reaches(Allow::HostFile, format!("{role} {path}, which is not in the backup,"));
            Kept::AsItWas
        }
        None => {
            work.remarks.finding(format!("{role} {path} is not on this host, nor in the backup: the VM does not start without it"));
            Kept::Lost
        }
    }
}

// libvirt copies it into the variables, as root.
fn template(nvram: &mut Element, work: &mut Work<'_>) {
    let Some(path) = nvram.get("template").map(str::to_owned).filter(|path| !is_own(path)) else { return };
    if !work.keeps(Allow::HostFile, &format!("template {path} of the firmware's variables"), "libvirt chooses one") {
        ["template", "templateFormat"].iter().for_each(|name| nvram.unset(name));
    }
}

// Always the backup's, never one that lies on this host: variables belong to the disks' moment.
fn nvram(os: &mut Element, work: &mut Work<'_>) {
    let Some(element) = os.child("nvram") else { return };
    let old = element.text().or_else(|| element.get_of("source", "file")).unwrap_or_default();
    let extension = if old.ends_with(".qcow2") { "qcow2" } else { "fd" };
    let name = format!("{}_VARS.{extension}", work.wish.name);
    let placed = work.place("nvram", &name);
    if placed.is_none() {
        work.remarks.finding("the backup has no NVRAM: the firmware starts with fresh variables".into());
    }
    if let Some(element) = os.child_mut("nvram") {
        element.unset("type");
        template(element, work);
        match placed {
            Some(path) => element.set_text(&path),
            None => element.clear(),
        }
    }
    if os.child("nvram").is_some_and(|element| *element == Element::new("nvram")) {
        os.remove("nvram");
    }
}
