//! The bench of a running libvirt domain without a guest: everything is done to it by libvirt where libvirt can.

use std::path::{Path, PathBuf};

use keepmark_model::seam::Hypervisor;
use serde_json::json;
use tempfile::TempDir;

use super::images::{Images, UNIT, io_words};
use super::meddling::meddle;
use super::{Bench, Change, DiskSpec, Meets, Process, Unable};
use crate::image::{self, Format};
use crate::{Domain, DomainBuilder, LibvirtHost, OrFail, Qmp, tmp};

const UUID: &str = "6e1a8d4c-0000-4000-8000-0000000";

/// Connects a driver to the domain of this name at this URI; the folder is its own, for sockets and scratch.
pub type ConnectDomain = fn(&str, &str, &Path) -> Box<dyn Hypervisor>;

/// A libvirtd of its own, with one domain at a time. Fields are dropped in order: the folder last.
#[derive(Debug)]
pub struct Domains {
    connect: ConnectDomain,
    vm: Option<Vm>,
    number: u32,
    host: LibvirtHost,
    _dir: TempDir,
}

#[derive(Debug)]
struct Vm {
    images: Images,
    // Beside libvirt's own: what the guest and others do must not wait for libvirt.
    monitor: Option<Qmp>,
}

impl Domains {
    /// Starts libvirtd.
    #[must_use]
    pub fn new(connect: ConnectDomain) -> Self {
        let dir = tmp();
        let host = LibvirtHost::start(&dir.path().join("host"));
        Self { connect, vm: None, number: 0, host, _dir: dir }
    }

    fn vm(&mut self) -> &mut Vm {
        self.vm.as_mut().or_fail("no VM was made")
    }

    fn domain(&self) -> Domain<'_> {
        self.host.defined(&self.domain_name())
    }

    fn domain_name(&self) -> String {
        format!("vm{}", self.number)
    }

    fn builder(&self) -> DomainBuilder<'_> {
        let disks = self.vm.as_ref().or_fail("no VM was made").images.as_disks();
        disks
            .into_iter()
            .fold(self.host.domain(&self.domain_name()).uuid(&format!("{UUID}{:05}", self.number)).monitor(), DomainBuilder::disk)
    }

    fn start(&mut self) {
        self.domain().start();
        self.attach();
    }

    fn attach(&mut self) {
        let monitor = self.domain().monitor();
        self.vm().monitor = Some(monitor);
    }

    fn stop(&mut self) {
        self.vm().monitor = None;
        self.domain().destroy();
    }

    /// Undefined, it is gone when it ends; nobody waits for that, since the next one is another domain.
    fn remove(&mut self) {
        let Some(mut vm) = self.vm.take() else { return };
        self.domain().virsh("undefine", &["--checkpoints-metadata", "--snapshots-metadata"]);
        vm.monitor.as_mut().or_fail("the VM runs").execute("quit", json!({}));
    }

    fn virsh(&self, command: &str, arguments: &[&str]) -> Result<(), Unable> {
        self.domain().try_virsh(command, arguments).map(drop).map_err(Unable::Refused)
    }

    // ---- by QEMU's monitor ------------------------------------------------------------------------------------------------

    /// The device of a disk and the node of its active image; what a moment puts in between is not seen so.
    fn wiring(&mut self, at: usize) -> (String, String) {
        let vm = self.vm();
        let image = vm.images.disks[at].images[0].0.display().to_string();
        let blocks = vm.monitor.as_mut().or_fail("the VM runs").execute("query-block", json!({}));
        let mut found = blocks.as_array().into_iter().flatten().filter(|block| block["inserted"]["file"] == image);
        let block = found.next().or_fail(format_args!("QEMU has no device with {image}: {blocks}"));
        let text = |value: &serde_json::Value| value.as_str().or_fail("a device has a path and a node").to_owned();
        (text(&block["qdev"]), text(&block["inserted"]["node-name"]))
    }

    fn qemu_io(&mut self, at: usize, words: &str) {
        let (device, _) = self.wiring(at);
        let log = self.host.dir().join(format!("log/qemu/{}.log", self.domain_name()));
        let read = || std::fs::read_to_string(&log).or_fail("reading QEMU's log");
        let before = read().len();
        let line = json!({ "command-line": format!("qemu-io -d {device} \"{words}\"") });
        let refused = self.vm().monitor.as_mut().or_fail("the VM runs").execute("human-monitor-command", line);
        image::check_io(&format!("{}{}", refused.as_str().unwrap_or_default(), &read()[before..]));
    }

    fn meddle(&mut self, at: usize, change: Change) -> Result<(), Unable> {
        let (_, node) = self.wiring(at);
        let vm = self.vm();
        let persistent = vm.images.disks[at].images[0].1 == Format::Qcow2;
        meddle(vm.monitor.as_mut().or_fail("the VM runs"), &node, persistent, change)
    }

    /// libvirt takes the bitmaps along to every new image; those who work past it do not.
    fn remove_bitmaps(&mut self, at: usize) {
        let (_, node) = self.wiring(at);
        let monitor = self.vm().monitor.as_mut().or_fail("the VM runs");
        let facts = super::meddling::node_facts(monitor, &node);
        for bitmap in facts["dirty-bitmaps"].as_array().into_iter().flatten() {
            monitor.execute("block-dirty-bitmap-remove", json!({ "node": node, "name": bitmap["name"] }));
        }
    }

    // ---- by libvirt -------------------------------------------------------------------------------------------------------

    fn snapshot(&mut self, at: usize, cluster: u64) -> Result<(), Unable> {
        let vm = self.vm();
        vm.images.overlay(at, cluster);
        let disk = |number: usize, name: &str| match number == at {
            true => format!("{name},snapshot=external,file={}", vm.images.disks[at].images[0].0.display()),
            false => format!("{name},snapshot=no"),
        };
        let disks: Vec<String> = vm.images.disks.iter().enumerate().map(|(number, one)| disk(number, &one.name)).collect();
        let mut arguments = vec!["--disk-only", "--no-metadata", "--atomic", "--reuse-external"];
        disks.iter().for_each(|disk| arguments.extend(["--diskspec", disk]));
        let done = self.virsh("snapshot-create-as", &arguments);
        if done.is_err() {
            self.vm().images.disks[at].images.remove(0);
        }
        done
    }

    fn copy(&mut self, at: usize) -> Result<(), Unable> {
        let vm = self.vm();
        let to = vm.images.fresh("mirrored.qcow2");
        let disk = &vm.images.disks[at];
        let (name, cluster) = (disk.name.clone(), format!("cluster_size={}", disk.cluster * UNIT));
        let size = image::virtual_size(&disk.images[0].0, disk.images[0].1);
        image::create_with(&to, Format::Qcow2, size, &cluster);
        let path = to.display().to_string();
        self.virsh(
            "blockcopy",
            &[&name, "--dest", &path, "--format", "qcow2", "--reuse-external", "--transient-job", "--wait", "--pivot"],
        )?;
        self.vm().images.disks[at].images = vec![(to, Format::Qcow2)];
        Ok(())
    }

    fn while_off(&mut self, at: usize, change: Change) -> Result<(), Unable> {
        self.stop();
        let done = self.vm().images.rewrite(at, change);
        // The image may be at another place now.
        let _: Domain<'_> = self.builder().define();
        self.start();
        done
    }
}

impl Bench for Domains {
    fn name(&self) -> &'static str {
        "libvirt"
    }

    fn meets(&self) -> Meets {
        Meets::Running
    }

    fn unit(&self) -> u64 {
        UNIT
    }

    fn is_direct(&self) -> bool {
        false
    }

    fn make(&mut self, disks: &[DiskSpec]) {
        self.remove();
        self.number += 1;
        self.vm = Some(Vm { images: Images::new(disks), monitor: None });
        let _: Domain<'_> = self.builder().start();
        self.attach();
    }

    fn change(&mut self, disk: &str, change: Change) -> Result<(), Unable> {
        let at = self.vm().images.at(disk);
        match change {
            Change::Write(..) | Change::WriteZeros(..) | Change::Discard(..) => self.qemu_io(at, &io_words(change)),
            Change::Resize(units) => return self.virsh("blockresize", &[disk, &format!("{}B", units * UNIT)]),
            Change::ManagedSnapshot(cluster) => return self.snapshot(at, cluster),
            Change::Snapshot(cluster) => {
                self.snapshot(at, cluster)?;
                self.remove_bitmaps(at);
            }
            Change::Commit => {
                self.virsh("blockcommit", &[disk, "--active", "--shallow", "--wait", "--pivot"])?;
                self.vm().images.disks[at].images.remove(0);
            }
            Change::Stream => {
                self.virsh("blockpull", &[disk, "--wait"])?;
                self.vm().images.disks[at].images.truncate(1);
            }
            Change::Mirror => {
                self.copy(at)?;
                self.remove_bitmaps(at);
            }
            Change::CopyFile => self.vm().images.copy_file(at),
            Change::Convert(_) | Change::Amend | Change::PutBack => return self.while_off(at, change),
            Change::AddBitmap(_)
            | Change::RemoveBitmap(_)
            | Change::DisableBitmap(_)
            | Change::EnableBitmap(_)
            | Change::ClearBitmap(_)
            | Change::MergeBitmap(..)
            | Change::HoldBitmap(_)
            | Change::LetGo => return self.meddle(at, change),
        }
        Ok(())
    }

    fn process(&mut self, change: Process) -> Result<(), Unable> {
        match change {
            Process::Pause => drop(self.domain().virsh("suspend", &[])),
            Process::Restart => {
                self.stop();
                self.start();
            }
            Process::Kill => {
                self.vm().monitor = None;
                self.domain().kill_qemu();
                self.start();
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Box<dyn Hypervisor> {
        let folder = self.vm().images.keepmarks();
        (self.connect)(&self.host.uri(), &self.domain_name(), &folder)
    }

    fn content(&mut self, disk: &str) -> Vec<u8> {
        let at = self.vm().images.at(disk);
        self.qemu_io(at, "flush");
        let images = &mut self.vm().images;
        let to: PathBuf = images.fresh("witness");
        let (file, format) = &images.disks[at].images[0];
        image::convert_shared(file, *format, &to);
        std::fs::read(&to).or_fail("reading a witness")
    }

    fn left(&mut self) -> Vec<String> {
        let job = self.domain().virsh("domjobinfo", &[]);
        let Some(vm) = &mut self.vm else { return Vec::new() };
        let mut left: Vec<String> = (!job.contains("None")).then(|| format!("a job: {job}")).into_iter().collect();
        let monitor = vm.monitor.as_mut().or_fail("the VM runs");
        let scratch = vm.images.keepmarks().display().to_string();
        for query in ["query-named-block-nodes", "query-block-exports", "query-jobs"] {
            let answer = monitor.execute(query, json!({})).to_string();
            let is_ours = answer.contains("km1tmp") || answer.contains(&scratch);
            left.extend(is_ours.then(|| format!("{query} names something of keepmark's")));
        }
        left.extend(vm.images.left());
        left
    }
}
