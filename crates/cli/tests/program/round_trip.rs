//! The main job: back up a running VM, full and incremental, and get it back.

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::run;
use std::process::Command;

use crate::lab::{Lab, MIB, assert_clean, disk, id, image_vm, text};

#[test]
fn every_backup_of_a_running_vm_restores_to_its_moment() {
    let lab = Lab::new();
    let mut qemu = lab.two_disks();
    let through = lab.witness(&qemu);

    let full = lab.keepmark.backup(&through.vm(), &[]);
    let first = through.take();
    assert_eq!((full["kind"].as_str(), full["consistency"].as_str()), (Some("full"), Some("crash")));
    assert_eq!(disk(&full, "vda")["read_bytes"], 9 * MIB);

    qemu.write("vda", 7, 20 * MIB, 2 * MIB);
    qemu.write("sdb", 8, MIB, MIB);
    let incremental = lab.keepmark.backup(&through.vm(), &[]);
    let second = through.take();
    assert_eq!(incremental["kind"], "incremental");
    assert_eq!(
        (disk(&incremental, "vda")["dirty_bytes"].as_u64(), disk(&incremental, "vda")["read_bytes"].as_u64()),
        (Some(2 * MIB), Some(2 * MIB))
    );
    assert_eq!(disk(&incremental, "sdb")["read_bytes"], MIB);

    first.assert_restored(&lab.restore(id(&full), "out1"), Format::Raw);
    second.assert_restored(&lab.restore(id(&incremental), "out2"), Format::Raw);
    assert_clean(&mut qemu);
    lab.restic().check();
}

#[test]
fn a_backup_without_changes_stores_next_to_nothing() {
    let lab = Lab::new();
    let qemu = lab.two_disks();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let unchanged = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(unchanged["kind"], "incremental");
    for name in ["vda", "sdb"] {
        assert_eq!(disk(&unchanged, name)["read_bytes"], 0);
        assert!(disk(&unchanged, name)["stored_bytes"].as_u64().unwrap() < 64 << 10, "{unchanged}");
    }
}

#[test]
fn a_discarded_range_is_not_read_and_restores_as_zeros() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    qemu.qemu_io("vda", &format!("discard {} {}", 2 * MIB, 4 * MIB));
    let through = lab.witness(&qemu);
    let trimmed = lab.keepmark.backup(&through.vm(), &[]);
    assert_eq!(disk(&trimmed, "vda")["read_bytes"], 0, "{trimmed}");
    through.take().assert_restored(&lab.restore(id(&trimmed), "out"), Format::Raw);
}

#[test]
fn what_is_restored_as_qcow2_has_the_same_bytes() {
    let lab = Lab::new();
    let qemu = lab.two_disks();
    let through = lab.witness(&qemu);
    lab.keepmark.backup(&through.vm(), &[]);
    let to = lab.path("out");
    lab.keepmark.ok(&["restore", "test-vm@latest", "--to", text(&to), "--format", "qcow2"]);
    through.take().assert_restored(&to, Format::Qcow2);
}

/// A powered-off VM of two small disks, backed up once as `web`.
fn backed_up(lab: &Lab) -> (std::path::PathBuf, std::path::PathBuf) {
    let (vda, vdb) = (lab.qcow2("a", 16 * MIB), lab.image("b", Format::Raw, 8 * MIB + 512));
    image::fill(&vda, Format::Qcow2, 5, 3 * MIB, 2 * MIB);
    image::fill(&vdb, Format::Raw, 6, MIB, MIB);
    let vm = format!("{},vdb={}", image_vm("vda", &vda), vdb.display());
    lab.keepmark.backup(&vm, &["--name", "web"]);
    (vda, vdb)
}

#[test]
fn one_disk_can_be_restored_alone() {
    let lab = Lab::new();
    let (_, vdb) = backed_up(&lab);
    let to = lab.path("out");
    let run = lab.keepmark.ok(&["restore", "web@latest", "--to", text(&to), "--disk", "vdb", "--json"]);
    assert_eq!(run.event("finished")["disks"][0]["name"], "vdb");
    image::assert_same(&to.join("vdb.raw"), Format::Raw, &vdb, Format::Raw);
    assert!(!to.join("vda.raw").exists());
    let unknown = lab.keepmark.exits(&["restore", "web@latest", "--to", text(&to), "--disk", "vdz"], 2);
    assert!(unknown.stderr.contains("vda, vdb"), "{}", unknown.stderr);
}

#[test]
fn restored_files_are_sparse_and_nothing_is_overwritten_without_force() {
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new();
    let (vda, _) = backed_up(&lab);
    let to = lab.restore("web@latest", "out");
    let restored = to.join("vda.raw");
    let on_disk = std::fs::metadata(&restored).unwrap().blocks() * 512;
    assert!(on_disk <= 3 * MIB, "{on_disk} bytes on disk for 2 MiB of data");

    std::fs::write(&restored, "mine").unwrap();
    let refused = lab.keepmark.exits(&["restore", "web@latest", "--to", text(&to)], 1);
    assert!(refused.stderr.contains("vda.raw") && refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&restored).unwrap(), b"mine");
    lab.keepmark.ok(&["restore", "web@latest", "--to", text(&to), "--force"]);
    image::assert_same(&restored, Format::Raw, &vda, Format::Qcow2);
}

#[test]
fn one_disk_goes_onto_an_existing_file_only_with_force() {
    let lab = Lab::new();
    let (vda, _) = backed_up(&lab);
    let file = lab.path("disk.img");
    std::fs::write(&file, "mine").unwrap();
    let arguments = ["restore", "web@latest", "--to", text(&file), "--disk", "vda"];
    lab.keepmark.exits(&arguments, 1);
    lab.keepmark.exits(&["restore", "web@latest", "--to", text(&file), "--force"], 2);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    lab.keepmark.ok(&[&arguments[..], &["--force"]].concat());
    image::assert_same(&file, Format::Raw, &vda, Format::Qcow2);
}

/// A loop device over a file; dropping it detaches it.
pub struct LoopDevice(pub String);

impl LoopDevice {
    pub fn over(file: &std::path::Path) -> Self {
        Self(run(Command::new("losetup").args(["--find", "--show"]).arg(file)).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run(Command::new("losetup").args(["--detach", &self.0]));
    }
}

#[test]
fn a_block_device_is_overwritten_whole_and_beyond_the_disk_left_alone() {
    let lab = Lab::new();
    let (vda, _) = backed_up(&lab);
    let file = lab.path("device");
    std::fs::write(&file, vec![0xee; usize::try_from(17 * MIB).unwrap()]).unwrap();
    {
        let device = LoopDevice::over(&file);
        let arguments = ["restore", "web@latest", "--disk", "vda", "--to", &device.0];
        lab.keepmark.exits(&arguments, 1);
        lab.keepmark.exits(&[&arguments[..], &["--force", "--format", "qcow2"]].concat(), 2);
        lab.keepmark.ok(&[&arguments[..], &["--force"]].concat());
    }
    let tail = std::fs::read(&file).unwrap().split_off(usize::try_from(16 * MIB).unwrap());
    assert!(tail.iter().all(|&byte| byte == 0xee));
    std::fs::File::options().write(true).open(&file).unwrap().set_len(16 * MIB).unwrap();
    image::assert_same(&file, Format::Raw, &vda, Format::Qcow2);
}

#[test]
fn a_device_that_is_too_small_is_refused_before_anything_is_written() {
    let lab = Lab::new();
    backed_up(&lab);
    let file = lab.path("device");
    std::fs::write(&file, vec![0xee; usize::try_from(4 * MIB).unwrap()]).unwrap();
    {
        let device = LoopDevice::over(&file);
        let refused = lab.keepmark.exits(&["restore", "web@latest", "--disk", "vda", "--to", &device.0, "--force"], 2);
        assert!(refused.stderr.contains("4194304 bytes"), "{}", refused.stderr);
    }
    assert!(std::fs::read(&file).unwrap().iter().all(|&byte| byte == 0xee));
}
