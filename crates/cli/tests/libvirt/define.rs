//! A VM comes back from its backup with `restore --define`: its disks, its identity, its networks, and what is refused beforehand.

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Domain, Guest, KeepmarkRun, LibvirtHost};
use serde_json::Value;

use crate::stage::{MIB, Stage};

const UUID: &str = "3c0ad6a6-6a2e-4c5d-9f0e-1a2b3c4d5e6f";
const MAC: &str = "52:54:00:11:22:33";
const BOOT: Duration = Duration::from_secs(120);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn network(stage: &Stage, name: &str) {
    let file = stage.path("network.xml");
    std::fs::write(&file, format!("<network><name>{name}</name><forward mode='bridge'/><bridge name='br-{name}'/></network>")).unwrap();
    stage.host.virsh(&["net-define", text(&file)]);
}

fn interface(network: &str) -> String {
    format!("<interface type='network'><mac address='{MAC}'/><source network='{network}'/><model type='virtio'/></interface>")
}

/// The domain `vm`, shut off and backed up, connected to the network `lan`.
fn backed_up(stage: &Stage) -> Domain<'_> {
    network(stage, "lan");
    let builder = stage.host.domain("vm").uuid(UUID).disk(stage.disk("vda")).disk(stage.disk("sda"));
    let domain = builder.device(&interface("lan")).define();
    stage.backup(&domain, &[]);
    domain
}

/// Undefines a domain and deletes its images.
fn lose(domain: &Domain<'_>) {
    domain.virsh("undefine", &["--nvram", "--checkpoints-metadata"]);
    domain.disks().iter().for_each(|disk| std::fs::remove_file(&disk.file).unwrap());
}

fn define(stage: &Stage, name: &str, arguments: &[&str]) -> (KeepmarkRun, PathBuf) {
    let to = stage.fresh("defined");
    let run = stage.keepmark.run(&[&["restore", "vm@latest", "--define", name, "--to", text(&to), "--json"], arguments].concat());
    (run, to)
}

#[track_caller]
fn defined(stage: &Stage, name: &str, arguments: &[&str]) -> (Value, KeepmarkRun, PathBuf) {
    let (run, to) = define(stage, name, arguments);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    (run.event("finished")["domain"].clone(), run, to)
}

/// Fails the test unless it was refused with these words before anything was written.
#[track_caller]
fn refused(stage: &Stage, name: &str, arguments: &[&str], code: i32, words: &[&str]) {
    let (run, to) = define(stage, name, arguments);
    assert_eq!(run.code, Some(code), "{}", run.stderr);
    assert!(words.iter().all(|word| run.stderr.contains(word)) && run.stderr.contains("Hint: "), "{words:?}: {}", run.stderr);
    assert!(!to.exists(), "{} was made", to.display());
}

fn xml(host: &LibvirtHost, name: &str) -> String {
    host.virsh(&["dumpxml", "--inactive", name])
}

#[test]
fn a_lost_vm_of_two_disks_boots_again() {
    let stage = Stage::new();
    let disks = ["vda", "sda"].map(|name| {
        let file = stage.path(&format!("{name}.qcow2"));
        image::mkfs_ext4(&file, Format::Qcow2, 64 * MIB, None);
        Disk::qcow2(name, &file)
    });
    let builder = stage.host.domain("vm").uuid(UUID).guest(&Guest::build()).mount(&["vda", "sda"]).agent();
    let domain = disks.into_iter().fold(builder, keepmark_testkit::DomainBuilder::disk).start();
    let mut serial = domain.wait_ready();
    let write = |serial: &mut keepmark_testkit::Serial, disk: &str| serial.run(&format!("write {disk} 2 100"), BOOT);
    ["vda", "sda"].iter().for_each(|disk| drop(write(&mut serial, disk)));
    let sums = ["vda", "sda"].map(|disk| serial.run(&format!("sums {disk}"), BOOT));
    stage.backup(&domain, &[]);
    domain.destroy();
    lose(&domain);
    let (told, _, to) = defined(&stage, "vm", &["--start"]);
    assert_eq!((told["name"].as_str(), told["uuid"].as_str(), told["started"].as_bool()), (Some("vm"), Some(UUID), Some(true)));
    let again = stage.host.defined("vm");
    let mut serial = again.wait_ready();
    serial.assert_unharmed();
    assert_eq!(["vda", "sda"].map(|disk| serial.run(&format!("sums {disk}"), BOOT)), sums);
    assert_eq!(again.source("vda"), to.join("vda.qcow2"));
    // The sequence goes on: what is on the disks is known already.
    let next = stage.backup(&again, &[]);
    assert_eq!(next["kind"], "resync", "{next}");
    assert_eq!(stage.keepmark.ok(&["list", UUID, "--json"]).json().len(), 2);
    again.destroy();
}

#[test]
fn a_vm_keeps_its_identity_under_its_name_and_gets_another_beside_the_original() {
    let stage = Stage::new();
    let domain = backed_up(&stage);
    let witness = stage.witness(&domain);
    let (copy, run, to) = defined(&stage, "copy", &[]);
    assert!(copy["uuid"] != UUID && copy["started"] == false, "{copy}");
    assert!(run.stderr.contains("a UUID and MAC addresses of its own"), "{}", run.stderr);
    let text = xml(&stage.host, "copy");
    assert!(!text.contains(UUID) && !text.contains(MAC) && text.contains("52:54:00:"), "{text}");
    witness.assert_restored(&to, Format::Qcow2);

    refused(&stage, "vm", &[], 1, &["\"vm\" already"]);
    refused(&stage, "a/b", &[], 2, &[]);
    lose(&domain);
    let (same, ..) = defined(&stage, "vm", &[]);
    assert_eq!(same["uuid"], UUID);
    let text = xml(&stage.host, "vm");
    assert!(text.contains(MAC) && text.contains("<source network='lan'/>"), "{text}");
}

#[test]
fn networks_are_mapped_and_missing_ones_refused() {
    let stage = Stage::new();
    let domain = backed_up(&stage);
    lose(&domain);
    stage.host.virsh(&["net-undefine", "lan"]);
    network(&stage, "other");
    refused(&stage, "vm", &[], 1, &["no network lan", "--network lan=NEW", "other", "--file network-lan.xml"]);
    assert!(stage.keepmark.ok(&["show", "vm@latest", "--file", "network-lan.xml"]).stdout.contains("<bridge name='br-lan'/>"));
    refused(&stage, "vm", &["--network", "lan=nowhere"], 2, &["\"nowhere\"", "other"]);
    refused(&stage, "vm", &["--network", "lan=other", "--network", "dmz=other"], 2, &["\"dmz\"", "lan"]);
    let (told, run, _) = defined(&stage, "vm", &["--network", "lan=other"]);
    assert_eq!(told["uuid"], UUID);
    assert!(run.stderr.contains("connected to network other, it was to lan"), "{}", run.stderr);
    assert!(xml(&stage.host, "vm").contains("<source network='other'/>"));
}

#[test]
fn what_libvirt_refuses_is_left_where_it_can_be_mended() {
    let stage = Stage::new();
    let domain = backed_up(&stage);
    let witness = stage.witness(&domain);
    lose(&domain);
    let emulator = std::fs::read(stage.host.emulator()).unwrap();
    std::fs::write(stage.host.emulator(), "#!/bin/false\n").unwrap();
    let (run, to) = define(&stage, "vm", &[]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let definition = to.join("domain.xml");
    assert!(run.stderr.contains(text(&definition)) && run.stderr.contains("Caused by: libvirt refused"), "{}", run.stderr);
    witness.assert_restored(&to, Format::Qcow2);
    std::fs::write(stage.host.emulator(), emulator).unwrap();
    stage.host.virsh(&["define", text(&definition)]);
    stage.host.virsh(&["undefine", "vm"]);
    // Nothing is overwritten that lies in the way.
    let again = ["restore", "vm@latest", "--define", "vm", "--to", text(&to)];
    assert!(stage.keepmark.exits(&again, 1).stderr.contains("exists already"));
    // The network is not active.
    let run = stage.keepmark.exits(&[&again[..], &["--force", "--start"]].concat(), 1);
    assert!(run.stderr.contains("does not start") && run.stderr.contains("virsh start vm"), "{}", run.stderr);
    assert_eq!(stage.host.defined("vm").state(), "shut off");
}

#[test]
fn a_backup_of_no_domain_says_what_to_do() {
    let stage = Stage::new();
    let disk = stage.disk("vda");
    stage.keepmark.backup(&format!("image:vda={}", text(&disk.file)), &["--name", "vm"]);
    refused(&stage, "vm", &[], 2, &["no definition of a domain", "virt-install --import"]);
}

#[test]
fn without_a_folder_the_files_go_beside_libvirts_other_images() {
    let stage = Stage::on(LibvirtHost::start_unprivileged);
    let domain = backed_up(&stage);
    let witness = stage.witness(&domain);
    lose(&domain);
    let keepmark = stage.keepmark.clone().within(&stage.host);
    keepmark.ok(&["restore", "vm@latest", "--define", "vm"]);
    let folder = stage.host.dir().join("lib/images/vm");
    witness.assert_restored(&folder, Format::Qcow2);
    let domain = stage.host.defined("vm");
    assert_eq!(domain.source("sda"), Path::new("/var/lib/libvirt/images/vm/sda.qcow2"));
    // QEMU's user reads and writes them, nobody else.
    let mode = |path: PathBuf| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777;
    assert_eq!((mode(folder.join("vda.qcow2")), mode(folder.clone())), (0o600, 0o711));
}
