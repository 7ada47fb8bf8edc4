//! The other acts at effects of a backup, pulled or pushed, of a VM that runs or rests.

use std::path::{Path, PathBuf};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Attach, Disk, Qemu, QemuBuilder, Witness};
use serde_json::{Value, json};

use super::acts::{self, ACTS, Act, Wanted};
use super::judge;
use crate::campaign::Campaign;
use crate::lab::{Lab, kind};
use crate::tracer::{self, Cut, Fate, Script, Trace};

pub use crate::lab::MIB;

/// A disk with a `-drive`, and one with a node only.
pub const DRIVE_DISK: &str = "vda";
pub const NODE_DISK: &str = "sdb";
const DISKS: [(&str, u64, Attach); 2] = [(DRIVE_DISK, 24, Attach::VirtioDrive), (NODE_DISK, 8, Attach::Scsi)];
/// How the backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Pulled from a running VM into a repository.
    Pull,
    /// Pulled from one that has not been started.
    PullAtRest,
    /// Pushed by a running VM into a store of images.
    Push,
}

/// A VM with one backup, for one strike.
struct Rig {
    qemu: Qemu,
    lab: Lab,
    mode: Mode,
}

impl Rig {
    fn new(mode: Mode) -> Self {
        let lab = Lab::new();
        let dir = lab.path("vm");
        std::fs::create_dir(&dir).unwrap();
        let mut builder = QemuBuilder::new(&dir);
        for (name, mib, attach) in DISKS {
            let file = lab.path(&format!("{name}.qcow2"));
            image::create(&file, Format::Qcow2, mib * MIB);
            image::fill_random(&file, Format::Qcow2, mib, MIB, 2 << 20);
            builder = builder.disk(Disk::qcow2(name, &file).attach(attach));
        }
        match mode {
            Mode::Push => lab.init_images(),
            Mode::Pull | Mode::PullAtRest => lab.init_if_bare(),
        }
        let qemu = if mode == Mode::PullAtRest { builder.paused().start() } else { builder.start() };
        let mut rig = Self { qemu, lab, mode };
        rig.exact_backup();
        for (name, ..) in DISKS {
            rig.qemu.write(name, 0x31, 2 * MIB, 192 << 10);
        }
        rig
    }

    fn arguments(&self) -> [&'static str; 3] {
        ["--json", "--mode", if self.mode == Mode::Push { "push" } else { "pull" }]
    }

    /// A backup of a moment that is known, in which nobody disturbs.
    #[track_caller]
    fn exact_backup(&mut self) -> Value {
        let dir = self.folder();
        let truth = Witness::hold(&mut self.qemu, &dir);
        let run = self.lab.keepmark.ok(&[&["backup", &self.qemu.vm()], &self.arguments()[..]].concat());
        let finished = run.event("finished");
        truth.release(&mut self.qemu);
        self.lab.published(&finished, truth);
        self.lab.compare_newest(1);
        finished
    }

    fn folder(&self) -> PathBuf {
        tempfile::Builder::new().prefix("truth").tempdir_in(self.lab.root()).unwrap().keep()
    }

    fn struck_backup(&mut self, cut: Option<Cut>, act: &mut (dyn FnMut(&mut Qemu, &Path) + Send)) -> Trace {
        let arguments = self.arguments();
        let command = self.lab.keepmark.command(&[&["backup", &self.qemu.vm()], &arguments[..]].concat());
        let (qemu, root) = (&mut self.qemu, self.lab.root());
        let mut strike = |_| {
            act(qemu, root);
            Fate::Spared
        };
        let script = Script { root, counts: concerns_qemu, cut, meanwhile: &mut |_| (), goes_on: false, strike: &mut strike };
        tracer::run(&command, script)
    }

    /// What must be true whatever the other did.
    #[track_caller]
    fn judge(&mut self, act: Act, trace: &Trace, cut: Cut, before: &Witness, mut wanted: Wanted, resting: &str) -> String {
        let told = format!("{act:?} at {:?}: {:?} {}", trace.struck, trace.code, self.lab.printed());
        assert!(matches!(trace.code, Some(0 | 1 | 3 | 11 | 13)), "{told}");
        for job in std::mem::take(&mut wanted.jobs) {
            if job == "mirror" {
                wanted.nodes.extend(acts::pivot(&mut self.qemu, &job).nodes);
            } else {
                self.qemu.control.try_execute("block-job-cancel", json!({ "device": job, "force": true })).ok();
            }
        }
        let status = self.qemu.status();
        // QEMU does not count pauses: who pauses in the milliseconds of keepmark's own pause is resumed with it.
        let is_undone = act == Act::Stop && status == "running" && in_our_pause(trace, cut);
        assert!(is_undone || status == wanted.status.unwrap_or(resting), "{status}: {told}");
        for (disk, node) in &wanted.nodes {
            assert_eq!(self.device_uses(disk), *node, "{told}");
        }
        let dir = self.folder();
        let after = Witness::hold(&mut self.qemu, &dir);
        after.release(&mut self.qemu);
        let published = judge::published(&mut self.lab, before, &after, &told);
        assert!(published.is_none() || matches!(trace.code, Some(0 | 3)), "{told}");
        let next = self.exact_backup();
        for overlay in &wanted.overlays {
            assert_eq!(image::info(overlay, Format::Qcow2)["backing-filename-format"], "qcow2", "it would not start again: {told}");
        }
        if let Some(bitmap) = &wanted.bitmap {
            assert!(self.qemu.bitmaps().contains(bitmap), "{told}");
        }
        self.assert_clean(&told);
        format!("{act:?}: {}, then {}", if published.is_some() { "published" } else { "failed" }, kind(&next))
    }

    /// The node below a device, implicit filters left out.
    #[track_caller]
    fn device_uses(&mut self, disk: &str) -> String {
        self.qemu.node_of(disk)
    }

    #[track_caller]
    fn assert_clean(&mut self, told: &str) {
        self.lab.assert_no_leftovers();
        let graph = self.qemu.qmp("x-debug-query-block-graph", json!({})).to_string();
        assert!(!graph.contains("km1tmp"), "{graph} {told}");
        assert_eq!(self.qemu.qmp("query-block-exports", json!({})), json!([]), "{told}");
        let left: Vec<_> = self.qemu.bitmaps().into_iter().filter(|(_, name)| name.starts_with("km1tmp")).collect();
        assert!(left.is_empty(), "{left:?} {told}");
        let printed = std::fs::read_to_string(self.lab.path("vm/stdout.log")).unwrap();
        let failed = printed.lines().find(|line| line.contains("failed") || line.contains("rror"));
        assert_eq!(failed, None, "a guest's write failed: {told}");
    }
}

/// Whether keepmark's pause may have been begun, and its end not, at the cut.
fn in_our_pause(trace: &Trace, cut: Cut) -> bool {
    let at = |name: &str| trace.effects.iter().position(|effect| effect == name);
    at("qmp stop").zip(at("qmp cont")).is_some_and(|(stop, cont)| (stop..=cont).contains(&cut.number))
}

/// What is said to QEMU or about it; between these nothing else concerns it.
fn concerns_qemu(effect: &str) -> bool {
    effect.starts_with("qmp ") || effect.starts_with("watchdog ") || effect == "rename store/snapshots"
}

fn campaign(name: &str, mode: Mode, share: usize) {
    let mut rig = Rig::new(mode);
    let effects = rig.struck_backup(None, &mut |_, _| ()).effects;
    assert!(effects.iter().any(|effect| effect == "qmp transaction"), "{}", rig.lab.printed());
    drop(rig);
    for turn in 0..rounds() {
        let mut campaign = Campaign::over(&effects, share);
        let mut number = turn;
        while let Some(cut) = campaign.next_cut() {
            let act = ACTS[number % ACTS.len()];
            number += if rounds() == 1 { 1 + cut.number } else { 0 };
            let outcome = strike(mode, act, cut);
            campaign.count(
                outcome.as_ref().map(|(effect, _)| effect.as_str()),
                cut.moment,
                outcome.as_ref().map_or("", |(_, outcome)| outcome),
            );
        }
        campaign.print(&format!("{name}, {turn}"));
    }
}

/// Each act at every effect where all are asked for (`make others`), else acts in turn.
fn rounds() -> usize {
    if judge::is_all() { ACTS.len() } else { 1 }
}

/// One act at one effect; nothing if the effect did not come.
fn strike(mode: Mode, act: Act, cut: Cut) -> Option<(String, String)> {
    let mut rig = Rig::new(mode);
    let resting = rig.qemu.status();
    let dir = rig.folder();
    let before = Witness::hold(&mut rig.qemu, &dir);
    before.release(&mut rig.qemu);
    let mut wanted = None;
    let trace = rig.struck_backup(Some(cut), &mut |qemu, root| wanted = Some(act.perform(qemu, root)));
    let outcome = rig.judge(act, &trace, cut, &before, wanted.unwrap_or_default(), &resting);
    Some((trace.struck?, outcome))
}

#[test]
fn others_act_at_effects_of_a_backup() {
    campaign("others act, running VM", Mode::Pull, 10);
}

#[test]
fn others_act_at_effects_of_a_backup_of_a_resting_vm() {
    campaign("others act, VM at rest", Mode::PullAtRest, 8);
}

#[test]
fn others_act_at_effects_of_a_push() {
    campaign("others act, pushing VM", Mode::Push, 4);
}
