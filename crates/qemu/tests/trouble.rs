//! Peers that are dead, mute or no QMP, VMs that others work on, and what dead runs leave: clear errors, nothing foreign touched.

#![expect(clippy::unwrap_used, reason = "a failed assumption in a test is a failed test")]

mod common;

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use keepmark_model::seam::Hypervisor;
use keepmark_model::{Failure, FailureClass};
use keepmark_qemu::{Live, LiveOptions};
use keepmark_testkit::image::Format;
use keepmark_testkit::{Attach, Disk, Qemu, QemuBuilder};
use serde_json::json;

fn failure(place: &Place, socket: PathBuf) -> Failure {
    let mut options = LiveOptions::new(socket, place.path("scratch"), place.path("run"));
    options.command_timeout = Duration::from_millis(300);
    Failure::from(Live::connect(options).unwrap_err())
}

/// A socket that says something to everyone and then nothing more.
fn speaker(place: &Place, words: &'static [u8]) -> PathBuf {
    let socket = place.path("speaker");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        let mut clients: Vec<UnixStream> = Vec::new();
        for mut client in listener.incoming().map_while(Result::ok) {
            drop(client.write_all(words));
            clients.push(client);
        }
    });
    socket
}

#[test]
fn dead_mute_and_rubbish_monitors_are_unreachable_and_say_why() {
    for (words, expected, hint) in [
        (&b""[..], "did not answer", "one client per monitor"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak QMP", "must be a QMP monitor"),
        (b"{\"QMP\": {\"version\": {}}}\n{\"return\"", "did not answer", "one client"),
        (b"{\"return\": {}}\n", "does not speak QMP", "QMP monitor"),
        (b"\xff\xfe\n", "does not speak QMP", "QMP monitor"),
    ] {
        let place = Place::new();
        let failure = failure(&place, speaker(&place, words));
        assert_eq!(failure.class(), FailureClass::Unreachable);
        assert!(failure.to_string().contains(expected), "{failure}");
        assert!(failure.hint().unwrap().contains(hint), "{failure}");
    }
    let place = Place::new();
    assert_eq!(failure(&place, place.path("nowhere")).class(), FailureClass::Unreachable);
    drop(UnixListener::bind(place.path("dead")).unwrap());
    let dead = failure(&place, place.path("dead"));
    assert_eq!(dead.class(), FailureClass::Unreachable);
    assert!(dead.hint().unwrap().contains("-qmp"));
}

#[test]
fn a_monitor_that_somebody_else_uses_is_mute_and_the_hint_says_so() {
    let place = Place::new();
    let qemu = one_disk(&place);
    let _other = UnixStream::connect(qemu.qmp_socket()).unwrap();
    let failure = failure(&place, qemu.qmp_socket());
    assert_eq!(failure.class(), FailureClass::Unreachable);
    assert!(failure.hint().unwrap().contains("second"), "{:?}", failure.hint());
}

#[test]
fn a_second_keepmark_on_the_same_vm_is_refused_and_told_who_works_there() {
    let place = Place::new();
    let qemu = one_disk(&place);
    let live = place.live(&qemu);
    let failure = failure(&place, qemu.qmp_socket());
    assert_eq!(failure.class(), FailureClass::Locked);
    assert!(failure.to_string().contains(&std::process::id().to_string()), "{failure}");
    // Another monitor is the same VM.
    let other = Live::connect(LiveOptions::new(place.path("witness"), place.path("scratch"), place.path("run"))).unwrap_err();
    assert_eq!(Failure::from(other).class(), FailureClass::Locked);
    drop(live);
    place.live(&qemu).facts().unwrap();
}

#[test]
fn a_qemu_that_dies_under_a_point_is_unreachable() {
    let place = Place::new();
    let qemu = one_disk(&place);
    let mut live = place.live(&qemu);
    let point = live.begin(&request(&[("vda", None)], Some(1))).unwrap();
    qemu.kill9();
    assert_eq!(point.release().unwrap_err().class(), FailureClass::Unreachable);
    assert_eq!(live.facts().unwrap_err().class(), FailureClass::Unreachable);
    assert_eq!(place.left(), Vec::<String>::new());
}

fn one_disk(place: &Place) -> Qemu {
    QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 16 * MIB))).start()
}

/// Started again by tests below: takes a point and waits to be killed.
#[test]
fn holder_of_a_point() {
    let Ok(socket) = std::env::var("KEEPMARK_TEST_HOLD_POINT") else { return };
    let folder = PathBuf::from(&socket).parent().unwrap().to_owned();
    let mut options = LiveOptions::new(&socket, folder.join("scratch"), folder.join("run"));
    options.force_jobs = std::env::var("KEEPMARK_TEST_JOBS").is_ok();
    let mut live = Live::connect(options).unwrap();
    let mut point = live.begin(&request(&[("vda", Some(1)), ("virtio0", None)], Some(2))).unwrap();
    let mut disk = open(&mut point, "vda");
    disk.dirty().unwrap();
    println!("held");
    std::thread::sleep(Duration::from_secs(60));
}

fn kill_while_it_holds_a_point(qemu: &Qemu, jobs: bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "holder_of_a_point", "--nocapture"]).env("KEEPMARK_TEST_HOLD_POINT", qemu.qmp_socket());
    if jobs {
        command.env("KEEPMARK_TEST_JOBS", "1");
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    assert!(std::io::BufRead::lines(output).any(|line| line.unwrap().contains("held")));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_a_killed_run_left_is_found_and_removed_and_nothing_else() {
    for jobs in [false, true] {
        let place = Place::new();
        let mut qemu = QemuBuilder::new(place.dir.path())
            .disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, 16 * MIB)))
            .disk(Disk::raw("data", &place.image("data", Format::Raw, MIB)).attach(Attach::VirtioAnonymous))
            .start();
        qemu.qmp("block-dirty-bitmap-add", json!({ "node": "node-vda", "name": "foreign", "persistent": true }));
        qemu.qmp("blockdev-add", json!({ "driver": "null-co", "node-name": "foreign-node", "size": 65536 }));
        let mut live = place.live(&qemu);
        take_checkpoint(&mut live, &["vda"], 1);
        drop(live);
        kill_while_it_holds_a_point(&qemu, jobs);
        qemu.write("vda", 3, MIB, MIB);
        let mut live = place.live(&qemu);
        // Even before, facts are those of the images below.
        let formats: Vec<String> = live.facts().unwrap().disks.into_iter().map(|disk| disk.format).collect();
        assert!(formats.contains(&"qcow2".to_owned()) && formats.contains(&"raw".to_owned()), "{formats:?}");
        let said = live.clean_up().unwrap();
        assert!(said.iter().any(|line| line.starts_with("export")) && said.iter().any(|line| line == "NBD server"), "{said:?}");
        assert!(said.iter().any(|line| line.starts_with(if jobs { "job" } else { "filter" })), "{said:?}");
        assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
        assert_eq!(qemu.node_of("vda"), "node-vda");
        qemu.expect_pattern("vda", 3, MIB, MIB);
        let names: Vec<String> = qemu.bitmaps().into_iter().map(|(_, name)| name).collect();
        assert!(names.contains(&"foreign".to_owned()) && names.iter().all(|name| !name.starts_with("km1tmp-")), "{names:?}");
        let nodes = qemu.qmp("query-named-block-nodes", json!({ "flat": true })).to_string();
        assert!(nodes.contains("foreign-node") && !nodes.contains("km1tmp-"));
        assert_eq!(place.left(), Vec::<String>::new());
        let mut point = live.begin(&request(&[("vda", Some(1))], Some(3))).unwrap();
        assert_eq!(open(&mut point, "vda").dirty().unwrap(), extents(&[(MIB, MIB)]));
    }
}

#[test]
fn a_pause_of_ours_is_ended_and_one_of_the_users_is_not() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    let mut live = place.live(&qemu);
    qemu.stop();
    assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
    assert_eq!(qemu.status(), "paused");
    qemu.qmp("block-dirty-bitmap-add", json!({ "node": "node-vda", "name": "km1tmp-paused-dead", "persistent": false, "disabled": true }));
    assert!(live.clean_up().unwrap().contains(&"pause of the VM".to_owned()));
    assert_eq!((qemu.status().as_str(), qemu.bitmaps().len()), ("running", 0));
}

#[test]
fn a_foreign_export_is_an_error_and_goes_on() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    qemu.qmp("nbd-server-start", json!({ "addr": { "type": "unix", "data": { "path": place.path("foreign") } } }));
    qemu.qmp("blockdev-add", json!({ "driver": "null-co", "node-name": "n", "size": 65536 }));
    qemu.qmp("block-export-add", json!({ "type": "nbd", "id": "foreign", "node-name": "n", "name": "n" }));
    let mut live = place.live(&qemu);
    assert_eq!(live.clean_up().unwrap(), Vec::<String>::new());
    let failure = live.begin(&request(&[("vda", None)], Some(1))).map(drop).unwrap_err();
    assert_eq!(failure.class(), FailureClass::Locked);
    assert!(failure.to_string().contains("foreign"), "{failure}");
    assert_eq!(qemu.bitmaps(), []);
    assert_eq!(qemu.node_of("vda"), "node-vda");
    assert!(UnixStream::connect(place.path("foreign")).is_ok());
}

#[test]
fn an_agent_that_hangs_costs_seconds_and_consistency_not_the_backup() {
    let place = Place::new();
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &place.image("vda", Format::Qcow2, MIB))).agent().start();
    let mut live = place.live(&qemu);
    assert!(live.facts().unwrap().agent);
    let since = Instant::now();
    let point = live.begin(&freezing(request(&[("vda", None)], Some(1)))).unwrap();
    assert!(since.elapsed() < Duration::from_secs(10));
    assert_eq!(point.moment().consistency, keepmark_model::manifest::Consistency::Crash);
    assert_eq!(point.moment().findings.len(), 1, "{:?}", point.moment().findings);
    point.release().unwrap();
    assert_eq!(qemu.status(), "running");
}

#[test]
fn a_scratch_folder_that_cannot_be_used_fails_before_anything_is_touched() {
    let place = Place::new();
    let mut qemu = one_disk(&place);
    std::fs::write(place.path("file"), "").unwrap();
    let mut options = place.options(&qemu);
    options.scratch_dir = place.path("file/scratch");
    let mut live = Live::connect(options).unwrap();
    assert!(live.begin(&request(&[("vda", None)], Some(1))).map(drop).unwrap_err().to_string().contains("scratch"));
    assert_eq!((qemu.status().as_str(), qemu.bitmaps().len()), ("running", 0));
}
