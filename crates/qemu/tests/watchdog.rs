//! keepmark killed or stuck while it holds a pause or a freeze: the watchdog gives the guest its life back.
//!
//! Without the usual test frame, since this program starts itself in three roles: the tests, the victim, and the watchdog.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a failed assumption in a test is a failed test, and it speaks on stdout")]

#[path = "common/mod.rs"]
mod common;

use std::ffi::OsString;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{MIB, Place};
use keepmark_model::seam::Hypervisor;
use keepmark_qemu::qmp::Qmp;
use keepmark_qemu::watchdog::{self, Watchdog};
use keepmark_qemu::{Live, WatchdogCommand};
use keepmark_testkit::image::Format;
use keepmark_testkit::{Disk, Qemu, QemuBuilder};
use serde_json::{Value, json};

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|word| word.to_str()) {
        Some("role-watchdog") => watchdog::run(&arguments[1..], std::io::stdin(), &mut std::io::stdout()).unwrap(),
        Some("role-victim") => victim(Path::new(&arguments[1]), arguments[2].to_str().unwrap()),
        _ => tests(),
    }
}

fn tests() {
    for (name, test) in [
        ("a_killed_keepmark_s_pause_is_ended", a_killed_keepmark_s_pause_is_ended as fn()),
        ("a_stuck_keepmark_is_killed_and_its_pause_ended", a_stuck_keepmark_is_killed_and_its_pause_ended),
        ("a_user_s_pause_stays", a_user_s_pause_stays),
        ("a_frozen_guest_is_thawed", a_frozen_guest_is_thawed),
        ("a_point_is_taken_under_its_eyes", a_point_is_taken_under_its_eyes),
    ] {
        test();
        println!("test {name} ... ok");
    }
}

/// Holds what its role says, and then hangs.
fn victim(socket: &Path, what: &str) {
    let command = WatchdogCommand { program: std::env::current_exe().unwrap(), arguments: vec!["role-watchdog".into()] };
    let mut watchdog = Watchdog::spawn(&command, socket).unwrap();
    let mut qmp = Qmp::connect(socket, Duration::from_secs(10)).unwrap();
    match what {
        "pause" | "stuck" => {
            let mark = json!({ "node": "node-vda", "name": "km1tmp-paused-x", "persistent": false, "disabled": true });
            qmp.run("block-dirty-bitmap-add", mark).unwrap();
            watchdog.pausing(Duration::from_millis(if what == "stuck" { 500 } else { 60_000 })).unwrap();
            qmp.run("stop", Value::Null).unwrap();
        }
        "freeze" => watchdog.freezing(Duration::from_secs(60), &socket.with_file_name("fake-agent")).unwrap(),
        _ => {
            watchdog.pausing(Duration::from_secs(60)).unwrap();
            watchdog.running().unwrap();
        }
    }
    println!("held");
    std::thread::sleep(Duration::from_secs(100));
}

fn start_victim(socket: &Path, what: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.arg("role-victim").arg(socket).arg(what).stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "held"));
    child
}

fn vm(place: &Place) -> Qemu {
    QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, MIB))).start()
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn a_killed_keepmark_s_pause_is_ended() {
    let place = Place::new();
    let mut qemu = vm(&place);
    let mut victim = start_victim(&qemu.qmp_socket(), "pause");
    assert_eq!(qemu.status(), "paused");
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait("resuming", || qemu.status() == "running");
    wait("removing the mark", || qemu.bitmaps().is_empty());
}

fn a_stuck_keepmark_is_killed_and_its_pause_ended() {
    let place = Place::new();
    let mut qemu = vm(&place);
    let mut victim = start_victim(&qemu.qmp_socket(), "stuck");
    wait("killing", || victim.try_wait().unwrap().is_some());
    wait("resuming", || qemu.status() == "running");
}

fn a_user_s_pause_stays() {
    let place = Place::new();
    let mut qemu = vm(&place);
    let mut victim = start_victim(&qemu.qmp_socket(), "nothing");
    qemu.stop();
    victim.kill().unwrap();
    victim.wait().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(qemu.status(), "paused");
}

fn a_frozen_guest_is_thawed() {
    let place = Place::new();
    let qemu = vm(&place);
    let seen = fake_agent(&place.path("fake-agent"));
    let mut victim = start_victim(&qemu.qmp_socket(), "freeze");
    victim.kill().unwrap();
    victim.wait().unwrap();
    let commands: Vec<String> = (0..2).map(|_| seen.recv_timeout(Duration::from_secs(20)).unwrap()).collect();
    assert_eq!(commands, ["guest-sync-delimited", "guest-fsfreeze-thaw"]);
}

fn a_point_is_taken_under_its_eyes() {
    let place = Place::new();
    let mut qemu = vm(&place);
    let mut options = place.options(&qemu);
    options.watchdog = Some(WatchdogCommand { program: std::env::current_exe().unwrap(), arguments: vec!["role-watchdog".into()] });
    let mut live = Live::connect(options.clone()).unwrap();
    common::take_checkpoint(&mut live, &["vda"], 1);
    assert_eq!((qemu.status().as_str(), qemu.bitmaps().len()), ("running", 1));
    drop(live);
    // One that does not get ready: nothing is paused.
    options.watchdog = Some(WatchdogCommand { program: "/bin/true".into(), arguments: vec![] });
    let mut live = Live::connect(options).unwrap();
    let failure = live.begin(&common::request(&[("vda", None)], Some(2))).map(drop).unwrap_err();
    assert!(failure.to_string().contains("/bin/true"), "{failure}");
    assert_eq!((qemu.status().as_str(), qemu.bitmaps().len()), ("running", 1));
}

/// An agent that answers everything, and tells what it was asked.
fn fake_agent(socket: &Path) -> std::sync::mpsc::Receiver<String> {
    let listener = std::os::unix::net::UnixListener::bind(PathBuf::from(socket)).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        for line in std::io::BufReader::new(stream.try_clone().unwrap()).split(b'\n').map_while(Result::ok) {
            let line: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
            let command: Value = serde_json::from_slice(&line).unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            let id = command["arguments"]["id"].clone();
            let (delimiter, result): (&[u8], Value) = if id.is_null() { (b"", json!(1)) } else { (b"\xff", id) };
            let reply = [delimiter, json!({ "return": result }).to_string().as_bytes(), b"\n"].concat();
            std::io::Write::write_all(&mut stream, &reply).unwrap();
            sender.send(name).unwrap();
        }
    });
    receiver
}
