//! keepmark, its qemu-storage-daemon or both are killed at every effect of a backup of powered-off images, a shut-off domain's too.

use std::collections::BTreeSet;
use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Disk, LibvirtHost, Witness};
use nix::sys::signal::{Signal, kill};

use crate::campaign::Campaign;
use crate::children::child;
use crate::lab::{Lab, MIB, kind};
use crate::tracer::{self, Cut, Fate, Script, Trace};

/// The domain's name.
const DOMAIN: &str = "vm";

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Keepmark,
    Daemon,
    Both,
    /// And started again at once.
    Libvirtd,
}

struct Images {
    /// Whose shut-off domain they are, if they are one's. Before the lab's folder, in which its files lie.
    host: Option<LibvirtHost>,
    lab: Lab,
    disks: Vec<Disk>,
    /// How the VM is named to keepmark.
    vm: Vec<String>,
    changes: u8,
}

impl Images {
    /// With one full backup.
    fn new() -> Self {
        let lab = Lab::new();
        let disks = Self::images(&lab);
        let images: Vec<String> = disks.iter().map(|disk| format!("{}={}", disk.name, disk.file.display())).collect();
        let vm = [format!("image:{}", images.join(",")), "--name".to_owned(), "web".to_owned()].into();
        Self { host: None, lab, disks, vm, changes: 0 }.begun()
    }

    /// The same as a domain of libvirt's, shut off.
    fn of_domain() -> Self {
        let mut lab = Lab::new();
        let host = LibvirtHost::start(&lab.path("host"));
        lab.keepmark = lab.keepmark.clone().env("LIBVIRT_DEFAULT_URI", &host.uri());
        let disks = Self::images(&lab);
        disks.iter().cloned().fold(host.domain(DOMAIN), keepmark_testkit::DomainBuilder::disk).define();
        Self { host: Some(host), lab, disks, vm: vec![DOMAIN.to_owned()], changes: 0 }.begun()
    }

    fn begun(mut self) -> Self {
        self.lab.ok(&["init"]);
        self.next_backup();
        self
    }

    fn images(lab: &Lab) -> Vec<Disk> {
        [("vda", 16), ("vdb", 8)].map(|(name, mib)| Self::image(lab, name, mib)).into()
    }

    fn arguments(&self) -> Vec<&str> {
        ["backup", "--json"].into_iter().chain(self.vm.iter().map(String::as_str)).collect()
    }

    fn backup(&self) -> serde_json::Value {
        self.lab.ok(&self.arguments()).event("finished")
    }

    fn image(lab: &Lab, name: &str, mib: u64) -> Disk {
        let file = lab.path(&format!("{name}.qcow2"));
        image::create(&file, Format::Qcow2, mib * MIB);
        image::fill_random(&file, Format::Qcow2, mib, MIB, 2 << 20);
        Disk::qcow2(name, &file)
    }

    /// Writes as a VM would that ran meanwhile.
    fn change(&mut self) {
        self.changes = self.changes % 251 + 1;
        let offset = u64::from(self.changes) * 68 * 1024 % (7 * MIB);
        for disk in &self.disks {
            image::io(&disk.file, disk.format, &[&format!("write -P {} {offset} 96k", self.changes), "flush"]);
        }
    }

    fn truth(&self) -> Witness {
        let folder = tempfile::Builder::new().prefix("truth").tempdir_in(self.lab.root()).unwrap();
        Witness::of_images(&self.disks, &folder.keep())
    }

    #[track_caller]
    fn next_backup(&mut self) -> serde_json::Value {
        let truth = self.truth();
        let finished = self.backup();
        self.lab.published(&finished, truth);
        finished
    }

    fn struck_backup(&self, cut: Option<Cut>, strike: &mut (dyn FnMut(u32) -> Fate + Send)) -> Trace {
        let command = self.lab.keepmark.command(&self.arguments());
        let counts = if self.host.is_some() { concerns_libvirt } else { |_: &str| true };
        tracer::run(&command, Script { root: self.lab.root(), counts, cut, meanwhile: &mut |_| (), goes_on: false, strike })
    }

    /// Fails the test if an image carries anything of ours but the checkpoints that a next backup may build on.
    fn assert_clean(&self) {
        self.lab.assert_no_leftovers();
        for disk in &self.disks {
            let mut bitmaps = image::bitmaps(&disk.file);
            bitmaps.sort();
            assert_eq!(bitmaps, self.lab.needed_bitmaps(1), "{}", disk.name);
        }
        let Some(host) = &self.host else { return };
        let domain = host.defined(DOMAIN);
        let known: BTreeSet<String> = domain.checkpoints().into_iter().collect();
        assert_eq!((known, domain.state()), (self.lab.needed_bitmaps(1).into_iter().collect(), "shut off".to_owned()));
    }

    /// Waits until nobody has the images open for writing, as a user would before starting the VM.
    fn wait_free(&self) {
        let all_free = || self.disks.iter().all(|disk| image::is_free(&disk.file, disk.format));
        wait_for("the images to be free", Duration::from_secs(10), || all_free().then_some(()));
    }
}

/// Calls of libvirt's, and what is done to the images between them.
fn concerns_libvirt(effect: &str) -> bool {
    ["libvirt ", "qmp ", "start "].iter().any(|kind| effect.starts_with(kind)) || effect.ends_with(" run")
}

fn strike(victim: Victim, keepmark: u32, host: Option<&LibvirtHost>) -> Fate {
    if let Some(host) = host.filter(|_| victim == Victim::Libvirtd) {
        host.kill_libvirtd();
        host.restart_libvirtd();
        return Fate::Spared;
    }
    if let Some(daemon) = child(keepmark, "qemu-storage-daemon").filter(|_| victim != Victim::Keepmark) {
        kill(daemon, Signal::SIGKILL).unwrap();
    }
    if victim == Victim::Daemon { Fate::Spared } else { Fate::Killed }
}

fn campaign(name: &str, mut images: Images, victim: Victim, share: usize) {
    images.change();
    let truth = images.truth();
    let effects = images.struck_backup(None, &mut |_| Fate::Spared).effects;
    assert!(images.lab.look(Some(truth)), "{}", images.lab.printed());
    let mut campaign = Campaign::over(&effects, share);
    let mut comes_at_once = false;
    while let Some(cut) = campaign.next_cut() {
        comes_at_once = !comes_at_once;
        images.change();
        let truth = images.truth();
        let trace = images.struck_backup(Some(cut), &mut |keepmark| strike(victim, keepmark, images.host.as_ref()));
        // Every second time the next backup comes at once, else the VM has run in between.
        let was_published = images.lab.look(Some(truth));
        let finished = if comes_at_once { images.backup_at_once() } else { images.backup_after_a_run() };
        images.assert_clean();
        images.lab.compare_newest(1 + usize::from(was_published));
        let outcome = if was_published { format!("{} after publication", kind(&finished)) } else { kind(&finished) };
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
    }
    images.lab.compare_all();
    campaign.print(name);
}

impl Images {
    /// The images may still be open in the dead run's storage daemon: their bytes are read afterwards, nothing changes them.
    #[track_caller]
    fn backup_after_a_run(&mut self) -> serde_json::Value {
        self.wait_free();
        self.change();
        self.next_backup()
    }

    #[track_caller]
    fn backup_at_once(&mut self) -> serde_json::Value {
        let finished = self.backup();
        let truth = self.truth();
        self.lab.published(&finished, truth);
        finished
    }
}

#[test]
fn keepmark_killed_at_effects_of_a_powered_off_backup() {
    campaign("keepmark killed, powered off", Images::new(), Victim::Keepmark, 6);
}

#[test]
fn storage_daemon_killed_at_effects_of_a_powered_off_backup() {
    campaign("qemu-storage-daemon killed", Images::new(), Victim::Daemon, 3);
}

#[test]
fn keepmark_and_its_storage_daemon_killed_at_once() {
    campaign("keepmark and qemu-storage-daemon killed", Images::new(), Victim::Both, 3);
}

#[test]
fn keepmark_killed_at_effects_of_a_shut_off_domain_s_backup() {
    campaign("keepmark killed, shut-off domain", Images::of_domain(), Victim::Keepmark, 3);
}

#[test]
fn libvirtd_killed_at_effects_of_a_shut_off_domain_s_backup() {
    campaign("libvirtd killed and restarted, shut-off domain", Images::of_domain(), Victim::Libvirtd, 2);
}
