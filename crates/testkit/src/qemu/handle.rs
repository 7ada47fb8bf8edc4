//! A running QEMU, owned: what a test does to it and asks of it.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Disk, QemuBuilder};
use crate::image::check_io;
use crate::process::{Owned, wait_for};
use crate::qmp::bitmaps_of;
use crate::{Agent, OrFail, Qmp, Serial, fail, witness};

const START_TIMEOUT: Duration = Duration::from_secs(30);
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// A running QEMU; dropping it kills it.
#[derive(Debug)]
pub struct Qemu {
    /// The guest's serial console.
    pub serial: Serial,
    /// The tests' own monitor; the one on [`Self::qmp_socket`] is free for the program under test.
    pub control: Qmp,
    builder: QemuBuilder,
    process: Owned,
    /// QOM path of each disk's device as `query-block` says it, in the builder's order; none for nodes without a device.
    devices: Vec<Option<String>>,
}

impl Qemu {
    #[track_caller]
    pub(super) fn attach(builder: QemuBuilder, mut process: Owned, serial: Serial) -> Self {
        let socket = builder.dir.join("control");
        let stderr = builder.dir.join("stderr.log");
        let mut control = wait_for("QEMU's monitor", START_TIMEOUT, || {
            if let Some(status) = process.ended() {
                let text = std::fs::read_to_string(&stderr).unwrap_or_default();
                fail(format_args!("QEMU ended with {status}: {text}"));
            }
            Qmp::try_connect(&socket)
        });
        let blocks = control.execute("query-block", json!({}));
        let devices = builder.disks.iter().map(|disk| device_of(&blocks, disk)).collect();
        Self { serial, control, builder, process, devices }
    }

    /// The first monitor's socket, for the program under test.
    #[must_use]
    pub fn qmp_socket(&self) -> PathBuf {
        self.builder.dir.join("qmp")
    }

    /// The guest agent's socket.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.builder.dir.join("agent")
    }

    /// The monitor that a [`crate::PauseWitness`] uses.
    pub(crate) fn witness_socket(&self) -> PathBuf {
        self.builder.dir.join("witness")
    }

    /// How the first monitor is named on keepmark's command line.
    #[must_use]
    pub fn vm(&self) -> String {
        format!("qmp:{}", self.qmp_socket().display())
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The disks it was started with.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.builder.disks
    }

    /// What it was started from, to start it again.
    #[must_use]
    pub fn builder(&self) -> QemuBuilder {
        self.builder.clone()
    }

    /// Executes a QMP command on the tests' monitor; an error ends the test.
    #[track_caller]
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        self.control.execute(command, arguments)
    }

    /// Executes a command of the human monitor and gives what it printed.
    #[track_caller]
    pub fn hmp(&mut self, line: &str) -> String {
        let printed = self.qmp("human-monitor-command", json!({"command-line": line}));
        printed.as_str().unwrap_or_default().to_owned()
    }

    /// Run state, e.g. `running`, `paused`, `prelaunch`.
    #[track_caller]
    pub fn status(&mut self) -> String {
        let status = self.qmp("query-status", json!({}));
        status["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Runs a qemu-io command on a disk in this process, as its guest would; what fails or mismatches ends the test.
    #[track_caller]
    pub fn qemu_io(&mut self, disk: &str, command: &str) -> String {
        let text = self.try_qemu_io(disk, command);
        check_io(&text);
        text
    }

    /// The same, giving what qemu-io printed whether it succeeded or not.
    #[track_caller]
    pub fn try_qemu_io(&mut self, disk: &str, command: &str) -> String {
        let log = self.builder.dir.join("stdout.log");
        let before = std::fs::read_to_string(&log).or_fail("reading QEMU's stdout").len();
        let target = self.io_target(disk);
        let refused = self.hmp(&format!("qemu-io {target} \"{command}\""));
        let after = std::fs::read_to_string(&log).or_fail("reading QEMU's stdout");
        format!("{refused}{}", &after[before..])
    }

    fn io_target(&self, disk: &str) -> String {
        let at = self.disks().iter().position(|one| one.name == disk).or_fail(format_args!("no disk {disk}"));
        match &self.devices[at] {
            Some(device) => format!("-d {device}"),
            None => self.disks()[at].node().or_fail("a disk has a device or a node"),
        }
    }

    /// Writes `length` bytes of `pattern` at `offset` as the guest would.
    #[track_caller]
    pub fn write(&mut self, disk: &str, pattern: u8, offset: u64, length: u64) {
        self.qemu_io(disk, &format!("write -P {pattern} {offset} {length}"));
    }

    /// Fails the test unless the guest reads `pattern` everywhere in that range.
    #[track_caller]
    pub fn expect_pattern(&mut self, disk: &str, pattern: u8, offset: u64, length: u64) {
        self.qemu_io(disk, &format!("read -P {pattern} {offset} {length}"));
    }

    /// The node at the top of a disk's device now: the one that was inserted last, or the disk's own.
    #[track_caller]
    pub fn node_of(&mut self, disk: &str) -> String {
        let mut found = self.sources().into_iter().filter(|(name, _)| name == disk);
        found.next().or_fail(format_args!("no disk {disk}")).1
    }

    /// The same for all disks, with their names.
    #[track_caller]
    pub(crate) fn sources(&mut self) -> Vec<(String, String)> {
        let disks = self.disk_devices();
        witness::sources(&mut self.control, &disks)
    }

    /// Each disk with the path of its device, if it has one.
    pub(crate) fn disk_devices(&self) -> Vec<(Disk, Option<String>)> {
        self.disks().iter().cloned().zip(self.devices.iter().cloned()).collect()
    }

    /// Names of the bitmaps on all nodes, with the node's name, sorted; without those that jobs use internally.
    #[track_caller]
    pub fn bitmaps(&mut self) -> Vec<(String, String)> {
        bitmaps_of(&self.qmp("query-named-block-nodes", json!({"flat": true})))
    }

    /// Waits until the guest has booted and mounted what it was told to.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        self.wait_boots(1);
    }

    /// Waits until the guest has booted so many times.
    #[track_caller]
    pub fn wait_boots(&mut self, count: usize) {
        self.serial.wait_times("KM-READY", count, BOOT_TIMEOUT);
    }

    /// Runs a line of shell in the guest and gives what it printed; another exit code than 0 ends the test.
    #[track_caller]
    pub fn guest(&mut self, line: &str) -> String {
        self.serial.run(line, BOOT_TIMEOUT)
    }

    /// Connects to the guest agent, which must answer. It serves one connection at a time: drop it before others connect.
    #[must_use]
    #[track_caller]
    pub fn agent(&mut self) -> Agent {
        Agent::connect(&self.agent_socket(), BOOT_TIMEOUT)
    }

    /// Fails the test if the guest has seen an I/O error, a damaged file system or a failed write.
    #[track_caller]
    pub fn assert_guest_unharmed(&self) {
        self.serial.assert_unharmed();
    }

    /// Stops the guest's processors.
    #[track_caller]
    pub fn stop(&mut self) {
        self.qmp("stop", json!({}));
    }

    /// Lets the guest's processors run.
    #[track_caller]
    pub fn cont(&mut self) {
        self.qmp("cont", json!({}));
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn kill9(mut self) -> QemuBuilder {
        self.process.kill9();
        self.builder()
    }

    /// Ends it cleanly, which stores its bitmaps, and waits until it is gone.
    #[track_caller]
    pub fn quit(mut self) -> QemuBuilder {
        self.qmp("quit", json!({}));
        self.process.wait(START_TIMEOUT);
        self.builder()
    }

    /// Has the guest sync, unmount and power off, and waits until QEMU is gone.
    #[track_caller]
    pub fn power_off(mut self) -> QemuBuilder {
        self.serial.send("poweroff");
        self.process.wait(BOOT_TIMEOUT);
        self.builder()
    }
}

/// The device that has this disk's image, by what QEMU says of it.
fn device_of(blocks: &Value, disk: &Disk) -> Option<String> {
    let file = disk.file.to_str().or_fail("an image's path is not UTF-8");
    let mut found = blocks.as_array().into_iter().flatten().filter(|block| block["inserted"]["file"] == file);
    found.next().and_then(|block| block["qdev"].as_str()).map(str::to_owned)
}
