//! Ctrl-C and closed pipes: QEMU is left clean, and nobody is shouted at.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use keepmark_testkit::process::{output, wait_for};
use rustix::process::Signal;

use crate::gate::Gate;
use crate::lab::{Lab, assert_clean, image_vm, our_bitmaps};

#[test]
fn an_interrupted_backup_is_130_and_leaves_neither_checkpoint_nor_backup() {
    for signal in [Signal::INT, Signal::TERM] {
        let lab = Lab::new();
        let mut qemu = lab.one_disk();
        lab.keepmark.backup(&qemu.vm(), &[]);
        let before = our_bitmaps(&mut qemu);
        let gate = Gate::before("block-export-add", &qemu, &lab);
        let running = lab.keepmark.spawn(&["backup", &gate.vm(), "--json", "--kind", "full"]);
        gate.wait();
        running.process.signal(signal);
        std::thread::sleep(Duration::from_millis(100));
        gate.open();
        let run = running.wait(Duration::from_secs(20));
        assert_eq!(run.code, Some(130), "{}", run.stderr);
        assert_eq!((run.stdout.as_str(), run.stderr.trim()), ("", "Error: interrupted"));
        assert_clean(&mut qemu);
        assert_eq!(our_bitmaps(&mut qemu), before);
        assert_eq!((lab.list().len(), qemu.status()), (1, "running".to_owned()));
        assert_eq!(lab.keepmark.backup(&qemu.vm(), &[])["kind"], "incremental");
    }
}

#[test]
fn a_killed_backup_is_cleaned_up_by_the_next_one() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let gate = Gate::before("block-export-add", &qemu, &lab);
    let mut running = lab.keepmark.spawn(&["backup", &gate.vm()]);
    gate.wait();
    running.process.kill9();
    gate.open();
    assert_eq!(lab.keepmark.backup(&qemu.vm(), &[])["kind"], "full");
    assert_clean(&mut qemu);
    assert_eq!((our_bitmaps(&mut qemu).len(), lab.list().len()), (1, 1));
    lab.restic().check();
}

/// The test's own watch over the guest: its monitor goes directly to QEMU.
#[test]
fn a_backup_killed_while_the_guest_stands_still_does_not_leave_it_so() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let gate = Gate::before("cont", &qemu, &lab);
    let mut running = lab.keepmark.spawn(&["backup", &gate.vm()]);
    gate.wait();
    assert_eq!(qemu.status(), "paused");
    running.process.kill9();
    gate.open();
    wait_for("the watchdog to resume the guest", Duration::from_secs(20), || (qemu.status() == "running").then_some(()));
    lab.keepmark.backup(&qemu.vm(), &[]);
    assert_clean(&mut qemu);
}

#[test]
fn a_closed_pipe_is_quiet() {
    let lab = Lab::new();
    let image = lab.qcow2("a", 1 << 20);
    for _ in 0..3 {
        lab.keepmark.backup(&image_vm("vda", &image), &["--name", "web"]);
    }
    for arguments in [&["list"][..], &["list", "--json"], &["man"], &["completion", "bash"], &["--help"]] {
        let mut child = lab.keepmark.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let code = child.wait().unwrap().code();
        assert_eq!((code, said.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn a_full_standard_output_is_an_error() {
    let lab = Lab::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command: Command = lab.keepmark.command(&["man"]);
    let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    let output_of = child.wait_with_output().unwrap();
    assert_eq!(output_of.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output_of.stderr).contains("standard output"));
    assert!(output(&mut lab.keepmark.command(&["man"])).status.success());
}
