//! The driver on a libvirtd of the test's own: what it tells, what a moment holds, and what is left when something goes wrong.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

use std::path::{Path, PathBuf};

use keepmark_libvirt::{Options, list, open};
use keepmark_model::facts::{Persistence, Power, VmFacts};
use keepmark_model::manifest::Consistency;
use keepmark_model::seam::{Freeze, FrozenDisk, FrozenPoint, Hypervisor, PointDisk, PointRequest};
use keepmark_model::{CheckpointName, DiskName, Extents, FailureClass};
use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, LibvirtHost, tmp};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const C1: &str = "km1-20261122T180001Z-3f9a1c0d7be2";
const C2: &str = "km1-20261122T180002Z-3f9a1c0d7be2";

struct Stage {
    // Before its folder.
    host: LibvirtHost,
    dir: TempDir,
}

impl Stage {
    fn new() -> Self {
        let dir = tmp();
        Self { host: LibvirtHost::start(&dir.path().join("host")), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn disk(&self, name: &str) -> Disk {
        let file = self.path(&format!("{name}.qcow2"));
        image::create(&file, Format::Qcow2, 8 * MIB);
        Disk::qcow2(name, &file)
    }

    fn options(&self) -> Options {
        Options { uri: Some(self.host.uri()), ..Options::new("vm", self.path("scratch"), self.path("run")) }
    }

    fn open(&self) -> Box<dyn Hypervisor> {
        open(self.options()).unwrap()
    }

    fn left(&self) -> Vec<PathBuf> {
        let below = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
        [below(&self.path("scratch")), below(&self.path("run"))].concat()
    }
}

fn name(text: &str) -> CheckpointName {
    CheckpointName::parse(text).unwrap()
}

fn request(disks: &[(&str, Option<&str>)], checkpoint: Option<&str>) -> PointRequest {
    let disk = |(disk, since): &(&str, Option<&str>)| PointDisk { name: DiskName::new(disk).unwrap(), since: since.map(name) };
    PointRequest {
        disks: disks.iter().map(disk).collect(),
        checkpoint: checkpoint.map(name),
        run: "0a1b2c3d".into(),
        freeze: Freeze::Never,
        push: keepmark_model::pushing::Push::No,
    }
}

fn disk<'a>(point: &mut Box<dyn FrozenPoint + 'a>, name: &str) -> Box<dyn FrozenDisk> {
    point.disk(&DiskName::new(name).unwrap()).unwrap()
}

fn checkpoint(vm: &mut dyn Hypervisor, disks: &[&str], checkpoint: &str) {
    let disks: Vec<_> = disks.iter().map(|disk| (*disk, None)).collect();
    vm.begin(&request(&disks, Some(checkpoint))).unwrap().release().unwrap();
}

fn bitmaps(facts: &VmFacts, disk: &str) -> Vec<String> {
    let disk = facts.disks.iter().find(|one| one.name.as_str() == disk).unwrap();
    disk.layers.iter().flat_map(|layer| &layer.bitmaps).map(|bitmap| bitmap.name.clone()).collect()
}

fn names(facts: &VmFacts) -> Vec<&str> {
    facts.disks.iter().map(|disk| disk.name.as_str()).collect()
}

#[test]
fn a_domain_is_told_alike_running_and_shut_off() {
    let stage = Stage::new();
    let raw = stage.path("vdb.raw");
    image::create(&raw, Format::Raw, MIB);
    let cdrom = "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>";
    let builder = stage.host.domain("vm").disk(stage.disk("vda")).disk(stage.disk("sda")).disk(Disk::raw("vdb", &raw));
    let domain = builder.agent().device(cdrom).start();
    let running = stage.open().facts().unwrap();
    // libvirt orders a definition's disks by their bus.
    assert_eq!((running.power, running.agent, names(&running)), (Power::Running, true, vec!["vda", "vdb", "sda"]));
    assert!(running.hypervisor.starts_with("libvirt "), "{}", running.hypervisor);
    assert!(matches!(running.disks[1].persistence, Persistence::MemoryOnly { .. }));
    assert_eq!(running.skipped.iter().map(|skipped| skipped.name.as_str()).collect::<Vec<_>>(), ["hdc"]);
    domain.virsh("suspend", &[]);
    assert_eq!(stage.open().facts().unwrap().power, Power::Paused);
    domain.destroy();
    let mut off = stage.open();
    let facts = off.facts().unwrap();
    assert_eq!((facts.power, &facts.identity, names(&facts)), (Power::Off, &running.identity, names(&running)));
    assert_eq!(facts.skipped, running.skipped);
    off.close().unwrap();
    let listed = list(Some(&stage.host.uri())).unwrap();
    assert_eq!(listed.iter().map(|domain| (domain.name.as_str(), domain.is_active)).collect::<Vec<_>>(), [("vm", false)]);
}

#[test]
fn a_moment_stays_and_a_delta_is_what_came_since_the_checkpoint() {
    let stage = Stage::new();
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).disk(stage.disk("sda")).start();
    domain.write("vda", 1, 0, MIB);
    let mut vm = stage.open();
    checkpoint(vm.as_mut(), &["vda", "sda"], C1);
    domain.write("vda", 2, 2 * MIB, MIB);
    let mut point = vm.begin(&request(&[("vda", Some(C1)), ("sda", Some(C1))], Some(C2))).unwrap();
    domain.write("vda", 3, 0, 4 * MIB);
    let mut vda = disk(&mut point, "vda");
    assert_eq!(vda.dirty().unwrap(), Extents::from_iter([keepmark_model::Extent::at(2 * MIB, MIB)]));
    let data = Extents::from_iter([keepmark_model::Extent::at(0, MIB), keepmark_model::Extent::at(2 * MIB, MIB)]);
    let mut seen = Vec::new();
    vda.read(&mut data.iter(), &mut |extent, bytes| {
        seen.push((extent.start, bytes.iter().all(|byte| *byte == if extent.start < MIB { 1 } else { 2 })));
        Ok(())
    })
    .unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|(_, is_old)| *is_old), "{seen:?}");
    assert!(disk(&mut point, "sda").dirty().unwrap().is_empty());
    drop(vda);
    point.release().unwrap();
    vm.remove_checkpoints(&[name(C1)]).unwrap();
    assert_eq!(domain.checkpoints(), [C2]);
    assert_eq!(bitmaps(&vm.facts().unwrap(), "sda"), [C2]);
    drop(vm);
    assert_eq!(stage.left(), [""; 0].map(PathBuf::from));
}

#[test]
fn a_moment_that_is_dropped_or_ended_by_somebody_leaves_nothing_and_is_not_believed() {
    let stage = Stage::new();
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).start();
    let mut vm = stage.open();
    drop(vm.begin(&request(&[("vda", None)], None)).unwrap());
    assert_eq!(domain.backup_socket(), None);
    let mut point = vm.begin(&request(&[("vda", None)], None)).unwrap();
    let mut vda = disk(&mut point, "vda");
    domain.virsh("domjobabort", &[]);
    let whole = Extents::whole(vda.size());
    assert!(vda.data(&whole).is_err());
    assert!(vda.read(&mut whole.iter(), &mut |_, _| Ok(())).is_err());
    drop(vda);
    point.release().unwrap();
    drop(vm);
    assert_eq!(stage.left(), [""; 0].map(PathBuf::from));
}

#[test]
fn what_libvirt_and_qemu_disagree_about_is_healed() {
    let stage = Stage::new();
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).disk(stage.disk("sda")).start();
    let mut vm = stage.open();
    checkpoint(vm.as_mut(), &["vda", "sda"], C1);
    checkpoint(vm.as_mut(), &["vda"], C2);
    domain.virsh("checkpoint-create-as", &["by-hand"]);
    domain.virsh("checkpoint-delete", &[C1, "--metadata"]);
    let node = domain.bitmaps().into_iter().find(|(_, bitmap)| bitmap == C2).unwrap().0;
    domain.qmp("block-dirty-bitmap-remove", serde_json::json!({ "node": node, "name": C2 }));
    let said = vm.clean_up().unwrap();
    assert!(said.iter().any(|line| line.contains(C1)) && said.iter().any(|line| line.contains(C2)), "{said:?}");
    let mut known = domain.checkpoints();
    known.sort();
    assert_eq!(known, ["by-hand", C1]);
    assert_eq!(vm.clean_up().unwrap(), [""; 0]);
    vm.remove_checkpoints(&[name(C1), name(C2)]).unwrap();
    assert_eq!(domain.checkpoints(), ["by-hand"]);
}

#[test]
fn a_checkpoint_with_a_bitmap_missing_is_removed_whole() {
    let stage = Stage::new();
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).disk(stage.disk("sda")).start();
    let mut vm = stage.open();
    checkpoint(vm.as_mut(), &["vda", "sda"], C1);
    let node = domain.bitmaps().into_iter().find(|(_, bitmap)| bitmap == C1).unwrap().0;
    domain.qmp("block-dirty-bitmap-remove", serde_json::json!({ "node": node, "name": C1 }));
    vm.remove_checkpoints(&[name(C1)]).unwrap();
    assert_eq!((domain.checkpoints(), domain.bitmaps()), (vec![], vec![]));
}

#[test]
fn a_backup_that_libvirt_lost_sight_of_is_ended() {
    let stage = Stage::new();
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).start();
    let folder = stage.host.dir().join("lib/qemu/checkpoint");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("vm"), "not a folder").unwrap();
    let mut vm = stage.open();
    vm.begin(&request(&[("vda", None)], Some(C1))).map(drop).unwrap_err();
    assert_eq!(domain.backup_socket(), None);
    std::fs::remove_file(folder.join("vm")).unwrap();
    vm.clean_up().unwrap();
    checkpoint(vm.as_mut(), &["vda"], C2);
    vm.remove_checkpoints(&[name(C1), name(C2)]).unwrap();
    assert_eq!((domain.checkpoints(), domain.bitmaps()), (vec![], vec![]));
}

#[test]
fn a_second_keepmark_and_an_unknown_domain_are_refused_in_words() {
    let stage = Stage::new();
    stage.host.domain("vm").disk(stage.disk("vda")).start();
    let held = stage.open();
    assert_eq!(keepmark_model::Failure::from(open(stage.options()).map(drop).unwrap_err()).class(), FailureClass::Locked);
    drop(held);
    let unknown = open(Options { domain: "nobody".into(), ..stage.options() }).map(drop).unwrap_err();
    assert!(unknown.to_string().contains("vm"), "{unknown}");
    let nowhere = Options { uri: Some("qemu+unix:///system?socket=/nonexistent".into()), ..stage.options() };
    let failure = keepmark_model::Failure::from(open(nowhere).map(drop).unwrap_err());
    assert!(failure.class() == FailureClass::Unreachable && failure.hint().is_some(), "{failure}");
}

#[test]
fn what_a_domain_boots_with_is_saved() {
    let stage = Stage::new();
    let kernel = stage.path("kernel");
    std::fs::write(&kernel, "a kernel").unwrap();
    let os = format!("<kernel>{}</kernel>", kernel.display());
    let graphics = "<graphics type='vnc' port='-1' listen='127.0.0.1' passwd='secret'/><video><model type='none'/></video>";
    stage.host.domain("vm").disk(stage.disk("vda")).os(&os).device(graphics).define();
    let mut vm = stage.open();
    let files = vm.definition().unwrap().files;
    let content = |name: &str| files.iter().find(|file| file.name == name).map(|file| String::from_utf8_lossy(&file.content).into_owned());
    assert_eq!(content("kernel").as_deref(), Some("a kernel"));
    // Without it the display would come back open to everybody.
    assert!(content("domain.xml").unwrap().contains("passwd='secret'"));
    assert_eq!(content("domain-active.xml"), None);
    vm.close().unwrap();
}

#[test]
fn what_a_domain_refers_to_is_saved_but_no_secret() {
    let stage = Stage::new();
    let file = |name: &str, xml: &str| {
        let path = stage.path(name);
        std::fs::write(&path, xml).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let uuid = "0f8b9d0c-6f4b-4a0e-9d42-5a1c0b7e3d21";
    let secret = format!("<secret ephemeral='no' private='no'><uuid>{uuid}</uuid><description>of a test</description></secret>");
    stage.host.virsh(&["secret-define", &file("secret.xml", &secret)]);
    stage.host.virsh(&["secret-set-value", uuid, "--plain", "--file", &file("value", "opensesame")]);
    let network = "<network><name>lan</name><forward mode='bridge'/><bridge name='br-lan'/></network>";
    stage.host.virsh(&["net-define", &file("network.xml", network)]);
    let devices = format!(
        "<interface type='network'><source network='lan'/></interface><interface type='network'><source network='gone'/></interface>\
         <tpm model='tpm-crb'><backend type='emulator' version='2.0'><encryption secret='{uuid}'/></backend></tpm>"
    );
    stage.host.domain("vm").disk(stage.disk("vda")).device(&devices).define();
    let mut vm = stage.open();
    let saved = vm.definition().unwrap();
    vm.close().unwrap();
    // It never ran: its TPM has no state yet, and that is no finding.
    assert_eq!(saved.findings, [""; 0]);
    let files: Vec<_> = saved.files.iter().map(|file| (file.name.as_str(), String::from_utf8_lossy(&file.content))).collect();
    let of = |name: &str| files.iter().find(|(one, _)| *one == name).map(|(_, text)| text.as_ref());
    assert!(of("network-lan.xml").unwrap().contains("<bridge name='br-lan'/>"));
    assert!(of(&format!("secret-{uuid}.xml")).unwrap().contains("of a test"));
    assert_eq!(of("network-gone.xml"), None);
    let value = "opensesame";
    // As libvirt stores it: in base64.
    assert!(!files.iter().any(|(_, text)| text.contains(value) || text.contains("b3BlbnNlc2FtZQ")));
}

#[test]
fn a_volume_of_a_pool_is_found_and_a_managed_save_is_said() {
    let stage = Stage::new();
    let pool = stage.path("pool");
    std::fs::create_dir_all(&pool).unwrap();
    stage.host.virsh(&["pool-create-as", "p", "dir", "--target", pool.to_str().unwrap()]);
    stage.host.virsh(&["vol-create-as", "p", "v.qcow2", "8M", "--format", "qcow2"]);
    let volume = "<disk type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='p' volume='v.qcow2'/><target dev='vdb' bus='virtio'/></disk>";
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).device(volume).start();
    assert_eq!(names(&stage.open().facts().unwrap()), ["vda", "vdb"]);
    domain.virsh("managedsave", &[]);
    let mut vm = stage.open();
    assert_eq!(names(&vm.facts().unwrap()), ["vda", "vdb"]);
    let point = vm.begin(&request(&[("vda", None), ("vdb", None)], Some(C1))).unwrap();
    assert_eq!((point.moment().consistency, point.moment().findings.len()), (Consistency::Crash, 1));
    point.release().unwrap();
    vm.close().unwrap();
    assert_eq!(domain.checkpoints(), [C1]);
    domain.start();
    let mut vm = stage.open();
    assert_eq!(bitmaps(&vm.facts().unwrap(), "vdb"), [C1]);
    assert_eq!(vm.clean_up().unwrap(), [""; 0]);
}
