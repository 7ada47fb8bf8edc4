//! The benches of real images: a QEMU without a guest that has them open, or nobody; the driver to meet them with is passed in.

mod running;

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_model::seam::Hypervisor;
use serde_json::json;

use super::images::{Images, UNIT};
use super::{Bench, Change, DiskSpec, Meets, Process, Unable, only_while_running};
use crate::image::{self, Format};
use crate::process::wait_for;
use crate::servers::StorageDaemon;
use crate::{OrFail, Qemu, QemuBuilder, Witness};

const TIMEOUT: Duration = Duration::from_secs(30);

/// How a driver gets to the VM.
#[derive(Debug, Clone, Copy)]
pub enum Reach<'a> {
    /// By the monitor at this socket.
    Monitor(&'a Path),
    /// By these disks' images, each with its name.
    Images(&'a [(String, PathBuf)]),
}

/// Connects a driver; the folder is its own, for sockets and scratch.
pub type Connect = fn(Reach<'_>, &Path) -> Box<dyn Hypervisor>;

/// Real images, and a real QEMU without a guest.
#[derive(Debug)]
pub struct Machines {
    name: &'static str,
    meets: Meets,
    connect: Connect,
    stage: Option<Stage>,
}

/// One VM. Fields are dropped in order: the folder last.
#[derive(Debug)]
struct Stage {
    qemu: Option<Qemu>,
    images: Images,
}

impl Machines {
    /// A bench of this name.
    #[must_use]
    pub fn new(name: &'static str, meets: Meets, connect: Connect) -> Self {
        Self { name, meets, connect, stage: None }
    }

    fn stage(&mut self) -> &mut Stage {
        self.stage.as_mut().or_fail("no VM was made")
    }
}

impl Bench for Machines {
    fn name(&self) -> &'static str {
        self.name
    }

    fn meets(&self) -> Meets {
        self.meets
    }

    fn unit(&self) -> u64 {
        UNIT
    }

    fn make(&mut self, disks: &[DiskSpec]) {
        self.stage = None;
        let mut stage = Stage { qemu: None, images: Images::new(disks) };
        if self.meets == Meets::Running {
            stage.start();
        }
        self.stage = Some(stage);
    }

    fn change(&mut self, disk: &str, change: Change) -> Result<(), Unable> {
        if let Some(why) = only_while_running(change).filter(|_| self.meets == Meets::Off) {
            return Err(Unable::NotHere(why));
        }
        let stage = self.stage();
        let at = stage.images.at(disk);
        if change == Change::CopyFile {
            stage.images.copy_file(at);
            return Ok(());
        }
        if matches!(change, Change::Convert(_) | Change::Amend | Change::PutBack) {
            return stage.while_off(|stage| stage.images.rewrite(at, change));
        }
        if stage.qemu.is_some() { stage.in_qemu(at, change) } else { stage.images.in_file(at, change) }
    }

    fn process(&mut self, change: Process) -> Result<(), Unable> {
        let meets = self.meets;
        let stage = self.stage();
        match (change, meets) {
            (Process::Pause, Meets::Running) => stage.qemu.as_mut().or_fail("QEMU runs").stop(),
            (Process::Pause, Meets::Off) => return Err(Unable::NotHere("a VM that is off is not paused")),
            (Process::Restart, Meets::Running) => {
                stage.quit();
                stage.start();
            }
            (Process::Kill, Meets::Running) => {
                drop(stage.qemu.take().or_fail("QEMU runs").kill9());
                stage.start();
            }
            (Process::Restart, Meets::Off) => stage.opened().quit(),
            (Process::Kill, Meets::Off) => match stage.keepmarks_daemon() {
                Some(process) => kill(process),
                None => stage.opened().kill9(),
            },
        }
        Ok(())
    }

    fn connect(&mut self) -> Box<dyn Hypervisor> {
        let connect = self.connect;
        let stage = self.stage();
        let folder = stage.images.keepmarks();
        match &stage.qemu {
            Some(qemu) => connect(Reach::Monitor(&qemu.qmp_socket()), &folder),
            None => {
                let images: Vec<(String, PathBuf)> =
                    stage.images.disks.iter().map(|disk| (disk.name.clone(), disk.images[0].0.clone())).collect();
                connect(Reach::Images(&images), &folder)
            }
        }
    }

    fn content(&mut self, disk: &str) -> Vec<u8> {
        let stage = self.stage();
        let to = stage.images.fresh("witness");
        match &mut stage.qemu {
            Some(qemu) => {
                let witness = Witness::hold(qemu, &to);
                witness.release(qemu);
                std::fs::read(witness.image(disk)).or_fail("reading a witness")
            }
            None => {
                let (file, format) = &stage.images.disks[stage.images.at(disk)].images[0];
                image::convert(file, *format, &to, Format::Raw);
                std::fs::read(&to).or_fail("reading a witness")
            }
        }
    }

    fn left(&mut self) -> Vec<String> {
        self.stage.as_mut().map(Stage::left).unwrap_or_default()
    }
}

impl Stage {
    fn start(&mut self) {
        let folder = self.images.fresh("vm");
        std::fs::create_dir_all(&folder).or_fail("making a VM's folder");
        let mut builder = QemuBuilder::new(&folder).memory_mib(32);
        for disk in self.images.as_disks() {
            builder = builder.disk(disk);
        }
        self.qemu = Some(builder.start());
    }

    fn quit(&mut self) {
        drop(self.qemu.take().or_fail("QEMU runs").quit());
    }

    fn while_off(&mut self, work: impl FnOnce(&mut Self) -> Result<(), Unable>) -> Result<(), Unable> {
        let was_on = self.qemu.is_some();
        if was_on {
            self.quit();
        }
        let done = work(self);
        if was_on {
            self.start();
        }
        done
    }

    /// All images, opened for writing by a process that is not keepmark's.
    fn opened(&mut self) -> StorageDaemon {
        let folder = self.images.fresh("session");
        std::fs::create_dir_all(&folder).or_fail("making a folder");
        let mut daemon = StorageDaemon::start(&folder);
        for (number, disk) in self.images.disks.iter().enumerate() {
            let (file, format) = &disk.images[0];
            daemon.open(&format!("disk{number}"), file, *format, false);
        }
        daemon
    }

    /// The storage daemon that the driver has started for these images.
    fn keepmarks_daemon(&self) -> Option<i32> {
        let folder = self.images.keepmarks().display().to_string();
        let processes = std::fs::read_dir("/proc").or_fail("listing processes").flatten();
        let ours = |process: &i32| {
            let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.starts_with("qemu-storage-daemon") && line.contains(&folder)
        };
        processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(ours)
    }

    fn left(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        if let Some(qemu) = &mut self.qemu {
            for query in ["query-named-block-nodes", "query-block-exports", "query-jobs"] {
                let answer = qemu.qmp(query, json!({})).to_string();
                left.extend(answer.contains("km1tmp").then(|| format!("{query} names something of keepmark's")));
            }
        }
        left.extend(self.images.left());
        left
    }
}

fn kill(process: i32) {
    let id = rustix::process::Pid::from_raw(process).or_fail("a process has an id");
    rustix::process::kill_process(id, rustix::process::Signal::KILL).or_fail("killing keepmark's daemon");
    let gone = || std::fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty());
    wait_for("keepmark's daemon to be gone", TIMEOUT, || (!gone()).then_some(()));
}
