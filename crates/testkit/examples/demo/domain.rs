//! The same for a domain of libvirt's: backed up by its name, lost with its disk, and back by one command.

use std::time::{Duration, Instant};

use keepmark_testkit::{Domain, Keepmark, LibvirtHost, OrFail, fail};
use serde_json::Value;

use crate::answer::{self, expect, text, total};
use crate::lab::{DOMAIN, Lab};
use crate::screen::{Screen, bytes, seconds};

const PATIENCE: Duration = Duration::from_secs(60);
/// What a restored disk may store anew: its file system was mounted, and the manifest.
const MOUNTED_MAX: u64 = 4 << 20;

/// Tells it.
pub fn tell(screen: &Screen, lab: &Lab) {
    screen.step("The same for a domain of libvirt's, by its name");
    let host = LibvirtHost::start(&lab.path("libvirt"));
    let keepmark = lab.keepmark.clone().env("LIBVIRT_DEFAULT_URI", &host.uri());
    let domain = lab.domain(&host);
    let sums = back_up(screen, &keepmark, &domain);

    screen.step("The domain is lost: undefined, its disk deleted. One command brings it back");
    domain.destroy();
    domain.virsh("undefine", &["--checkpoints-metadata"]);
    std::fs::remove_file(&domain.disks()[0].file).or_fail("deleting the disk");
    let started = Instant::now();
    let (backup, to) = (format!("{DOMAIN}@latest"), lab.path("back"));
    // The demonstration's own console is on a socket; a machine as virt-install makes it needs no word.
    let to = to.display().to_string();
    keepmark.ok(&["restore", &backup, "--define", DOMAIN, "--allow", "socket", "--to", &to, "--start"]);
    screen.line("operator", &format!("keepmark restore {backup} --define {DOMAIN} --allow socket --to FOLDER --start"));
    let again = host.defined(DOMAIN);
    check_back(&again, &sums);
    screen.right(&format!("it runs again after {}: its files have their checksums", seconds(started.elapsed())));
    go_on(screen, &keepmark);
}

/// A full and an incremental; gives the checksums of the files.
fn back_up(screen: &Screen, keepmark: &Keepmark, domain: &Domain<'_>) -> String {
    let mut serial = domain.wait_ready();
    let mut sums = String::new();
    for kind in ["full", "incremental"] {
        serial.run("write vda 2 512", PATIENCE);
        sums = serial.run("sums vda", PATIENCE);
        let answer = keepmark.backup(DOMAIN, &[]);
        answer::tell(screen, &answer, None);
        expect(&answer, "kind", kind);
        check_checkpoints(domain, keepmark, &answer);
    }
    serial.assert_unharmed();
    screen.right("virsh checkpoint-list and QEMU's bitmaps agree after each; the guest saw no error");
    sums
}

fn check_checkpoints(domain: &Domain<'_>, keepmark: &Keepmark, answer: &Value) {
    let (name, needed) = (text(answer, "checkpoint"), keepmark.needed_checkpoints(Some(DOMAIN)));
    let mut bitmaps: Vec<String> = domain.bitmaps().into_iter().map(|(_, bitmap)| bitmap).collect();
    bitmaps.sort();
    if domain.checkpoints() != needed || bitmaps != needed || needed.last().map(String::as_str) != Some(name) {
        fail(format_args!(
            "libvirt has the checkpoints {:?}, QEMU the bitmaps {bitmaps:?}, keepmark says {needed:?}",
            domain.checkpoints()
        ));
    }
}

fn check_back(domain: &Domain<'_>, sums: &str) {
    let mut serial = domain.wait_ready();
    let found = serial.run("sums vda", PATIENCE);
    if found != sums {
        fail(format_args!("the restored files are not those of the backup:\n{found}\nexpected:\n{sums}"));
    }
    serial.assert_unharmed();
}

/// The new disk has no bitmap of the old one; what is on it is known all the same.
fn go_on(screen: &Screen, keepmark: &Keepmark) {
    let answer = keepmark.backup(DOMAIN, &[]);
    answer::tell(screen, &answer, None);
    expect(&answer, "kind", "resync");
    let stored = total(&answer, "stored_bytes");
    if stored > MOUNTED_MAX {
        fail(format_args!("{} were stored again", bytes(stored)));
    }
    screen.right("its sequence of backups goes on as if nothing had happened");
}
