//! VMs that are unusual: in use, old formats, foreign or very many bitmaps, twins, agents that are not there or hang.

use std::time::{Duration, Instant};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, QmpProxy, Verdict};
use serde_json::json;

use crate::gate::Gate;
use crate::lab::{Lab, MIB, UUID, assert_clean, assert_says, disk, id, image_vm, our_bitmaps};

#[test]
fn an_image_in_use_is_11_and_names_the_process() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    let run = lab.keepmark.exits(&["backup", &image_vm("vda", &lab.path("vda.qcow2"))], 11);
    assert_says(&run, &["in use by", "qemu-system", &qemu.id().to_string()]);
}

#[test]
fn a_second_keepmark_on_the_same_vm_is_11() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let gate = Gate::before("cont", &qemu, &lab);
    let first = lab.keepmark.spawn(&["backup", &gate.vm(), "--json"]);
    gate.wait();
    let second = lab.keepmark.exits(&["backup", &gate.vm()], 11);
    assert_says(&second, &["another keepmark", &first.process.id().to_string()]);
    gate.open();
    assert_eq!(first.wait(Duration::from_secs(30)).code, Some(0));
    assert_clean(&mut qemu);
    lab.keepmark.backup(&qemu.vm(), &[]);
}

#[test]
fn disks_without_persistent_bitmaps_work_and_say_what_they_cost() {
    let lab = Lab::new();
    let old = lab.path("old.qcow2");
    image::create_with(&old, Format::Qcow2, 32 * MIB, "compat=0.10");
    let raw = lab.image("plain", Format::Raw, 16 * MIB);
    let start = || lab.vm().disk(Disk::qcow2("old", &old)).disk(Disk::raw("plain", &raw).attach(Attach::VirtioDrive)).start();
    let mut qemu = start();
    qemu.write("old", 1, 0, 2 * MIB);
    qemu.write("plain", 2, 0, 2 * MIB);
    assert_eq!(lab.keepmark.backup(&qemu.vm(), &[])["kind"], "full");
    qemu.write("plain", 3, MIB, MIB);
    let while_it_runs = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(while_it_runs["kind"], "incremental");
    assert_eq!(disk(&while_it_runs, "plain")["dirty_bytes"], MIB);
    let doctor = lab.keepmark.exits(&["doctor", &qemu.vm()], 3);
    assert!(doctor.stdout.contains("compat=1.1"), "{}", doctor.stdout);

    drop(qemu.quit());
    let qemu = start();
    let through = lab.witness(&qemu);
    let resync = lab.keepmark.backup(&through.vm(), &[]);
    assert_eq!(resync["kind"], "resync");
    for name in ["old", "plain"] {
        let reason = disk(&resync, name)["reason"].as_str().unwrap();
        assert!(reason.contains("memory"), "{reason}");
        assert!(disk(&resync, name)["stored_bytes"].as_u64().unwrap() < 64 << 10, "{resync}");
    }
    through.take().assert_restored(&lab.restore(id(&resync), "out"), Format::Raw);
}

#[test]
fn a_powered_off_raw_image_works_and_says_why_it_is_read_whole() {
    let lab = Lab::new();
    let raw = lab.image("plain", Format::Raw, 16 * MIB);
    image::fill(&raw, Format::Raw, 9, MIB, MIB);
    let vm = image_vm("vda", &raw);
    lab.keepmark.backup(&vm, &["--name", "web"]);
    let again = lab.keepmark.backup(&vm, &["--name", "web"]);
    assert_eq!(again["kind"], "resync");
    assert!(again["reason"].as_str().unwrap().contains("memory"), "{again}");
    image::assert_same(&lab.restore("web@latest", "out").join("vda.raw"), Format::Raw, &raw, Format::Raw);
}

#[test]
fn foreign_bitmaps_are_left_alone() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    let add = |name: &str, disabled: bool| json!({"node": "node-vda", "name": name, "persistent": true, "disabled": disabled});
    qemu.qmp("block-dirty-bitmap-add", add("virtnbdbackup.0", false));
    qemu.qmp("block-dirty-bitmap-add", add("kmfoo", true));
    qemu.write("vda", 4, 0, MIB);
    let foreign = |qemu: &mut keepmark_testkit::Qemu| {
        let nodes = qemu.qmp("query-named-block-nodes", json!({"flat": true}));
        let node = nodes.as_array().unwrap().iter().find(|node| node["node-name"] == "node-vda").unwrap().clone();
        let mut found = node["dirty-bitmaps"].as_array().unwrap().clone();
        found.retain(|bitmap| matches!(bitmap["name"].as_str(), Some("virtnbdbackup.0" | "kmfoo")));
        found.sort_by_key(|bitmap| bitmap["name"].to_string());
        found
    };
    let before = foreign(&mut qemu);
    for _ in 0..2 {
        lab.keepmark.backup(&qemu.vm(), &[]);
    }
    lab.keepmark.ok(&["checkpoint", "delete", &qemu.vm()]);
    assert_eq!(foreign(&mut qemu), before);
    drop(qemu.quit());
    lab.keepmark.backup(&image_vm("vda", &lab.path("vda.qcow2")), &["--uuid", UUID]);
    let mut stored = image::bitmaps(&lab.path("vda.qcow2"));
    stored.retain(|name| !name.starts_with("km1-"));
    stored.sort();
    assert_eq!(stored, ["kmfoo", "virtnbdbackup.0"]);
}

#[test]
fn hundreds_of_bitmaps_are_no_obstacle() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    for number in 0..300 {
        let name = format!("foreign-{number}");
        qemu.qmp("block-dirty-bitmap-add", json!({"node": "node-vda", "name": name, "persistent": number % 2 == 0}));
    }
    let started = Instant::now();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("vda", 4, 0, MIB);
    let incremental = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!((incremental["kind"].as_str(), disk(&incremental, "vda")["dirty_bytes"].as_u64()), (Some("incremental"), Some(MIB)));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(qemu.bitmaps().iter().filter(|(_, name)| name.starts_with("foreign-")).count(), 300);
}

#[test]
fn a_vm_of_the_same_name_but_another_uuid_has_its_own_sequence() {
    let lab = Lab::new();
    let first = lab.one_disk();
    lab.keepmark.backup(&first.vm(), &[]);
    let other = lab.qcow2("other", 16 * MIB);
    let twin = lab.other_vm("twin").uuid("00000000-1111-4000-8000-00000000abcd").disk(Disk::qcow2("vda", &other)).start();
    let backup = lab.keepmark.backup(&twin.vm(), &[]);
    assert_eq!(backup["kind"], "full", "{backup}");
    let ambiguous = lab.keepmark.exits(&["show", "test-vm@latest"], 2);
    assert_says(&ambiguous, &["several VMs", UUID, "00000000-1111-4000-8000-00000000abcd"]);
    let shown = lab.keepmark.ok(&["show", &format!("{UUID}@latest"), "--json"]).json();
    assert_eq!(shown[0]["vm"]["uuid"], UUID);
    assert_eq!(lab.keepmark.ok(&["list", UUID, "--json"]).json().len(), 1);
}

#[test]
fn a_guest_without_agent_is_crash_consistent_without_a_finding() {
    let lab = Lab::new();
    let qemu = lab.one_disk();
    assert_eq!(lab.keepmark.backup(&qemu.vm(), &[])["consistency"], "crash");
}

#[test]
fn an_agent_that_is_configured_but_not_there_is_a_finding() {
    let lab = Lab::new();
    let mut qemu = lab.vm().agent().disk(Disk::qcow2("vda", &lab.qcow2("vda", 16 * MIB))).start();
    let run = lab.keepmark.exits(&["backup", &qemu.vm(), "--json"], 3);
    assert_eq!(run.event("finished")["consistency"], "crash");
    assert_says(&run, &["Finding:", "agent"]);
    assert_clean(&mut qemu);
}

/// The proxy says that the guest has opened the port; nobody reads there.
#[test]
fn an_agent_that_hangs_costs_its_deadline_and_is_a_finding() {
    let lab = Lab::new();
    lab.keepmark.configure("freeze_deadline_s = 2\n");
    let mut qemu = lab.vm().agent().disk(Disk::qcow2("vda", &lab.qcow2("vda", 16 * MIB))).start();
    let filename = format!("disconnected:unix:{},server=on", qemu.agent_socket().display());
    let proxy = QmpProxy::start(&lab.path("proxy"), &qemu.qmp_socket(), move |message| {
        if message["execute"] == "query-chardev" {
            return Verdict::Answer(json!({"return": [{"label": "agent", "filename": filename, "frontend-open": true}]}));
        }
        Verdict::Forward
    });
    let started = Instant::now();
    let run = lab.keepmark.exits(&["backup", &proxy.vm(), "--json"], 3);
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    let finished = run.event("finished");
    assert_eq!(finished["consistency"], "crash");
    assert_says(&run, &["Finding:", "agent", "did not answer"]);
    let shown = lab.keepmark.ok(&["show", id(&finished), "--json"]).json();
    assert!(shown[0]["findings"][0].as_str().unwrap().contains("agent"), "{shown:?}");
    assert_eq!(qemu.status(), "running");
    assert_clean(&mut qemu);
    assert_eq!(our_bitmaps(&mut qemu).len(), 1);
}

#[test]
fn a_freeze_deadline_of_zero_never_asks_the_agent() {
    let lab = Lab::new();
    lab.keepmark.configure("freeze_deadline_s = 0\n");
    let qemu = lab.vm().agent().disk(Disk::qcow2("vda", &lab.qcow2("vda", 16 * MIB))).start();
    assert_eq!(lab.keepmark.backup(&qemu.vm(), &[])["consistency"], "crash");
}
