//! A domain of a test's host: what a test does to it and asks of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::LibvirtHost;
use super::builder::MONITOR;
use crate::image::{self, Format, check_io};
use crate::process::{Owned, wait_for};
use crate::qmp::bitmaps_of;
use crate::{Disk, OrFail, Qmp, Serial, Witness, fail};

const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
const MONITOR_TIMEOUT: Duration = Duration::from_secs(30);

/// A domain of a host. It lives as long as the host, not as this value.
#[derive(Clone, Debug)]
pub struct Domain<'h> {
    host: &'h LibvirtHost,
    name: String,
    disks: Vec<Disk>,
}

impl<'h> Domain<'h> {
    pub(super) fn new(host: &'h LibvirtHost, name: &str, disks: Vec<Disk>) -> Self {
        Self { host, name: name.to_owned(), disks }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disks that it was defined with.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// The same domain, known to have these disks.
    #[must_use]
    pub fn with_disks(self, disks: &[Disk]) -> Self {
        Self { disks: disks.to_vec(), ..self }
    }

    /// Runs `virsh COMMAND NAME ARGUMENTS...`; a failure ends the test.
    #[track_caller]
    pub fn virsh(&self, command: &str, arguments: &[&str]) -> String {
        self.host.virsh(&[&[command, &self.name], arguments].concat())
    }

    /// The same.
    ///
    /// # Errors
    /// What virsh said on stderr.
    #[track_caller]
    pub fn try_virsh(&self, command: &str, arguments: &[&str]) -> Result<String, String> {
        self.host.try_virsh(&[&[command, &self.name], arguments].concat())
    }

    // ---- life -----------------------------------------------------------------------------------------------------------

    /// Starts it, or restores it if it was saved by `managedsave`.
    #[track_caller]
    pub fn start(&self) {
        self.virsh("start", &[]);
    }

    /// Ends it as if its power were cut, but QEMU cleanly, which stores its bitmaps.
    #[track_caller]
    pub fn destroy(&self) {
        self.virsh("destroy", &[]);
    }

    /// Kills its QEMU as a crash would.
    #[track_caller]
    pub fn kill_qemu(&self) {
        self.host.kill_qemu(&self.name);
    }

    /// Has a dead job of libvirt's hold it: libvirtd is killed while it prepares a backup, and started again. QEMU, which answers nothing
    /// meanwhile, got nothing of it.
    #[track_caller]
    pub fn wedge(&self) {
        let qemu = Pid::from_raw(self.host.qemu(&self.name).or_fail("the domain does not run").cast_signed()).or_fail("no such process");
        let signal = |signal| kill_process(qemu, signal).or_fail("signalling QEMU");
        let status = self.host.dir().join(format!("run/qemu/{}.xml", self.name));
        let backup = self.host.dir().join("wedge.xml");
        std::fs::write(&backup, "<domainbackup/>").or_fail("writing the backup's description");
        signal(Signal::STOP);
        let mut begin = self.host.virsh_command(&["backup-begin", &self.name]);
        let mut begin = Owned::spawn(begin.arg(&backup).stdout(Stdio::null()).stderr(Stdio::null()));
        wait_for("libvirt's backup job", BOOT_TIMEOUT, || {
            std::fs::read_to_string(&status).is_ok_and(|text| text.contains("async='backup'")).then_some(())
        });
        self.host.kill_libvirtd();
        signal(Signal::CONT);
        begin.wait(BOOT_TIMEOUT);
        self.host.restart_libvirtd();
        let refused = self.try_virsh("domjobinfo", &[]).err().or_fail("no dead job holds the domain");
        assert!(refused.contains("job data missing"), "{refused}");
    }

    /// libvirt's word for its state: `running`, `paused`, `shut off`.
    #[must_use]
    #[track_caller]
    pub fn state(&self) -> String {
        self.virsh("domstate", &[]).trim().to_owned()
    }

    /// Waits until libvirt says that it is shut off.
    #[track_caller]
    pub fn wait_off(&self) {
        wait_for("the domain to be shut off", BOOT_TIMEOUT, || (self.state() == "shut off").then_some(()));
    }

    // ---- monitor --------------------------------------------------------------------------------------------------------

    /// Executes a QMP command; an error ends the test.
    #[track_caller]
    pub fn qmp(&self, command: &str, arguments: Value) -> Value {
        let line = json!({"execute": command, "arguments": arguments}).to_string();
        let answer: Value = serde_json::from_str(&self.virsh("qemu-monitor-command", &[&line])).or_fail("reading QEMU's answer");
        if answer["error"].is_null() { answer["return"].clone() } else { fail(format_args!("QMP {command}: {}", answer["error"])) }
    }

    /// The second monitor of the running domain, past libvirt, if it was built with one. One at a time.
    #[must_use]
    #[track_caller]
    pub fn monitor(&self) -> Qmp {
        let socket = self.host.dir().join("domains").join(&self.name).join(MONITOR);
        wait_for("the domain's second monitor", MONITOR_TIMEOUT, || Qmp::try_connect(&socket))
    }

    /// Executes a command of the human monitor and gives what it printed.
    #[track_caller]
    pub fn hmp(&self, line: &str) -> String {
        self.virsh("qemu-monitor-command", &["--hmp", line])
    }

    /// Runs a qemu-io command on a disk in its QEMU, as the guest would; what fails or mismatches ends the test.
    #[track_caller]
    pub fn qemu_io(&self, disk: &str, command: &str) -> String {
        let text = self.try_qemu_io(disk, command);
        check_io(&text);
        text
    }

    /// The same, giving what qemu-io printed whether it succeeded or not.
    #[track_caller]
    pub fn try_qemu_io(&self, disk: &str, command: &str) -> String {
        let log = self.host.dir().join(format!("log/qemu/{}.log", self.name));
        let before = std::fs::read_to_string(&log).or_fail("reading QEMU's log").len();
        let refused = self.hmp(&format!("qemu-io -d {} \"{command}\"", self.device(disk)));
        let after = std::fs::read_to_string(&log).or_fail("reading QEMU's log");
        format!("{refused}{}", &after[before..])
    }

    /// Writes `length` bytes of `pattern` at `offset` as the guest would.
    #[track_caller]
    pub fn write(&self, disk: &str, pattern: u8, offset: u64, length: u64) {
        self.qemu_io(disk, &format!("write -P {pattern} {offset} {length}"));
    }

    /// Fails the test unless the guest reads `pattern` everywhere in that range.
    #[track_caller]
    pub fn expect_pattern(&self, disk: &str, pattern: u8, offset: u64, length: u64) {
        self.qemu_io(disk, &format!("read -P {pattern} {offset} {length}"));
    }

    /// The image that a disk writes to now.
    #[must_use]
    #[track_caller]
    pub fn source(&self, disk: &str) -> PathBuf {
        let list = self.virsh("domblklist", &[]);
        let found = list.lines().find_map(|line| line.trim().strip_prefix(disk)?.strip_prefix(' '));
        PathBuf::from(found.or_fail(format_args!("domain {} has no disk {disk}:\n{list}", self.name)).trim())
    }

    /// Names of the bitmaps on all nodes, with the node's name, sorted; without those that jobs use internally.
    #[must_use]
    #[track_caller]
    pub fn bitmaps(&self) -> Vec<(String, String)> {
        bitmaps_of(&self.qmp("query-named-block-nodes", json!({"flat": true})))
    }

    /// Names of the checkpoints that libvirt knows, parents first.
    #[must_use]
    #[track_caller]
    pub fn checkpoints(&self) -> Vec<String> {
        self.virsh("checkpoint-list", &["--name", "--topological"]).split_whitespace().map(str::to_owned).collect()
    }

    /// The path of a disk's device, by what QEMU says of the image in it.
    #[track_caller]
    fn device(&self, disk: &str) -> String {
        let source = self.source(disk);
        let blocks = self.qmp("query-block", json!({}));
        let mut found =
            blocks.as_array().into_iter().flatten().filter(|block| block["inserted"]["file"].as_str().map(Path::new) == Some(&source));
        let device = found.next().and_then(|block| block["qdev"].as_str());
        device.or_fail(format_args!("QEMU has no device with {}: {blocks}", source.display())).to_owned()
    }

    // ---- truth ----------------------------------------------------------------------------------------------------------

    /// Copies the disks as they are now into `dir`, which is made, for comparison with a backup whose moment is at any time
    /// in which nobody writes, or while the domain is suspended. QEMU is paused for it: it writes out everything then.
    #[must_use]
    #[track_caller]
    pub fn witness(&self, dir: &Path) -> Witness {
        let is_running = self.state() == "running";
        if is_running {
            self.virsh("suspend", &[]);
        }
        let witness = Witness::by(&self.disks, dir, |disk, copy| {
            let top = self.source(&disk.name);
            let format = if top == disk.file { disk.format } else { Format::Qcow2 };
            image::convert_shared(&top, format, copy);
        });
        if is_running {
            self.virsh("resume", &[]);
        }
        witness
    }

    /// The socket on which a backup job of libvirt serves its frozen moment now; none if there is no such job.
    #[must_use]
    #[track_caller]
    pub fn backup_socket(&self) -> Option<PathBuf> {
        attribute(&self.try_virsh("backup-dumpxml", &[]).ok()?, "socket").map(PathBuf::from)
    }

    /// Waits for a backup job and copies its frozen moment, as libvirt serves it, into `dir`, which is made.
    /// Whoever made the job must not end it meanwhile.
    #[must_use]
    #[track_caller]
    pub fn witness_of_backup(&self, dir: &Path) -> Witness {
        let xml = wait_for("a backup job of libvirt", BOOT_TIMEOUT, || self.try_virsh("backup-dumpxml", &[]).ok());
        let socket = attribute(&xml, "socket").or_fail("the job serves on no socket");
        Witness::by(&self.disks, dir, |disk, copy| {
            let tag = xml.split('<').find(|tag| tag.starts_with("disk ") && attribute(tag, "name").as_ref() == Some(&disk.name));
            let export = tag.and_then(|tag| attribute(tag, "exportname")).unwrap_or_else(|| disk.name.clone());
            let export = PathBuf::from(format!("nbd+unix:///{export}?socket={socket}"));
            image::convert(&export, Format::Raw, copy, Format::Raw);
        })
    }

    // ---- guest ----------------------------------------------------------------------------------------------------------

    /// The serial console of the running domain. One at a time.
    #[must_use]
    #[track_caller]
    pub fn serial(&self) -> Serial {
        self.host.serial(&self.name)
    }

    /// The console, after the guest has booted and mounted what it was told to.
    #[must_use]
    #[track_caller]
    pub fn wait_ready(&self) -> Serial {
        let serial = self.serial();
        serial.wait_for("KM-READY", BOOT_TIMEOUT);
        serial
    }
}

/// The first attribute of this name. Nothing that a test reads so is escaped.
fn attribute(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!(" {name}='"))?;
    rest.split('\'').next().map(str::to_owned)
}
