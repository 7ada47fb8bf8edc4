//! A prune is killed at every effect: what is listed restores at any time, and the next prune ends what it began.

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::run;
use keepmark_testkit::{Disk, Restic, Witness};

use crate::campaign::Campaign;
use crate::lab::{Lab, MIB};
use crate::tracer::{self, Cut, Fate, Script, Trace};

/// A store with a backup, and what a deleted one left: packs that nothing uses and one that is used in part.
struct Wasteful {
    lab: Lab,
}

impl Wasteful {
    fn new() -> Self {
        let mut lab = Lab::new();
        let disk = Disk::qcow2("vda", &lab.path("vda.qcow2"));
        image::create(&disk.file, Format::Qcow2, 8 * MIB);
        image::fill_random(&disk.file, Format::Qcow2, 1, 0, 6 << 20);
        let vm = format!("image:vda={}", disk.file.display());
        lab.ok(&["init"]);
        let old = lab.keepmark.backup(&vm, &["--name", "web"]);
        image::fill_random(&disk.file, Format::Qcow2, 2, 0, 3 << 20);
        let truth = Witness::of_images(std::slice::from_ref(&disk), &lab.path("truth"));
        let finished = lab.keepmark.backup(&vm, &["--name", "web"]);
        lab.published(&finished, truth);
        lab.ok(&["delete", old["backup"].as_str().unwrap()]);
        run(std::process::Command::new("cp").arg("-a").arg(lab.path("store")).arg(lab.path("template")));
        Self { lab }
    }

    /// The store as it was before any prune.
    fn reset(&self) {
        std::fs::remove_dir_all(self.lab.path("store")).unwrap();
        run(std::process::Command::new("cp").arg("-a").arg(self.lab.path("template")).arg(self.lab.path("store")));
    }

    fn prune(&self, cut: Option<Cut>) -> Trace {
        let command = self.lab.keepmark.command(&["prune", "--max-unused", "0%"]);
        let counts = |effect: &str| effect.contains(" store/");
        let script = Script { root: self.lab.root(), counts, cut, meanwhile: &mut |_| (), goes_on: false, strike: &mut |_| Fate::Killed };
        let trace = tracer::run(&command, script);
        assert!(trace.code == Some(0) || trace.struck.is_some(), "{}", self.lab.printed());
        trace
    }
}

#[test]
fn prune_killed_at_effects() {
    let wasteful = Wasteful::new();
    let restic = Restic::new(&wasteful.lab.path("store"), "password");
    let effects = wasteful.prune(None).effects;
    assert!(effects.iter().any(|effect| effect == "unlink store/data"), "{effects:?}");
    let mut campaign = Campaign::over(&effects, 6);
    while let Some(cut) = campaign.next_cut() {
        wasteful.reset();
        let trace = wasteful.prune(Some(cut));
        restic.run(&["check", "--read-data", "--no-lock"]);
        wasteful.lab.compare_newest(1);
        wasteful.lab.ok(&["prune", "--max-unused", "0%"]);
        wasteful.lab.compare_all();
        wasteful.lab.assert_no_leftovers();
        assert_eq!(std::fs::read_dir(wasteful.lab.path("store/keepmark/marks")).into_iter().flatten().count(), 0, "{:?}", trace.struck);
        campaign.count(trace.struck.as_deref(), cut.moment, "whole");
    }
    campaign.print("keepmark killed, pruning");
}
