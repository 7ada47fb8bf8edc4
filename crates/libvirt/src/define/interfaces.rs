//! Network interfaces of a restored domain: networks that are here, and MAC addresses of its own.

use std::collections::BTreeSet;

use super::allow::Allow;
use super::problem::Problem;
use super::rewrite::{Random, Work};
use super::tree::Element;
use crate::error::Result;

// QEMU's own range of addresses.
const MAC_PREFIX: &str = "52:54:00";

/// Replaces networks as wished and addresses where the domain is a new one.
///
/// # Errors
/// When networks are missing, all of them named, or a wish makes no sense.
pub(super) fn rewrite(domain: &mut Element, work: &mut Work<'_>, random: Random<'_>) -> Result<()> {
    let mut connected = BTreeSet::new();
    let mut missing: Vec<(&'static str, String)> = Vec::new();
    let Some(devices) = domain.child_mut("devices") else { return Ok(()) };
    for interface in devices.elements_mut().filter(|element| element.name() == "interface") {
        if !work.stays {
            renew(interface, random);
        }
        reach(interface, work);
        let Some((kind, old)) = connection(interface) else { continue };
        connected.insert(old.clone());
        match work.wish.networks.get(&old) {
            Some(new) => connect(interface, &old, new, work)?,
            None if is_here(kind, &old, work) => note_link(interface, kind, &old, work),
            None => missing.push((kind, old)),
        }
    }
    if let Some(name) = work.wish.networks.keys().find(|name| !connected.contains(*name)) {
        return Err(Problem::NotConnected { name: name.clone(), known: connected.into_iter().collect() }.into());
    }
    missing.sort();
    missing.dedup();
    let Some((_, first)) = missing.first().cloned() else { return Ok(()) };
    let names = missing.iter().map(|(kind, name)| format!("{} {name}", word(kind))).collect();
    let saved = Some(format!("network-{first}.xml")).filter(|file| work.wish.saved.contains(file));
    Err(Problem::NoNetwork { names, first, known: known(work), saved }.into())
}

fn renew(interface: &mut Element, random: Random<'_>) {
    if let Some(mac) = interface.child_mut("mac") {
        let [_, a, b, c] = random().to_be_bytes();
        mac.set("address", &format!("{MAC_PREFIX}:{a:02x}:{b:02x}:{c:02x}"));
    }
    // The original's port of a switch, and its device on the host where somebody named it.
    if let Some(port) = interface.child_mut("virtualport").filter(|port| port.get("type") == Some("openvswitch")) {
        port.clear();
    }
    if let Some(target) = interface.child_mut("target").filter(|target| target.get("managed") != Some("no")) {
        target.unset("dev");
    }
    if interface.child("target").is_some_and(|target| *target == Element::new("target")) {
        interface.remove("target");
    }
}

// What the host does for an interface beyond connecting it.
fn reach(interface: &Element, work: &mut Work<'_>) {
    let who = format!("network interface {}", interface.get_of("mac", "address").unwrap_or("without address"));
    for script in interface.elements().filter(|below| matches!(below.name(), "script" | "downscript")) {
        work.reaches(Allow::Script, format!("script {} of {who}", script.get("path").unwrap_or("without a name")));
    }
    let kind = interface.get("type").unwrap_or("without type");
    let source = interface.child("source");
    let values = || source.into_iter().flat_map(Element::values).collect::<Vec<_>>().join(" ");
    match kind {
        "network" | "bridge" | "user" | "null" | "vds" | "internal" | "ethernet" => {}
        "direct" if source.and_then(|source| source.get("mode")) != Some("passthrough") => {}
        "direct" | "hostdev" | "vdpa" => work.reaches(Allow::HostDevice, format!("{who} on the host's {} ({kind})", values())),
        "vhostuser" => work.reaches(Allow::Socket, format!("{who} at {}", values())),
        "udp" | "mcast" | "server" | "client" => work.reaches(Allow::NetworkAddress, format!("{who} of type {kind} ({})", values())),
        _ => work.reaches(Allow::Unknown, format!("{who} of type {kind}")),
    }
    // Else libvirt makes the device, and it leads nowhere.
    if kind == "ethernet" && interface.get_of("target", "managed") == Some("no") {
        let name = interface.get_of("target", "dev").unwrap_or("without name");
        work.reaches(Allow::HostDevice, format!("{who} on the host's {name} ({kind})"));
    }
    let is_address = |below: &Element| matches!(below.name(), "ip" | "route");
    if source.is_some_and(|source| source.elements().any(is_address)) {
        work.reaches(Allow::NetworkAddress, format!("addresses that the host gets for {who}"));
    }
    if interface.child("portForward").is_some() {
        work.reaches(Allow::NetworkAddress, format!("ports of the host that lead to {who}"));
    }
}

fn note_link(interface: &Element, kind: &str, name: &str, work: &mut Work<'_>) {
    if kind != "network" {
        let who = interface.get_of("mac", "address").unwrap_or("without address");
        work.remarks.note(format!("network interface {who} is connected to this host's {} {name}", word(kind)));
    }
}

/// What an interface is connected to: the kind, which is also the attribute of its source, and the name.
fn connection(interface: &Element) -> Option<(&'static str, String)> {
    let attribute = match interface.get("type")? {
        "network" => "network",
        "bridge" => "bridge",
        "direct" => "dev",
        _ => return None,
    };
    Some((attribute, interface.get_of("source", attribute)?.to_owned()))
}

fn is_here(kind: &str, name: &str, work: &Work<'_>) -> bool {
    if kind == "network" { work.facts.networks.contains(name) } else { work.facts.links.contains(name) }
}

fn connect(interface: &mut Element, old: &str, new: &str, work: &mut Work<'_>) -> Result<()> {
    let kind = if work.facts.networks.contains(new) {
        "network"
    } else if work.facts.links.contains(new) {
        "bridge"
    } else {
        return Err(Problem::NoSuchNetwork { name: new.to_owned(), known: known(work) }.into());
    };
    interface.set("type", kind);
    interface.replace(Element::new("source").with(kind, new));
    // Port groups and ports are those of the old network.
    interface.remove("virtualport");
    let mac = interface.get_of("mac", "address").unwrap_or("without address").to_owned();
    work.remarks.note(format!("network interface {mac} is connected to {kind} {new}, it was to {old}"));
    Ok(())
}

fn word(kind: &str) -> &str {
    if kind == "dev" { "network device" } else { kind }
}

fn known(work: &Work<'_>) -> Vec<String> {
    let links = work.facts.links.iter().filter(|name| name.as_str() != "lo");
    let known: BTreeSet<&String> = work.facts.networks.iter().chain(links).collect();
    known.into_iter().cloned().collect()
}
