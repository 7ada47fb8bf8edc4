//! What a domain's definition says of its disks, firmware, agent and user, as types.

use roxmltree::{Document, Node};

use super::image::{self, ChainXml, ImageXml};
use crate::error::{Error, Result};

const AGENT: &str = "org.qemu.guest_agent.0";

/// A domain, as far as backups care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainXml {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its disks, in the order of the definition.
    pub disks: Vec<DiskXml>,
    /// Whether it has a guest agent's channel.
    pub agent: bool,
    /// Whether a program in the guest has that channel open.
    pub agent_connected: bool,
    /// Targets of disk controllers that run in an iothread: `scsi` and their index.
    pub iothread_controllers: Vec<(String, String)>,
    /// User and group of its QEMU, where it runs and libvirt tells.
    pub owner: Option<(u32, u32)>,
    /// Whether AppArmor or SELinux confine its QEMU.
    pub confined: bool,
    /// Files beside the disks that it boots with.
    pub firmware: Vec<Firmware>,
}

/// A file that a domain boots with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// What it is: `nvram`, `loader`, `kernel`, `initrd`.
    pub role: &'static str,
    /// Where it is.
    pub path: String,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskXml {
    /// How the guest's bus calls it, and how keepmark does: `vda`.
    pub target: String,
    /// `disk`, `cdrom`, `floppy` or `lun`.
    pub device: String,
    /// Its image's format; `raw` where nothing is said.
    pub format: String,
    /// Where its image is.
    pub source: Source,
    /// What else is said of its image.
    pub image: ImageXml,
    /// What is said to lie below it.
    pub chain: ChainXml,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Whether other VMs may write to it too.
    pub shareable: bool,
    /// Whether its changes are thrown away at shutdown.
    pub transient: bool,
    /// Its device's id in a running QEMU.
    pub alias: Option<String>,
    /// The number in the names of its nodes in a running QEMU.
    pub index: Option<u32>,
    /// Whether it is served by an iothread of its own.
    pub iothread: bool,
    /// Kind and number of its controller, where its address names one.
    pub controller: Option<(String, String)>,
}

/// Where a disk's image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nothing is in it.
    Empty,
    /// A file.
    File(String),
    /// A block device.
    Block(String),
    /// A volume of a storage pool.
    Volume {
        /// Which pool.
        pool: String,
        /// Which volume.
        volume: String,
    },
    /// On another machine, by this protocol.
    Network(String),
    /// Something else, in libvirt's word.
    Other(String),
}

impl DomainXml {
    /// Reads a definition.
    ///
    /// # Errors
    /// When it is no XML or lacks what every domain has.
    pub fn parse(text: &str) -> Result<Self> {
        let document = Document::parse(text).map_err(|source| Error::Xml { subject: "the domain".into(), source: Box::new(source) })?;
        let domain = document.root_element();
        let required = |name: &'static str| text_of(domain, name).ok_or(Error::Lacks { subject: "the domain", what: name });
        let devices = child(domain, "devices");
        let channels = || devices.into_iter().flat_map(|devices| children(devices, "channel"));
        let agents = || channels().filter_map(|channel| child(channel, "target")).filter(|target| target.attribute("name") == Some(AGENT));
        Ok(Self {
            name: required("name")?,
            uuid: required("uuid")?,
            disks: devices.into_iter().flat_map(|devices| children(devices, "disk")).filter_map(disk).collect(),
            agent: agents().next().is_some(),
            agent_connected: agents().any(|target| target.attribute("state") == Some("connected")),
            iothread_controllers: devices.into_iter().flat_map(|devices| children(devices, "controller")).filter_map(threaded).collect(),
            owner: children(domain, "seclabel").find_map(owner),
            confined: children(domain, "seclabel").any(|label| matches!(label.attribute("model"), Some("apparmor" | "selinux"))),
            firmware: child(domain, "os").map(firmware).unwrap_or_default(),
        })
    }
}

impl DiskXml {
    /// Why the disk is not backed up, in words; none if it is.
    #[must_use]
    pub fn left_out(&self) -> Option<String> {
        let word = |text: &str| Some(text.to_owned());
        match (self.device.as_str(), &self.source) {
            ("cdrom" | "floppy", _) => return Some(format!("it is a removable medium ({})", self.device)),
            ("lun", _) => return word("it is a SCSI device passed through"),
            (_, Source::Empty) => return word("it is empty"),
            (_, Source::Other(kind)) => return Some(format!("libvirt cannot back up disks of type {kind}")),
            (_, Source::Network(protocol)) if self.format != "qcow2" => {
                return Some(format!("libvirt cannot track {} disks on the network ({protocol})", self.format));
            }
            (_, Source::Network(_) | Source::File(_) | Source::Block(_) | Source::Volume { .. }) => {}
        }
        if self.read_only {
            return word("it is read-only");
        }
        if self.shareable {
            return word("it is shareable: other VMs may write to it, unseen by this one's QEMU");
        }
        self.transient.then(|| "it is transient: its changes are thrown away at shutdown".to_owned())
    }
}

fn children<'a, 'input: 'a>(node: Node<'a, 'input>, name: &'static str) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

pub(super) fn child<'a, 'input: 'a>(node: Node<'a, 'input>, name: &'static str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

fn text_of(node: Node<'_, '_>, name: &'static str) -> Option<String> {
    child(node, name)?.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

pub(super) fn attribute(node: Option<Node<'_, '_>>, name: &str) -> Option<String> {
    node?.attribute(name).map(str::to_owned)
}

// A disk without a target cannot be called by any name; libvirt has none such.
fn disk(node: Node<'_, '_>) -> Option<DiskXml> {
    let source = child(node, "source");
    let driver = child(node, "driver");
    let address = child(node, "address");
    Some(DiskXml {
        target: attribute(child(node, "target"), "dev")?,
        device: node.attribute("device").unwrap_or("disk").to_owned(),
        format: attribute(driver, "type").unwrap_or_else(|| "raw".into()),
        source: source_of(node.attribute("type").unwrap_or("file"), source),
        image: image::image(node),
        chain: image::chain(node),
        read_only: child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        transient: child(node, "transient").is_some(),
        alias: attribute(child(node, "alias"), "name"),
        index: attribute(source, "index").and_then(|text| text.parse().ok()),
        iothread: driver.is_some_and(|driver| driver.has_attribute("iothread") || child(driver, "iothreads").is_some()),
        controller: address.and_then(|address| {
            let kind = attribute(child(node, "target"), "bus")?;
            Some((kind, address.attribute("controller")?.to_owned()))
        }),
    })
}

pub(super) fn source_of(kind: &str, source: Option<Node<'_, '_>>) -> Source {
    let path = |name: &str| attribute(source, name).filter(|path| !path.is_empty());
    match kind {
        "file" => path("file").map_or(Source::Empty, Source::File),
        "block" => path("dev").map_or(Source::Empty, Source::Block),
        "volume" => match (path("pool"), path("volume")) {
            (Some(pool), Some(volume)) => Source::Volume { pool, volume },
            _ => Source::Empty,
        },
        "network" => Source::Network(path("protocol").unwrap_or_else(|| "unknown".into())),
        other => Source::Other(other.to_owned()),
    }
}

fn threaded(controller: Node<'_, '_>) -> Option<(String, String)> {
    let driver = child(controller, "driver")?;
    let threaded = driver.has_attribute("iothread") || child(driver, "iothreads").is_some();
    threaded.then(|| Some((controller.attribute("type")?.to_owned(), controller.attribute("index")?.to_owned())))?
}

// `+64055:+64055`; names instead of numbers are not resolved.
fn owner(label: Node<'_, '_>) -> Option<(u32, u32)> {
    if label.attribute("model") != Some("dac") {
        return None;
    }
    let text = text_of(label, "label")?;
    let (user, group) = text.split_once(':')?;
    let number = |text: &str| text.trim_start_matches('+').parse().ok();
    Some((number(user)?, number(group)?))
}

fn firmware(os: Node<'_, '_>) -> Vec<Firmware> {
    let nvram = child(os, "nvram").and_then(|node| {
        let path = node.text().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        path.or_else(|| attribute(child(node, "source"), "file"))
    });
    let files = [("nvram", nvram), ("loader", text_of(os, "loader")), ("kernel", text_of(os, "kernel")), ("initrd", text_of(os, "initrd"))];
    files.into_iter().filter_map(|(role, path)| Some(Firmware { role, path: path? })).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = include_str!("../../tests/data/web01.xml");

    #[test]
    fn a_running_domain_is_read_as_libvirt_writes_it() {
        let domain = DomainXml::parse(WEB).unwrap();
        assert_eq!((domain.name.as_str(), domain.uuid.as_str()), ("web01", "3c0ad6a6-6a2e-4c5d-9f0e-1a2b3c4d5e6f"));
        assert_eq!((domain.agent, domain.agent_connected, domain.confined, domain.owner), (true, true, true, Some((64055, 64055))));
        let firmware: Vec<_> = domain.firmware.iter().map(|file| (file.role, file.path.as_str())).collect();
        assert_eq!(firmware, [("nvram", "/var/lib/libvirt/qemu/nvram/web01_VARS.fd"), ("loader", "/usr/share/OVMF/OVMF_CODE_4M.fd")]);
        let vda = &domain.disks[0];
        assert_eq!((vda.alias.as_deref(), vda.index), (Some("virtio-disk0"), Some(4)));
        assert_eq!(vda.source, Source::File("/var/lib/libvirt/images/web01 & more.qcow2".into()));
        assert_eq!(domain.iothread_controllers, [("scsi".to_owned(), "0".to_owned())]);
        assert_eq!(domain.disks.iter().find(|disk| disk.target == "sda").unwrap().controller, Some(("scsi".into(), "0".into())));
    }

    #[test]
    fn what_is_left_out_is_said_in_words() {
        let domain = DomainXml::parse(WEB).unwrap();
        let said: Vec<_> = domain.disks.iter().map(|disk| (disk.target.as_str(), disk.left_out())).collect();
        insta::assert_debug_snapshot!(said);
    }

    #[test]
    fn rubbish_is_an_error() {
        for text in ["", "<domain", "<domain/>", "<domain><name>x</name></domain>", "<!DOCTYPE a [<!ENTITY b 'c'>]><domain>&b;</domain>"] {
            assert!(DomainXml::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn old_and_new_ways_to_name_nvram_are_known() {
        let of =
            |nvram: &str| DomainXml::parse(&format!("<domain><name>a</name><uuid>b</uuid><os>{nvram}</os></domain>")).unwrap().firmware;
        let file = [Firmware { role: "nvram", path: "/n".into() }];
        assert_eq!(of("<nvram>/n</nvram>"), file);
        assert_eq!(of("<nvram type='file'><source file='/n'/></nvram>"), file);
        assert_eq!(of("<nvram template='/t'/>"), []);
    }
}
