//! The story: nine steps from the first boot to the restored guest, and what `domain` adds.

use std::path::Path;
use std::time::{Duration, Instant};

use keepmark_testkit::image::Format;
use keepmark_testkit::process::run;
use keepmark_testkit::{Disk, Qemu, Witness, fail};
use serde_json::Value;

use crate::answer::{self, expect, text, total};
use crate::changes::{self, CHUNK, Changes};
use crate::domain;
use crate::lab::{Lab, NAME, PASSWORD, check_unharmed, remove};
use crate::screen::{Screen, bytes, seconds};
use crate::watched::{Watch, Watched};

const DISKS: [&str; 2] = ["vda", "vdb"];
/// Chunks that may be read although they did not change: written again with what they held before, or trimmed in parts that held
/// nothing before.
const REWRITTEN_MAX: u64 = 16 * CHUNK as u64;
/// What a backup of no changes may store: its manifest and tree paths.
const OVERHEAD_MAX: u64 = 1 << 20;
/// What QEMU may read beside the guest's data: metadata of images, old content of blocks that the guest overwrites.
const QEMU_OVERHEAD_MAX: u64 = 8 << 20;

/// One backup of the story.
struct Made {
    id: String,
    witness: Witness,
    /// Checksums of the files on `vda`, as the guest saw them.
    sums: String,
}

struct Story<'a> {
    screen: &'a Screen,
    lab: Lab,
    made: Vec<Made>,
}

/// Tells it in `folder`; ends with a panic where something is wrong.
pub fn tell(screen: &Screen, folder: &Path, keep: bool) {
    screen.plain("keepmark: a Linux guest is backed up, changed, broken and restored. Nothing is believed:");
    screen.plain("QEMU makes a second copy of every frozen moment (the witness), and all is compared with that.");
    screen.step("Boot a guest: Debian's cloud kernel, busybox and qemu-ga under software emulation");
    let mut story = Story { screen, lab: Lab::make(folder), made: Vec::new() };
    let (mut qemu, watch) = story.boot("witness");
    story.full(&mut qemu, &watch);
    story.incremental_of_writes(&mut qemu, &watch);
    story.incremental_of_discards(&mut qemu, &watch);
    drop(watch);
    story.powered_off(qemu);
    story.killed();
    story.restic();
    story.restore_all();
    story.boot_restored();
    domain::tell(screen, &story.lab);
    farewell(&story, folder, keep);
}

impl Story<'_> {
    fn boot(&self, witness: &str) -> (Qemu, Watch) {
        let started = Instant::now();
        let mut qemu = self.lab.vm().start();
        qemu.wait_ready();
        drop(qemu.agent());
        qemu.serial.wait_writes(10, Duration::from_secs(30));
        let kernel = qemu.guest("uname -r").trim().to_owned();
        let version = qemu.qmp("query-version", serde_json::json!({}));
        let up = seconds(started.elapsed());
        let text = format!("{kernel}, {}, up in {up}; files on vda, endless writes to vdb", version_of(&version["qemu"]));
        self.screen.line("guest", &text);
        let watch = Watch::attach(&qemu, &self.lab.path(witness));
        (qemu, watch)
    }

    fn full(&mut self, qemu: &mut Qemu, watch: &Watch) {
        self.screen.step("Full backup of the running guest into a new store");
        self.lab.keepmark.ok(&["init"]);
        let sums = qemu.guest("sums vda");
        let full = watch.backup(&self.lab.keepmark);
        answer::tell(self.screen, &full.answer, Some(full.pause));
        expect(&full.answer, "kind", "full");
        expect(&full.answer, "consistency", "application");
        check_unharmed(qemu);
        self.screen.right("the guest went on writing without an error; nothing is left in QEMU but the checkpoint");
        self.remember(&full.answer, full.witness, sums);
    }

    fn incremental_of_writes(&mut self, qemu: &mut Qemu, watch: &Watch) {
        self.screen.step("Incremental backup");
        self.screen.line("guest", "writes three new files of 1 MiB to vda, goes on writing to vdb");
        qemu.guest("write vda 3 1024");
        self.incremental(qemu, watch);
    }

    fn incremental_of_discards(&mut self, qemu: &mut Qemu, watch: &Watch) {
        self.screen.step("Second incremental backup, after deleting and trimming");
        self.screen.line("guest", "deletes 20 files of 1 MiB from vda and runs fstrim, writes one file of 0.5 MiB");
        qemu.guest("rm /mnt/vda/data-[12]*; sync; fstrim vda; write vda 1 512");
        self.incremental(qemu, watch);
    }

    fn incremental(&mut self, qemu: &mut Qemu, watch: &Watch) {
        let sums = qemu.guest("sums vda");
        let incremental = watch.backup(&self.lab.keepmark);
        answer::tell(self.screen, &incremental.answer, Some(incremental.pause));
        expect(&incremental.answer, "kind", "incremental");
        self.check_reads(&incremental);
        check_unharmed(qemu);
        self.remember(&incremental.answer, incremental.witness, sums);
    }

    /// Everything that differs between the two moments was read, and next to nothing else: by keepmark's and the kernel's count.
    fn check_reads(&self, backup: &Watched) {
        let really = self.changed_until(&backup.witness);
        let (read, audited) = (total(&backup.answer, "read_bytes"), total(&backup.answer, "audited_bytes"));
        check_read(really, read);
        if backup.qemu_read > read + audited + QEMU_OVERHEAD_MAX {
            fail(format_args!("QEMU read {} for a backup that says it read {}", bytes(backup.qemu_read), bytes(read + audited)));
        }
        let zeroed = if really.zeroed > 0 { format!(" and {} became zeros", bytes(really.zeroed)) } else { String::new() };
        let changed = bytes(really.data);
        self.screen.right(&format!("by the witnesses {changed} changed{zeroed}; QEMU's process read {} in all", bytes(backup.qemu_read)));
    }

    fn powered_off(&mut self, mut qemu: Qemu) {
        self.screen.step("Incremental backup of the powered-off guest: the same sequence, from its images");
        let sums = qemu.guest("sums vda");
        check_unharmed(&mut qemu);
        qemu.power_off();
        let witness = Witness::of_images(&self.lab.disks(), &self.lab.path("witness-off"));
        let answer = self.lab.keepmark.backup(&self.lab.images(), &Lab::identity());
        answer::tell(self.screen, &answer, None);
        expect(&answer, "kind", "incremental");
        let (really, read) = (self.changed_until(&witness), total(&answer, "read_bytes"));
        check_read(really, read);
        self.screen.right(&format!("by the witnesses {} changed", bytes(really.data)));
        self.remember(&answer, witness, sums);
    }

    /// QEMU loses its bitmaps when it is killed; what the guest wrote in between is known to nobody.
    fn killed(&mut self) {
        self.screen.step("QEMU is killed with -9, which loses its bitmaps: resync");
        let mut qemu = self.lab.vm().start();
        qemu.wait_ready();
        qemu.guest("write vda 1 1024");
        qemu.serial.wait_writes(10, Duration::from_secs(30));
        qemu.kill9();
        let (mut qemu, watch) = self.boot("witness-2");
        let sums = qemu.guest("sums vda");
        let resync = watch.backup(&self.lab.keepmark);
        answer::tell(self.screen, &resync.answer, Some(resync.pause));
        expect(&resync.answer, "kind", "resync");
        let (really, stored) = (self.changed_until(&resync.witness), total(&resync.answer, "stored_bytes"));
        if stored > really.data + OVERHEAD_MAX {
            fail(format_args!("{} changed, but {} were stored", bytes(really.data), bytes(stored)));
        }
        self.screen.right(&format!("by the witnesses {} changed since the last backup: that is all that was stored", bytes(really.data)));
        check_unharmed(&mut qemu);
        drop(watch);
        qemu.power_off();
        self.remember(&resync.answer, resync.witness, sums);
    }

    fn restic(&self) {
        self.screen.step("Stock restic looks at the store");
        let version = run(std::process::Command::new("restic").arg("version"));
        self.lab.restic().check();
        let name = version.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        self.screen.right(&format!("{name} check --read-data is clean; {} snapshots", self.made.len()));
    }

    fn restore_all(&self) {
        self.screen.step("Restore every backup, the first as raw images, the others as qcow2");
        for (number, made) in self.made.iter().enumerate() {
            let folder = self.lab.path(&format!("restored-{number}"));
            let format = if number == 0 { Format::Raw } else { Format::Qcow2 };
            let to = folder.display().to_string();
            self.lab.keepmark.ok(&["restore", &made.id, "--to", &to, "--format", format.name()]);
            made.witness.assert_restored(&folder, format);
            if number != 0 && number + 1 != self.made.len() {
                remove(&folder);
            }
        }
        self.screen.right(&format!("the first, the newest and all between ({}) equal their witnesses byte for byte", self.made.len()));
    }

    fn boot_restored(&self) {
        self.screen.step("Boot the newest and the first backup");
        let newest = self.made.len() - 1;
        for (number, format, word) in [(newest, Format::Qcow2, "newest"), (0, Format::Raw, "first")] {
            let folder = format!("restored-{number}");
            let file = |name: &str| self.lab.path(&format!("{folder}/{name}.{}", format.name()));
            let disks = DISKS.map(|name| Disk { format, ..Disk::qcow2(name, &file(name)) });
            let qemu = self.lab.vm_of(&format!("vm-{number}"), &disks).start();
            let files = check_restored(qemu, &self.made[number].sums);
            self.screen.right(&format!("{word}: boots, both ext4 mount without journal replay, {files} files have their checksums"));
        }
    }

    fn changed_until(&self, witness: &Witness) -> Changes {
        self.made.last().map_or(Changes::default(), |last| changes::between(&last.witness, witness, &DISKS))
    }

    fn remember(&mut self, answer: &Value, witness: Witness, sums: String) {
        self.made.push(Made { id: text(answer, "backup").to_owned(), witness, sums });
    }
}

fn check_read(really: Changes, read: u64) {
    if read < really.data || read > really.data + REWRITTEN_MAX {
        fail(format_args!("{} changed, but {} were read", bytes(really.data), bytes(read)));
    }
}

/// The number of files, all of which have the checksums that the guest saw when the backup was made.
fn check_restored(mut qemu: Qemu, sums: &str) -> usize {
    qemu.wait_ready();
    let found = qemu.guest("sums vda");
    if found != sums {
        fail(format_args!("the restored files are not those of the backup:\n{found}\nexpected:\n{sums}"));
    }
    for disk in DISKS {
        if !qemu.guest("mount").contains(&format!("/mnt/{disk} type ext4")) {
            fail(format_args!("{disk} is not mounted in the restored guest"));
        }
    }
    if qemu.guest("ls /mnt/vdb/writer").trim().is_empty() {
        fail("vdb is empty in the restored guest");
    }
    if qemu.guest("dmesg").contains("recovery complete") {
        fail("a file system of an application-consistent backup needed its journal");
    }
    qemu.assert_guest_unharmed();
    qemu.power_off();
    sums.lines().count()
}

fn farewell(story: &Story<'_>, folder: &Path, keep: bool) {
    let screen = story.screen;
    screen.plain(&format!("All is as it should be, after {}.", seconds(screen.elapsed())));
    if !keep {
        screen.plain("To look at it yourself: KEEP=1 make demo leaves the store, the disks and the witnesses, and says how.");
        return;
    }
    let folder = folder.display();
    screen.plain(&format!("Everything is in {folder} (remove it when you have seen enough). To look at it yourself:"));
    screen.plain(&format!("  export KEEPMARK_STORE={folder}/store KEEPMARK_PASSWORD={PASSWORD}"));
    screen.plain(&format!("  target/release/keepmark list; target/release/keepmark show {NAME}@latest"));
    screen.plain(&format!("  target/release/keepmark restore {NAME}@-1 --to {folder}/mine"));
    screen.plain(&format!("  RESTIC_PASSWORD={PASSWORD} restic -r {folder}/store snapshots"));
    screen.plain(&format!("  qemu-img info {folder}/vda.qcow2      # with its bitmaps"));
    screen.plain(&format!("  less {folder}/vm/serial               # the guest's console"));
}

fn version_of(qemu: &Value) -> String {
    format!("QEMU {}.{}.{}", qemu["major"], qemu["minor"], qemu["micro"])
}
