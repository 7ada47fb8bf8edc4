//! What a restored domain boots with: firmware, its variables, kernel and initrd.

use super::rewrite::Work;
use super::tree::Element;

pub(super) fn rewrite(domain: &mut Element, work: &mut Work<'_>) {
    domain.edit("os", |os| {
        loader(os, work);
        nvram(os, work);
        for role in ["kernel", "initrd"] {
            if let Some(element) = os.child_mut(role) {
                keep_or_place(element, role, work);
            }
        }
    });
}

// Firmware that is not the host's own cannot be found by features: the descriptions that libvirt chooses from do not name it.
fn loader(os: &mut Element, work: &mut Work<'_>) {
    let was_chosen = os.get("firmware").is_some();
    let Some(loader) = os.child_mut("loader") else { return };
    if keep_or_place(loader, "loader", work) == Kept::Placed && was_chosen {
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

fn keep_or_place(element: &mut Element, role: &str, work: &mut Work<'_>) -> Kept {
    let Some(path) = element.text().map(str::to_owned).filter(|path| path.starts_with('/')) else { return Kept::AsItWas };
    if work.is_here(&path) {
        return Kept::AsItWas;
    }
    match work.place(role, role) {
        Some(new) => {
            element.set_text(&new);
            work.remarks.note(format!("{role} {path} is not on this host: the one of the backup is taken"));
            Kept::Placed
        }
        None => {
            work.remarks.finding(format!("{role} {path} is not on this host, nor in the backup: the VM does not start without it"));
            Kept::Lost
        }
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
        match placed {
            Some(path) => element.set_text(&path),
            None => element.clear(),
        }
    }
    if os.child("nvram").is_some_and(|element| *element == Element::new("nvram")) {
        os.remove("nvram");
    }
}
