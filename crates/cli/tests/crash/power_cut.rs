//! The store's disk is cut off at every effect on it: what was not synced is lost, as in a power cut.
//!
//! The store lies on a file system of its own (ext4, nothing written back by itself), which is shut down without its journal
//! being flushed (`EXT4_IOC_SHUTDOWN`), unmounted, and mounted again. It needs root and loop devices.

use std::path::{Path, PathBuf};
use std::process::Command;

use keepmark_testkit::image;
use keepmark_testkit::process::run;

use crate::campaign::cuts;
use crate::lab::{Lab, MIB};
use crate::live::Rig;
use crate::table::Table;
use crate::tracer::Fate;

/// `_IOR('X', 125, __u32)` with `EXT4_GOING_FLAGS_NOLOGFLUSH`; there is no tool for it in the packages that we install.
const SHUTDOWN: &str = "import fcntl, os, struct, sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// A file system in a file, mounted on a folder; dropped, it is unmounted.
struct Disk {
    image: PathBuf,
    folder: PathBuf,
}

impl Disk {
    fn new(image: PathBuf, folder: PathBuf) -> Self {
        image::sparse(&image, 512 * MIB);
        run(Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]).arg(&image));
        std::fs::create_dir(&folder).unwrap();
        let disk = Self { image, folder };
        disk.mount();
        // The program makes its store's folder itself, but not over lost+found.
        std::fs::remove_dir(disk.folder.join("lost+found")).unwrap();
        disk
    }

    /// Nothing goes to the disk but by syncs, for longer than a run takes; a rename does not flush what it renames.
    fn mount(&self) {
        run(Command::new("mount").args(["-o", "loop,commit=300,noauto_da_alloc"]).arg(&self.image).arg(&self.folder));
    }

    fn cut_off(folder: &Path) {
        run(Command::new("python3").args(["-c", SHUTDOWN]).arg(folder));
    }

    fn come_back(&self) {
        run(Command::new("umount").arg(&self.folder));
        self.mount();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A test that has failed must not leave a mount that keeps its folder from being removed.
        Command::new("umount").arg("-l").arg(&self.folder).status().ok();
    }
}

fn counts(effect: &str) -> bool {
    effect.contains(" store/")
}

fn campaign(name: &str, fate: Fate, share: usize) {
    let lab = Lab::new();
    let folder = lab.path("store");
    let disk = Disk::new(lab.path("store.img"), folder.clone());
    let mut rig = Rig::new(lab);
    let mut table = Table::default();
    let effects = rig.effects(&[], counts);
    for cut in cuts(&effects, share) {
        let trace = rig.struck_backup(&[], counts, Some(cut), &mut |_| {
            Disk::cut_off(&folder);
            fate
        });
        disk.come_back();
        let outcome = rig.recover();
        match trace.struck {
            Some(effect) => table.note(&effect, cut.moment, &outcome),
            None => table.miss(),
        }
    }
    rig.lab.compare_all();
    table.print(name);
    drop(rig);
}

#[test]
fn store_cut_off_and_keepmark_killed() {
    campaign("store's disk cut off, keepmark killed", Fate::Killed, 5);
}

#[test]
fn store_cut_off_and_keepmark_left_alone() {
    campaign("store's disk cut off, keepmark goes on", Fate::Spared, 3);
}
