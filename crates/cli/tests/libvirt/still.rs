//! A QEMU that stands still: its domain fails with an end, the next one is begun, and who wants to stop is heard.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::stage::{Stage, TIMEOUT, soon};

#[test]
fn a_qemu_that_stands_still_holds_up_nobody_else() {
    let stage = Stage::new();
    let vm = stage.domain();
    let other = stage.host.domain("other").disk(stage.small_disk("other", "vda")).start();
    let qemu = Pid::from_raw(i32::try_from(stage.host.qemu(vm.name()).unwrap()).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();

    let run = stage.keepmark.run(&["backup", vm.name(), other.name(), "--json"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("no answer for") && run.stderr.contains("stands still"), "{}", run.stderr);
    assert_eq!(stage.keepmark.ok(&["list", "--json"]).json().len(), 1);

    let mut running = stage.keepmark.spawn(&["backup", "vm"]);
    std::thread::sleep(Duration::from_secs(5));
    assert!(running.process.ended().is_none(), "{}", running.stderr());
    let asked = Instant::now();
    running.process.signal(Signal::TERM);
    soon("its end", || running.process.ended().is_some());
    assert!(asked.elapsed() < Duration::from_secs(15), "it took {:?}", asked.elapsed());
    assert_eq!(running.wait(TIMEOUT).code, Some(130));

    kill_process(qemu, Signal::CONT).unwrap();
    // What libvirt had still to ask is answered first.
    std::thread::sleep(Duration::from_secs(2));
    stage.judge(&vm, "full", &[]);
}
