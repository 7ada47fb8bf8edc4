//! Words by which an operator allows what a definition reaches to on the host: a closed list.

use std::fmt;

/// One kind of reaching to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Allow {
    /// Command lines and overrides that libvirt hands to QEMU unread.
    QemuArguments,
    /// Programs that libvirt runs: scripts of network interfaces, helpers of shared folders.
    Script,
    /// An emulator that libvirt does not list.
    Emulator,
    /// Files that are not of the backup: disks and media, consoles, logs, kernels, tables.
    HostFile,
    /// Devices: passed through, as a disk, as a console, or otherwise.
    HostDevice,
    /// Folders.
    SharedFolder,
    /// Memory that other processes share.
    SharedMemory,
    /// Unix sockets at a place that the definition names.
    Socket,
    /// Connections to others, and ports for them.
    NetworkAddress,
    /// Users, groups and labels under which QEMU runs.
    Label,
    /// What this program does not know.
    Unknown,
}

impl Allow {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::QemuArguments,
        Self::Script,
        Self::Emulator,
        Self::HostFile,
        Self::HostDevice,
        Self::SharedFolder,
        Self::SharedMemory,
        Self::Socket,
        Self::NetworkAddress,
        Self::Label,
        Self::Unknown,
    ];

    /// As it is said on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::QemuArguments => "qemu-arguments",
            Self::Script => "script",
            Self::Emulator => "emulator",
            Self::HostFile => "host-file",
            Self::HostDevice => "host-device",
            Self::SharedFolder => "shared-folder",
            Self::SharedMemory => "shared-memory",
            Self::Socket => "socket",
            Self::NetworkAddress => "network-address",
            Self::Label => "label",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Something of a definition that reaches to the host and was not allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach {
    /// What would allow it.
    pub word: Allow,
    /// Which thing, as a noun.
    pub what: String,
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.what, self.word)
    }
}
