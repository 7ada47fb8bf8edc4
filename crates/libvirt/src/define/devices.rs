//! Other devices of a restored domain: what the old host made up is dropped, what reaches to this one is judged.

use super::allow::Allow;
use super::rewrite::Work;
use super::tree::Element;
use super::{audio, ports};

// Names that a user gave, who may refer to them.
const USER_ALIAS: &str = "ua-";
// Who reads them learns and changes nothing.
const RANDOM: &[&str] = &["/dev/urandom", "/dev/random", "/dev/hwrng"];
const LOOPBACK: &[&str] = &["127.0.0.1", "::1", "localhost"];

pub(super) fn rewrite(devices: &mut Element, work: &mut Work<'_>) {
    emulator(devices, work);
    for device in devices.elements_mut() {
        device.retain(|element| element.name() != "alias" || element.get("name").is_some_and(|name| name.starts_with(USER_ALIAS)));
        one(device, work);
    }
}

fn one(device: &mut Element, work: &mut Work<'_>) {
    match device.name() {
        "serial" | "console" | "parallel" | "channel" => ports::rewrite(device, work),
        "redirdev" => ports::stream(device, "redirected USB device", work),
        "hostdev" => host_device(device, work),
        "filesystem" => filesystem(device, work),
        "graphics" => graphics(device, work),
        "video" => video(device, work),
        "rng" => random(device, work),
        "input" => input(device, work),
        "smartcard" => smartcard(device, work),
        "audio" => audio::rewrite(device, work),
        "vsock" => vsock(device, work),
        "shmem" => work.reaches(Allow::SharedMemory, format!("shared memory {}", device.get("name").unwrap_or("without name"))),
        _ => {}
    }
}

fn emulator(devices: &mut Element, work: &mut Work<'_>) {
    let Some(path) = devices.text_of("emulator").map(str::to_owned) else { return };
    if work.facts.emulators.contains(&path) {
        return;
    }
    if !work.is_here(&path) {
        work.remarks.note(format!("emulator {path} is not on this host: libvirt's own choice is taken"));
    } else if work.keeps(Allow::Emulator, &format!("emulator {path}, which is none of libvirt's,"), "libvirt's own choice is taken") {
        return;
    }
    devices.remove("emulator");
}

fn host_device(device: &Element, work: &mut Work<'_>) {
    let kind = device.get("type").unwrap_or("of unknown type");
    let mut names = Vec::new();
    let source = device.child("source");
    source.into_iter().for_each(|source| source.visit(&mut |below| names.extend(below.values().map(str::to_owned))));
    work.reaches(Allow::HostDevice, format!("a device of the host ({kind} {})", names.join(" ")));
}

fn filesystem(device: &mut Element, work: &mut Work<'_>) {
    let names = ["dir", "file", "dev", "socket", "name", "pool", "volume"];
    let source = device.child("source").and_then(|source| names.iter().find_map(|name| source.get(name)));
    let folder = source.unwrap_or("without a name").to_owned();
    let program = device.get_of("binary", "path").map(str::to_owned);
    if let Some(path) = program
        && !work.keeps(Allow::Script, &format!("program {path} of the shared folder {folder}"), "libvirt's own choice is taken")
    {
        device.edit("binary", |binary| binary.unset("path"));
    }
    let is_kept = work.needs(Allow::SharedFolder, format!("the shared folder {folder}"));
    if is_kept && folder.starts_with('/') && !work.is_here(&folder) {
        work.remarks.finding(format!("the shared folder {folder} is not on this host: the VM does not start without it"));
    }
}

fn graphics(device: &mut Element, work: &mut Work<'_>) {
    let sockets = device.elements().filter_map(|listen| listen.get("socket")).chain(device.get("socket"));
    // D-Bus' address is one, too.
    let sockets: Vec<String> = sockets.chain(device.get("address")).map(str::to_owned).collect();
    sockets.into_iter().for_each(|socket| work.reaches(Allow::Socket, format!("a display at {socket}")));
    let addresses = device.elements().filter_map(|listen| listen.get("address")).chain(device.get("listen"));
    let open: Vec<String> = addresses.filter(|address| !LOOPBACK.contains(address)).map(str::to_owned).collect();
    open.first().into_iter().for_each(|address| work.remarks.note(format!("the display can be reached from outside (at {address})")));
    render_node(device, "gl", work);
}

fn video(device: &mut Element, work: &mut Work<'_>) {
    if let Some(model) = device.child_mut("model") {
        render_node(model, "acceleration", work);
    }
}

fn render_node(element: &mut Element, child: &str, work: &mut Work<'_>) {
    let Some(node) = element.get_of(child, "rendernode").map(str::to_owned) else { return };
    if !work.keeps(Allow::HostDevice, &format!("graphics device {node}"), "libvirt chooses one") {
        element.edit(child, |below| below.unset("rendernode"));
    }
}

fn random(device: &mut Element, work: &mut Work<'_>) {
    let Some(backend) = device.child_mut("backend") else { return };
    match backend.get("model") {
        Some("builtin") => {}
        Some("egd") => ports::stream(backend, "source of random numbers", work),
        _ => {
            let path = backend.text().filter(|path| !RANDOM.contains(path)).map(str::to_owned);
            path.into_iter().for_each(|path| work.reaches(Allow::HostDevice, format!("source of random numbers {path}")));
        }
    }
}

fn input(device: &Element, work: &mut Work<'_>) {
    if let Some(source) = device.child("source") {
        let path = source.get("evdev").or_else(|| source.get("dev")).unwrap_or("without a name");
        work.reaches(Allow::HostDevice, format!("input device {path}"));
    }
}

fn smartcard(device: &mut Element, work: &mut Work<'_>) {
    match device.get("mode") {
        Some("passthrough") => ports::stream(device, "smartcard", work),
        Some("host-certificates") => work.reaches(Allow::HostFile, "a smartcard with certificates of the host".into()),
        _ => work.reaches(Allow::HostDevice, "the host's smartcard".into()),
    }
}

// Two VMs with one number cannot run on one host.
fn vsock(device: &mut Element, work: &mut Work<'_>) {
    let Some(cid) = device.child_mut("cid").filter(|_| !work.stays) else { return };
    if let Some(number) = cid.get("address").map(str::to_owned) {
        cid.unset("address");
        cid.set("auto", "yes");
        work.remarks.note(format!("vsock number {number} is the original's: libvirt chooses another one"));
    }
}
