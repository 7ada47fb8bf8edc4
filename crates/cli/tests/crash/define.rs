//! A restore as a domain of libvirt's is killed at every effect: there is no domain, or one whose disks are whole; doing it again completes it.

use std::path::{Path, PathBuf};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Domain, LibvirtHost, Witness};

use crate::campaign::Campaign;
use crate::lab::{Lab, MIB};
use crate::tracer::{self, Cut, Fate, Script, Trace};

const NAME: &str = "vm";
const DISKS: [(&str, u64); 2] = [("vda", 6), ("sda", 3)];

/// A store with one backup of a domain that is gone, and its truth.
struct Lost {
    // Before the lab's folder, in which its files lie.
    host: LibvirtHost,
    lab: Lab,
    truth: Witness,
}

impl Lost {
    fn new() -> Self {
        let mut lab = Lab::new();
        let host = LibvirtHost::start(&lab.path("host"));
        lab.keepmark = lab.keepmark.clone().env("LIBVIRT_DEFAULT_URI", &host.uri());
        lab.ok(&["init"]);
        let disks = DISKS.map(|(name, mib)| {
            let file = lab.path(&format!("{name}.qcow2"));
            image::create(&file, Format::Qcow2, mib * MIB);
            image::fill_random(&file, Format::Qcow2, mib, MIB, 1 << 20);
            Disk::qcow2(name, &file)
        });
        let domain = disks.iter().cloned().fold(host.domain(NAME), keepmark_testkit::DomainBuilder::disk).define();
        lab.keepmark.backup(NAME, &[]);
        domain.virsh("undefine", &["--checkpoints-metadata"]);
        let truth = Witness::of_images(&disks, &lab.path("truth"));
        disks.iter().for_each(|disk| std::fs::remove_file(&disk.file).unwrap());
        Self { host, lab, truth }
    }

    fn domain(&self) -> Domain<'_> {
        self.host.defined(NAME)
    }

    fn folder(&self) -> PathBuf {
        self.lab.path("restored")
    }

    fn arguments<'a>(&self, folder: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        [&["restore", "vm@latest", "--define", NAME, "--to", folder.to_str().unwrap(), "--allow", "emulator,socket,host-file"], more]
            .concat()
    }

    fn restore(&self, cut: Option<Cut>) -> Trace {
        let folder = self.folder();
        let command = self.lab.keepmark.command(&self.arguments(&folder, &[]));
        let counts = |effect: &str| effect.ends_with(" restored") || effect.starts_with("libvirt ") || effect == "start process";
        let script = Script { root: self.lab.root(), counts, cut, meanwhile: &mut |_| (), goes_on: false, strike: &mut |_| Fate::Killed };
        let trace = tracer::run(&command, script);
        assert!(trace.code == Some(0) || trace.struck.is_some(), "{}", self.lab.printed());
        trace
    }

    fn is_defined(&self) -> bool {
        self.domain().try_virsh("domstate", &[]).is_ok()
    }

    /// Fails the test unless the domain is there and whole, and takes it away again.
    #[track_caller]
    fn judge_and_lose(&self) {
        self.truth.assert_restored(&self.folder(), Format::Qcow2);
        assert_eq!(self.domain().source("sda"), self.folder().join("sda.qcow2"));
        self.domain().start();
        self.domain().destroy();
        self.domain().virsh("undefine", &["--nvram"]);
        std::fs::remove_dir_all(self.folder()).unwrap();
    }
}

#[test]
fn restore_as_a_domain_killed_at_effects() {
    let lost = Lost::new();
    let effects = lost.restore(None).effects;
    lost.judge_and_lose();
    let mut campaign = Campaign::over(&effects, 4);
    while let Some(cut) = campaign.next_cut() {
        let trace = lost.restore(Some(cut));
        let was_defined = lost.is_defined();
        if !was_defined {
            let folder = lost.folder();
            // What is whole is not written again unless that is asked for.
            let again = lost.lab.keepmark.run(&lost.arguments(&folder, &[]));
            if again.code != Some(0) {
                assert!(again.stderr.contains("--force"), "{again:?}");
                lost.lab.ok(&lost.arguments(&folder, &["--force"]));
            }
        }
        lost.judge_and_lose();
        campaign.count(trace.struck.as_deref(), cut.moment, if was_defined { "defined and whole" } else { "not defined" });
    }
    campaign.print("keepmark killed, restoring as a domain");
}
