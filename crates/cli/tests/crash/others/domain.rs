//! The other acts by virsh at effects of a backup of a running libvirt domain.

use std::path::{Path, PathBuf};

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Domain, LibvirtHost};
use serde_json::json;

use super::judge;
use crate::campaign::Campaign;
use crate::lab::{Lab, MIB, kind};
use crate::tracer::{self, Cut, Fate, Script, Trace};

const NAME: &str = "vm";
const DISKS: [(&str, u64); 2] = [("vda", 24), ("sda", 8)];

/// What somebody does by virsh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    SuspendAndResume,
    Suspend,
    Resize,
    Snapshot,
    CopyAndPivot,
    DetachAndAttach,
    RemoveCheckpoints,
    OwnBackup,
}

const ACTS: [Act; 8] = [
    Act::SuspendAndResume,
    Act::Suspend,
    Act::Resize,
    Act::Snapshot,
    Act::CopyAndPivot,
    Act::DetachAndAttach,
    Act::RemoveCheckpoints,
    Act::OwnBackup,
];

/// A running domain with one backup, for one strike.
struct Rig {
    host: LibvirtHost,
    lab: Lab,
    disks: Vec<Disk>,
}

impl Rig {
    fn new() -> Self {
        let mut lab = Lab::new();
        let host = LibvirtHost::start(&lab.path("host"));
        lab.keepmark = lab.keepmark.clone().env("LIBVIRT_DEFAULT_URI", &host.uri());
        lab.init_if_bare();
        let disks: Vec<Disk> = DISKS.map(|(name, mib)| image_of(&lab, name, mib)).into();
        disks.iter().cloned().fold(host.domain(NAME), keepmark_testkit::DomainBuilder::disk).start();
        let mut rig = Self { host, lab, disks };
        rig.exact_backup();
        DISKS.iter().for_each(|(name, _)| rig.domain().write(name, 0x31, 2 * MIB, 192 << 10));
        rig
    }

    fn domain(&self) -> Domain<'_> {
        self.host.defined(NAME).with_disks(&self.disks)
    }

    fn folder(&self) -> PathBuf {
        tempfile::Builder::new().prefix("truth").tempdir_in(self.lab.root()).unwrap().keep()
    }

    /// A backup while nobody writes and nobody disturbs.
    #[track_caller]
    fn exact_backup(&mut self) -> serde_json::Value {
        let truth = self.domain().witness(&self.folder());
        let finished = self.lab.keepmark.backup(NAME, &[]);
        self.lab.published(&finished, truth);
        self.lab.compare_newest(1);
        finished
    }

    fn struck_backup(&self, cut: Option<Cut>, act: &mut (dyn FnMut(&Domain<'_>, &Path) + Send)) -> Trace {
        let command = self.lab.keepmark.command(&["backup", NAME, "--json"]);
        let (host, root) = (&self.host, self.lab.root());
        let mut strike = |_| {
            act(&host.defined(NAME), root);
            Fate::Spared
        };
        let counts = |effect: &str| !effect.starts_with("write ") && !effect.contains(" store/data");
        tracer::run(&command, Script { root, counts, cut, meanwhile: &mut |_| (), goes_on: false, strike: &mut strike })
    }
}

fn image_of(lab: &Lab, name: &str, mib: u64) -> Disk {
    let file = lab.path(&format!("{name}.qcow2"));
    image::create(&file, Format::Qcow2, mib * MIB);
    image::fill_random(&file, Format::Qcow2, mib, MIB, 2 << 20);
    Disk::qcow2(name, &file)
}

impl Act {
    /// Does it. libvirt may refuse it while keepmark works.
    fn perform(self, domain: &Domain<'_>, root: &Path) {
        let path = |name: &str| root.join(name).display().to_string();
        let steps: Vec<(&str, Vec<String>)> = match self {
            Self::SuspendAndResume => vec![("suspend", vec![]), ("resume", vec![])],
            Self::Suspend => vec![("suspend", vec![])],
            Self::Resize => vec![("blockresize", vec!["sda".into(), "12M".into()])],
            Self::Snapshot => vec![(
                "snapshot-create-as",
                vec![
                    "--name".into(),
                    "s1".into(),
                    "--disk-only".into(),
                    "--no-metadata".into(),
                    "--diskspec".into(),
                    format!("vda,file={}", path("vda-snapshot.qcow2")),
                    "--diskspec".into(),
                    format!("sda,file={}", path("sda-snapshot.qcow2")),
                ],
            )],
            Self::CopyAndPivot => vec![(
                "blockcopy",
                vec![
                    "sda".into(),
                    path("copied.qcow2"),
                    "--transient-job".into(),
                    "--wait".into(),
                    "--pivot".into(),
                    "--format".into(),
                    "qcow2".into(),
                ],
            )],
            Self::DetachAndAttach => vec![
                ("detach-disk", vec!["sda".into(), "--live".into()]),
                (
                    "attach-disk",
                    vec![
                        path("sda.qcow2"),
                        "sda".into(),
                        "--live".into(),
                        "--subdriver".into(),
                        "qcow2".into(),
                        "--targetbus".into(),
                        "scsi".into(),
                    ],
                ),
            ],
            Self::RemoveCheckpoints => domain.checkpoints().into_iter().map(|name| ("checkpoint-delete", vec![name])).collect(),
            Self::OwnBackup => vec![("backup-begin", vec![])],
        };
        for (command, arguments) in steps {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            if domain.try_virsh(command, &arguments).is_err() {
                return;
            }
        }
    }
}

/// One act at one effect: what came of it.
fn strike(act: Act, cut: Cut) -> (Trace, String) {
    let mut rig = Rig::new();
    let before = rig.domain().witness(&rig.folder());
    let trace = rig.struck_backup(Some(cut), &mut |domain, root| act.perform(domain, root));
    let told = format!("{act:?} at {:?}: {:?} {}", trace.struck, trace.code, rig.lab.printed());
    assert!(matches!(trace.code, Some(0 | 1 | 3 | 11 | 13)), "{told}");
    let state = rig.domain().state();
    assert!(state == "running" || act == Act::Suspend && state == "paused", "{state}: {told}");
    if act == Act::OwnBackup {
        // It is not ours to end.
        rig.domain().try_virsh("domjobabort", &[]).ok();
    }
    if state == "paused" {
        rig.domain().virsh("resume", &[]);
    }
    let after = rig.domain().witness(&rig.folder());
    let published = judge::published(&mut rig.lab, &before, &after, &told);
    let next = rig.exact_backup();
    rig.domain().write("vda", 0x44, 4 * MIB, 64 << 10);
    rig.domain().expect_pattern("vda", 0x44, 4 * MIB, 64 << 10);
    let nodes = rig.domain().qmp("query-named-block-nodes", json!({ "flat": true })).to_string();
    assert!(!nodes.contains("km1tmp"), "{nodes} {told}");
    rig.lab.assert_no_leftovers();
    let outcome = format!("{act:?}: {}, then {}", if published.is_some() { "published" } else { "failed" }, kind(&next));
    (trace, outcome)
}

#[test]
fn others_act_by_virsh_at_effects_of_a_domain_s_backup() {
    let rig = Rig::new();
    let effects = rig.struck_backup(None, &mut |_, _| ()).effects;
    assert!(effects.iter().any(|effect| effect == "libvirt backup-begin"), "{}", rig.lab.printed());
    drop(rig);
    let rounds = if judge::is_all() { ACTS.len() } else { 1 };
    for round in 0..rounds {
        let mut campaign = Campaign::over(&effects, 5);
        let mut number = round;
        while let Some(cut) = campaign.next_cut() {
            let act = ACTS[number % ACTS.len()];
            number += if rounds == 1 { 1 + cut.number } else { 0 };
            let (trace, outcome) = strike(act, cut);
            campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
        }
        campaign.print(&format!("others act by virsh, round {round}"));
    }
}
