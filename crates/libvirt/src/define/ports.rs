//! Where consoles, channels and everything else that is a stream of characters end on the host.

use super::allow::Allow;
use super::rewrite::Work;
use super::tree::Element;

// In libvirt's own folders for channels paths have the domain's number or name in them.
const CHANNELS: &str = "/qemu/channel/";

/// A serial port, console, parallel port or channel: what libvirt made up goes, the rest is judged.
pub(super) fn rewrite(port: &mut Element, work: &mut Work<'_>) {
    port.unset("tty");
    port.elements_mut().filter(|element| element.name() == "target").for_each(|target| target.unset("state"));
    let path = port.get_of("source", "path").map(str::to_owned);
    let is_libvirts = port.name() == "channel" && path.as_ref().is_some_and(|path| path.contains(CHANNELS));
    if is_libvirts || port.get("type") == Some("pty") {
        port.elements_mut().filter(|element| element.name() == "source").for_each(|source| source.unset("path"));
    } else if let Some(path) = path.filter(|_| !work.stays && port.get_of("source", "mode") == Some("bind")) {
        work.remarks.note(format!("the {} on {path} is the original's too: both cannot run on one host", port.name()));
    }
    let subject = port.name().to_owned();
    stream(port, &subject, work);
}

/// Anything with a `type` and a `<source>` as a console has them.
pub(super) fn stream(element: &mut Element, subject: &str, work: &mut Work<'_>) {
    log(element, subject, work);
    let kind = element.get("type").unwrap_or("pty").to_owned();
    let word = match kind.as_str() {
        "pty" | "null" | "vc" | "stdio" | "spicevmc" | "spiceport" | "qemu-vdagent" => return,
        "file" | "pipe" => Allow::HostFile,
        "dev" => Allow::HostDevice,
        "unix" => Allow::Socket,
        "tcp" | "udp" => Allow::NetworkAddress,
        _ => Allow::Unknown,
    };
    for source in element.elements().filter(|below| below.name() == "source") {
        let ends = ["path", "host", "service"].iter().filter_map(|name| source.get(name)).collect::<Vec<_>>().join(":");
        // Without a place libvirt makes a socket in a folder of its own.
        if word != Allow::Socket || !ends.is_empty() {
            work.reaches(word, format!("a {subject} of type {kind} at {ends}"));
        }
    }
    if word == Allow::Unknown {
        work.reaches(word, format!("a {subject} of type {kind}"));
    }
}

fn log(element: &mut Element, subject: &str, work: &mut Work<'_>) {
    let Some(file) = element.child("log").map(|log| log.get("file").unwrap_or("a file of libvirt's choice").to_owned()) else { return };
    if !work.keeps(Allow::HostFile, &format!("the log of a {subject} in {file}"), "nothing is logged") {
        element.remove("log");
    }
}
