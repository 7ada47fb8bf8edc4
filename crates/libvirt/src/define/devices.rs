//! Other devices of a restored domain: what the old host made up is dropped, what belongs to it is named.

use super::rewrite::Work;
use super::tree::Element;

// In libvirt's own folders for channels paths have the domain's number or name in them.
const CHANNELS: &str = "/qemu/channel/";
// Names that a user gave, who may refer to them.
const USER_ALIAS: &str = "ua-";

pub(super) fn rewrite(devices: &mut Element, work: &mut Work<'_>) {
    emulator(devices, work);
    for device in devices.elements_mut() {
        device.retain(|element| element.name() != "alias" || element.get("name").is_some_and(|name| name.starts_with(USER_ALIAS)));
        match device.name() {
            "serial" | "console" | "parallel" | "channel" => port(device, work),
            "hostdev" => work.remarks.note(format!("a device of the host is passed through ({}): check that it is here", subject(device))),
            "filesystem" => filesystem(device, work),
            _ => {}
        }
    }
}

fn emulator(devices: &mut Element, work: &mut Work<'_>) {
    let missing = devices.text_of("emulator").filter(|path| !work.is_here(path)).map(str::to_owned);
    if let Some(path) = missing {
        devices.remove("emulator");
        work.remarks.note(format!("emulator {path} is not on this host: libvirt's own choice is taken"));
    }
}

fn port(device: &mut Element, work: &mut Work<'_>) {
    device.unset("tty");
    device.elements_mut().filter(|element| element.name() == "target").for_each(|target| target.unset("state"));
    let path = device.get_of("source", "path").map(str::to_owned);
    if path.as_ref().is_some_and(|path| path.contains(CHANNELS)) || device.get("type") == Some("pty") {
        device.elements_mut().filter(|element| element.name() == "source").for_each(|source| source.unset("path"));
        return;
    }
    if let Some(path) = path.filter(|_| !work.stays && device.get_of("source", "mode") == Some("bind")) {
        work.remarks.note(format!("the {} on {path} is the original's too: both cannot run on one host", device.name()));
    }
}

fn subject(device: &Element) -> String {
    device.get("type").unwrap_or("of unknown type").to_owned()
}

fn filesystem(device: &Element, work: &mut Work<'_>) {
    if let Some(folder) = device.get_of("source", "dir").filter(|folder| !work.is_here(folder)) {
        work.remarks.finding(format!("the shared folder {folder} is not on this host: the VM does not start without it"));
    }
}
