//! What a rewritten definition still reaches to on the host, by a closed list of what it may consist of. Pure.
//!
//! Whoever can write a store writes definitions, and libvirt does as root what they say. So each part is known here, or refused: elements by
//! name, and every absolute path wherever it stands, but for places of which a rule of another module has decided already.

use std::collections::BTreeSet;

use super::allow::{Allow, Reach};
use super::rewrite::Work;
use super::tree::Element;

const DOMAIN: &[&str] = &[
    "name",
    "uuid",
    "hwuuid",
    "genid",
    "title",
    "description",
    "metadata",
    "maxMemory",
    "memory",
    "currentMemory",
    "memoryBacking",
    "vcpu",
    "vcpus",
    "iothreads",
    "iothreadids",
    "defaultiothread",
    "cputune",
    "numatune",
    "blkiotune",
    "memtune",
    "resource",
    "sysinfo",
    "os",
    "features",
    "cpu",
    "clock",
    "pm",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "on_lockfailure",
    "perf",
    "devices",
    "seclabel",
    "launchSecurity",
    "keywrap",
    "throttlegroups",
];
const DEVICES: &[&str] = &[
    "emulator",
    "disk",
    "controller",
    "lease",
    "filesystem",
    "interface",
    "smartcard",
    "serial",
    "parallel",
    "console",
    "channel",
    "input",
    "tpm",
    "graphics",
    "sound",
    "audio",
    "video",
    "hostdev",
    "redirdev",
    "redirfilter",
    "hub",
    "watchdog",
    "memballoon",
    "rng",
    "nvram",
    "panic",
    "shmem",
    "memory",
    "iommu",
    "vsock",
    "crypto",
    "pstore",
];
// Of these libvirt takes one, and which one of two is its own affair.
const ONCE: &[&str] = &[
    "name",
    "uuid",
    "os",
    "devices",
    "os/loader",
    "os/nvram",
    "os/kernel",
    "os/initrd",
    "devices/emulator",
    "devices/disk/source",
    "devices/disk/target",
    "devices/rng/backend",
    "devices/tpm/backend",
    "devices/interface/source",
    "devices/interface/script",
    "devices/interface/downscript",
    "devices/filesystem/source",
    "devices/filesystem/binary",
    "devices/vsock/cid",
];
// Where a rule has decided already; whatever stands below is part of it.
const DECIDED: &[&str] = &[
    "metadata",
    "os/loader",
    "os/nvram",
    "os/kernel",
    "os/initrd",
    "devices/emulator",
    "devices/disk/source",
    "devices/disk/backingStore",
    "devices/filesystem",
    "devices/hostdev",
    "devices/serial/source",
    "devices/serial/log",
    "devices/console/source",
    "devices/console/log",
    "devices/parallel/source",
    "devices/parallel/log",
    "devices/channel/source",
    "devices/channel/log",
    "devices/redirdev/source",
    "devices/redirdev/log",
    "devices/smartcard",
    "devices/rng/backend",
    "devices/tpm/backend",
    "devices/interface/script",
    "devices/interface/downscript",
    "devices/interface/source",
    "devices/input/source",
    "devices/graphics@socket",
    "devices/graphics@address",
    "devices/graphics/listen@socket",
    "devices/shmem",
];
// What only the guest reads, or nobody.
const WORDS: &[&str] = &[
    "title",
    "description",
    "os/cmdline",
    "sysinfo/system/entry",
    "sysinfo/bios/entry",
    "sysinfo/baseBoard/entry",
    "sysinfo/chassis/entry",
    "sysinfo/processor/entry",
    "sysinfo/memory/entry",
    "sysinfo/oemStrings/entry",
    "sysinfo/entry",
    "devices/disk/serial",
    "devices/disk/vendor",
    "devices/disk/product",
    "devices/disk/wwn",
    "devices/graphics@passwd",
    "launchSecurity/dhCert",
    "launchSecurity/session",
    "launchSecurity/guestVisibleWorkarounds",
    "launchSecurity/idBlock",
    "launchSecurity/idAuth",
    "launchSecurity/hostData",
    "launchSecurity/mrConfigId",
    "launchSecurity/mrOwner",
    "launchSecurity/mrOwnerConfig",
];
// Names of control groups, not of files.
const GROUPS: &str = "resource/partition";
const GROUP: &str = "/machine";

impl Work<'_> {
    /// Whether the operator allows a kind.
    pub(crate) fn allows(&self, word: Allow) -> bool {
        self.wish.allowed.contains(&word)
    }

    /// Whether something that reaches to the host stays. What was not allowed refuses the whole definition in the end.
    pub(crate) fn needs(&mut self, word: Allow, what: String) -> bool {
        if self.allows(word) {
            self.remarks.note(format!("{what} stays, as --allow {word} says"));
            return true;
        }
        let reach = Reach { word, what };
        if !self.refused.contains(&reach) {
            self.refused.push(reach);
        }
        false
    }

    /// The same, where nothing else depends on it.
    pub(crate) fn reaches(&mut self, word: Allow, what: String) {
        self.needs(word, what);
    }

    /// Whether something that reaches to the host stays. What was not allowed is dropped, since the VM runs without it.
    pub(crate) fn keeps(&mut self, word: Allow, what: &str, instead: &str) -> bool {
        let is_allowed = self.allows(word);
        let why =
            if is_allowed { format!("stays, as --allow {word} says") } else { format!("is dropped: {instead}; --allow {word} keeps it") };
        self.remarks.note(format!("{what} {why}"));
        is_allowed
    }
}

/// Looks through the whole of a rewritten definition.
pub(super) fn judge(domain: &mut Element, work: &mut Work<'_>) {
    labels(domain, work);
    known(domain, "", DOMAIN, work);
    domain.elements().filter(|element| element.name() == "devices").for_each(|devices| known(devices, "devices/", DEVICES, work));
    domain.elements().for_each(|element| paths(element, element.name(), work));
    once(domain, "", work);
}

fn known(parent: &Element, above: &str, names: &[&str], work: &mut Work<'_>) {
    for element in parent.elements().filter(|element| !names.contains(&element.name())) {
        if element.name().contains(':') && above.is_empty() {
            work.reaches(Allow::QemuArguments, format!("<{}> with {}", element.name(), arguments(element)));
        } else {
            work.reaches(Allow::Unknown, format!("<{above}{}>", element.name()));
        }
    }
}

fn arguments(element: &Element) -> String {
    let mut values = Vec::new();
    element.visit(&mut |below| values.extend(below.values().filter(|value| !value.contains("://")).map(str::to_owned)));
    format!("{:?}", values.join(" "))
}

// Whatever looks like a path: the closed list's other half.
fn paths(element: &Element, place: &str, work: &mut Work<'_>) {
    for (attribute, value) in element.attributes() {
        one(&format!("{place}@{attribute}"), value, work);
    }
    element.text().into_iter().for_each(|text| one(place, text, work));
    element.elements().for_each(|below| paths(below, &format!("{place}/{}", below.name()), work));
}

fn one(place: &str, value: &str, work: &mut Work<'_>) {
    let value = value.trim();
    let is_group = place == GROUPS && (value == GROUP || value.starts_with("/machine/"));
    if !is_path(value) || WORDS.contains(&place) || is_group || DECIDED.iter().any(|decided| is_below(place, decided)) {
        return;
    }
    let word = if value.starts_with("/dev/") { Allow::HostDevice } else { Allow::HostFile };
    work.reaches(word, format!("{value} in <{}>", place.strip_prefix("devices/").unwrap_or(place)));
}

fn is_path(value: &str) -> bool {
    ["/", "file:", "unix:", "json:", "./", "../"].iter().any(|start| value.starts_with(start))
}

fn is_below(place: &str, above: &str) -> bool {
    place.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '@']))
}

fn once(parent: &Element, above: &str, work: &mut Work<'_>) {
    let mut seen = BTreeSet::new();
    for element in parent.elements() {
        let place = format!("{above}{}", element.name());
        if ONCE.contains(&place.as_str()) && !seen.insert(place.clone()) {
            work.reaches(Allow::Unknown, format!("a second <{place}>"));
        }
        if place != "metadata" {
            once(element, &format!("{place}/"), work);
        }
    }
}

// QEMU's user and label are this host's affair; a definition may wish for root.
fn labels(element: &mut Element, work: &mut Work<'_>) {
    element
        .retain(|below| below.name() != "seclabel" || is_default(below) || work.keeps(Allow::Label, &label(below), "libvirt chooses one"));
    element.elements_mut().filter(|below| below.name() != "metadata").for_each(|below| labels(below, work));
}

fn is_default(label: &Element) -> bool {
    let is = |attribute, usual| label.get(attribute).is_none_or(|value| value == usual);
    is("type", "dynamic") && is("relabel", "yes") && label.get("labelskip").is_none() && label.elements().next().is_none()
}

fn label(label: &Element) -> String {
    let named = ["label", "baselabel", "imagelabel"].iter().find_map(|name| label.text_of(name));
    let named = named.or_else(|| label.get("type")).unwrap_or("without relabelling");
    format!("security label {named} ({})", label.get("model").unwrap_or("every model"))
}
