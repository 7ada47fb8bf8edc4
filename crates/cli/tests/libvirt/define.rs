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

/// What the tests' domains have of their host: a QEMU of their own, and a console on a socket with a log.
const TRUSTED: [&str; 2] = ["--allow", "emulator,socket,host-file"];

fn define(stage: &Stage, name: &str, arguments: &[&str]) -> (KeepmarkRun, PathBuf) {
    define_as_said(stage, name, &[arguments, &TRUSTED].concat())
}

fn define_as_said(stage: &Stage, name: &str, arguments: &[&str]) -> (KeepmarkRun, PathBuf) {
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
    let again = [&["restore", "vm@latest", "--define", "vm", "--to", text(&to)][..], &TRUSTED].concat();
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
    keepmark.ok(&[&["restore", "vm@latest", "--define", "vm"][..], &TRUSTED].concat());
    let folder = stage.host.dir().join("lib/images/vm");
    witness.assert_restored(&folder, Format::Qcow2);
    let domain = stage.host.defined("vm");
    assert_eq!(domain.source("sda"), Path::new("/var/lib/libvirt/images/vm/sda.qcow2"));
    // QEMU's user reads and writes them, nobody else.
    let mode = |path: PathBuf| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777;
    assert_eq!((mode(folder.join("vda.qcow2")), mode(folder.clone())), (0o600, 0o711));
}

/// Backs up a domain with these devices and this beside them, and takes its definition away.
fn hostile(stage: &Stage, devices: &str, beside: &str) {
    let file = stage.path("hostile.xml");
    let disk = stage.disk("vda");
    let xml = format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>vm</name><uuid>{UUID}</uuid>\
         <memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type><boot dev='network'/></os>\
         <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>\
         <memballoon model='none'/>{devices}</devices>{beside}</domain>",
        disk.file.display()
    );
    std::fs::write(&file, xml).unwrap();
    stage.host.virsh(&["define", text(&file)]);
    stage.keepmark.backup("vm", &[]);
    stage.host.virsh(&["undefine", "vm", "--checkpoints-metadata"]);
}

#[test]
fn a_hostile_definition_gets_nothing_of_the_host() {
    let stage = Stage::new();
    let (mark, log) = (stage.path("mark"), stage.path("cron"));
    let script = stage.path("evil");
    std::fs::write(&script, format!("#!/bin/sh\ntouch {}\nexec /usr/bin/qemu-system-x86_64 \"$@\"\n", text(&mark))).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let devices = format!(
        "<emulator>{script}</emulator><interface type='ethernet'><mac address='{MAC}'/><script path='{script}'/></interface>\
         <serial type='file'><source path='{log}'/></serial>\
         <disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='hda' bus='ide'/><readonly/></disk>",
        script = text(&script),
        log = text(&log)
    );
    let label = "<seclabel type='static' model='dac' relabel='yes'><label>root:root</label></seclabel>";
    let line = "<qemu:commandline><qemu:arg value='-name'/><qemu:arg value='evil'/></qemu:commandline>";
    hostile(&stage, &devices, &format!("{label}{line}"));
    drop(std::fs::remove_file(&mark));
    let (run, to) = define_as_said(&stage, "vm", &["--start"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    for word in ["script", "-name evil", text(&log), "Hint: ", "--allow host-file,qemu-arguments,script"] {
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
    }
    assert!(!mark.exists() && !log.exists() && !to.exists());
    assert!(stage.host.try_virsh(&["domstate", "vm"]).is_err());
    // What the operator allows is there; the rest is dropped.
    let (run, _) = define_as_said(&stage, "vm", &["--allow", "host-file,qemu-arguments", "--allow", "script"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let text = xml(&stage.host, "vm");
    assert!(text.contains("value='evil'") && text.contains("/etc/shadow"), "{text}");
    assert!(!text.contains("root:root") && text.contains("<emulator>/usr/bin/qemu"), "{text}");
}

#[test]
fn an_ordinary_vm_starts_without_a_word() {
    let stage = Stage::new();
    let devices = "<serial type='pty'/><channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
                   <graphics type='vnc' autoport='yes'/><input type='tablet' bus='usb'/><video><model type='vga'/></video>\
                   <sound model='ich6'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>";
    hostile(&stage, devices, "");
    let (run, _) = define_as_said(&stage, "vm", &["--start"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let domain = stage.host.defined("vm");
    assert_eq!(domain.state(), "running");
    domain.destroy();
}

#[test]
fn a_copy_of_half_a_vm_goes_without_the_other_half() {
    let stage = Stage::new();
    let domain = backed_up(&stage);
    let whole = stage.keepmark.ok(&["list", "--json"]).json()[0]["id"].as_str().unwrap()[..8].to_owned();
    let half = stage.backup(&domain, &["--disk", "sda"])["backup"].as_str().unwrap().to_owned();
    let restore = |more: &[&str]| {
        let to = stage.fresh("half");
        let run = stage.keepmark.run(&[&["restore", &half, "--define", "copy", "--to", text(&to)], more, &TRUSTED].concat());
        (run, to)
    };
    let before = stage.witness(&domain);
    let (run, to) = restore(&["--start"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    for word in ["would write to the original's disk vda", "--without-disk vda", &format!("backup {whole} has all of them")] {
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
    }
    assert!(!to.exists());
    let (run, _) = restore(&["--without-disk", "vda"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(!xml(&stage.host, "copy").contains("vda"));
    let after = stage.witness(&domain);
    before.assert_same("vda", &after.image("vda"), Format::Raw);
}
