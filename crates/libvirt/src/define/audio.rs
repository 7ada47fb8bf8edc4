//! Where a restored domain's sound goes.

use super::allow::Allow;
use super::rewrite::Work;
use super::tree::Element;

pub(super) fn rewrite(device: &mut Element, work: &mut Work<'_>) {
    let kind = device.get("type").unwrap_or("none").to_owned();
    let word = match kind.as_str() {
        // To nowhere, or to whoever looks at the display.
        "none" | "spice" | "dbus" => return,
        "file" => Allow::HostFile,
        _ => Allow::HostDevice,
    };
    let place = device.get("path").map(|path| format!(" ({path})")).unwrap_or_default();
    if !work.keeps(word, &format!("sound by {kind}{place}"), "the VM is mute") {
        let attributes: Vec<String> = device.attributes().map(|(name, _)| name.to_owned()).filter(|name| name != "id").collect();
        attributes.iter().for_each(|name| device.unset(name));
        device.set("type", "none");
        device.clear();
    }
}
