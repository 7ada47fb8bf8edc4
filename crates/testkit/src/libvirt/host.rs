//! A libvirtd of a test's own.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::namespace::Namespace;
use super::{Domain, DomainBuilder, Strike};
use crate::process::{output, run, wait_for};
use crate::{OrFail, Serial, fail};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// No security drivers and no cgroups: what a container without systemd allows.
const QEMU_CONF: &str = r#"security_driver = "none"
remember_owner = 0
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"#;

const LIBVIRTD_CONF: &str = r#"auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
"#;

/// A host with a libvirtd; dropping it ends libvirtd and all its domains as a power cut would.
#[derive(Debug)]
pub struct LibvirtHost {
    dir: PathBuf,
    namespace: Namespace,
}

impl LibvirtHost {
    /// Starts one whose files lie in `dir`, which is made; returns when it answers. Its QEMUs run as root. Needs root.
    #[must_use]
    #[track_caller]
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\n")
    }

    /// The same with QEMUs of the user `libvirt-qemu`, as Debian has it: libvirt gives them the images while they run. That user must
    /// get through to `dir` and to the images.
    #[must_use]
    #[track_caller]
    pub fn start_unprivileged(dir: &Path) -> Self {
        Self::start_with(dir, "user = \"libvirt-qemu\"\ngroup = \"libvirt-qemu\"\ndynamic_ownership = 1\n")
    }

    #[track_caller]
    fn start_with(dir: &Path, users: &str) -> Self {
        for name in ["run", "etc", "lib", "cache", "log", "domains"] {
            let folder = dir.join(name);
            std::fs::create_dir_all(&folder).or_fail(format_args!("making {}", folder.display()));
        }
        write(&dir.join("etc/qemu.conf"), &format!("{QEMU_CONF}{users}"));
        // QEMU writes its consoles' logs there.
        std::fs::set_permissions(dir.join("domains"), Permissions::from_mode(0o777)).or_fail("opening a folder to QEMU");
        // Hosts of one machine are different hosts.
        let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").or_fail("asking for a random UUID");
        write(&dir.join("etc/libvirtd.conf"), &format!("{LIBVIRTD_CONF}host_uuid = \"{}\"\n", id.trim()));
        write_emulator(&dir.join("qemu"));
        let host = Self { dir: dir.to_owned(), namespace: Namespace::enter(dir) };
        host.start_libvirtd();
        host
    }

    /// How virsh and keepmark reach it from anywhere on this machine.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.dir.join("run/libvirt-sock").display())
    }

    /// The folder of its files: `lib` is its `/var/lib/libvirt`, likewise `etc`, `run`, `cache` and `log`.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The QEMU that its domains run: the tests' QEMU, which prints at once what it prints.
    #[must_use]
    pub fn emulator(&self) -> PathBuf {
        self.dir.join("qemu")
    }

    /// A command that runs on this host, where `/var/lib/libvirt` and so on are the host's own.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// A domain of another host's, with the same storage, that has moved here.
    #[must_use]
    pub fn moved(&self, domain: &Domain<'_>) -> Domain<'_> {
        Domain::new(self, domain.name(), domain.disks().to_vec())
    }

    /// Runs virsh and gives what it printed; a failure ends the test.
    #[track_caller]
    pub fn virsh(&self, arguments: &[&str]) -> String {
        run(&mut self.virsh_command(arguments))
    }

    /// Runs virsh.
    ///
    /// # Errors
    /// What it said on stderr.
    #[track_caller]
    pub fn try_virsh(&self, arguments: &[&str]) -> Result<String, String> {
        let output = output(&mut self.virsh_command(arguments));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// virsh as a command, connected to this host.
    #[must_use]
    pub fn virsh_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &self.uri()]).args(arguments).env("LC_ALL", "C");
        command
    }

    /// A domain of this host, whose serial console and further files lie in `DIR/domains/NAME`; not defined yet.
    #[must_use]
    pub fn domain(&self, name: &str) -> DomainBuilder<'_> {
        DomainBuilder::new(self, name)
    }

    /// Defines a domain by its XML.
    #[track_caller]
    pub fn define(&self, xml: &str) {
        let file = tempfile::NamedTempFile::new_in(&self.dir).or_fail("making a file for XML");
        write(file.path(), xml);
        self.virsh(&["define", &file.path().display().to_string()]);
    }

    /// A domain that somebody has defined, with no more known about it than its name.
    #[must_use]
    pub fn defined(&self, name: &str) -> Domain<'_> {
        Domain::new(self, name, Vec::new())
    }

    /// The serial console of a running domain whose definition was made by [`DomainBuilder`] for a domain `name`. One at a time.
    #[must_use]
    #[track_caller]
    pub fn serial(&self, name: &str) -> Serial {
        let folder = self.dir.join("domains").join(name);
        Serial::on_socket(folder.join("serial"), &folder.join("serial.sock"))
    }

    /// libvirtd's process id, to trace or signal it; none while it does not run.
    #[must_use]
    pub fn libvirtd(&self) -> Option<u32> {
        self.process("run/libvirtd.pid")
    }

    /// The process id of an active domain's QEMU.
    #[must_use]
    pub fn qemu(&self, domain: &str) -> Option<u32> {
        self.process(&format!("run/qemu/{domain}.pid"))
    }

    /// Kills libvirtd as a crash would. Domains go on.
    #[track_caller]
    pub fn kill_libvirtd(&self) {
        self.namespace.end(self.libvirtd().or_fail("libvirtd does not run"), Signal::KILL);
    }

    /// Has libvirtd stand still, as if it hung: whoever asks it waits. Domains go on.
    #[track_caller]
    pub fn pause_libvirtd(&self) {
        self.namespace.signal(self.libvirtd().or_fail("libvirtd does not run"), Signal::STOP);
    }

    /// Lets it go on.
    #[track_caller]
    pub fn resume_libvirtd(&self) {
        self.namespace.signal(self.libvirtd().or_fail("libvirtd does not run"), Signal::CONT);
    }

    /// Has libvirtd die, as in a crash, when it next touches a file by this path, which is the host's own view of it.
    #[must_use]
    #[track_caller]
    pub fn kill_libvirtd_at(&self, path: &str) -> Strike {
        Strike::lay(self.libvirtd().or_fail("libvirtd does not run"), path, &self.dir.join("strike.log"))
    }

    /// Ends libvirtd if it runs and starts it; returns when it answers. Domains go on.
    #[track_caller]
    pub fn restart_libvirtd(&self) {
        if let Some(id) = self.libvirtd() {
            self.namespace.end(id, Signal::TERM);
        }
        self.start_libvirtd();
    }

    /// Kills a domain's QEMU as a crash would, and waits until libvirtd, if it runs, has seen it.
    #[track_caller]
    pub fn kill_qemu(&self, domain: &str) {
        self.namespace.end(self.qemu(domain).or_fail(format_args!("domain {domain} does not run")), Signal::KILL);
        if self.libvirtd().is_some() {
            wait_for("libvirtd to see that QEMU is gone", START_TIMEOUT, || {
                self.try_virsh(&["domstate", domain]).map_or(true, |state| state.trim() == "shut off").then_some(())
            });
        }
    }

    /// All processes of the host, by id.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        self.namespace.processes()
    }

    /// What libvirtd has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log/libvirtd.log")).unwrap_or_default()
    }

    #[track_caller]
    fn start_libvirtd(&self) {
        let mut libvirtd = self.command("/usr/sbin/libvirtd");
        run(libvirtd.args(["--daemon", "--config", "/etc/libvirt/libvirtd.conf", "--pid-file", "/run/libvirt/libvirtd.pid"]));
        wait_for("libvirtd to answer", START_TIMEOUT, || {
            if self.libvirtd().is_none() {
                fail(format_args!("libvirtd ended: {}", self.log()));
            }
            self.try_virsh(&["list"]).ok()
        });
    }

    /// The process whose id inside stands in a file of ours. The file may have outlived it.
    fn process(&self, file: &str) -> Option<u32> {
        let inner = std::fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()?;
        self.namespace.outer_id(inner)
    }
}

/// HMP's qemu-io prints to stdout, which QEMU would keep back when that is a file.
fn write_emulator(path: &Path) {
    let qemu = std::env::var("KEEPMARK_TEST_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    write(path, &format!("#!/bin/sh\nexec stdbuf -oL {qemu} \"$@\"\n"));
    std::fs::set_permissions(path, Permissions::from_mode(0o755)).or_fail("making the emulator executable");
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).or_fail(format_args!("writing {}", path.display()));
}
