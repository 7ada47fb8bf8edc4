//! What a test's domain consists of, as libvirt's XML.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Domain, LibvirtHost};
use crate::guest::CommandLine;
use crate::{Disk, Guest, OrFail};

/// The second monitor's socket, in the domain's folder.
pub(super) const MONITOR: &str = "monitor.sock";

/// A domain to define. Without a guest it finds nothing to boot and idles: it is "running" but writes nothing.
#[derive(Clone, Debug)]
pub struct DomainBuilder<'h> {
    host: &'h LibvirtHost,
    name: String,
    uuid: Option<String>,
    disks: Vec<Disk>,
    guest: Option<Guest>,
    agent: bool,
    command_line: CommandLine,
    memory_mib: u32,
    os: String,
    devices: String,
    monitor: bool,
}

impl<'h> DomainBuilder<'h> {
    pub(super) fn new(host: &'h LibvirtHost, name: &str) -> Self {
        Self {
            host,
            name: name.to_owned(),
            uuid: None,
            disks: Vec::new(),
            guest: None,
            agent: false,
            command_line: CommandLine::default(),
            memory_mib: 32,
            os: String::new(),
            devices: String::new(),
            monitor: false,
        }
    }

    /// Gives the domain a UUID.
    #[must_use]
    pub fn uuid(self, uuid: &str) -> Self {
        Self { uuid: Some(uuid.to_owned()), ..self }
    }

    /// Adds a disk; its name is its target (`vda` is on virtio, `sda` on SCSI) and its serial number in the guest.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Boots the test guest.
    #[must_use]
    pub fn guest(self, guest: &Guest) -> Self {
        Self { guest: Some(guest.clone()), memory_mib: self.memory_mib.max(256), ..self }
    }

    /// Adds the guest agent's channel. Without a guest nobody answers there: an agent that hangs.
    #[must_use]
    pub fn agent(self) -> Self {
        Self { agent: true, ..self }
    }

    /// Has the guest mount these disks (ext4) under `/mnt/NAME`.
    #[must_use]
    pub fn mount(mut self, disks: &[&str]) -> Self {
        self.command_line.mount(disks);
        self
    }

    /// Has the guest write to the mounted `disk` all the time, `per_second` times 64 KiB at most, each write synced.
    #[must_use]
    pub fn writer(mut self, disk: &str, per_second: u32) -> Self {
        self.command_line.writer(disk, per_second);
        self
    }

    /// Adds to the guest's kernel command line.
    #[must_use]
    pub fn kernel_argument(mut self, argument: &str) -> Self {
        self.command_line.add(argument);
        self
    }

    /// Adds XML to `<os>`.
    #[must_use]
    pub fn os(mut self, xml: &str) -> Self {
        self.os.push_str(xml);
        self
    }

    /// Adds XML to `<devices>`.
    #[must_use]
    pub fn device(mut self, xml: &str) -> Self {
        self.devices.push_str(xml);
        self
    }

    /// Adds a second monitor beside libvirt's, on [`Domain::monitor`]: it answers while libvirtd is dead.
    #[must_use]
    pub fn monitor(self) -> Self {
        Self { monitor: true, ..self }
    }

    /// Defines it, shut off.
    #[track_caller]
    pub fn define(self) -> Domain<'h> {
        self.make_folder();
        self.host.define(&self.xml());
        Domain::new(self.host, &self.name, self.disks)
    }

    /// Defines and starts it.
    #[track_caller]
    pub fn start(self) -> Domain<'h> {
        let domain = self.define();
        domain.start();
        domain
    }

    /// Starts it without defining it: it is gone when it ends.
    #[track_caller]
    pub fn start_transient(self) -> Domain<'h> {
        self.make_folder();
        let file = self.folder().join("transient.xml");
        std::fs::write(&file, self.xml()).or_fail("writing a domain's XML");
        self.host.virsh(&["create", &file.display().to_string()]);
        Domain::new(self.host, &self.name, self.disks)
    }

    /// The domain as libvirt reads it.
    #[must_use]
    pub fn xml(&self) -> String {
        let name = escaped(&self.name);
        let uuid = self.uuid.as_ref().map(|uuid| format!("<uuid>{uuid}</uuid>")).unwrap_or_default();
        let disks: String = self.disks.iter().map(disk_xml).collect();
        format!(
            "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{name}</name>{uuid}<memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type>{boot}{os}</os><features><acpi/></features><clock offset='utc'/>\
             <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
             <devices><emulator>{emulator}</emulator>{disks}{hardware}{devices}</devices>{monitor}</domain>",
            memory = self.memory_mib,
            boot = self.boot_xml(),
            os = self.os,
            emulator = escaped_path(&self.host.emulator()),
            hardware = self.hardware_xml(),
            devices = self.devices,
            monitor = self.monitor_xml(),
        )
    }

    fn boot_xml(&self) -> String {
        let Some(guest) = &self.guest else {
            // There is no network: a disk full of patterns is never run.
            return "<boot dev='network'/>".to_owned();
        };
        format!(
            "<kernel>{}</kernel><initrd>{}</initrd><cmdline>{}</cmdline>",
            escaped_path(&absolute(&guest.kernel)),
            escaped_path(&absolute(&guest.initramfs)),
            escaped(&self.command_line.to_string()),
        )
    }

    fn hardware_xml(&self) -> String {
        let folder = self.folder();
        let (socket, log) = (escaped_path(&folder.join("serial.sock")), escaped_path(&folder.join("serial")));
        let mut xml = format!(
            "<controller type='usb' model='none'/><memballoon model='none'/>\
             <serial type='unix'><source mode='bind' path='{socket}'/><log file='{log}' append='off'/><target port='0'/></serial>"
        );
        if self.disks.iter().any(|disk| disk.name.starts_with("sd")) {
            xml += "<controller type='scsi' index='0' model='virtio-scsi'/>";
        }
        if self.agent {
            xml += "<channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
        }
        xml
    }

    fn monitor_xml(&self) -> String {
        if !self.monitor {
            return String::new();
        }
        let socket = escaped_path(&self.folder().join(MONITOR));
        format!("<qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:{socket},server=on,wait=off'/></qemu:commandline>")
    }

    /// QEMU, which may be of another user, writes there.
    fn make_folder(&self) {
        let folder = self.folder();
        std::fs::create_dir_all(&folder).or_fail(format_args!("making {}", folder.display()));
        std::fs::set_permissions(&folder, Permissions::from_mode(0o777)).or_fail("opening a folder to QEMU");
    }

    fn folder(&self) -> PathBuf {
        self.host.dir().join("domains").join(&self.name)
    }
}

fn disk_xml(disk: &Disk) -> String {
    let bus = if disk.name.starts_with("sd") { "scsi" } else { "virtio" };
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}' discard='unmap'/><source file='{file}'/>\
         <target dev='{name}' bus='{bus}'/><serial>{name}</serial></disk>",
        format = disk.format.name(),
        file = escaped_path(&disk.file),
        name = escaped(&disk.name),
    )
}

fn absolute(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).or_fail(format_args!("looking for {}", path.display()))
}

fn escaped_path(path: &Path) -> String {
    escaped(&path.display().to_string())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('"', "&quot;")
}
