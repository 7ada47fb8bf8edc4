//! Others on the same host: QEMU's own user, another user's files, another keepmark. Nothing of root's is theirs, and nobody works on one VM twice.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keepmark_testkit::process::{output, wait_for};
use keepmark_testkit::{Disk, Keepmark};
use rustix::process::Signal;
use serde_json::json;

use crate::lab::{Lab, MIB, assert_clean};

const NOBODY: &str = "65534";

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn as_nobody(script: &str) -> bool {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "sh", "-c", script]);
    output(&mut command).status.success()
}

/// Has each `qemu-img` of keepmark's wait a second before it begins: long enough for anybody who waits for it.
fn slow_qemu_img(lab: &Lab) -> String {
    let folder = lab.path("slow");
    std::fs::create_dir(&folder).unwrap();
    let program = folder.join("qemu-img");
    std::fs::write(&program, "#!/bin/sh\nsleep 1\nexec /usr/bin/qemu-img \"$@\"\n").unwrap();
    mode(&program, 0o755);
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

fn scratch_of_the_run(lab: &Lab) -> Option<PathBuf> {
    let entries = std::fs::read_dir(lab.path("scratch")).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with("-scratch"))
}

#[test]
fn qemus_user_gets_nothing_of_roots_by_links_in_the_scratch() {
    let lab = Lab::new();
    mode(&lab.path(""), 0o711);
    let victim = lab.path("victim");
    std::fs::write(&victim, "root's own").unwrap();
    mode(&victim, 0o600);
    let vm = lab.vm().disk(Disk::qcow2("vda", &lab.qcow2("vda", 64 * MIB))).args(&["-run-with", "user=65534:65534"]);
    let mut qemu = vm.start();
    let keepmark = lab.keepmark.clone().env("PATH", &slow_qemu_img(&lab));
    let running = keepmark.spawn(&["backup", &qemu.vm()]);
    let folder = wait_for("the scratch folder", Duration::from_secs(20), || scratch_of_the_run(&lab));
    let image = folder.file_name().unwrap().to_string_lossy().replace("-scratch", "-s0");
    let planted = as_nobody(&format!("ln -sf {} {}/{image}", victim.display(), folder.display()));
    let run = running.wait(Duration::from_secs(60));
    assert_eq!((run.code, planted), (Some(0), false), "{}", run.stderr);
    let meta = std::fs::metadata(&victim).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o777, std::fs::read_to_string(&victim).unwrap().as_str()), (0, 0o600, "root's own"));
    assert_clean(&mut qemu);
}

#[test]
fn a_folder_that_another_user_made_first_is_refused_and_nothing_in_it_is_touched() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let victim = lab.path("victim");
    std::fs::write(&victim, "kept").unwrap();
    for (folder, hint) in [("scratch", "scratch_dir"), ("run", "run_dir")] {
        let path = lab.path(folder);
        drop(std::fs::remove_dir_all(&path));
        std::fs::create_dir(&path).unwrap();
        mode(&path, 0o777);
        std::os::unix::fs::symlink(&victim, path.join("km1tmp-link")).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), Some(65_534)).unwrap();
        let run = lab.keepmark.exits(&["backup", &qemu.vm()], 1);
        assert!(
            run.stderr.contains("belongs to user 65534") && run.stderr.contains("Hint:") && run.stderr.contains(hint),
            "{}",
            run.stderr
        );
        let doctor = lab.keepmark.run(&["doctor"]);
        assert!(doctor.code != Some(0) && doctor.stdout.contains("belongs to user 65534"), "{doctor:?}");
        assert_eq!((std::fs::read_dir(&path).unwrap().count(), std::fs::read_to_string(&victim).unwrap().as_str()), (1, "kept"));
        std::fs::remove_dir_all(&path).unwrap();
    }
    lab.keepmark.backup(&qemu.vm(), &[]);
    assert_clean(&mut qemu);
}

#[test]
fn two_keepmarks_that_know_nothing_of_each_other_do_not_work_on_one_vm() {
    let lab = Lab::new();
    let second = lab.path("second.qmp");
    let vm = lab.vm().disk(Disk::qcow2("vda", &lab.qcow2("vda", 64 * MIB)));
    let mut qemu = vm.args(&["-qmp", &format!("unix:{},server=on,wait=off", second.display())]).start();
    qemu.write("vda", 1, MIB, 9 * MIB);
    // Another user's, or a container's: other folders, another monitor.
    let other = Keepmark::new(&lab.path("other")).store(&lab.store());
    let mut running = lab.keepmark.spawn(&["backup", &qemu.vm()]);
    let has_claim = |qemu: &mut keepmark_testkit::Qemu| qemu.qmp("query-chardev", json!({})).to_string().contains("km1tmp-lock-");
    wait_for("the claim", Duration::from_secs(20), || has_claim(&mut qemu).then_some(()));
    running.process.signal(Signal::STOP);
    assert!(running.process.ended().is_none(), "it was too quick to be stopped");
    let refused = other.exits(&["backup", &format!("qmp:{}", second.display())], 11);
    assert!(refused.stderr.contains(&format!("process {} of user 0", running.process.id())), "{}", refused.stderr);
    running.process.kill9();
    drop(running);
    // Nobody has to be asked, nothing to be removed: the claim has died with its process.
    other.backup(&format!("qmp:{}", second.display()), &[]);
    assert!(!has_claim(&mut qemu));
    assert_clean(&mut qemu);
    assert_eq!(qemu.status(), "running");
}

#[test]
fn what_is_in_use_or_no_file_is_never_replaced_by_a_restore() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let image = lab.path("vda.qcow2");
    let before = std::fs::metadata(&image).unwrap().ino();
    let restore = |to: &Path, code| {
        let to = to.to_str().unwrap();
        lab.keepmark.exits(&["restore", "test-vm@latest", "--format", "qcow2", "--to", to, "--force"], code).stderr
    };
    for to in [&image, &lab.path("")] {
        let told = restore(to, 11);
        assert!(told.contains(&format!("in use by process {}", qemu.id())) && told.contains("keepmark revert"), "{told}");
    }
    assert_eq!(std::fs::metadata(&image).unwrap().ino(), before);
    let device = lab.path("null");
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &device, kind, rustix::fs::Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3)).unwrap();
    assert!(restore(&device, 2).contains("neither a file nor a block device"));
    assert!(std::fs::symlink_metadata(&device).unwrap().file_type().is_char_device());
    let link = lab.path("link");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    assert!(restore(&link, 2).contains("it is a link"));
}
