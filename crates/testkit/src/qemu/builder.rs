//! What to start: machine, disks, guest and monitors of a test VM.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Attach, Disk, Qemu};
use crate::guest::CommandLine;
use crate::process::Owned;
use crate::{Guest, OrFail, Serial};

/// The machine to emulate, always by software (TCG).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// The old PC; boots fastest.
    Pc,
    /// The newer PC.
    Q35,
    /// No machine at all: nodes only, no devices and no guest.
    None,
}

/// What to start. Without a guest the machine finds nothing to boot and idles: it is "running" but writes nothing.
#[derive(Clone, Debug)]
pub struct QemuBuilder {
    pub(super) dir: PathBuf,
    pub(super) disks: Vec<Disk>,
    pub(super) agent: bool,
    pub(super) guest: Option<Guest>,
    machine: Machine,
    name: String,
    uuid: Option<String>,
    paused: bool,
    command_line: CommandLine,
    memory_mib: u32,
    extra: Vec<String>,
}

impl QemuBuilder {
    /// A VM called `test-vm` whose sockets and logs lie in `dir` (one folder per VM).
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            disks: Vec::new(),
            agent: false,
            guest: None,
            machine: Machine::Pc,
            name: "test-vm".to_owned(),
            uuid: None,
            paused: false,
            command_line: CommandLine::default(),
            memory_mib: 256,
            extra: Vec::new(),
        }
    }

    /// Emulates this machine.
    #[must_use]
    pub fn machine(self, machine: Machine) -> Self {
        Self { machine, ..self }
    }

    /// Gives the VM a name.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Gives the VM a UUID.
    #[must_use]
    pub fn uuid(self, uuid: &str) -> Self {
        Self { uuid: Some(uuid.to_owned()), ..self }
    }

    /// Adds a disk; the guest numbers virtio and SCSI disks in the order in which they are added.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Leaves the VM in prelaunch (`-S`).
    #[must_use]
    pub fn paused(self) -> Self {
        Self { paused: true, ..self }
    }

    /// Boots the test guest.
    #[must_use]
    pub fn guest(self, guest: &Guest) -> Self {
        Self { guest: Some(guest.clone()), ..self }
    }

    /// Adds a guest agent's channel. Without a guest nobody answers there: an agent that hangs.
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

    /// Gives the VM that much memory (default: 256 MiB).
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// Adds arguments as they are.
    #[must_use]
    pub fn args(mut self, arguments: &[&str]) -> Self {
        self.extra.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Starts it; returns when the monitors answer.
    #[must_use]
    #[track_caller]
    pub fn start(self) -> Qemu {
        let serial = Serial::make(&self.dir);
        let mut command = self.command();
        let stdout = self.dir.join("stdout.log");
        let stderr = self.dir.join("stderr.log");
        command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).or_fail("making stdout.log"))
            .stderr(File::create(&stderr).or_fail("making stderr.log"));
        Qemu::attach(self, Owned::spawn(&mut command), serial)
    }

    fn command(&self) -> Command {
        let qemu = std::env::var("KEEPMARK_TEST_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
        // HMP's qemu-io prints to stdout, which QEMU would keep back when that is a file.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", &qemu]).args(self.arguments());
        command
    }

    fn arguments(&self) -> Vec<String> {
        let machine = match self.machine {
            Machine::Pc => "pc",
            Machine::Q35 => "q35",
            Machine::None => "none",
        };
        let name = self.name.replace(',', ",,");
        let fixed = "-accel tcg -nodefaults -no-user-config -display none -no-reboot";
        let mut arguments: Vec<String> = fixed.split(' ').map(str::to_owned).collect();
        arguments.extend(["-machine".into(), machine.into(), "-name".into(), format!("guest={name}")]);
        for socket in ["qmp", "control", "witness"] {
            arguments.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", self.path(socket))]);
        }
        if let Some(uuid) = &self.uuid {
            arguments.extend(["-uuid".into(), uuid.clone()]);
        }
        if self.paused {
            arguments.push("-S".into());
        }
        if self.machine != Machine::None {
            arguments.extend(self.hardware());
        }
        arguments.extend(self.disks.iter().flat_map(Disk::arguments));
        arguments.extend(self.extra.iter().cloned());
        arguments
    }

    fn hardware(&self) -> Vec<String> {
        // Only devices with a boot index may be booted from, and none has one: a disk full of patterns is never run.
        let mut line = format!("-boot strict=on -m {}", self.memory_mib);
        line += &format!(" -chardev file,id=serial,path={},input-path={}", self.path("serial"), self.path("serial.in"));
        line += " -device isa-serial,chardev=serial";
        if self.disks.iter().any(|disk| disk.attach == Attach::Scsi) {
            line += " -device virtio-scsi-pci,id=scsi0";
        }
        if self.agent {
            line += &format!(" -chardev socket,id=agent,path={},server=on,wait=off", self.path("agent"));
            line += " -device virtio-serial-pci -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0";
        }
        let mut arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if let Some(guest) = &self.guest {
            arguments.extend(["-kernel".into(), guest.kernel.display().to_string()]);
            arguments.extend(["-initrd".into(), guest.initramfs.display().to_string()]);
            arguments.extend(["-append".into(), self.command_line.to_string()]);
        }
        arguments
    }

    /// Where a socket or log called `name` lies. Temporary folders have neither spaces nor commas in their names.
    pub(super) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}
