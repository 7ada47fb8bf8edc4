//! Going back in place: what is written, what is refused, and that the sequence goes on; powered off and in a QEMU that stays.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, Guest, Qemu, Witness};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::gate::Gate;
use crate::lab::{Lab, MIB, UUID, assert_clean, assert_says, disk, id, image_vm, our_bitmaps};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Two powered-off images.
struct Images {
    lab: Lab,
    disks: Vec<Disk>,
    vm: String,
}

impl Images {
    fn new(mib: u64) -> Self {
        let lab = Lab::new();
        let disks: Vec<Disk> = [("vda", mib), ("vdb", 8)]
            .map(|(name, mib)| {
                let file = lab.qcow2(name, mib * MIB);
                image::fill_random(&file, Format::Qcow2, mib, MIB, 4 << 20);
                Disk::qcow2(name, &file)
            })
            .into();
        let vm =
            format!("image:{}", disks.iter().map(|disk| format!("{}={}", disk.name, disk.file.display())).collect::<Vec<_>>().join(","));
        Self { lab, disks, vm }
    }

    fn truth(&self, name: &str) -> Witness {
        Witness::of_images(&self.disks, &self.lab.path(name))
    }

    fn backup(&self) -> Value {
        self.lab.keepmark.backup(&self.vm, &["--name", "web"])
    }

    fn revert(&self, backup: &str, more: &[&str]) -> Value {
        let arguments = [&["revert", &self.vm, backup, "--name", "web", "--json"], more].concat();
        self.lab.keepmark.ok(&arguments).json().pop().unwrap()
    }

    fn assert_is(&self, truth: &Witness) {
        for disk in &self.disks {
            truth.assert_same(&disk.name, &disk.file, disk.format);
        }
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap()
}

#[test]
fn only_what_differs_is_written_and_the_sequence_goes_on() {
    let images = Images::new(64);
    let friday = images.truth("friday");
    let first = images.backup();
    let vda = &images.disks[0].file;
    image::io(vda, Format::Qcow2, &["write -P 7 2M 1M", "write -P 8 40M 8k", "write -z 3M 64k", "flush"]);
    let tuesday = images.truth("tuesday");
    let second = images.backup();
    image::io(vda, Format::Qcow2, &["write -P 9 50M 64k", "flush"]);
    let wednesday = images.truth("wednesday");

    let before = std::fs::read(vda).unwrap();
    let plan = images.revert(id(&first), &["--dry-run"]);
    assert!(std::fs::read(vda).unwrap() == before, "a dry run has written something");
    let done = images.revert(id(&first), &[]);
    images.assert_is(&friday);
    let of_vda = disk(&done, "vda");
    assert_eq!((number(of_vda, "written_bytes"), number(of_vda, "zeroed_bytes")), (MIB + 65_536, 65_536 + 8192), "{done}");
    assert!(number(of_vda, "compared_bytes") <= 3 * MIB, "{done}");
    for key in ["written_bytes", "zeroed_bytes", "compared_bytes"] {
        assert_eq!(disk(&plan, "vda")[key], of_vda[key], "{plan}");
        assert_eq!(disk(&done, "vdb")[key], 0, "{done}");
    }

    // Wednesday's own backup is small, and every other one is still there.
    let next = images.backup();
    assert_eq!((next["kind"].as_str(), number(disk(&next, "vda"), "stored_bytes")), (Some("incremental"), 0), "{next}");
    assert!(number(disk(&next, "vda"), "read_bytes") <= 3 * MIB, "{next}");
    let safety = done["safety_backup"].as_str().unwrap();
    for (backup, truth, name) in
        [(id(&first), &friday, "1"), (id(&second), &tuesday, "2"), (safety, &wednesday, "3"), (id(&next), &friday, "4")]
    {
        truth.assert_restored(&images.lab.restore(backup, name), Format::Raw);
    }
    assert_eq!(images.lab.list().len(), 4);
    // And back again, one disk only.
    images.revert(safety, &["--disk", "vda", "--no-safety-backup", "--compare-all"]);
    images.assert_is(&wednesday);
    images.lab.restic().check();
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_touched() {
    let images = Images::new(16);
    let first = images.backup();
    let truth = images.truth("truth");
    let refused = |vm: &str, more: &[&str], words: &[&str]| {
        let run = images.lab.keepmark.exits(&[&["revert", vm, id(&first)], more].concat(), 2);
        assert_says(&run, words);
    };
    refused(&images.vm, &["--name", "db"], &["is of VM web, and this is VM db", "Hint: "]);
    refused(&images.vm, &["--name", "web", "--disk", "vdz"], &["the backup has no disk vdz (it has: vda, vdb)"]);
    refused(&image_vm("vda", &images.disks[0].file), &["--name", "web"], &["the VM has no disk vdb", "--disk"]);
    image::grow(&images.disks[1].file, Format::Qcow2, 9 * MIB);
    refused(&images.vm, &["--name", "web"], &["disk vdb has 9437184 bytes now and had 8388608", "keepmark restore"]);
    truth.assert_same("vda", &images.disks[0].file, Format::Qcow2);
    assert_eq!(images.lab.list().len(), 1);
    let other_store = images.lab.keepmark.exits(&["revert", &images.vm, "web@-7", "--name", "web"], 2);
    assert_says(&other_store, &["Hint: see 'keepmark list'"]);
}

/// Waits for what lasts for a moment only.
fn soon(what: &str, mut is_there: impl FnMut() -> bool) {
    let end = Instant::now() + TIMEOUT;
    while !is_there() {
        assert!(Instant::now() < end, "{what}: not within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn guarded(file: &Path, backup: &str) -> PathBuf {
    PathBuf::from(format!("{}.keepmark-reverting-{}", file.display(), &backup[..8]))
}

#[test]
fn an_interrupted_revert_leaves_images_that_nobody_can_start_until_the_next_one() {
    let images = Images::new(400);
    image::fill_random(&images.disks[0].file, Format::Qcow2, 98, 8 * MIB, 384 << 20);
    let first = images.backup();
    let old = images.truth("old");
    image::fill_random(&images.disks[0].file, Format::Qcow2, 99, 8 * MIB, 384 << 20);
    for signal in [Signal::INT, Signal::KILL] {
        let running = images.lab.keepmark.spawn(&["revert", &images.vm, id(&first), "--name", "web"]);
        let renamed = guarded(&images.disks[0].file, id(&first));
        soon("the guard", || renamed.exists());
        let modified = || std::fs::metadata(&renamed).unwrap().modified().unwrap();
        let before = modified();
        soon("the first write", || modified() != before);
        running.process.signal(signal);
        let run = running.wait(TIMEOUT);
        if signal == Signal::INT {
            assert_eq!(run.code, Some(130), "{}", run.stderr);
            assert_says(&run, &["half reverted, and not to be started: vda, vdb", "run the revert again to finish it, or go back to "]);
        }
        soon("the storage daemon's end", || image::is_free(&renamed, Format::Qcow2));
        assert!(images.disks.iter().all(|disk| !disk.file.exists() && guarded(&disk.file, id(&first)).exists()));
        for arguments in
            [&["backup", &images.vm, "--name", "web"][..], &["plan", &images.vm, "--name", "web"], &["checkpoint", "list", &images.vm]]
        {
            let run = images.lab.keepmark.exits(arguments, 1);
            assert_says(
                &run,
                &[&format!("is half reverted to backup {}", &id(&first)[..8]), "Hint: 'keepmark revert VM BACKUP' finishes it"],
            );
        }
        let one = images.lab.keepmark.exits(&["revert", &images.vm, id(&first), "--name", "web", "--disk", "vda"], 2);
        assert_says(&one, &["disk vdb is half reverted", "--disk vdb"]);
        let done = images.revert(id(&first), &[]);
        assert_eq!((&done["resumed"], &done["safety_backup"]), (&true.into(), &Value::Null), "{done}");
        images.assert_is(&old);
        let next = images.backup();
        assert_eq!(disk(&next, "vda")["stored_bytes"], 0, "{next}");
        let newest = images.lab.list()[1]["id"].as_str().unwrap().to_owned();
        images.revert(&newest, &["--no-safety-backup"]);
    }
}

/// A QEMU that was never started: its disks can be written, and whoever starts it too early finds nothing on them.
#[test]
fn a_resting_qemu_s_disks_go_back_and_are_empty_until_all_is_written() {
    let lab = Lab::new();
    let (vda, sdb) = (lab.qcow2("vda", 64 * MIB), lab.qcow2("sdb", 32 * MIB));
    image::fill_random(&vda, Format::Qcow2, 1, MIB, 9 << 20);
    let anonymous = Disk::qcow2("anon", &lab.qcow2("anon", 8 * MIB)).attach(Attach::VirtioAnonymous);
    let disks = [Disk::qcow2("vda", &vda), Disk::qcow2("sdb", &sdb).attach(Attach::Scsi), anonymous];
    let mut qemu = disks.into_iter().fold(lab.vm(), |vm, disk| vm.disk(disk)).paused().start();
    let truth = Witness::hold(&mut qemu, &lab.path("truth"));
    let first = lab.keepmark.backup(&qemu.vm(), &[]);
    let change = |qemu: &mut Qemu| ["vda", "sdb", "anon"].iter().for_each(|name| qemu.write(name, 5, 3 * MIB, MIB));
    change(&mut qemu);
    let run = lab.keepmark.ok(&["revert", &qemu.vm(), id(&first)]);
    assert_says(&run, &["Note: until it is finished, nothing but its disks' locks"]);
    assert_same(&lab, &mut qemu, &truth);
    assert_eq!(qemu.status(), "prelaunch");
    assert_eq!(lab.keepmark.backup(&qemu.vm(), &[])["kind"], "incremental");

    change(&mut qemu);
    let gate = Gate::before("block-export-del", &qemu, &lab);
    let mut running = lab.keepmark.spawn(&["revert", &gate.vm(), id(&first), "--no-safety-backup"]);
    gate.wait();
    running.process.kill9();
    gate.open();
    for arguments in [&["backup", &qemu.vm()][..], &["plan", &qemu.vm()], &["revert", &qemu.vm(), id(&first), "--dry-run"]] {
        assert_says(&lab.keepmark.exits(arguments, 1), &["is half reverted to backup", "Hint: "]);
    }
    let blocks = qemu.qmp("query-block", json!({})).to_string();
    assert_eq!(blocks.matches("\"drv\":\"null-co\"").count(), 3, "the devices have something on them: {blocks}");
    let done = lab.keepmark.ok(&["revert", &qemu.vm(), id(&first), "--json"]).event("finished");
    assert_eq!(done["resumed"], true, "{done}");
    assert_same(&lab, &mut qemu, &truth);
    assert_clean(&mut qemu);
    let next = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!((next["kind"].as_str(), number(disk(&next, "vda"), "stored_bytes")), (Some("incremental"), 0));
    // On each disk those of the last backup and of the last full.
    assert_eq!(our_bitmaps(&mut qemu).len(), 6);
}

#[track_caller]
fn assert_same(lab: &Lab, qemu: &mut Qemu, truth: &Witness) {
    let folder = tempfile::tempdir_in(lab.path("vm")).unwrap();
    let now = Witness::hold(qemu, folder.path());
    for disk in qemu.disks() {
        truth.assert_same(&disk.name, &now.image(&disk.name), Format::Raw);
    }
}

fn booted(lab: &Lab) -> Qemu {
    let file = lab.path("vda.qcow2");
    image::mkfs_ext4(&file, Format::Qcow2, 64 * MIB, None);
    let mut qemu = lab.vm().guest(&Guest::build()).mount(&["vda"]).disk(Disk::qcow2("vda", &file)).start();
    qemu.wait_ready();
    qemu
}

#[test]
fn a_running_guest_is_shut_down_reverted_and_started_again() {
    let lab = Lab::new();
    let mut qemu = booted(&lab);
    qemu.guest("write vda 3 100");
    let sums = qemu.guest("sums vda");
    let first = lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.guest("write vda 5 200");
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.guest("rm -r /mnt/vda/file*; sync");

    let refused = lab.keepmark.exits(&["revert", &qemu.vm(), id(&first)], 2);
    assert_says(&refused, &["the guest runs: its disks cannot be reverted under its feet", "Hint: --shutdown"]);
    // This guest does not know its power button: it goes on running.
    let deaf = lab.keepmark.exits(&["revert", &qemu.vm(), id(&first), "--shutdown", "--shutdown-timeout", "1"], 1);
    assert_says(&deaf, &["the guest did not power down within 1 s and goes on running", "--shutdown-timeout"]);
    assert_eq!(qemu.status(), "running");
    assert_clean(&mut qemu);

    let running = lab.keepmark.spawn(&["revert", &qemu.vm(), id(&first), "--shutdown", "--json"]);
    soon("the shutdown", || qemu.bitmaps().iter().any(|(_, name)| name == "km1tmp-halted-"));
    // As a guest does that obeys its power button, which is pressed by now.
    std::thread::sleep(Duration::from_millis(500));
    qemu.serial.send("poweroff");
    let run = running.wait(TIMEOUT * 2);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let done = run.event("finished");
    assert!(number(disk(&done, "vda"), "written_bytes") < 4 * MIB, "{done}");
    qemu.wait_boots(2);
    assert_eq!(qemu.guest("sums vda"), sums);
    assert_clean(&mut qemu);
    let next = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!((next["kind"].as_str(), lab.list().len()), (Some("incremental"), 4), "{next}");
    qemu.guest("write vda 1 100");
    // QEMU ends with its guest again.
    qemu.power_off();
    assert_eq!(
        lab.keepmark.backup(&image_vm("vda", &lab.path("vda.qcow2")), &["--uuid", UUID, "--name", "test-vm"])["kind"],
        "incremental"
    );
}
