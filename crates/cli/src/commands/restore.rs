//! `keepmark restore BACKUP`: disks of a backup as files or onto a device, or the whole VM as a domain of libvirt's.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use keepmark_engine::restore::{Format, RestoreJob, RestoredDisk, restore};
use keepmark_model::seam::BackupReader;
use keepmark_model::{DiskName, Failure, FailureClass};
use serde_json::{Value, json};

use crate::context::{self, Context};
use crate::exit::Outcome;
use crate::{define, output, store, text};

const EXAMPLES: &str = "\
Examples:
  keepmark restore web01@latest --define web01 --start           the whole VM, back under its name, and running
  keepmark restore web01@latest --define web01-test --network default=isolated   a copy beside it, with an identity of its own
  keepmark restore web01@latest --define web01 --allow host-device,shared-folder   with what its definition has of this host
  keepmark restore web01@latest --to /restored                   every disk, as /restored/<disk>.raw
  keepmark restore 3f9a1c0d --to /restored --format qcow2 --disk vda
  keepmark restore web01@-1 --disk vda --to /dev/vg0/web01 --force   onto a block device

Every byte is verified while it is written; a file gets its name only when it is complete.

--define makes a domain of libvirt's (--connect) out of the backup of one: disks, firmware and its variables, TPM state, definition. Its files
go to --to, else to /var/lib/libvirt/images/NAME (qemu:///session: ~/.local/share/libvirt/images/NAME). UUID and MAC addresses are kept where
the name stays and the UUID is free, else they are new. What cannot work (name taken, network missing) is refused before anything is written;
the domain is defined last, when all of its disks are complete.

Whoever can write into the store writes definitions, and libvirt does as root what they say. So what a definition reaches to on this host beyond
its restored disks and networks is dropped, with a note, or refused, by name, until --allow names its kind. VMs as virt-install makes them need no
--allow. A copy never gets a disk that the original writes to: --without-disk leaves out one that is not in the backup.";

/// Get disks of a backup back, as new files or onto a block device, or the whole VM.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RestoreArguments {
    /// An id or its first letters, VM@latest, VM@-1 or VM@TIME
    #[arg(value_name = "BACKUP")]
    pub backup: String,
    /// A folder (made if it is not there); with one --disk also a block device or an existing file
    #[arg(long, value_name = "DIR", required_unless_present = "define")]
    pub to: Option<PathBuf>,
    /// Define the VM in libvirt under this name, with all its disks
    #[arg(long, value_name = "NAME", conflicts_with = "disks")]
    pub define: Option<String>,
    /// Start it when it is defined
    #[arg(long, requires = "define")]
    pub start: bool,
    /// Connect to network or bridge NEW what was connected to OLD (may be given several times)
    #[arg(long = "network", value_name = "OLD=NEW", value_parser = mapping, requires = "define")]
    pub networks: Vec<(String, String)>,
    /// Go without this disk of the VM's (may be given several times)
    #[arg(long = "without-disk", value_name = "NAME", value_parser = DiskName::new, requires = "define")]
    pub without: Vec<DiskName>,
    /// Let the VM's definition reach to this host in these ways; only for a definition that you trust (may be given several times)
    #[arg(long = "allow", value_name = "WORD", value_enum, value_delimiter = ',', requires = "define")]
    pub allow: Vec<AllowArgument>,
    /// Format of the new images [default: what the target is called, else raw; with --define as they were, qcow2 or raw]
    #[arg(long, value_enum)]
    pub format: Option<FormatArgument>,
    /// Only this disk (may be given several times)
    #[arg(long = "disk", value_name = "NAME", value_parser = DiskName::new)]
    pub disks: Vec<DiskName>,
    /// Overwrite what is there
    #[arg(long)]
    pub force: bool,
}

/// `--allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AllowArgument {
    /// Command lines and overrides for QEMU itself
    QemuArguments,
    /// Programs that libvirt runs: scripts of network interfaces, helpers of shared folders
    Script,
    /// An emulator that this host's libvirt does not list
    Emulator,
    /// Files that are not in the backup: disks, media, consoles, logs, kernels, tables
    HostFile,
    /// Devices: passed through, as disks, as consoles, or otherwise
    HostDevice,
    /// Shared folders
    SharedFolder,
    /// Memory shared with other processes
    SharedMemory,
    /// Unix sockets at places that the definition names
    Socket,
    /// Connections to other machines, and ports for them
    NetworkAddress,
    /// Users, groups and security labels for QEMU
    Label,
    /// What keepmark does not know
    Unknown,
}

/// `--format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatArgument {
    /// The bytes as the guest saw them, sparse
    Raw,
    /// A qcow2 image
    Qcow2,
}

impl From<FormatArgument> for Format {
    fn from(argument: FormatArgument) -> Self {
        match argument {
            FormatArgument::Raw => Self::Raw,
            FormatArgument::Qcow2 => Self::Qcow2,
        }
    }
}

fn mapping(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(old, new)| !old.is_empty() && !new.is_empty());
    pair.map(|(old, new)| (old.to_owned(), new.to_owned())).ok_or_else(|| format!("{text:?} is not OLD=NEW"))
}

#[derive(Debug, thiserror::Error)]
#[error("--network names {name:?} twice")]
struct NamedTwice {
    name: String,
}

/// What was restored: its disks, and the domain where one was defined.
pub struct Restored {
    /// The disks.
    pub disks: Vec<RestoredDisk>,
    /// The domain.
    pub domain: Option<RestoredDomain>,
}

/// A domain that was defined.
#[derive(serde::Serialize)]
pub struct RestoredDomain {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Whether it was started.
    pub started: bool,
}

/// Runs it.
pub fn run(context: &Context, arguments: &RestoreArguments) -> Result<Outcome, Failure> {
    let networks = arguments.networks.iter().cloned().collect::<std::collections::BTreeMap<_, _>>();
    if let Some((name, _)) = arguments.networks.iter().find(|(old, new)| networks.get(old) != Some(new)) {
        return Err(Failure::new(FailureClass::Usage, NamedTwice { name: name.clone() }));
    }
    let store = store::open(context)?;
    let chosen = store::select(context, store.as_ref(), &arguments.backup)?;
    let reader = store.open(&chosen.id)?;
    let started = (context::world().elapsed)();
    let restored = match &arguments.define {
        Some(name) => define::run(context, arguments, name, networks, store.as_ref(), reader.as_ref())?,
        None => Restored { disks: disks(context, arguments, reader.as_ref())?, domain: None },
    };
    let took = (context::world().elapsed)().saturating_sub(started);
    if context.global.json {
        let mut event = json!({"event": "finished", "backup": chosen.id, "vm": chosen.manifest.vm.name, "duration_ms": took.as_millis(),
            "disks": restored.disks});
        if let Some(domain) = &restored.domain {
            event["domain"] = serde_json::to_value(domain).unwrap_or(Value::Null);
        }
        output::json(&event)?;
    } else {
        output::text(&human(&restored))?;
    }
    Ok(context.screen.outcome())
}

fn disks(context: &Context, arguments: &RestoreArguments, backup: &dyn BackupReader) -> Result<Vec<RestoredDisk>, Failure> {
    let job = RestoreJob {
        to: arguments.to.clone().unwrap_or_default(),
        format: arguments.format.map(Format::from),
        as_it_was: false,
        disks: arguments.disks.clone(),
        force: arguments.force,
        run_dir: context.run_dir(),
    };
    restore(backup, &job, &context.screen)
}

fn human(restored: &Restored) -> String {
    let line = |disk: &RestoredDisk| {
        let (size, data) = (text::size(disk.size), text::size(disk.data_bytes));
        format!("restored {} ({size}, {data} of data) to {}\n", disk.name, disk.path.display())
    };
    let mut lines: String = restored.disks.iter().map(line).collect();
    if let Some(RestoredDomain { name, uuid, started }) = &restored.domain {
        lines.push_str(&format!("defined {name} ({uuid}){}\n", if *started { " and started it" } else { "" }));
        if !started {
            lines.push_str(&format!("start it with: virsh start {name}\n"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::mapping;

    #[test]
    fn a_mapping_has_two_names() {
        assert_eq!(mapping("default=br0"), Ok(("default".into(), "br0".into())));
        for text in ["", "default", "=br0", "default="] {
            assert!(mapping(text).is_err(), "{text}");
        }
    }
}
