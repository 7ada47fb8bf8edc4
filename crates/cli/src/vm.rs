//! How a VM is named on the command line: a libvirt domain's name or UUID, `qmp:SOCKET` or `image:[LABEL=]FILE[,[LABEL=]FILE]`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use keepmark_model::opening::{ImageFormat, Refusal};

/// A VM as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmPlace {
    /// A running QEMU, by its QMP socket.
    Qmp(PathBuf),
    /// Powered-off images with their labels.
    Images(Vec<(Option<String>, PathBuf)>),
    /// A domain of libvirt's, by name or UUID.
    Libvirt(String),
}

impl fmt::Display for VmPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qmp(socket) => write!(f, "qmp:{}", socket.display()),
            Self::Images(images) => {
                let image = |(label, file): &(Option<String>, PathBuf)| {
                    let file = file.display().to_string().replace(',', ",,");
                    label.as_ref().map_or_else(|| file.clone(), |label| format!("{label}={file}"))
                };
                write!(f, "image:{}", images.iter().map(image).collect::<Vec<_>>().join(","))
            }
            Self::Libvirt(domain) if is_bare(domain) => f.write_str(domain),
            Self::Libvirt(domain) => write!(f, "libvirt:{domain}"),
        }
    }
}

/// A text that names no VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmPlaceError {
    /// It begins with no known scheme.
    #[error("{text:?} is no VM: expected [libvirt:]NAME, [libvirt:]UUID, qmp:SOCKET or image:[LABEL=]FILE[,[LABEL=]FILE]")]
    Scheme {
        /// As it came.
        text: String,
    },
    /// Something is missing.
    #[error("{text:?} lacks a {what}")]
    Lacks {
        /// As it came.
        text: String,
        /// What is missing.
        what: &'static str,
    },
}

impl FromStr for VmPlace {
    type Err = VmPlaceError;

    fn from_str(text: &str) -> Result<Self, VmPlaceError> {
        let lacks = |what| VmPlaceError::Lacks { text: text.to_owned(), what };
        match text.split_once(':') {
            Some(("qmp", "")) => Err(lacks("socket")),
            Some(("qmp", socket)) => Ok(Self::Qmp(socket.into())),
            Some(("image", images)) => images_of(images).map(Self::Images).ok_or_else(|| lacks("file")),
            Some(("libvirt", "")) => Err(lacks("name")),
            Some(("libvirt", domain)) => Ok(Self::Libvirt(domain.to_owned())),
            None if is_bare(text) => Ok(Self::Libvirt(text.to_owned())),
            _ => Err(VmPlaceError::Scheme { text: text.to_owned() }),
        }
    }
}

/// What may stand for a domain without `libvirt:` before it: nothing that looks like a path or a scheme.
fn is_bare(text: &str) -> bool {
    !text.is_empty() && !text.contains([':', '/'])
}

/// A comma that belongs to a file's name is doubled, as on QEMU's command line.
fn images_of(text: &str) -> Option<Vec<(Option<String>, PathBuf)>> {
    let parts = text.replace(",,", "\0");
    parts.split(',').map(|part| image_of(&part.replace('\0', ","))).collect()
}

/// What stands before the first `=` is a label unless it looks like a path.
fn image_of(text: &str) -> Option<(Option<String>, PathBuf)> {
    let (label, file) = match text.split_once('=') {
        Some((label, file)) if !label.contains('/') => (Some(label.to_owned()), file),
        _ => (None, text),
    };
    let named = !file.is_empty() && label.as_deref() != Some("");
    named.then(|| (label, PathBuf::from(file)))
}

/// Which VM, and whose it is.
#[derive(Debug, Clone, Args)]
pub struct VmArguments {
    /// A libvirt domain's NAME or UUID, qmp:SOCKET (running) or image:[LABEL=]FILE[,[LABEL=]FILE] (powered off)
    #[arg(value_name = "VM")]
    pub vm: VmPlace,
    /// Whose it is.
    #[command(flatten)]
    pub identity: IdentityArguments,
    /// What its images are.
    #[command(flatten)]
    pub images: ImageArguments,
}

/// What the user says of powered-off images.
#[derive(Debug, Clone, Default, Args)]
pub struct ImageArguments {
    /// Format of powered-off images, of one disk or of all: raw, qcow2, ... (else the last backup's, or the one that name and content agree on)
    #[arg(id = "image_format", long = "format", value_name = "[DISK=]FORMAT")]
    pub formats: Vec<FormatWord>,
    /// Believe powered-off images' own headers about what lies below them and where their data are
    #[arg(long)]
    pub trust_chain: bool,
}

/// A format, of one disk or of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatWord {
    /// Which disk's, if not all.
    pub disk: Option<String>,
    /// Which.
    pub format: ImageFormat,
}

impl FromStr for FormatWord {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let (disk, format) = text.rsplit_once('=').map_or((None, text), |(disk, format)| (Some(disk.to_owned()), format));
        Ok(Self { disk, format: format.parse()? })
    }
}

/// Whose backups a VM's are, where that is not to be asked from it.
#[derive(Debug, Clone, Args)]
pub struct IdentityArguments {
    /// Name of the VM (else what QEMU says, else the socket's or first image's name)
    #[arg(long, value_name = "NAME", requires = "vm")]
    pub name: Option<String>,
    /// UUID of the VM (else what QEMU says); backups with the same UUID, or without one the same name, are one sequence
    #[arg(long, value_name = "UUID", requires = "vm")]
    pub uuid: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(list: &[(Option<&str>, &str)]) -> VmPlace {
        VmPlace::Images(list.iter().map(|(label, file)| (label.map(str::to_owned), PathBuf::from(file))).collect())
    }

    #[test]
    fn every_form_of_a_vm() {
        for (text, expected) in [
            ("qmp:/run/a.sock", VmPlace::Qmp("/run/a.sock".into())),
            ("image:/a.qcow2", images(&[(None, "/a.qcow2")])),
            ("image:vda=/a.qcow2,/b=c.raw", images(&[(Some("vda"), "/a.qcow2"), (None, "/b=c.raw")])),
            ("image:/a,,b.raw", images(&[(None, "/a,b.raw")])),
            ("web01", VmPlace::Libvirt("web01".into())),
            ("libvirt:a:b", VmPlace::Libvirt("a:b".into())),
        ] {
            assert_eq!(expected.to_string(), text);
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_format_is_of_one_disk_or_of_all() {
        let word = |text: &str| text.parse::<FormatWord>().map(|word| (word.disk, word.format));
        assert_eq!(word("raw"), Ok((None, ImageFormat::Raw)));
        assert_eq!(word("vda=qcow2"), Ok((Some("vda".into()), ImageFormat::Qcow2)));
        assert!(word("vda=").is_err() && word("json:{}").is_err());
    }

    #[test]
    fn what_is_no_vm_says_what_was_expected() {
        for text in ["", "libvirt:", "./web01", "qmp:", "image:", "image:/a,", "image:=/a", "image:vda=", "http:/x"] {
            assert!(text.parse::<VmPlace>().is_err(), "{text}");
        }
    }
}
