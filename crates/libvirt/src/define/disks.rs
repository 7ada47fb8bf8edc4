//! Disks of a restored domain: those of the backup point at their new images, of the others what can be kept.

use super::allow::Allow;
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
    // They are for devices.
    ["rawio", "sgio"].iter().for_each(|name| disk.unset(name));
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

/// Whether a disk that was not backed up, or is not wanted, stays in the definition.
fn keep(disk: &mut Element, target: &str, work: &mut Work<'_>) -> bool {
    if work.wish.without.contains(target) {
        work.remarks.note(format!("disk {target} is left out, as --without-disk says"));
        return false;
    }
    disk.remove("mirror");
    if let Some(source) = disk.child_mut("source") {
        source.unset("index");
    }
    let Some(word) = reach(disk) else { return true };
    let source = source(disk);
    let is_medium = matches!(disk.get("device"), Some("cdrom" | "floppy"));
    match (is_here(disk, work), is_medium) {
        (true, true) => medium(disk, target, &source, word, work),
        (true, false) => return other(disk, target, &source, word, work),
        (false, true) => {
            empty(disk);
            work.remarks.note(format!("{target} is empty now: its medium {source} is not on this host"));
        }
        (false, false) => {
            let why = why(target, work);
            work.remarks
                .finding(format!("disk {target} is left out: it was not backed up{why}, and its source {source} is not on this host"));
            return false;
        }
    }
    true
}

// A floppy that two VMs write to is no copy's.
fn medium(disk: &mut Element, target: &str, source: &str, word: Allow, work: &mut Work<'_>) {
    let is_shared = !work.stays && is_writable(disk);
    if is_shared || !work.allows(word) {
        empty(disk);
        let how = if is_shared { "the original writes to it".to_owned() } else { format!("--allow {word} keeps it") };
        work.remarks.note(format!("{target} is empty now: its medium {source} is not in the backup; {how}"));
    } else {
        work.remarks.note(format!("{target} keeps its medium {source}, as --allow {word} says"));
    }
}

fn empty(disk: &mut Element) {
    disk.remove("source");
    disk.remove("backingStore");
    disk.set("type", "file");
}

// A copy never writes where another machine does; for the rest the operator has to know the place.
fn other(disk: &Element, target: &str, source: &str, word: Allow, work: &mut Work<'_>) -> bool {
    if !work.stays && is_writable(disk) {
        work.foreign.push((target.to_owned(), source.to_owned()));
        return false;
    }
    if work.allows(word) {
        kept(disk, target, source, word, work);
        return true;
    }
    work.needs(word, format!("disk {target}, which is not in the backup, at {source}"))
}

fn is_writable(disk: &Element) -> bool {
    disk.get("device") != Some("cdrom") && ["readonly", "transient"].iter().all(|mark| disk.child(mark).is_none())
}

// What its source reaches to; nothing for a drive that is empty.
fn reach(disk: &Element) -> Option<Allow> {
    let source = disk.child("source")?;
    let has_none = ["file", "dev", "dir", "path", "name", "protocol", "pool", "type"].iter().all(|name| source.get(name).is_none());
    if has_none {
        return None;
    }
    Some(match disk.get("type") {
        None | Some("file" | "dir" | "volume") => Allow::HostFile,
        Some("block" | "nvme" | "vhostvdpa") => Allow::HostDevice,
        Some("network") => Allow::NetworkAddress,
        Some("vhostuser") => Allow::Socket,
        Some(_) => Allow::Unknown,
    })
}

fn kept(disk: &Element, target: &str, source: &str, word: Allow, work: &mut Work<'_>) {
    let why = why(target, work);
    let text = format!("disk {target} was not backed up{why}: it keeps its source {source} as that is now, as --allow {word} says");
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
