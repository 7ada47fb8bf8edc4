//! A disk of a test VM: its image and how it is attached.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::image::Format;

/// How a disk is attached, which decides what its node and device are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// `-blockdev` with node `node-NAME` and a virtio-blk device `NAME`; as libvirt does it.
    VirtioBlockdev,
    /// `-drive if=none,id=drive-NAME` and a virtio-blk device `NAME`.
    VirtioDrive,
    /// `-drive if=virtio`: neither node nor device has a name of its own.
    VirtioAnonymous,
    /// `-blockdev` with node `node-NAME` and a scsi-hd device `NAME` on a virtio-scsi controller.
    Scsi,
    /// `-blockdev` with node `node-NAME` and no device.
    NodeOnly,
}

/// A disk of a test VM.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The device's id where it has one, and its serial number in the guest.
    pub name: String,
    /// The image.
    pub file: PathBuf,
    /// The image's format.
    pub format: Format,
    /// How it is attached.
    pub attach: Attach,
}

impl Disk {
    /// A qcow2 disk, attached by `-blockdev` to virtio-blk.
    #[must_use]
    pub fn qcow2(name: &str, file: &Path) -> Self {
        Self { name: name.to_owned(), file: file.to_owned(), format: Format::Qcow2, attach: Attach::VirtioBlockdev }
    }

    /// A raw disk, attached by `-blockdev` to virtio-blk.
    #[must_use]
    pub fn raw(name: &str, file: &Path) -> Self {
        Self { format: Format::Raw, ..Self::qcow2(name, file) }
    }

    /// The same disk attached in another way.
    #[must_use]
    pub fn attach(self, attach: Attach) -> Self {
        Self { attach, ..self }
    }

    /// The node that it has at the start, if that has a name of its own.
    #[must_use]
    pub fn node(&self) -> Option<String> {
        match self.attach {
            Attach::VirtioBlockdev | Attach::Scsi | Attach::NodeOnly => Some(format!("node-{}", self.name)),
            Attach::VirtioDrive | Attach::VirtioAnonymous => None,
        }
    }

    /// The part of QEMU's command line that makes it.
    pub(super) fn arguments(&self) -> Vec<String> {
        let name = &self.name;
        let blockdev = self.blockdev();
        match self.attach {
            Attach::VirtioBlockdev => {
                vec!["-blockdev".into(), blockdev, "-device".into(), format!("virtio-blk-pci,drive=node-{name},id={name},serial={name}")]
            }
            Attach::VirtioDrive => vec![
                "-drive".into(),
                format!("if=none,id=drive-{name},{}", self.drive_options()),
                "-device".into(),
                format!("virtio-blk-pci,drive=drive-{name},id={name},serial={name}"),
            ],
            Attach::VirtioAnonymous => vec!["-drive".into(), format!("if=virtio,{}", self.drive_options())],
            Attach::Scsi => vec![
                "-blockdev".into(),
                blockdev,
                "-device".into(),
                format!("scsi-hd,bus=scsi0.0,drive=node-{name},id={name},serial={name}"),
            ],
            Attach::NodeOnly => vec!["-blockdev".into(), blockdev],
        }
    }

    fn blockdev(&self) -> String {
        json!({
            "driver": self.format.name(), "node-name": format!("node-{}", self.name), "discard": "unmap",
            "file": {"driver": "file", "filename": self.file, "discard": "unmap"},
        })
        .to_string()
    }

    fn drive_options(&self) -> String {
        // A comma in a value is written twice.
        let file = self.file.display().to_string().replace(',', ",,");
        format!("file={file},format={},discard=unmap", self.format.name())
    }
}
