//! An image store: libvirt's own backup jobs write it where they can; what they cannot is pulled, and said.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::mount::Small;
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Disk, Domain, KeepmarkRun, LibvirtHost, Qmp, RunningKeepmark, fail};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::stage::{MIB, SIZE, Stage, TIMEOUT, init_images, of_disk, soon};

/// More than QEMU copies before somebody can slow it down.
const DATA: usize = 160 << 20;

/// A running domain whose disk takes a while to copy.
fn large(stage: &Stage) -> Domain<'_> {
    let file = stage.path("vda.qcow2");
    image::create(&file, Format::Qcow2, 192 * MIB);
    image::fill_random(&file, Format::Qcow2, 1, MIB, DATA);
    stage.host.domain("vm").monitor().disk(Disk::qcow2("vda", &file)).start()
}

fn was_pushed(finished: &Value) -> bool {
    let disks = finished["disks"].as_array().unwrap();
    let pushed = disks.iter().filter(|disk| disk["reason"].as_str().unwrap().contains("written by the hypervisor")).count();
    assert!(pushed == 0 || pushed == disks.len(), "{finished}");
    pushed > 0
}

/// Does `prepare`, starts a backup and holds libvirt's job while it copies; all of it anew if the job was over before.
#[track_caller]
fn held<T>(stage: &Stage, domain: &Domain<'_>, monitor: &mut Qmp, arguments: &[&str], prepare: impl Fn() -> T) -> (T, RunningKeepmark) {
    for _ in 0..5 {
        let prepared = prepare();
        let mut running = stage.keepmark.spawn(&[&["backup", "vm", "--json", "--mode", "push"], arguments].concat());
        let mut is_held = false;
        soon("a push, or its end", || {
            // What an audit's job reads is served over NBD, but not yet when it begins. Then libvirt tells; and since the push may
            // have come in between, what is there is slowed once more.
            is_held = monitor.execute("query-block-exports", json!({})).as_array().unwrap().is_empty()
                && slowed(monitor)
                && domain.try_virsh("backup-dumpxml", &[]).is_ok_and(|xml| xml.contains("mode='push'"))
                && slowed(monitor);
            is_held || running.process.ended().is_some()
        });
        if is_held {
            return (prepared, running);
        }
        let_go(monitor);
        assert_eq!(running.wait(TIMEOUT).code, Some(0));
    }
    fail(format_args!("it was always over before it could be held"))
}

fn slowed(monitor: &mut Qmp) -> bool {
    let jobs = monitor.execute("query-jobs", json!({}));
    let job = jobs.as_array().unwrap().iter().find(|job| job["type"] == "backup").map(|job| job["id"].clone());
    job.is_some_and(|job| monitor.try_execute("block-job-set-speed", json!({ "device": job, "speed": 65_536 })).is_ok())
}

fn let_go(monitor: &mut Qmp) {
    for job in monitor.execute("query-jobs", json!({})).as_array().unwrap() {
        monitor.try_execute("block-job-set-speed", json!({ "device": job["id"], "speed": 0 })).ok();
    }
}

fn unpublished(stage: &Stage) -> Vec<PathBuf> {
    keepmark_testkit::damage::files(&stage.path("store")).into_iter().filter(|path| path.to_string_lossy().contains("km1tmp")).collect()
}

/// Backs up by `arguments`, and by push mode where that is what is expected; judges the kind, who wrote, and what is restored.
#[track_caller]
fn judge(stage: &Stage, domain: &Domain<'_>, kind: &str, is_pushed: bool, arguments: &[&str]) -> Value {
    let mode: &[&str] = if is_pushed { &["--mode", "push"] } else { &[] };
    let finished = stage.backup(domain, &[mode, arguments].concat());
    assert_eq!((finished["kind"].as_str(), was_pushed(&finished)), (Some(kind), is_pushed), "{finished}");
    stage.compare(&finished, &stage.witness(domain));
    stage.assert_clean(domain);
    assert_eq!(unpublished(stage), Vec::<PathBuf>::new());
    finished
}

#[test]
fn what_libvirt_pushes_is_each_moments_content() {
    let stage = Stage::with_images();
    let domain = stage.domain();
    let first_truth = stage.witness(&domain);
    let first = judge(&stage, &domain, "full", true, &[]);
    domain.write("vda", 7, 3 * MIB, 2 * MIB);
    domain.write("sda", 8, 5 * MIB, MIB);
    domain.qemu_io("vda", &format!("write -z {} {}", 6 * MIB, MIB));
    let second_truth = stage.witness(&domain);
    let second = judge(&stage, &domain, "incremental", true, &[]);
    assert_eq!((&of_disk(&second, "vda")["dirty_bytes"], &of_disk(&second, "sda")["dirty_bytes"]), (&(3 * MIB).into(), &MIB.into()));
    assert!(of_disk(&second, "vda")["stored_bytes"].as_u64().unwrap() < 3 * MIB, "{second}");
    assert!(of_disk(&second, "vda")["audited_bytes"].as_u64().unwrap() > 0, "{second}");
    domain.write("vda", 9, 4 * MIB, MIB);
    judge(&stage, &domain, "differential", true, &["--kind", "differential"]);
    domain.qemu_io("vda", &format!("discard {} {}", 2 * MIB, 4 * MIB));
    judge(&stage, &domain, "incremental", true, &[]);
    let last = judge(&stage, &domain, "incremental", true, &[]);
    assert_eq!(of_disk(&last, "vda")["dirty_bytes"], 0, "{last}");
    stage.compare(&first, &first_truth);
    stage.compare(&second, &second_truth);
    stage.keepmark.ok(&["verify", "--read-data"]);
}

#[test]
fn the_guest_overwrites_what_is_being_pushed() {
    let stage = Stage::with_images();
    let domain = large(&stage);
    let mut monitor = domain.monitor();
    for (kind, turn) in [("full", 0_u8), ("incremental", 1), ("differential", 2)] {
        let prepare = || {
            domain.write("vda", 100 + turn, MIB, 128 * MIB);
            stage.witness(&domain)
        };
        let (truth, running) = held(&stage, &domain, &mut monitor, &["--kind", kind], prepare);
        (0..48).for_each(|number| domain.write("vda", 10 + turn, 2 * MIB + number * MIB, 64 << 10));
        let_go(&mut monitor);
        let run = running.wait(TIMEOUT);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let finished = run.event("finished");
        assert!(finished["kind"] == kind && was_pushed(&finished), "{finished}");
        stage.compare(&finished, &truth);
        stage.assert_clean(&domain);
    }
    judge(&stage, &domain, "incremental", true, &[]);
    stage.keepmark.ok(&["verify", "--read-data"]);
}

/// What a backup says that should be pushed, is pulled, and is right.
#[track_caller]
fn judge_pulled(stage: &Stage, domain: &Domain<'_>, kind: &str, word: &str) -> Value {
    let run = stage.keepmark.ok(&["backup", domain.name(), "--json", "--mode", "push"]);
    assert!(run.stderr.contains("pulled, not pushed: ") && run.stderr.contains(word), "{}", run.stderr);
    let finished = run.event("finished");
    assert_eq!((finished["kind"].as_str(), was_pushed(&finished)), (Some(kind), false), "{finished}");
    stage.compare(&finished, &stage.witness(domain));
    stage.assert_clean(domain);
    finished
}

/// What cannot be pushed at all is refused, and nothing is left of that.
#[track_caller]
fn judge_refused(stage: &Stage, domain: &Domain<'_>, arguments: &[&str], word: &str) {
    let refused = stage.keepmark.exits(&[&["backup", domain.name(), "--mode", "push"], arguments].concat(), 2);
    for word in [word, "cannot be pushed", "Hint: "] {
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
}

#[test]
fn what_cannot_be_pushed_is_pulled_or_refused_and_said() {
    let stage = Stage::with_images();
    let domain = stage.domain();
    judge(&stage, &domain, "full", false, &["--mode", "pull"]);
    domain.write("vda", 7, 3 * MIB, MIB);
    judge(&stage, &domain, "incremental", true, &[]);
    domain.virsh("blockresize", &["vda", &format!("{}B", SIZE + MIB)]);
    domain.write("vda", 7, SIZE + 4096, 4096);
    judge_pulled(&stage, &domain, "incremental", "disk vda has grown");
    domain.write("vda", 8, 4 * MIB, MIB);
    judge(&stage, &domain, "incremental", true, &[]);
    domain.kill_qemu();
    domain.start();
    judge_pulled(&stage, &domain, "resync", "is to be compared with its last backup");
    domain.write("vda", 9, 5 * MIB, MIB);
    judge_refused(&stage, &domain, &["--compress"], "libvirt's backups are not compressed");
    stage.assert_clean(&domain);
    judge(&stage, &domain, "incremental", false, &["--compress"]);
    judge(&stage, &domain, "incremental", true, &[]);
}

/// libvirt's own bitmap that a dead libvirtd leaves would make every further push fail.
#[test]
fn a_bitmap_that_libvirt_left_is_no_harm() {
    let stage = Stage::with_images();
    let domain = stage.domain();
    judge(&stage, &domain, "full", true, &[]);
    let node = domain.bitmaps().into_iter().map(|(node, _)| node).next().unwrap();
    domain.qmp("block-dirty-bitmap-add", json!({ "node": node, "name": "backup-vda", "persistent": false, "disabled": true }));
    domain.qmp("block-dirty-bitmap-add", json!({ "node": node, "name": "backup-sda", "persistent": false, "disabled": true }));
    domain.write("vda", 8, 4 * MIB, MIB);
    judge_refused(&stage, &domain, &[], "a dead libvirtd has left its bitmap");
    judge(&stage, &domain, "incremental", false, &[]);
}

/// Cut and grown again, the disk has zeros that its bitmap calls clean: the moment cannot be read, but one just before can.
#[test]
fn a_disk_that_was_cut_and_grown_again_is_found_out_before_it_is_pushed() {
    let stage = Stage::with_images();
    let domain = stage.domain();
    judge(&stage, &domain, "full", true, &[]);
    let blocks = domain.qmp("query-block", json!({}));
    let source = domain.source("vda");
    let of_vda = |block: &&Value| block["inserted"]["file"].as_str().map(Path::new) == Some(&source);
    let node = blocks.as_array().unwrap().iter().find(of_vda).unwrap()["inserted"]["node-name"].clone();
    domain.qmp("block_resize", json!({ "node-name": node, "size": 4 * MIB }));
    domain.qmp("block_resize", json!({ "node-name": node, "size": SIZE }));
    domain.write("vda", 7, 2 * MIB, MIB);
    let run = stage.keepmark.exits(&["backup", "vm", "--json", "--mode", "push"], 3);
    assert!(run.stderr.contains("the bitmap cannot be believed, so everything is read"), "{}", run.stderr);
    let finished = run.event("finished");
    assert_eq!((finished["kind"].as_str(), was_pushed(&finished)), (Some("resync"), false), "{finished}");
    stage.compare(&finished, &stage.witness(&domain));
    stage.assert_clean(&domain);
    domain.write("vda", 8, 3 * MIB, MIB);
    judge(&stage, &domain, "incremental", true, &[]);
}

#[test]
fn a_qemu_of_another_user_pushes_where_it_is_let_in_and_leaves_nothing_open() {
    let stage = Stage::on_with(LibvirtHost::start_unprivileged, init_images);
    let domain = stage.domain();
    judge(&stage, &domain, "full", false, &[]);
    judge_refused(&stage, &domain, &[], "who cannot get through");
    domain.write("vda", 7, 3 * MIB, MIB);
    let let_in = |folder: &Path| std::fs::set_permissions(folder, Permissions::from_mode(0o711)).unwrap();
    let store = stage.path("store");
    let vm = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    [&store, &vm].into_iter().for_each(|folder| let_in(folder));
    let finished = judge(&stage, &domain, "incremental", true, &[]);
    let folder = vm.join(finished["backup"].as_str().unwrap());
    let of = |path: &Path| std::fs::metadata(path).map(|facts| (facts.uid(), facts.mode() & 0o7777)).unwrap();
    assert_eq!((of(&folder), of(&folder.join("vda.qcow2"))), ((0, 0o700), (0, 0o600)));
    domain.write("vda", 8, 4 * MIB, MIB);
    judge(&stage, &domain, "incremental", true, &[]);
    stage.keepmark.ok(&["verify", "--read-data"]);
}

#[test]
fn shut_off_and_running_are_one_sequence_that_is_thinned_out() {
    let stage = Stage::with_images();
    let domain = stage.domain();
    let first = judge(&stage, &domain, "full", true, &[]);
    domain.write("vda", 7, 3 * MIB, MIB);
    domain.destroy();
    judge_refused(&stage, &domain, &[], "only a running VM's QEMU");
    let second = judge(&stage, &domain, "incremental", false, &[]);
    let second_truth = stage.witness(&domain);
    domain.start();
    domain.write("vda", 8, 4 * MIB, MIB);
    let third_truth = stage.witness(&domain);
    let third = judge(&stage, &domain, "incremental", true, &[]);
    domain.write("sda", 9, 5 * MIB, MIB);
    let fourth = judge(&stage, &domain, "differential", true, &["--kind", "differential"]);
    let fourth_truth = stage.witness(&domain);
    let id = |backup: &Value| backup["backup"].as_str().unwrap().to_owned();
    stage.keepmark.ok(&["delete", &id(&second), &id(&first)]);
    stage.compare(&third, &third_truth);
    stage.compare(&fourth, &fourth_truth);
    domain.write("vda", 10, 2 * MIB, MIB);
    let fifth = judge(&stage, &domain, "incremental", true, &[]);
    stage.keepmark.ok(&["consolidate", &id(&fifth)]);
    stage.compare(&fifth, &stage.witness(&domain));
    domain.write("vda", 11, 6 * MIB, MIB);
    stage.keepmark.ok(&["forget", "vm", "--keep-last", "2"]);
    stage.keepmark.ok(&["prune"]);
    judge(&stage, &domain, "incremental", true, &[]);
    stage.compare(&fourth, &fourth_truth);
    stage.keepmark.ok(&["verify", "--read-data"]);
    drop(second_truth);
}

#[test]
fn a_push_that_is_ended_by_somebody_or_interrupted_leaves_nothing() {
    let stage = Stage::with_images();
    let domain = large(&stage);
    let mut monitor = domain.monitor();
    judge(&stage, &domain, "full", true, &[]);
    for (words, code) in [("somebody ended it", 1), ("interrupted", 130)] {
        let prepare = || {
            domain.write("vda", 7, 3 * MIB, 128 * MIB);
            domain.checkpoints()
        };
        let (before, running) = held(&stage, &domain, &mut monitor, &[], prepare);
        domain.write("vda", 8, 3 * MIB, MIB);
        if code == 1 {
            domain.virsh("domjobabort", &[]);
        } else {
            running.process.signal(Signal::INT);
        }
        let run = running.wait(TIMEOUT);
        assert!(run.code == Some(code) && run.stderr.contains(words), "{:?} {}", run.code, run.stderr);
        stage.assert_clean(&domain);
        assert_eq!((unpublished(&stage), domain.checkpoints()), (vec![], before));
        judge(&stage, &domain, "incremental", true, &[]);
    }
}

#[test]
fn a_store_that_gets_full_ends_the_push_and_not_the_guest() {
    let mut small = None;
    // The host sees what was mounted when it began. Hardly more than what has to stay free.
    let stage = Stage::on_with(
        |folder| {
            small = Some(Small::new(&folder.with_file_name("store"), "300m"));
            LibvirtHost::start(folder)
        },
        init_images,
    );
    let domain = large(&stage);
    let failed = stage.keepmark.exits(&["backup", "vm", "--mode", "push"], 1);
    assert!(failed.stderr.contains("is nearly full") && failed.stderr.contains("Hint: "), "{}", failed.stderr);
    domain.write("vda", 9, 0, 8 * MIB);
    assert_eq!((domain.state().as_str(), unpublished(&stage)), ("running", vec![]));
    stage.assert_clean(&domain);
    small.as_ref().unwrap().make_room();
    judge(&stage, &domain, "full", true, &[]);
}

/// A domain whose push is held, and what it had when that began.
fn changed<'h>(stage: &'h Stage, monitor: &mut Option<Qmp>) -> (Domain<'h>, RunningKeepmark) {
    let domain = large(stage);
    let monitor = monitor.insert(domain.monitor());
    judge(stage, &domain, "full", true, &[]);
    let ((), running) = held(stage, &domain, monitor, &[], || domain.write("vda", 7, 3 * MIB, 128 * MIB));
    domain.write("vda", 8, 4 * MIB, MIB);
    (domain, running)
}

/// What follows a push that died: the next one is right, and nothing is left of it.
#[track_caller]
fn judge_next(stage: &Stage, domain: &Domain<'_>) {
    domain.write("vda", 9, 5 * MIB, MIB);
    assert_eq!(domain.state(), "running");
    judge(stage, domain, "incremental", true, &[]);
    domain.write("vda", 10, 6 * MIB, MIB);
    judge(stage, domain, "incremental", true, &[]);
    stage.keepmark.ok(&["verify", "--read-data"]);
}

#[test]
fn keepmark_dies_while_libvirt_pushes() {
    let stage = Stage::with_images();
    let (domain, mut running) = changed(&stage, &mut None);
    running.process.kill9();
    // Nobody watches the store's space any more.
    wait_for("the watchdog to end the backup", TIMEOUT, || domain.try_virsh("backup-dumpxml", &[]).is_err().then_some(()));
    judge_next(&stage, &domain);
}

#[test]
fn libvirtd_dies_and_comes_back_while_it_pushes() {
    let stage = Stage::with_images();
    let mut monitor = None;
    let (domain, running) = changed(&stage, &mut monitor);
    stage.host.kill_libvirtd();
    stage.host.restart_libvirtd();
    let_go(monitor.as_mut().unwrap());
    let run: KeepmarkRun = running.wait(TIMEOUT);
    // What came first cannot always be told: whether the new libvirtd's last job was ours.
    let is_told = if run.code == Some(0) { was_pushed(&run.event("finished")) } else { run.stderr.contains("cannot be told how it ended") };
    assert!(is_told, "{:?} {}", run.code, run.stderr);
    judge_next(&stage, &domain);
}

/// The job ends while libvirtd is dead: how it ended is told by libvirtd's successor, or by nobody.
#[test]
fn libvirtd_dies_and_stays_away_while_it_pushes() {
    let stage = Stage::with_images();
    let mut monitor = None;
    let (domain, running) = changed(&stage, &mut monitor);
    stage.host.kill_libvirtd();
    let_go(monitor.as_mut().unwrap());
    let run = running.wait(TIMEOUT);
    assert!(run.code.is_some_and(|code| code != 0), "{:?} {}", run.code, run.stderr);
    stage.host.restart_libvirtd();
    judge_next(&stage, &domain);
}

#[test]
fn keepmark_and_libvirtd_die_while_it_pushes() {
    let stage = Stage::with_images();
    let mut monitor = None;
    let (domain, mut running) = changed(&stage, &mut monitor);
    stage.host.pause_libvirtd();
    running.process.kill9();
    stage.host.kill_libvirtd();
    stage.host.restart_libvirtd();
    let_go(monitor.as_mut().unwrap());
    judge_next(&stage, &domain);
}

#[test]
fn qemu_dies_while_libvirt_pushes() {
    let stage = Stage::with_images();
    let (domain, running) = changed(&stage, &mut None);
    domain.kill_qemu();
    let run = running.wait(TIMEOUT);
    assert_ne!(run.code, Some(0), "{}", run.stderr);
    domain.start();
    judge_pulled(&stage, &domain, "resync", "is to be compared");
    domain.write("vda", 9, 5 * MIB, MIB);
    judge(&stage, &domain, "incremental", true, &[]);
}
