//! A libvirt host of a test's own starts, runs guests, survives its libvirtd, and ends without a trace.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Guest, LibvirtHost, OrFail, process, tmp};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// Mounts of this process, which a host must not touch.
fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").or_fail("reading the mounts")
}

fn is_alive(id: u32) -> bool {
    std::path::Path::new(&format!("/proc/{id}")).exists()
}

#[test]
fn a_host_runs_domains_and_ends_without_a_trace() {
    let (dir, mounts_before) = (tmp(), mounts());
    let begun = Instant::now();
    let host = LibvirtHost::start(&dir.path().join("host"));
    let took = begun.elapsed();
    println!("libvirtd answers after {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");

    let (vda, sda) = (dir.path().join("vda.qcow2"), dir.path().join("sda.raw"));
    image::create(&vda, Format::Qcow2, 8 * MIB);
    image::create(&sda, Format::Raw, 8 * MIB);
    let domain = host.domain("a & b").disk(Disk::qcow2("vda", &vda)).disk(Disk::raw("sda", &sda)).start();
    println!("a domain runs after {:?}", begun.elapsed());
    assert_eq!(domain.state(), "running");
    domain.write("vda", 7, MIB, MIB);
    domain.write("sda", 8, MIB, MIB);
    domain.expect_pattern("vda", 7, MIB, MIB);
    assert!(domain.try_qemu_io("vda", "read -P 99 1M 64k").contains("Pattern verification"));
    let witness = domain.witness(&dir.path().join("witness"));
    assert_eq!(domain.state(), "running");
    domain.destroy();
    witness.assert_same("vda", &vda, Format::Qcow2);
    witness.assert_same("sda", &sda, Format::Raw);

    domain.start();
    let processes = host.processes();
    assert!(processes.len() >= 3, "{processes:?}");
    drop(host);
    assert_eq!(mounts(), mounts_before);
    let left: Vec<u32> = processes.into_iter().filter(|&id| is_alive(id)).collect();
    assert!(left.is_empty(), "still there: {left:?}");
}

#[test]
fn a_guest_boots_to_its_marker_and_obeys() {
    let dir = tmp();
    let host = LibvirtHost::start(&dir.path().join("host"));
    let vda = dir.path().join("vda");
    image::mkfs_ext4(&vda, Format::Qcow2, 64 * MIB, None);
    let builder = host.domain("guest").guest(&Guest::build()).agent().mount(&["vda"]).writer("vda", 20);
    let domain = builder.disk(Disk::qcow2("vda", &vda)).start();
    let mut serial = domain.wait_ready();
    serial.wait_beats(3, Duration::from_secs(30));
    serial.wait_writes(5, Duration::from_secs(60));
    let answer = process::wait_for("the agent", Duration::from_secs(60), || {
        domain.try_virsh("qemu-agent-command", &[r#"{"execute":"guest-fsfreeze-status"}"#]).ok()
    });
    assert!(answer.contains("thawed"), "{answer}");
    // What is frozen does not change: the copy is that of the file systems' state.
    domain.virsh("domfsfreeze", &[]);
    let copies = ["one", "two"].map(|name| domain.witness(&dir.path().join(name)));
    domain.virsh("domfsthaw", &[]);
    copies[0].assert_same("vda", &copies[1].image("vda"), Format::Raw);
    serial.wait_writes(5, Duration::from_secs(60));
    assert_eq!(serial.run("stop_writer; echo done", Duration::from_secs(60)), "done\n");
    serial.send("poweroff");
    domain.wait_off();
}

#[test]
fn domains_outlive_their_libvirtd_but_not_their_qemu() {
    let dir = tmp();
    let host = LibvirtHost::start(&dir.path().join("host"));
    let vda = dir.path().join("vda.qcow2");
    image::create(&vda, Format::Qcow2, 8 * MIB);
    let domain = host.domain("vm").disk(Disk::qcow2("vda", &vda)).start();
    let qemu = host.qemu("vm").unwrap();
    let first = host.libvirtd().unwrap();
    host.kill_libvirtd();
    assert_eq!(host.libvirtd(), None);
    assert!(is_alive(qemu) && host.try_virsh(&["list"]).is_err());
    host.restart_libvirtd();
    host.restart_libvirtd();
    assert_ne!(host.libvirtd(), Some(first));
    assert_eq!((domain.state().as_str(), host.qemu("vm")), ("running", Some(qemu)));
    domain.write("vda", 7, MIB, MIB);
    domain.kill_qemu();
    assert_eq!((domain.state().as_str(), host.qemu("vm")), ("shut off", None));
    domain.start();
    let qemu = host.qemu("vm").unwrap();
    domain.destroy();
    assert!(!is_alive(qemu));
    assert!(host.domain("transient").start_transient().try_virsh("dominfo", &[]).is_ok());
}

#[test]
fn a_backup_job_is_seen_and_its_moment_copied() {
    let dir = tmp();
    let host = LibvirtHost::start(&dir.path().join("host"));
    let vda = dir.path().join("vda.qcow2");
    image::create(&vda, Format::Qcow2, 8 * MIB);
    let domain = host.domain("vm").disk(Disk::qcow2("vda", &vda)).start();
    domain.write("vda", 7, MIB, MIB);
    let expected = domain.witness(&dir.path().join("expected"));
    assert_eq!(domain.backup_socket(), None);
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let socket = dir.path().join("nbd");
    let server = format!("<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>", socket.display());
    let checkpoint = file("checkpoint.xml", "<domaincheckpoint><name>c1</name></domaincheckpoint>");
    domain.virsh("backup-begin", &[&file("backup.xml", &server), &checkpoint]);
    assert_eq!(domain.backup_socket(), Some(socket));
    domain.write("vda", 8, 2 * MIB, MIB);
    let copied = domain.witness_of_backup(&dir.path().join("copied"));
    expected.assert_same("vda", &copied.image("vda"), Format::Raw);
    domain.virsh("domjobabort", &[]);
    assert_eq!(domain.checkpoints(), ["c1"]);
    assert!(domain.bitmaps().iter().any(|(_, name)| name == "c1"));
    let nodes = domain.qmp("query-named-block-nodes", json!({"flat": true}));
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
}

#[test]
fn hosts_beside_each_other_do_not_meet() {
    let dir = tmp();
    let [one, two] = ["one", "two"].map(|name| LibvirtHost::start(&dir.path().join(name)));
    let domain = one.domain("vm").start();
    let same = two.domain("vm").define();
    assert_eq!((domain.state().as_str(), same.state().as_str()), ("running", "shut off"));
    let sets = [one.processes(), two.processes()].map(BTreeSet::from_iter);
    assert!(sets[0].is_disjoint(&sets[1]));
    drop(two);
    assert_eq!(domain.state(), "running");
}
