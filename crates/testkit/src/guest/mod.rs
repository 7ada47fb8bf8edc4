//! The test guest: Debian's cloud kernel with an initramfs of busybox, a few modules and qemu-ga.

mod command_line;
mod cpio;
mod modules;

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use command_line::CommandLine;
use cpio::Archive;

use crate::process::run;
use crate::{OrFail, fail};

const INIT: &str = include_str!("init.sh");
const BUSYBOX: &str = "/bin/busybox";
const MODULES: [&str; 7] = ["virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_console", "ext4", "efivarfs"];

/// What QEMU boots. See `guest/init.sh` for what it does and obeys.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The kernel's image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl Guest {
    /// Builds the guest, or takes the one built before from the same parts.
    #[must_use]
    #[track_caller]
    pub fn build() -> Self {
        let parts = tools().join("guest");
        if !parts.join("stamp").exists() {
            fail(format_args!("{} has no guest: run `make deps` first", parts.display()));
        }
        let archive = initramfs(&parts);
        Self { kernel: kernel(&parts), initramfs: publish(&parts, &archive) }
    }
}

/// Where `make deps` puts what it unpacks.
fn tools() -> PathBuf {
    let in_tree = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools");
    std::env::var_os("KEEPMARK_TEST_TOOLS").map_or_else(in_tree, PathBuf::from)
}

fn kernel(parts: &Path) -> PathBuf {
    only_entry(&parts.join("boot"), "vmlinuz-")
}

fn only_entry(dir: &Path, prefix: &str) -> PathBuf {
    let entries = std::fs::read_dir(dir).or_fail(format_args!("listing {}", dir.display()));
    let mut named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.next().or_fail(format_args!("no {prefix}* in {}", dir.display())).path()
}

/// The file's name depends on its content, so that tests that run at once share it and a change makes a new one.
fn publish(parts: &Path, archive: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    archive.hash(&mut hasher);
    let path = parts.join(format!("initramfs-{:016x}.cpio", hasher.finish()));
    if !path.exists() {
        let new = tempfile::NamedTempFile::new_in(parts).or_fail("making the initramfs");
        std::fs::write(new.path(), archive).or_fail("writing the initramfs");
        new.persist(&path).or_fail("naming the initramfs");
    }
    path
}

fn initramfs(parts: &Path) -> Vec<u8> {
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "lib", "lib64", "mnt", "modules", "proc", "run", "sys", "tmp"] {
        archive.folder(folder);
    }
    archive.console("dev/console");
    archive.file("init", INIT.as_bytes());
    add_busybox(&mut archive);
    add_modules(&mut archive, &only_entry(&parts.join("lib/modules"), ""));
    add_agent(&mut archive, &parts.join("usr/sbin/qemu-ga"));
    archive.finish()
}

fn add_busybox(archive: &mut Archive) {
    archive.file("bin/busybox", &read(Path::new(BUSYBOX)));
    for applet in run(Command::new(BUSYBOX).arg("--list")).lines().filter(|&name| name != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
}

/// `modules/order` lists the modules so that each comes after what it needs.
fn add_modules(archive: &mut Archive, folder: &Path) {
    let dependencies = String::from_utf8_lossy(&read(&folder.join("modules.dep"))).into_owned();
    let builtin = String::from_utf8_lossy(&read(&folder.join("modules.builtin"))).into_owned();
    let ordered = modules::load_order(&dependencies, &builtin, &MODULES);
    let mut order = String::new();
    for path in ordered {
        let name = path.rsplit('/').next().unwrap_or(&path);
        archive.file(&format!("modules/{name}"), &read(&folder.join(&path)));
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes());
}

/// The agent with the shared libraries that it needs, found on this machine.
fn add_agent(archive: &mut Archive, agent: &Path) {
    archive.file("bin/qemu-ga", &read(agent));
    let libraries: Vec<String> = run(Command::new("ldd").arg(agent)).lines().filter_map(library).collect();
    // A sorted set of folders has each after its parent.
    let folders: BTreeSet<&Path> = libraries.iter().flat_map(|path| Path::new(path).ancestors().skip(1)).collect();
    for folder in folders.into_iter().filter(|folder| folder.components().count() > 2) {
        archive.folder(inside(folder));
    }
    for path in &libraries {
        archive.file(inside(Path::new(path)), &read(Path::new(path)));
    }
}

/// The name in the archive of an absolute path. Debian's `/lib` and `/lib64` are folders there, not links.
fn inside(path: &Path) -> &str {
    path.strip_prefix("/").unwrap_or(path).to_str().or_fail("a library's path is not UTF-8")
}

/// The path in a line of ldd: `name => /path (address)` or `/path (address)`.
fn library(line: &str) -> Option<String> {
    if line.contains("not found") {
        fail(format_args!("the guest agent lacks a library: {line}"));
    }
    line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned)
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).or_fail(format_args!("reading {} (`make deps` installs it)", path.display()))
}
