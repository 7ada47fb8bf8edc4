//! The demonstration's folder: two disks, the VM that uses them, a store, the program.

use std::path::{Path, PathBuf};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Domain, Guest, Keepmark, LibvirtHost, OrFail, Qemu, QemuBuilder, Restic};
use serde_json::json;

/// The VM's name.
pub const NAME: &str = "demo";
/// The name of libvirt's domain.
pub const DOMAIN: &str = "db01";
const UUID: &str = "5f0c9a52-7d1e-4b58-9a43-0d2f6c1b7e90";
/// The store's password.
pub const PASSWORD: &str = "demo";
const MIB: u64 = 1 << 20;
/// Sizes of `vda`, which holds files, and `vdb`, which is written to all the time.
const SIZES: [u64; 2] = [256 * MIB, 128 * MIB];
const FILES: u64 = 64;

/// Everything that the story needs, in one folder.
pub struct Lab {
    folder: PathBuf,
    guest: Guest,
    /// The program, with this folder's store.
    pub keepmark: Keepmark,
}

impl Lab {
    /// Makes the disks, the configuration and the guest.
    pub fn make(folder: &Path) -> Self {
        let keepmark = Keepmark::new(folder).password(PASSWORD);
        let lab = Self { folder: folder.to_owned(), guest: Guest::build(), keepmark };
        let files = lab.path("files");
        write_files(&files);
        image::mkfs_ext4(&lab.path("vda.qcow2"), Format::Qcow2, SIZES[0], Some(&files));
        image::mkfs_ext4(&lab.path("vdb.qcow2"), Format::Qcow2, SIZES[1], None);
        remove(&files);
        lab
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The VM; start it to boot it. Its sockets and logs lie in folder `vm`.
    pub fn vm(&self) -> QemuBuilder {
        self.vm_of("vm", &self.disks()).name(NAME).uuid(UUID).agent().writer("vdb", 20)
    }

    /// A VM with other disks, whose sockets and logs lie in `folder`. Nobody writes in it.
    pub fn vm_of(&self, folder: &str, disks: &[Disk]) -> QemuBuilder {
        std::fs::create_dir_all(self.path(folder)).or_fail("making a VM's folder");
        let builder = QemuBuilder::new(&self.path(folder)).guest(&self.guest).mount(&["vda", "vdb"]);
        disks.iter().cloned().fold(builder, QemuBuilder::disk)
    }

    /// A domain of libvirt's with a disk of its own, that runs the same guest.
    pub fn domain<'h>(&self, host: &'h LibvirtHost) -> Domain<'h> {
        let file = self.path("db01.qcow2");
        image::mkfs_ext4(&file, Format::Qcow2, SIZES[1], None);
        host.domain(DOMAIN).guest(&self.guest).mount(&["vda"]).agent().disk(Disk::qcow2("vda", &file)).start()
    }

    /// The VM's disks.
    pub fn disks(&self) -> [Disk; 2] {
        ["vda", "vdb"].map(|name| Disk::qcow2(name, &self.path(&format!("{name}.qcow2"))))
    }

    /// The powered-off VM on keepmark's command line, after `image:`.
    pub fn images(&self) -> String {
        let images = self.disks().map(|disk| format!("{}={}", disk.name, disk.file.display()));
        format!("image:{}", images.join(","))
    }

    /// What says whose powered-off images these are.
    pub fn identity() -> [&'static str; 4] {
        ["--name", NAME, "--uuid", UUID]
    }

    /// Stock restic on the same store.
    pub fn restic(&self) -> Restic {
        Restic::new(&self.path("store"), PASSWORD)
    }
}

/// Half of the files can be compressed, half cannot.
fn write_files(folder: &Path) {
    std::fs::create_dir_all(folder).or_fail("making the guest's files");
    for number in 0..FILES {
        let bytes = match number % 2 {
            0 => image::random_bytes(number, 1 << 20),
            _ => format!("{number} bottles of beer on the wall\n").repeat(1 << 15).into_bytes(),
        };
        std::fs::write(folder.join(format!("data-{number:02}")), bytes).or_fail("writing the guest's files");
    }
}

/// Removes a folder that is not needed any more.
pub fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).or_fail(format_args!("removing {}", folder.display()));
}

/// Fails unless the guest saw no error, goes on writing, and QEMU holds nothing of keepmark but checkpoints.
pub fn check_unharmed(qemu: &mut Qemu) {
    qemu.serial.wait_writes(3, std::time::Duration::from_secs(30));
    qemu.assert_guest_unharmed();
    let nodes = qemu.qmp("query-named-block-nodes", json!({"flat": true})).to_string();
    let (exports, jobs) = (qemu.qmp("query-block-exports", json!({})), qemu.qmp("query-jobs", json!({})));
    if nodes.contains("km1tmp") || exports != json!([]) || jobs != json!([]) {
        keepmark_testkit::fail(format_args!("keepmark left something in QEMU: {nodes} {exports} {jobs}"));
    }
}
