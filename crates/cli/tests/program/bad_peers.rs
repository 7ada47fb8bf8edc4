//! Monitors that are dead, mute or talk rubbish, and NBD servers that lie, fail or die: an error within seconds, and no backup.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keepmark_testkit::process::wait_for;
use keepmark_testkit::servers::NbdServer;
use keepmark_testkit::{KeepmarkRun, Qemu, QmpProxy, Verdict};

use crate::gate::Gate;
use crate::lab::{Lab, MIB, assert_clean, assert_says, our_bitmaps};

/// Longer than the time-out of a command, and "a few seconds" for a person who waits.
const PATIENCE: Duration = Duration::from_secs(14);

/// Fails the test unless all that talk to a VM give up on this socket in time with 13.
#[track_caller]
fn assert_unreachable(lab: &Lab, socket: &Path) -> KeepmarkRun {
    let started = Instant::now();
    let run = lab.keepmark.exits(&["backup", &format!("qmp:{}", socket.display())], 13);
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    assert_eq!(run.stdout, "");
    assert!(run.stderr.starts_with("Error: "), "{}", run.stderr);
    assert!(lab.list().is_empty());
    run
}

#[test]
fn a_socket_that_nobody_made_or_serves_is_13() {
    let lab = Lab::new();
    let run = assert_unreachable(&lab, &lab.path("nowhere"));
    assert_says(&run, &["nowhere", "No such file"]);
    let dead = lab.path("dead");
    drop(UnixListener::bind(&dead).unwrap());
    assert_says(&assert_unreachable(&lab, &dead), &["Connection refused"]);
    let file = lab.path("file");
    std::fs::write(&file, "no socket").unwrap();
    assert_unreachable(&lab, &file);
}

#[test]
fn a_monitor_that_says_nothing_is_13() {
    let lab = Lab::new();
    let socket = lab.path("mute");
    let _listener = UnixListener::bind(&socket).unwrap();
    assert_says(&assert_unreachable(&lab, &socket), &["did not answer"]);
}

/// Greets every client with these bytes, then says nothing more.
fn greet(socket: PathBuf, bytes: Vec<u8>) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        let mut clients = Vec::new();
        for mut client in listener.incoming().flatten() {
            client.write_all(&bytes).ok();
            clients.push(client);
        }
    });
}

#[test]
fn monitors_that_talk_rubbish_are_13() {
    let lab = Lab::new();
    for (name, bytes) in [
        ("http", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("json", b"{\"hello\": \"world\"}\r\n".to_vec()),
        ("list", b"[1, 2]\r\n".to_vec()),
        ("binary", [0, 159, 146, 150, 10].to_vec()),
    ] {
        let socket = lab.path(name);
        greet(socket.clone(), bytes);
        assert_says(&assert_unreachable(&lab, &socket), &["does not speak QMP"]);
    }
}

#[test]
fn a_monitor_that_greets_and_falls_silent_is_13() {
    let lab = Lab::new();
    let socket = lab.path("greets");
    greet(
        socket.clone(),
        b"{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 2}}, \"capabilities\": []}}\r\n".to_vec(),
    );
    assert_says(&assert_unreachable(&lab, &socket), &["did not answer qmp_capabilities"]);
}

#[test]
fn a_monitor_that_hangs_up_in_the_middle_leaves_nothing_that_the_next_run_cannot_remove() {
    for command in ["transaction", "nbd-server-start", "block-export-add", "cont"] {
        let lab = Lab::new();
        let mut qemu = lab.one_disk();
        let mut armed = true;
        let proxy = QmpProxy::start(&lab.path("proxy"), &qemu.qmp_socket(), move |message| {
            let hang_up = armed && message["execute"] == command;
            armed &= !hang_up;
            if hang_up { Verdict::HangUp } else { Verdict::Forward }
        });
        let run = lab.keepmark.run(&["backup", &proxy.vm()]);
        assert!(matches!(run.code, Some(1 | 13)), "{command}: {:?} {}", run.code, run.stderr);
        assert!(lab.list().is_empty(), "{command}");
        wait_for("the guest to run", Duration::from_secs(30), || (qemu.status() == "running").then_some(()));
        drop(proxy);
        let next = lab.keepmark.backup(&qemu.vm(), &[]);
        assert_eq!(next["kind"], "full", "{command}");
        assert_clean(&mut qemu);
        assert_eq!(our_bitmaps(&mut qemu).len(), 1, "{command}: checkpoints of failed runs stayed");
    }
}

#[test]
fn qemu_killed_in_the_middle_of_a_backup_fails_it_and_the_next_one_is_right() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    let first = lab.keepmark.backup(&qemu.vm(), &[]);
    let gate = Gate::before("block-export-add", &qemu, &lab);
    let running = lab.keepmark.spawn(&["backup", &gate.vm()]);
    gate.wait();
    let builder = qemu.kill9();
    gate.open();
    let run = running.wait(Duration::from_secs(30));
    assert!(matches!(run.code, Some(1 | 13)), "{:?} {}", run.code, run.stderr);
    assert_eq!(lab.list().len(), 1);

    let qemu = builder.start();
    let resync = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(resync["kind"], "resync");
    assert!(resync["reason"].as_str().unwrap().contains("QEMU was killed"), "{resync}");
    assert_ne!(resync["checkpoint"], first["checkpoint"]);
}

/// A proxy that lets the program under test read from an NBD server of ours where it expects QEMU's.
struct Impostor {
    proxy: QmpProxy,
    server: Arc<Mutex<Option<NbdServer>>>,
}

impl Impostor {
    fn start(lab: &Lab, qemu: &Qemu, nbdkit: &'static [&'static str]) -> Self {
        let server = Arc::new(Mutex::new(None));
        let (started, mut socket) = (Arc::clone(&server), PathBuf::new());
        let proxy = QmpProxy::start(&lab.path("impostor"), &qemu.qmp_socket(), move |message| {
            let arguments = &message["arguments"];
            match message["execute"].as_str().unwrap_or_default() {
                "nbd-server-start" => socket = arguments["addr"]["data"]["path"].as_str().unwrap().into(),
                // QEMU goes on listening on a socket that has no name any more.
                "block-export-add" => {
                    std::fs::rename(&socket, socket.with_extension("true")).unwrap();
                    started.lock().unwrap().replace(NbdServer::nbdkit(&socket, nbdkit));
                }
                _ => {}
            }
            Verdict::Forward
        });
        Self { proxy, server }
    }
}

/// Fails the test unless a backup from this server fails, leaves nothing and says these words.
#[track_caller]
fn assert_refused(nbdkit: &'static [&'static str], words: &[&str]) {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let impostor = Impostor::start(&lab, &qemu, nbdkit);
    let run = lab.keepmark.exits(&["backup", &impostor.proxy.vm()], 1);
    assert_says(&run, words);
    assert!(lab.list().is_empty());
    assert_clean(&mut qemu);
    assert_eq!(our_bitmaps(&mut qemu), [""; 0]);
    lab.restic().check();
}

#[test]
fn a_server_that_lies_about_the_size_is_refused() {
    assert_refused(&["memory", "63M"], &["vda"]);
    assert_refused(&["memory", "65M"], &["vda"]);
}

#[test]
fn a_server_that_returns_errors_fails_the_backup() {
    assert_refused(&["--filter=error", "pattern", "64M", "error-pread=EIO", "error-pread-rate=100%"], &["vda"]);
    assert_refused(&["--filter=error", "pattern", "64M", "error-pread=EIO", "error-pread-rate=10%"], &["vda"]);
}

#[test]
fn a_server_that_dies_midway_fails_the_backup() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let impostor = Impostor::start(&lab, &qemu, &["--filter=delay", "pattern", "64M", "rdelay=200ms"]);
    let running = lab.keepmark.spawn(&["backup", &impostor.proxy.vm()]);
    wait_for("reading to begin", Duration::from_secs(30), || impostor.server.lock().unwrap().is_some().then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    impostor.server.lock().unwrap().as_mut().unwrap().process.kill9();
    let run = running.wait(Duration::from_secs(30));
    assert!(matches!(run.code, Some(1 | 13)), "{:?} {}", run.code, run.stderr);
    assert!(lab.list().is_empty());
    assert_clean(&mut qemu);
}

#[test]
fn an_impostor_that_behaves_is_backed_up() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    let impostor = Impostor::start(&lab, &qemu, &["pattern", "64M"]);
    let done = lab.keepmark.backup(&impostor.proxy.vm(), &[]);
    assert_eq!(done["disks"][0]["read_bytes"], 64 * MIB);
}
