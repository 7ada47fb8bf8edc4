//! A revert is killed at every effect: the disks are old or new as a whole or say that they are neither, and the next one finishes it.

use std::path::PathBuf;
use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Attach, Disk, LibvirtHost, Qemu, QemuBuilder, Witness};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::campaign::Campaign;
use crate::children::child;
use crate::lab::{Lab, MIB, kind};
use crate::tracer::{self, Cut, Fate, Script, Trace};

const DISKS: [(&str, u64); 2] = [("vda", 16), ("sdb", 8)];

/// Whose the disks are.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    /// Nobody's: powered-off images.
    Images,
    /// A QEMU's that rests.
    Qemu,
    /// A shut-off domain's of libvirt.
    Domain,
}

/// Two disks, a backup to go back to, and its truth.
struct Rig {
    /// The libvirt whose domain has them. Before the lab's folder, in which its files lie.
    host: Option<LibvirtHost>,
    lab: Lab,
    disks: Vec<Disk>,
    /// The QEMU that has them, at rest; none when they are powered off.
    qemu: Option<Qemu>,
    target: String,
    old: Witness,
    changes: u8,
}

impl Rig {
    fn new(home: Home) -> Self {
        let mut lab = Lab::new();
        let disks: Vec<Disk> = DISKS
            .map(|(name, mib)| {
                let file = lab.path(&format!("{name}.qcow2"));
                image::create(&file, Format::Qcow2, mib * MIB);
                image::fill_random(&file, Format::Qcow2, mib, MIB, 2 << 20);
                Disk::qcow2(name, &file).attach(if name == "vda" { Attach::VirtioBlockdev } else { Attach::Scsi })
            })
            .into();
        let old = Witness::of_images(&disks, &lab.path("old"));
        lab.ok(&["init"]);
        let host = (home == Home::Domain).then(|| LibvirtHost::start(&lab.path("host")));
        if let Some(host) = &host {
            disks.iter().cloned().fold(host.domain("web"), keepmark_testkit::DomainBuilder::disk).define();
            lab.keepmark = lab.keepmark.clone().env("LIBVIRT_DEFAULT_URI", &host.uri());
        }
        let qemu = (home == Home::Qemu).then(|| {
            std::fs::create_dir(lab.path("vm")).unwrap();
            disks.iter().fold(QemuBuilder::new(&lab.path("vm")).name("web"), |vm, disk| vm.disk(disk.clone())).paused().start()
        });
        let mut rig = Self { host, lab, disks, qemu, target: String::new(), old: old.clone(), changes: 0 };
        let finished = rig.backup();
        finished["backup"].as_str().unwrap().clone_into(&mut rig.target);
        rig.lab.published(&finished, old);
        rig
    }

    fn vm(&self) -> String {
        if self.host.is_some() {
            return "web".to_owned();
        }
        let images = self.disks.iter().map(|disk| format!("{}={}", disk.name, disk.file.display())).collect::<Vec<_>>().join(",");
        self.qemu.as_ref().map_or_else(|| format!("image:{images}"), Qemu::vm)
    }

    #[track_caller]
    fn backup(&self) -> Value {
        self.lab.keepmark.backup(&self.vm(), &["--name", "web"])
    }

    /// Writes as a guest would that ran meanwhile.
    fn change(&mut self) {
        self.changes = self.changes % 251 + 1;
        // Where there are data: taking them back is a write.
        let (pattern, offset) = (self.changes, MIB + u64::from(self.changes) * 68 * 1024 % (MIB + MIB / 2));
        for disk in &self.disks {
            let write = format!("write -P {pattern} {offset} 96k");
            match &mut self.qemu {
                Some(qemu) => drop(qemu.qemu_io(&disk.name, &write)),
                None => drop(image::io(&disk.file, disk.format, &[&write, "write -z 1M 128k", "flush"])),
            }
        }
    }

    fn witness(&mut self) -> Witness {
        let folder = tempfile::Builder::new().prefix("truth").tempdir_in(self.lab.root()).unwrap().keep();
        match &mut self.qemu {
            Some(qemu) => Witness::hold(qemu, &folder),
            None => Witness::of_images(&self.disks, &folder),
        }
    }

    fn revert(&self, cut: Option<Cut>, strike: &mut (dyn FnMut(u32) -> Fate + Send)) -> Trace {
        let command = self.lab.keepmark.command(&["revert", &self.vm(), &self.target, "--name", "web"]);
        tracer::run(&command, Script { root: self.lab.root(), counts: |_| true, cut, meanwhile: &mut |_| (), goes_on: false, strike })
    }

    /// The effects of a revert that nobody disturbs.
    fn effects(&mut self) -> Vec<String> {
        self.change();
        let before = self.witness();
        let effects = self.revert(None, &mut |_| Fate::Spared).effects;
        assert!(effects.iter().any(|effect| effect == "nbd write") && self.lab.look(Some(before)), "{}", self.lab.printed());
        effects
    }

    /// The next call, and what the one after it sees. `startable` is what was there, if it could be started.
    #[track_caller]
    fn finish(&mut self, startable: Option<Witness>) -> String {
        let done = self.lab.ok(&["revert", &self.vm(), &self.target, "--name", "web", "--json"]).event("finished");
        assert_eq!((done["resumed"] == true, done["safety_backup"].is_null()), (startable.is_none(), startable.is_none()), "{done}");
        if let Some(truth) = startable {
            self.lab.published(&json!({"backup": done["safety_backup"]}), truth);
        }
        let now = self.witness();
        for disk in &self.disks {
            self.old.assert_same(&disk.name, &now.image(&disk.name), Format::Raw);
        }
        let next = self.backup();
        self.lab.assert_no_leftovers();
        self.lab.published(&next, now);
        self.lab.compare_newest(2);
        format!("{}, next {}", if done["resumed"] == true { "resumed" } else { "anew" }, kind(&next))
    }
}

fn guarded(disk: &Disk, target: &str) -> PathBuf {
    PathBuf::from(format!("{}.keepmark-reverting-{}", disk.file.display(), &target[..8]))
}

/// Fails the test unless all images have their own names and are old or new as a whole, or one of them has none that anybody would
/// start. Gives what can be started.
#[track_caller]
fn startable_images(rig: &mut Rig, before: &Witness) -> Option<Witness> {
    let is_free = |disk: &Disk| image::is_free(&disk.file, disk.format) || image::is_free(&guarded(disk, &rig.target), disk.format);
    wait_for("the images to be free", Duration::from_secs(10), || rig.disks.iter().all(is_free).then_some(()));
    assert!(rig.disks.iter().all(|disk| disk.file.exists() != guarded(disk, &rig.target).exists()));
    let is_startable = rig.disks.iter().all(|disk| disk.file.exists());
    if let Some(host) = rig.host.as_ref().filter(|_| !is_startable) {
        assert!(host.try_virsh(&["start", "web"]).is_err(), "libvirt has started a half reverted domain");
    }
    is_startable.then(|| whole(rig, before))
}

/// What is there, which must be old or new as a whole.
#[track_caller]
fn whole(rig: &mut Rig, before: &Witness) -> Witness {
    let now = rig.witness();
    let same = |disk: &Disk, truth: &Witness| {
        image::difference(&truth.image(&disk.name), Format::Raw, &now.image(&disk.name), Format::Raw).is_none()
    };
    let is = |truth: &Witness| rig.disks.iter().all(|disk| same(disk, truth));
    assert!(is(before) || is(&rig.old), "half reverted, and to be started");
    now
}

fn images_campaign(name: &str, home: Home, with_daemon: bool, share: usize) {
    let mut rig = Rig::new(home);
    let effects = rig.effects();
    let mut campaign = Campaign::over(&effects, share);
    while let Some(cut) = campaign.next_cut() {
        rig.change();
        let before = rig.witness();
        let trace = rig.revert(Some(cut), &mut |keepmark| {
            if let Some(daemon) = child(keepmark, "qemu-storage-daemon").filter(|_| with_daemon) {
                kill(daemon, Signal::SIGKILL).unwrap();
            }
            Fate::Killed
        });
        rig.lab.look(Some(before.clone()));
        let startable = startable_images(&mut rig, &before);
        let outcome = rig.finish(startable);
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
    }
    rig.lab.compare_all();
    campaign.print(name);
}

#[test]
fn keepmark_killed_at_effects_of_a_powered_off_revert() {
    images_campaign("keepmark killed, reverting images", Home::Images, false, 6);
}

#[test]
fn keepmark_and_its_storage_daemon_killed_at_effects_of_a_revert() {
    images_campaign("keepmark and qemu-storage-daemon killed, reverting images", Home::Images, true, 3);
}

#[test]
fn keepmark_killed_at_effects_of_a_domain_s_revert() {
    images_campaign("keepmark killed, reverting a libvirt domain", Home::Domain, false, 4);
}

#[test]
fn keepmark_and_its_storage_daemon_killed_at_effects_of_a_domain_s_revert() {
    images_campaign("keepmark and qemu-storage-daemon killed, reverting a libvirt domain", Home::Domain, true, 2);
}

/// Fails the test unless the devices have their disks, which are old or new as a whole, or QEMU says that they are neither.
#[track_caller]
fn startable_in_qemu(rig: &mut Rig, before: &Witness) -> Option<Witness> {
    let qemu = rig.qemu.as_mut()?;
    assert_eq!(qemu.status(), "prelaunch");
    let is_empty = qemu.qmp("query-block", json!({})).to_string().contains("null-co");
    let is_marked = qemu.bitmaps().iter().any(|(_, name)| name.starts_with("km1tmp-reverting-"));
    assert!(is_marked || !is_empty);
    (!is_marked).then(|| whole(rig, before))
}

#[test]
fn keepmark_killed_at_effects_of_a_revert_in_qemu() {
    let mut rig = Rig::new(Home::Qemu);
    let effects = rig.effects();
    let mut campaign = Campaign::over(&effects, 6);
    while let Some(cut) = campaign.next_cut() {
        rig.change();
        let before = rig.witness();
        let trace = rig.revert(Some(cut), &mut |_| Fate::Killed);
        rig.lab.look(Some(before.clone()));
        let startable = startable_in_qemu(&mut rig, &before);
        let outcome = rig.finish(startable);
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
    }
    rig.lab.compare_all();
    campaign.print("keepmark killed, reverting in QEMU");
}
