//! An image store: keepmark is killed at every effect of a pushed backup, of a deletion and of a consolidation.

use std::process::Command;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::run;
use keepmark_testkit::{Disk, Witness};

use crate::campaign::Campaign;
use crate::lab::{Lab, MIB};
use crate::live::Rig;
use crate::tracer::{self, Cut, Fate, Script, Trace};

/// A lab whose store is one of images.
fn lab() -> Lab {
    let lab = Lab::new();
    lab.init_images();
    lab
}

fn pushed(name: &str, arguments: &[&str], share: usize) {
    let mut rig = Rig::new(lab());
    let effects = rig.effects(arguments, |_| true);
    assert!(effects.iter().any(|effect| effect == "qmp blockdev-backup"), "nothing was pushed: {effects:?}");
    let mut campaign = Campaign::over(&effects, share);
    while let Some(cut) = campaign.next_cut() {
        let trace = rig.struck_backup(arguments, |_| true, Some(cut), &mut |_| Fate::Killed);
        let outcome = rig.recover();
        rig.lab.assert_no_leftovers();
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
    }
    rig.lab.compare_newest(usize::MAX);
    rig.lab.ok(&["verify", "--read-data"]);
    campaign.print(name);
}

#[test]
fn keepmark_killed_at_effects_of_a_pushed_incremental() {
    pushed("keepmark killed, pushing an incremental", &[], 8);
}

#[test]
fn keepmark_killed_at_effects_of_a_pushed_full() {
    pushed("keepmark killed, pushing a full", &["--kind", "full"], 3);
}

/// A chain of four backups of a powered-off image, and a copy of the store to begin each strike with.
struct Chain {
    lab: Lab,
    vm: String,
    backups: Vec<(String, Witness)>,
}

impl Chain {
    fn new() -> Self {
        let lab = lab();
        let file = lab.path("vda.qcow2");
        image::create(&file, Format::Qcow2, 4 * MIB);
        let vm = format!("image:vda={}", file.display());
        let mut backups = Vec::new();
        for turn in 0..4_u8 {
            image::fill(&file, Format::Qcow2, turn + 1, u64::from(turn) * (MIB / 2), MIB);
            let finished = lab.keepmark.backup(&vm, &["--name", "web"]);
            let truth = Witness::of_images(&[Disk::qcow2("vda", &file)], &lab.path(&format!("truth{turn}")));
            backups.push((finished["backup"].as_str().unwrap().to_owned(), truth));
        }
        let chain = Self { lab, vm, backups };
        chain.copy("store", "pristine");
        chain
    }

    fn copy(&self, from: &str, to: &str) {
        std::fs::remove_dir_all(self.lab.path(to)).ok();
        run(Command::new("cp").arg("-a").arg(self.lab.path(from)).arg(self.lab.path(to)));
    }

    fn strike(&self, arguments: &[&str], cut: Option<Cut>) -> Trace {
        self.copy("pristine", "store");
        self.lab.ok(&["adopt-copy"]);
        let command = self.lab.keepmark.command(arguments);
        let counts = |effect: &str| effect.contains("store") || effect.starts_with("qmp ") || effect == "start process";
        let script = Script { root: self.lab.root(), counts, cut, meanwhile: &mut |_| (), goes_on: false, strike: &mut |_| Fate::Killed };
        let trace = tracer::run(&command, script);
        assert!(trace.code == Some(0) || trace.struck.is_some(), "{}", self.lab.printed());
        trace
    }

    fn listed(&self) -> Vec<String> {
        self.lab.ok(&["list", "--json"]).json().iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Everything that is listed restores.
    #[track_caller]
    fn compare(&self) {
        let listed = self.listed();
        for (id, truth) in self.backups.iter().filter(|(id, _)| listed.contains(id)) {
            let to = self.lab.path("restored");
            self.lab.ok(&["restore", id, "--to", to.to_str().unwrap()]);
            truth.assert_restored(&to, Format::Raw);
            std::fs::remove_dir_all(to).unwrap();
        }
        self.lab.ok(&["verify", "--read-data"]);
    }

    fn campaign(&self, name: &str, arguments: &[&str], goes: &[usize], share: usize) {
        let effects = self.strike(arguments, None).effects;
        let mut campaign = Campaign::over(&effects, share);
        while let Some(cut) = campaign.next_cut() {
            let trace = self.strike(arguments, Some(cut));
            let listed = self.listed();
            for (number, (id, _)) in self.backups.iter().enumerate() {
                assert!(listed.contains(id) || goes.contains(&number), "backup {number} is lost: {:?}", trace.struck);
            }
            self.compare();
            // The next command, whichever it is, finishes it.
            self.lab.ok(&["backup", &self.vm, "--name", "web", "--no-checkpoint"]);
            self.lab.assert_no_leftovers();
            self.compare();
            let there = |number: &usize| self.lab.path("store/web").join(&self.backups[*number].0).exists();
            let still = goes.iter().filter(|number| listed.contains(&self.backups[**number].0)).count();
            assert_eq!(goes.iter().filter(|number| there(number)).count(), still, "what is unlisted is still there: {:?}", trace.struck);
            campaign.count(trace.struck.as_deref(), cut.moment, &format!("{} unlisted", goes.len() - still));
        }
        campaign.print(name);
    }
}

#[test]
fn keepmark_killed_at_effects_of_a_deletion() {
    let chain = Chain::new();
    let gone = [0, 2].map(|number: usize| chain.backups[number].0.clone());
    chain.campaign("keepmark killed, deleting two of a chain", &["delete", &gone[0], &gone[1]], &[0, 2], 5);
}

#[test]
fn keepmark_killed_at_effects_of_a_consolidation() {
    let chain = Chain::new();
    let id = chain.backups[2].0.clone();
    chain.campaign("keepmark killed, consolidating", &["consolidate", &id], &[], 4);
}
