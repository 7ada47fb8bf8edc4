//! Disks of a restored domain: those of the backup point at their new images, of the others what can be kept.

use super::facts::RestoredDisk;
use super::rewrite::Work;
use super::tree::Element;

pub(super) fn rewrite(devices: &mut Element, work: &mut Work<'_>) {
    let mut known = Vec::new();
    devices.retain(|element| {
        if element.name() != "disk" {
            return true;
        }
        let target = element.get_of("target", "dev").unwrap_or("?").to_owned();
        let restored = work.wish.disks.iter().find(|disk| disk.name == target);
        known.push(target.clone());
        match restored {
            Some(disk) => {
                point_at(element, disk, work);
                true
            }
            None => keep(element, &target, work),
        }
    });
    for disk in work.wish.disks.iter().filter(|disk| !known.contains(&disk.name)) {
        let text = format!(
            "disk {} is not in the VM's definition (it was attached while the VM ran): its image is {}",
            disk.name,
            disk.path.display()
        );
        work.remarks.finding(text);
    }
}

fn point_at(disk: &mut Element, restored: &RestoredDisk, work: &mut Work<'_>) {
    let is_encrypted = |element: &Element| element.child("encryption").is_some();
    if is_encrypted(disk) || disk.child("source").is_some_and(is_encrypted) {
        let text =
            format!("the image of disk {} was encrypted by QEMU; the restored one ({}) is not", restored.name, restored.path.display());
        work.remarks.finding(text);
    }
    disk.set("type", "file");
    ["backingStore", "mirror", "encryption", "auth"].iter().for_each(|name| disk.remove(name));
    disk.replace(Element::new("source").with("file", &restored.path.to_string_lossy()));
    disk.edit("driver", |driver| {
        if driver.get("name").is_none() {
            driver.set("name", "qemu");
        }
        driver.set("type", restored.format);
        if restored.format == "raw" {
            driver.unset("discard_no_unref");
            driver.remove("metadata_cache");
        }
    });
}

/// Whether a disk that was not backed up stays in the definition.
fn keep(disk: &mut Element, target: &str, work: &mut Work<'_>) -> bool {
    disk.remove("mirror");
    if let Some(source) = disk.child_mut("source") {
        source.unset("index");
    }
    let is_medium = matches!(disk.get("device"), Some("cdrom" | "floppy"));
    let source = source(disk);
    match (is_here(disk, work), is_medium) {
        (true, true) => true,
        (true, false) => {
            kept(disk, target, &source, work);
            true
        }
        (false, true) => {
            disk.remove("source");
            disk.remove("backingStore");
            disk.set("type", "file");
            work.remarks.note(format!("{target} is empty now: its medium {source} is not on this host"));
            true
        }
        (false, false) => {
            let why = why(target, work);
            work.remarks
                .finding(format!("disk {target} is left out: it was not backed up{why}, and its source {source} is not on this host"));
            false
        }
    }
}

fn kept(disk: &Element, target: &str, source: &str, work: &mut Work<'_>) {
    let why = why(target, work);
    let text = format!("disk {target} was not backed up{why}: it keeps its source {source} as that is now");
    if ["readonly", "shareable", "transient"].iter().any(|mark| disk.child(mark).is_some()) {
        work.remarks.note(text);
    } else {
        work.remarks.finding(text);
    }
}

fn why(target: &str, work: &Work<'_>) -> String {
    work.wish.left_out.get(target).map(|why| format!(" ({why})")).unwrap_or_default()
}

// What is on other machines cannot be looked for; an empty drive lacks nothing.
fn is_here(disk: &Element, work: &Work<'_>) -> bool {
    let Some(source) = disk.child("source") else { return true };
    if let Some(path) = source.get("file").or_else(|| source.get("dev")) {
        return work.is_here(path);
    }
    match (source.get("pool"), source.get("volume")) {
        (Some(pool), Some(volume)) => work.facts.volumes.contains(&(pool.to_owned(), volume.to_owned())),
        _ => true,
    }
}

fn source(disk: &Element) -> String {
    let Some(source) = disk.child("source") else { return "(none)".into() };
    let path = source.get("file").or_else(|| source.get("dev")).or_else(|| source.get("path")).or_else(|| source.get("name"));
    match (source.get("pool"), source.get("volume")) {
        (Some(pool), Some(volume)) => format!("{volume} of pool {pool}"),
        _ => path.or_else(|| source.get("protocol")).unwrap_or("(unnamed)").to_owned(),
    }
}
