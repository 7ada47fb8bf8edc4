//! keepmark, its qemu-storage-daemon or both are killed at every effect of a backup of powered-off images.

use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Disk, Witness};
use nix::sys::signal::{Signal, kill};

use crate::campaign::cuts;
use crate::children::child;
use crate::lab::{Lab, MIB, kind};
use crate::table::Table;
use crate::tracer::{self, Cut, Fate, Script, Trace};

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Keepmark,
    Daemon,
    Both,
}

struct Images {
    lab: Lab,
    disks: Vec<Disk>,
    vm: String,
    changes: u8,
}

impl Images {
    /// With one full backup.
    fn new() -> Self {
        let lab = Lab::new();
        let disks: Vec<Disk> = [("vda", 16), ("vdb", 8)].map(|(name, mib)| Self::image(&lab, name, mib)).into();
        let images: Vec<String> = disks.iter().map(|disk| format!("{}={}", disk.name, disk.file.display())).collect();
        let vm = format!("image:{}", images.join(","));
        lab.ok(&["init"]);
        let mut images = Self { lab, disks, vm, changes: 0 };
        images.next_backup();
        images
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
        let finished = self.lab.keepmark.backup(&self.vm, &["--name", "web"]);
        self.lab.published(&finished, truth);
        finished
    }

    fn struck_backup(&self, cut: Option<Cut>, strike: &mut (dyn FnMut(u32) -> Fate + Send)) -> Trace {
        let command = self.lab.keepmark.command(&["backup", &self.vm, "--name", "web", "--json"]);
        tracer::run(&command, Script { root: self.lab.root(), counts: |_| true, cut, meanwhile: &mut |_| (), goes_on: false, strike })
    }

    /// Fails the test if an image carries anything of ours but the checkpoints that a next backup may build on.
    fn assert_clean(&self) {
        self.lab.assert_no_leftovers();
        for disk in &self.disks {
            let mut bitmaps = image::bitmaps(&disk.file);
            bitmaps.sort();
            assert_eq!(bitmaps, self.lab.needed_bitmaps(1), "{}", disk.name);
        }
    }

    /// Waits until nobody has the images open for writing, as a user would before starting the VM.
    fn wait_free(&self) {
        let all_free = || self.disks.iter().all(|disk| image::is_free(&disk.file, disk.format));
        wait_for("the images to be free", Duration::from_secs(10), || all_free().then_some(()));
    }
}

fn strike(victim: Victim, keepmark: u32) -> Fate {
    if let Some(daemon) = child(keepmark, "qemu-storage-daemon").filter(|_| victim != Victim::Keepmark) {
        kill(daemon, Signal::SIGKILL).unwrap();
    }
    if victim == Victim::Daemon { Fate::Spared } else { Fate::Killed }
}

fn campaign(name: &str, victim: Victim, share: usize) {
    let mut images = Images::new();
    let mut table = Table::default();
    images.change();
    let truth = images.truth();
    let effects = images.struck_backup(None, &mut |_| Fate::Spared).effects;
    assert!(images.lab.look(Some(truth)), "{}", images.lab.printed());
    for (number, cut) in cuts(&effects, share).into_iter().enumerate() {
        images.change();
        let truth = images.truth();
        let trace = images.struck_backup(Some(cut), &mut |keepmark| strike(victim, keepmark));
        // Every second time the next backup comes at once, else the VM has run in between.
        let was_published = images.lab.look(Some(truth));
        if number % 2 == 1 {
            images.wait_free();
            images.change();
        }
        let finished = if number % 2 == 1 { images.next_backup() } else { images.backup_at_once() };
        images.assert_clean();
        images.lab.compare_newest(1 + usize::from(was_published));
        let outcome = if was_published { format!("{} after publication", kind(&finished)) } else { kind(&finished) };
        table.count(trace.struck, cut.moment, &outcome);
    }
    images.lab.compare_all();
    table.print(name);
}

impl Images {
    /// The images may still be open in the dead run's storage daemon: their bytes are read afterwards, nothing changes them.
    #[track_caller]
    fn backup_at_once(&mut self) -> serde_json::Value {
        let finished = self.lab.keepmark.backup(&self.vm, &["--name", "web"]);
        let truth = self.truth();
        self.lab.published(&finished, truth);
        finished
    }
}

#[test]
fn keepmark_killed_at_effects_of_a_powered_off_backup() {
    campaign("keepmark killed, powered off", Victim::Keepmark, 6);
}

#[test]
fn storage_daemon_killed_at_effects_of_a_powered_off_backup() {
    campaign("qemu-storage-daemon killed", Victim::Daemon, 3);
}

#[test]
fn keepmark_and_its_storage_daemon_killed_at_once() {
    campaign("keepmark and qemu-storage-daemon killed", Victim::Both, 3);
}
