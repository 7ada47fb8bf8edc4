//! An image store is gone back to and thinned out: `revert`, `forget` and `prune` as in a repository, and the rest restores.

use std::path::PathBuf;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Witness};
use serde_json::{Value, json};

use crate::lab::{Lab, MIB, assert_clean, assert_says, disk, id};

fn lab() -> Lab {
    let lab = Lab::without_store();
    lab.keepmark.ok(&["init", &format!("images:{}", lab.store().display())]);
    lab
}

/// A powered-off image with its backups.
struct Vm {
    lab: Lab,
    disks: [Disk; 1],
    name: String,
    made: Vec<(String, Witness)>,
}

impl Vm {
    fn new() -> Self {
        let lab = lab();
        let file = lab.qcow2("vda", 16 * MIB);
        image::fill_random(&file, Format::Qcow2, 1, MIB, 4 << 20);
        let name = format!("image:vda={}", file.display());
        Self { lab, disks: [Disk::qcow2("vda", &file)], name, made: Vec::new() }
    }

    fn file(&self) -> &PathBuf {
        &self.disks[0].file
    }

    fn write(&self, pattern: u8, mib: u64) {
        image::fill(self.file(), Format::Qcow2, pattern, mib * MIB, MIB);
    }

    fn truth(&self) -> Witness {
        let number = self.made.len();
        Witness::of_images(&self.disks, &self.lab.path(&format!("truth{number}")))
    }

    fn backup(&mut self, arguments: &[&str]) -> Value {
        let truth = self.truth();
        let finished = self.lab.keepmark.backup(&self.name, &[&["--name", "web"], arguments].concat());
        self.made.push((id(&finished).to_owned(), truth));
        finished
    }

    fn listed(&self) -> Vec<String> {
        self.lab.list().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
    }

    /// All that are listed restore.
    #[track_caller]
    fn compare(&self) {
        let listed = self.listed();
        for (backup, truth) in self.made.iter().filter(|(backup, _)| listed.contains(backup)) {
            let to = self.lab.restore(backup, &format!("out-{backup}"));
            truth.assert_restored(&to, Format::Raw);
            std::fs::remove_dir_all(to).unwrap();
        }
        self.lab.keepmark.ok(&["verify", "--read-data"]);
    }
}

#[test]
fn a_powered_off_image_goes_back_and_its_sequence_goes_on() {
    let mut vm = Vm::new();
    let first = vm.backup(&[]);
    vm.write(7, 2);
    vm.backup(&[]);
    vm.write(8, 9);
    let wednesday = vm.truth();
    let done = vm.lab.keepmark.ok(&["revert", &vm.name, id(&first), "--name", "web", "--json"]).event("finished");
    // There are no chunk ids: all is compared, and what differs is written.
    assert_eq!(disk(&done, "vda")["written_bytes"].as_u64(), Some(MIB), "{done}");
    assert_eq!(disk(&done, "vda")["zeroed_bytes"].as_u64(), Some(MIB), "{done}");
    vm.made[0].1.assert_same("vda", vm.file(), Format::Qcow2);
    vm.made.push((done["safety_backup"].as_str().unwrap().to_owned(), wednesday));
    let next = vm.backup(&[]);
    assert_eq!(next["kind"], "incremental", "{next}");
    assert!(disk(&next, "vda")["stored_bytes"].as_u64().unwrap() < 3 * MIB, "{next}");
    assert_eq!(vm.listed().len(), 4);
    vm.compare();
}

#[test]
fn retention_takes_what_goes_and_leaves_the_rest_whole() {
    let mut vm = Vm::new();
    for (number, kind) in ["full", "incremental", "incremental", "differential", "incremental"].iter().enumerate() {
        vm.write(10 + u8::try_from(number).unwrap(), number as u64 * 2);
        assert_eq!(vm.backup(&["--kind", kind])["kind"], *kind);
    }
    vm.lab.keepmark.ok(&["pin", &vm.made[2].0]);
    let dry = vm.lab.keepmark.ok(&["forget", "web", "--keep-last", "1", "--dry-run"]).stdout;
    assert!(dry.contains("would be deleted") && vm.listed().len() == 5, "{dry}");
    let gone = vm.lab.keepmark.ok(&["forget", "web", "--keep-last", "1", "--json"]).event("forgotten")["deleted"].clone();
    assert_eq!(gone, json!([vm.made[1].0, vm.made[3].0]));
    vm.compare();
    vm.lab.keepmark.ok(&["unpin", &vm.made[2].0]);
    vm.lab.keepmark.ok(&["forget", "web", "--keep-last", "1"]);
    assert_eq!(vm.listed(), [vm.made[0].0.clone(), vm.made[4].0.clone()]);
    let pruned = vm.lab.keepmark.ok(&["prune", "--json"]);
    assert_says(&pruned, &["Note: nothing was left to be done: an image store frees space as soon as a backup is deleted"]);
    assert_eq!(pruned.event("finished")["removed_files"], 0);
    assert!(pruned.event("finished")["used_bytes"].as_u64().unwrap() > 5 * MIB, "{}", pruned.stdout);
    vm.write(20, 12);
    assert_eq!(vm.backup(&[])["kind"], "incremental");
    vm.compare();
}

/// What is interrupted is left to `prune`: here a deletion while somebody reads the VM's backups.
#[test]
fn prune_finishes_what_a_deletion_had_to_leave() {
    let mut vm = Vm::new();
    vm.backup(&[]);
    vm.write(7, 2);
    vm.backup(&[]);
    let lock = std::fs::File::open(vm.lab.store().join("web/.lock")).unwrap();
    lock.lock_shared().unwrap();
    let left = vm.lab.keepmark.ok(&["delete", &vm.made[0].0]);
    assert_says(&left, &["the space is freed later"]);
    assert!(vm.lab.store().join("web").join(&vm.made[0].0).exists());
    drop(lock);
    let dry = vm.lab.keepmark.ok(&["prune", "--dry-run", "--json"]).event("finished");
    assert!(dry["removed_files"].as_u64().unwrap() > 0 && dry["removed_bytes"].as_u64().unwrap() > 4 * MIB, "{dry}");
    let pruned = vm.lab.keepmark.ok(&["prune", "--json"]).event("finished");
    assert!(pruned["removed_files"].as_u64().unwrap() > 0, "{pruned}");
    assert!(!vm.lab.store().join("web").join(&vm.made[0].0).exists());
    vm.compare();
}

#[test]
fn a_resting_qemu_s_disks_go_back_and_the_next_push_is_an_incremental() {
    let lab = lab();
    let file = lab.qcow2("vda", 32 * MIB);
    image::fill_random(&file, Format::Qcow2, 1, MIB, 4 << 20);
    let mut qemu = lab.vm().disk(Disk::qcow2("vda", &file)).paused().start();
    let truth = Witness::hold(&mut qemu, &lab.path("truth"));
    let first = lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.write("vda", 5, 3 * MIB, MIB);
    lab.keepmark.ok(&["revert", &qemu.vm(), id(&first)]);
    let next = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(next["kind"], "incremental", "{next}");
    assert!(disk(&next, "vda")["reason"].as_str().unwrap().contains("written by the hypervisor"), "{next}");
    truth.assert_restored(&lab.restore(id(&next), "out"), Format::Raw);
    assert_clean(&mut qemu);
}
