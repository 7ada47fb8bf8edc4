//! keepmark is killed at every effect of a backup of a running VM that goes on being written to.

use std::time::{Duration, Instant};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Attach, Disk, PauseWitness, Qemu, QemuBuilder};
use serde_json::{Value, json};

use crate::campaign::Campaign;
use crate::lab::{Lab, MIB, kind};
use crate::tracer::{self, Cut, Fate, Script, Trace};

/// The watchdog acts at once when keepmark dies; QEMU may be busy with the witness' copy.
const RESUME_MAX: Duration = Duration::from_secs(10);
/// Sizes of the disks, in MiB.
const DISKS: [(&str, u64); 2] = [("vda", 24), ("sdb", 8)];

/// A running VM of two disks, a store, and the proxy through which keepmark talks to it.
pub struct Rig {
    // The proxy ends before its QEMU, and both before the folder with their sockets.
    pub through: Option<PauseWitness>,
    pub qemu: Qemu,
    pub lab: Lab,
    pub attached: u32,
    pub writes: Option<Writes>,
}

/// A guest's writes by QEMU's monitor, the same in every run of the tests.
#[derive(Debug, Default)]
pub struct Writes {
    done: u64,
}

impl Writes {
    /// Writes a few KiB somewhere, or discards them, if the VM runs.
    pub fn one(&mut self, qemu: &mut Qemu) {
        if qemu.status() != "running" {
            return;
        }
        self.done += 1;
        let random = self.done.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let (number, offset) = ((random >> 60) & 1, (random >> 8) & 0xffff);
        let (name, mib) = DISKS[usize::from(number == 0)];
        let (offset, length) = (offset * 4096 % (mib * MIB - MIB), 4096 << (random >> 40 & 3));
        let device = if name == "vda" { "/machine/peripheral/vda/virtio-backend" } else { "/machine/peripheral/sdb" };
        let what = if self.done.is_multiple_of(16) {
            format!("discard {offset} {length}")
        } else {
            format!("write -P {} {offset} {length}", self.done % 251 + 1)
        };
        let refused = qemu.hmp(&format!("qemu-io -d {device} \"{what}\""));
        assert!(!refused.to_lowercase().contains("error"), "{what}: {refused}");
    }
}

impl Rig {
    /// With one full backup; in a repository unless the lab has a store already.
    pub fn new(lab: Lab) -> Self {
        std::fs::create_dir(lab.path("vm")).unwrap();
        let mut builder = QemuBuilder::new(&lab.path("vm")).uuid("6e1a8d4c-0000-4000-8000-00000000abcd");
        for (name, mib) in DISKS {
            let file = lab.path(&format!("{name}.qcow2"));
            image::create(&file, Format::Qcow2, mib * MIB);
            image::fill_random(&file, Format::Qcow2, mib, MIB, 3 << 20);
            let attach = if name == "vda" { Attach::VirtioBlockdev } else { Attach::Scsi };
            builder = builder.disk(Disk::qcow2(name, &file).attach(attach));
        }
        lab.init_if_bare();
        let qemu = builder.start();
        Self::over(lab, qemu, Some(Writes::default()))
    }

    /// Over a QEMU that runs, with one full backup. Without `writes` its guest writes itself.
    pub fn over(lab: Lab, qemu: Qemu, writes: Option<Writes>) -> Self {
        let mut rig = Self { through: None, qemu, lab, attached: 0, writes };
        rig.attach();
        rig.next_backup();
        rig
    }

    /// Stands between keepmark and QEMU, anew after QEMU's restart.
    pub fn attach(&mut self) {
        self.attached += 1;
        self.through = None;
        self.through = Some(PauseWitness::attach(&self.qemu, &self.lab.path(&format!("witness{}", self.attached))));
    }

    pub fn through(&self) -> &PauseWitness {
        self.through.as_ref().unwrap()
    }

    pub fn write_some(&mut self) {
        let Self { writes, qemu, .. } = self;
        (0..8).for_each(|_| writes.iter_mut().for_each(|writes| writes.one(qemu)));
    }

    /// A backup that nobody disturbs, and its truth.
    #[track_caller]
    pub fn next_backup(&mut self) -> Value {
        let finished = self.lab.keepmark.backup(&self.through().vm(), &[]);
        let truth = self.through().take();
        self.lab.published(&finished, truth);
        finished
    }

    /// A backup that is struck at `cut`; the guest writes at every effect of it.
    pub fn struck_backup(
        &mut self,
        arguments: &[&str],
        counts: fn(&str) -> bool,
        cut: Option<Cut>,
        strike: &mut (dyn FnMut(u32) -> Fate + Send),
    ) -> Trace {
        self.write_some();
        let vm = self.through().vm();
        let command = self.lab.keepmark.command(&[&["backup", &vm, "--json"], arguments].concat());
        let (qemu, writes) = (&mut self.qemu, &mut self.writes);
        let mut meanwhile = |_: &str| writes.iter_mut().for_each(|writes| writes.one(qemu));
        let script = Script { root: self.lab.root(), counts, cut, meanwhile: &mut meanwhile, goes_on: false, strike };
        tracer::run(&command, script)
    }

    /// The effects of an undisturbed backup.
    pub fn effects(&mut self, arguments: &[&str], counts: fn(&str) -> bool) -> Vec<String> {
        let trace = self.struck_backup(arguments, counts, None, &mut |_| Fate::Spared);
        assert_eq!(trace.code, Some(0), "{}", self.lab.printed());
        let truth = self.through().take_if_any();
        assert!(self.lab.look(truth));
        trace.effects
    }

    /// The guest runs again soon, whoever died. Gives how long it took.
    pub fn wait_running(&mut self) -> Duration {
        let since = Instant::now();
        wait_for("the guest to run again", RESUME_MAX, || (self.qemu.status() == "running").then_some(()));
        since.elapsed()
    }

    /// Fails the test unless QEMU has nothing of ours but the checkpoints that a next backup may build on, and the guest saw no error.
    #[track_caller]
    pub fn assert_clean(&mut self) {
        self.lab.assert_no_leftovers();
        let qemu = &mut self.qemu;
        let mut ours: Vec<String> = qemu.bitmaps().into_iter().map(|(_, name)| name).filter(|name| name.starts_with("km1")).collect();
        ours.sort();
        assert_eq!(ours, self.lab.needed_bitmaps(DISKS.len()));
        let nodes = qemu.qmp("query-named-block-nodes", json!({"flat": true})).to_string();
        assert!(!nodes.contains("km1tmp"), "{nodes}");
        assert_eq!(qemu.qmp("query-block-exports", json!({})), json!([]));
        assert_eq!(qemu.qmp("query-jobs", json!({})), json!([]));
        assert!(qemu.control.try_execute("nbd-server-stop", json!({})).is_err(), "the NBD server still ran");
        let printed = std::fs::read_to_string(self.lab.path("vm/stdout.log")).unwrap();
        let failed = printed.lines().find(|line| line.contains("failed") || line.contains("rror"));
        assert_eq!(failed, None, "the guest's write failed");
    }

    /// What must be true after anybody died. Gives what the next backup did.
    #[track_caller]
    pub fn recover(&mut self) -> String {
        self.wait_running();
        let truth = self.through().take_if_any();
        let was_published = self.lab.look(truth);
        self.write_some();
        let next = self.next_backup();
        self.assert_clean();
        self.lab.compare_newest(1 + usize::from(was_published));
        if was_published { format!("{} after publication", kind(&next)) } else { kind(&next) }
    }
}

fn campaign(name: &str, arguments: &[&str], share: usize) {
    let mut rig = Rig::new(Lab::new());
    let effects = rig.effects(arguments, |_| true);
    let mut campaign = Campaign::over(&effects, share);
    while let Some(cut) = campaign.next_cut() {
        let trace = rig.struck_backup(arguments, |_| true, Some(cut), &mut |_| Fate::Killed);
        let outcome = rig.recover();
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
    }
    rig.lab.compare_all();
    campaign.print(name);
}

#[test]
fn keepmark_killed_at_effects_of_an_incremental_backup() {
    campaign("keepmark killed, running VM, incremental", &[], 10);
}

#[test]
fn keepmark_killed_at_effects_of_a_full_backup() {
    campaign("keepmark killed, running VM, full", &["--kind", "full"], 3);
}
