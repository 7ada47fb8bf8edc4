//! A restore is killed at every effect: what is half written is told apart from what is whole, and restoring again completes it.

use std::path::{Path, PathBuf};
use std::process::Command;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::run;
use keepmark_testkit::{Disk, Witness};

use crate::campaign::Campaign;
use crate::lab::{Lab, MIB};
use crate::tracer::{self, Cut, Fate, Script, Trace};

const DISKS: [(&str, u64); 2] = [("vda", 6), ("vdb", 3)];
/// What lies where a disk is restored to with `--force`.
const OLD: &[u8] = b"an older file";
/// What a device begins with while it is not restored whole.
const UNFINISHED: &[u8] = b"keepmark: the restore to this device is not finished";

/// A store with one backup, and its truth.
struct Backup {
    lab: Lab,
    truth: Witness,
}

impl Backup {
    fn new() -> Self {
        let lab = Lab::new();
        let disks = DISKS.map(|(name, mib)| {
            let file = lab.path(&format!("{name}.qcow2"));
            image::create(&file, Format::Qcow2, mib * MIB);
            // Data, a hole, data up to the end.
            image::fill_random(&file, Format::Qcow2, mib, 0, 1 << 20);
            image::fill(&file, Format::Qcow2, 7, (mib - 1) * MIB, MIB);
            Disk::qcow2(name, &file)
        });
        let vm =
            format!("image:{}", disks.iter().map(|disk| format!("{}={}", disk.name, disk.file.display())).collect::<Vec<_>>().join(","));
        lab.ok(&["init"]);
        lab.keepmark.backup(&vm, &["--name", "web"]);
        let truth = Witness::of_images(&disks, &lab.path("truth"));
        Self { lab, truth }
    }

    fn restore(&self, arguments: &[&str], cut: Option<Cut>) -> Trace {
        let command = self.lab.keepmark.command(&[&["restore", "web@latest"], arguments].concat());
        let counts = |effect: &str| effect.ends_with(" restored") || effect.ends_with(" device") || effect == "start process";
        let script = Script { root: self.lab.root(), counts, cut, meanwhile: &mut |_| (), goes_on: false, strike: &mut |_| Fate::Killed };
        let trace = tracer::run(&command, script);
        assert!(trace.code == Some(0) || trace.struck.is_some(), "{}", self.lab.printed());
        trace
    }

    /// The file of a disk, if it is there; it must be whole then, or the old one.
    fn file(&self, name: &str, folder: &Path, format: Format) -> Option<PathBuf> {
        let file = folder.join(format!("{name}.{}", format.name()));
        let is_there = file.exists();
        if is_there && std::fs::read(&file).unwrap() != OLD {
            self.truth.assert_same(name, &file, format);
        }
        is_there.then_some(file)
    }
}

/// Where files are restored to, made anew for each strike.
fn folder(backup: &Backup, with_old: bool, format: Format) -> PathBuf {
    let folder = backup.lab.path("restored");
    std::fs::remove_dir_all(&folder).ok();
    std::fs::create_dir(&folder).unwrap();
    for (name, _) in DISKS.iter().filter(|_| with_old) {
        std::fs::write(folder.join(format!("{name}.{}", format.name())), OLD).unwrap();
    }
    folder
}

fn files(name: &str, format: Format, with_old: bool, share: usize) {
    let backup = Backup::new();
    let to = folder(&backup, with_old, format);
    let place = to.to_str().unwrap();
    let mut arguments = vec!["--to", place, "--format", format.name()];
    arguments.extend(with_old.then_some("--force"));
    let effects = backup.restore(&arguments, None).effects;
    let mut campaign = Campaign::over(&effects, share);
    while let Some(cut) = campaign.next_cut() {
        folder(&backup, with_old, format);
        let trace = backup.restore(&arguments, Some(cut));
        let whole = DISKS.iter().filter_map(|(disk, _)| backup.file(disk, &to, format)).count();
        // Whole files are not written again unless that is asked for.
        let again = backup.lab.keepmark.run(&[&["restore", "web@latest"], arguments.as_slice()].concat());
        if whole > 0 && !with_old {
            assert!(again.code == Some(1) && again.stderr.contains("--force"), "{again:?}");
            backup.lab.ok(&[&["restore", "web@latest", "--force"], arguments.as_slice()].concat());
        } else {
            assert_eq!(again.code, Some(0), "{again:?}");
        }
        backup.truth.assert_restored(&to, format);
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), DISKS.len(), "something is left over");
        let outcome = if with_old { "old or whole".to_owned() } else { format!("{whole} whole") };
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
    }
    campaign.print(name);
}

#[test]
fn restore_to_raw_files_killed_at_effects() {
    files("keepmark killed, restoring raw files", Format::Raw, false, 6);
}

#[test]
fn restore_to_qcow2_files_killed_at_effects() {
    files("keepmark killed, restoring qcow2 files", Format::Qcow2, false, 3);
}

#[test]
fn restore_over_old_files_killed_at_effects() {
    files("keepmark killed, restoring over files", Format::Raw, true, 4);
}

/// A loop device over a file; dropping it detaches it.
struct Device(String);

impl Device {
    fn over(file: &Path) -> Self {
        Self(run(Command::new("/sbin/losetup").args(["--find", "--show"]).arg(file)).trim().to_owned())
    }

    fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        run(Command::new("/sbin/losetup").args(["--detach", &self.0]));
    }
}

#[test]
fn restore_to_a_device_killed_at_effects() {
    let backup = Backup::new();
    let (name, mib) = DISKS[0];
    let before = vec![0xee; usize::try_from((mib + 1) * MIB).unwrap()];
    let file = backup.lab.path("device");
    std::fs::write(&file, &before).unwrap();
    let device = Device::over(&file);
    let arguments = ["--disk", name, "--to", &device.0, "--force"];
    let effects = backup.restore(&arguments, None).effects;
    let whole = [std::fs::read(backup.truth.image(name)).unwrap(), before[..usize::try_from(MIB).unwrap()].to_vec()].concat();
    assert!(std::fs::read(device.path()).unwrap() == whole);
    let mut campaign = Campaign::over(&effects, 6);
    while let Some(cut) = campaign.next_cut() {
        std::fs::write(device.path(), &before).unwrap();
        let trace = backup.restore(&arguments, Some(cut));
        let found = std::fs::read(device.path()).unwrap();
        let state = [("untouched", found == before), ("whole", found == whole), ("begun", found.starts_with(UNFINISHED))];
        let (state, _) =
            state.into_iter().find(|(_, is_so)| *is_so).unwrap_or_else(|| panic!("half written, and does not say so: {:?}", trace.struck));
        backup.lab.ok(&[&["restore", "web@latest"], arguments.as_slice()].concat());
        assert!(std::fs::read(device.path()).unwrap() == whole, "{:?}", trace.struck);
        campaign.count(trace.struck.as_deref(), cut.moment, state);
    }
    campaign.print("keepmark killed, restoring to a device");
}
