//! Why a domain cannot be defined from a backup.

use std::collections::BTreeSet;
use std::path::PathBuf;

use keepmark_model::FailureClass;

use super::allow::Reach;

/// A failure of defining a domain.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The name cannot be one.
    #[error("{name:?} cannot be the name of a domain")]
    Name {
        /// As asked for.
        name: String,
    },
    /// The name is taken.
    #[error("libvirt has a domain {name:?} already")]
    NameTaken {
        /// As asked for.
        name: String,
    },
    /// The backup is of a VM that libvirt did not own.
    #[error("the backup of {vm} has no definition of a domain: it was not made of one of libvirt's")]
    NoDefinition {
        /// Whose backup.
        vm: String,
    },
    /// Networks or bridges of the definition are not on this host.
    #[error("this host has no {}, which the VM is connected to", names.join(" and no "))]
    NoNetwork {
        /// With their kind: `network default`.
        names: Vec<String>,
        /// The bare name of the first.
        first: String,
        /// What there is.
        known: Vec<String>,
        /// The file of the backup with the first one's definition.
        saved: Option<String>,
    },
    /// What a network was to be replaced by is not there.
    #[error("this host has neither a network nor a bridge {name:?}")]
    NoSuchNetwork {
        /// As asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A network was to be replaced that the VM does not have.
    #[error("the VM is not connected to a network or bridge {name:?}")]
    NotConnected {
        /// As asked for.
        name: String,
        /// What it is connected to.
        known: Vec<String>,
    },
    /// A disk was not wanted that the VM does not have.
    #[error("the VM has no disk {name:?}")]
    NoSuchDisk {
        /// As asked for.
        name: String,
        /// What it has.
        known: Vec<String>,
    },
    /// The definition reaches to the host.
    #[error("{}", reaching(reaches, foreign))]
    Reaches {
        /// By what, as far as it was not allowed.
        reaches: Vec<Reach>,
        /// Disks of the original that a copy would write to: target and source.
        foreign: Vec<(String, String)>,
        /// The newest backup that has those disks, too.
        complete: Option<String>,
    },
    /// Something is where a file would go.
    #[error("{} exists already", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// libvirt does not take the definition.
    #[error("the VM could not be defined; its restored files are in {}, its definition is {}", folder.display(), folder.join("domain.xml").display())]
    NotDefined {
        /// Where the files are.
        folder: PathBuf,
        /// libvirt's own words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is defined and does not start.
    #[error("domain {name} is restored and defined, but does not start")]
    NotStarted {
        /// Which.
        name: String,
        /// libvirt's own words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn reaching(reaches: &[Reach], foreign: &[(String, String)]) -> String {
    let disks = foreign
        .iter()
        .map(|(target, source)| format!("a copy would write to the original's disk {target} at {source}, which is not in the backup"));
    let named = reaches.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let rest = (!reaches.is_empty()).then(|| format!("the definition in the backup reaches to this host: {named}"));
    disks.chain(rest).collect::<Vec<_>>().join("; ")
}

fn way_out(reaches: &[Reach], foreign: &[(String, String)], complete: Option<&String>) -> String {
    let words: BTreeSet<&str> = reaches.iter().map(|reach| reach.word.word()).collect();
    let trusted = "if you know what all of it does (`keepmark show BACKUP --file domain.xml`), allow it:";
    let allow = (!words.is_empty()).then(|| format!("{trusted} --allow {}", words.into_iter().collect::<Vec<_>>().join(",")));
    let without = foreign.iter().map(|(target, _)| format!("--without-disk {target}")).collect::<Vec<_>>().join(" ");
    let other = complete.map(|name| format!("; backup {name} has all of them")).unwrap_or_default();
    let leave = (!foreign.is_empty()).then(|| format!("leave out what is not in the backup: {without}{other}"));
    leave.into_iter().chain(allow).collect::<Vec<_>>().join("; ")
}

impl Problem {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::Name { .. }
            | Self::NoDefinition { .. }
            | Self::NoSuchNetwork { .. }
            | Self::NoSuchDisk { .. }
            | Self::NotConnected { .. } => FailureClass::Usage,
            Self::NameTaken { .. }
            | Self::NoNetwork { .. }
            | Self::Reaches { .. }
            | Self::Exists { .. }
            | Self::NotDefined { .. }
            | Self::NotStarted { .. } => FailureClass::Failed,
        }
    }

    pub(crate) fn hint(&self) -> Option<String> {
        let listed = |known: &[String]| if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Some(match self {
            Self::Name { .. } => "it is the name of a folder, too: no slash, nothing invisible".into(),
            Self::NameTaken { name } => format!(
                "choose another name with --define; or, if the backup is to replace it, shut it down, then: \
                 `virsh undefine {name} --keep-nvram --keep-tpm --checkpoints-metadata` (its disks stay, too)"
            ),
            Self::NoDefinition { .. } => "restore the disks with --to DIR, then make a VM of them, for example: \
                 `virt-install --import --osinfo detect=on,require=off --memory 4096 --disk DIR/vda.raw`; vm.json in the backup tells what QEMU had"
                .into(),
            Self::NoNetwork { first, known, saved, .. } => {
                let how = saved.as_ref().map(|file| format!(" (`keepmark show BACKUP --file {file}` tells how it was)")).unwrap_or_default();
                format!("say what stands for it with --network {first}=NEW (this host has: {}), or make it first{how}", listed(known))
            }
            Self::NoSuchDisk { known, .. } => format!("it has: {}", listed(known)),
            Self::Reaches { reaches, foreign, complete } => way_out(reaches, foreign, complete.as_ref()),
            Self::NoSuchNetwork { known, .. } => format!("this host has: {}", listed(known)),
            Self::NotConnected { known, .. } => format!("it is connected to: {}", listed(known)),
            Self::Exists { .. } => "choose another place with --to, or overwrite it with --force".into(),
            Self::NotDefined { folder, .. } => {
                format!("change what libvirt names, then: `virsh define {}`", folder.join("domain.xml").display())
            }
            Self::NotStarted { name, .. } => format!("cure what libvirt names (`virsh edit {name}`), then: `virsh start {name}`"),
        })
    }
}
