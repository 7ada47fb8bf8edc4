//! keepmark, libvirtd or QEMU is killed at every effect of a backup of a running libvirt domain that goes on being written to.

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Domain, LibvirtHost, Qmp, Witness};
use serde_json::{Value, json};

use crate::campaign::cuts;
use crate::lab::{Lab, MIB, kind};
use crate::table::Table;
use crate::tracer::{self, Cut, Fate, Script, Trace};

const NAME: &str = "vm";
/// Sizes of the disks, in MiB.
const DISKS: [(&str, u64); 2] = [("vda", 24), ("sda", 8)];
/// The call in which libvirt fixes the moment.
const BEGIN: &str = "libvirt backup-begin";

/// A running domain of two disks on a libvirtd of its own, and a store.
struct Rig {
    guest: Guest,
    // Before the lab's folder, in which its files lie.
    host: LibvirtHost,
    lab: Lab,
}

/// A guest's writes by a monitor that libvirt does not use, the same in every run of the tests.
struct Guest {
    monitor: Qmp,
    disks: Vec<Disk>,
    done: u64,
}

impl Guest {
    /// Writes a few KiB somewhere, or discards them.
    fn write(&mut self) {
        self.done += 1;
        let random = self.done.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let number = usize::from(random >> 60 & 1 == 0);
        let mib = DISKS[number].1;
        let (offset, length) = ((random >> 8 & 0xffff) * 4096 % (mib * MIB - MIB), 4096 << (random >> 40 & 3));
        let what = match self.done.is_multiple_of(16) {
            true => format!("discard {offset} {length}"),
            false => format!("write -P {} {offset} {length}", self.done % 251 + 1),
        };
        self.io(number, &what);
    }

    fn io(&mut self, number: usize, what: &str) {
        let device = if number == 0 { "/machine/peripheral/virtio-disk0/virtio-backend" } else { "/machine/peripheral/scsi0-0-0-0" };
        let line = json!({ "command-line": format!("qemu-io -d {device} \"{what}\"") });
        let refused = self.monitor.execute("human-monitor-command", line).to_string().to_lowercase();
        assert!(!refused.contains("error"), "{what}: {refused}");
    }

    /// The disks as they are now: nobody writes meanwhile.
    fn truth(&mut self, lab: &Lab) -> Witness {
        (0..DISKS.len()).for_each(|number| self.io(number, "flush"));
        let folder = tempfile::Builder::new().prefix("truth").tempdir_in(lab.root()).unwrap();
        Witness::of_flushed_images(&self.disks, &folder.keep())
    }

    fn status(&mut self) -> Value {
        self.monitor.execute("query-status", json!({}))["status"].clone()
    }
}

impl Rig {
    /// With one full backup.
    fn new() -> Self {
        let mut lab = Lab::new();
        let host = LibvirtHost::start(&lab.path("host"));
        lab.keepmark = lab.keepmark.clone().env("LIBVIRT_DEFAULT_URI", &host.uri());
        lab.ok(&["init"]);
        let disks: Vec<Disk> = DISKS.map(|(name, mib)| image(&lab, name, mib)).into();
        let domain = disks.iter().cloned().fold(host.domain(NAME).monitor(), |domain, disk| domain.disk(disk)).start();
        let guest = Guest { monitor: domain.monitor(), disks, done: 0 };
        let mut rig = Self { guest, host, lab };
        rig.next_backup();
        rig
    }

    fn domain(&self) -> Domain<'_> {
        self.host.defined(NAME)
    }

    fn write_some(&mut self) {
        (0..8).for_each(|_| self.guest.write());
    }

    /// A backup that nobody disturbs, and its truth.
    #[track_caller]
    fn next_backup(&mut self) -> Value {
        let truth = self.guest.truth(&self.lab);
        let finished = self.lab.keepmark.backup(NAME, &[]);
        self.lab.published(&finished, truth);
        finished
    }

    /// A backup that is struck at `cut`; the guest writes before every effect of it. Gives the truth of its moment, if it came so far.
    fn struck_backup(
        &mut self,
        counts: fn(&str) -> bool,
        cut: Option<Cut>,
        strike: &mut (dyn FnMut(&LibvirtHost) -> Fate + Send),
    ) -> (Trace, Option<Witness>) {
        self.write_some();
        let command = self.lab.keepmark.command(&["backup", NAME, "--json"]);
        let Self { guest, host, lab } = self;
        let mut truth = None;
        let mut meanwhile = |effect: &str| {
            guest.write();
            if effect == BEGIN {
                truth = Some(guest.truth(lab));
            }
        };
        let script = Script { root: lab.root(), counts, cut, meanwhile: &mut meanwhile, strike: &mut |_| strike(host) };
        (tracer::run(&command, script), truth)
    }

    /// The effects of an undisturbed backup.
    fn effects(&mut self, counts: fn(&str) -> bool) -> Vec<String> {
        let (trace, truth) = self.struck_backup(counts, None, &mut |_| Fate::Spared);
        assert_eq!(trace.code, Some(0), "{}", self.lab.printed());
        assert!(trace.effects.iter().any(|effect| effect == BEGIN), "{:#?}", trace.effects);
        assert!(self.lab.look(truth));
        self.lab.compare_newest(1);
        trace.effects
    }

    /// What must be true after anybody died. Gives what the next backup did.
    #[track_caller]
    fn recover(&mut self, was_published: bool) -> String {
        assert_eq!((self.guest.status(), self.domain().state().as_str()), (json!("running"), "running"));
        self.write_some();
        let next = self.next_backup();
        self.assert_clean();
        self.lab.compare_newest(1 + usize::from(was_published));
        if was_published { format!("{} after publication", kind(&next)) } else { kind(&next) }
    }

    /// Fails the test unless libvirt and QEMU agree about one checkpoint, have nothing else of ours, and the guest saw no error.
    #[track_caller]
    fn assert_clean(&mut self) {
        self.lab.assert_no_leftovers();
        let known = self.domain().checkpoints();
        let nodes = self.guest.monitor.execute("query-named-block-nodes", json!({ "flat": true }));
        let bitmaps: Vec<&str> = nodes
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|node| node["dirty-bitmaps"].as_array().into_iter().flatten())
            .filter_map(|bitmap| bitmap["name"].as_str())
            .collect();
        assert!(known.len() == 1 && known[0].starts_with("km1-"), "{known:?}");
        assert_eq!(bitmaps, vec![known[0].as_str(); DISKS.len()]);
        let nodes = nodes.to_string();
        assert!(!nodes.contains("km1tmp") && !nodes.contains(self.lab.path("scratch").to_str().unwrap()), "{nodes}");
        for query in ["query-block-exports", "query-jobs"] {
            assert_eq!(self.guest.monitor.execute(query, json!({})), json!([]), "{query}");
        }
        assert!(self.guest.monitor.try_execute("nbd-server-stop", json!({})).is_err(), "the NBD server still ran");
        let job = self.domain().virsh("domjobinfo", &[]);
        assert!(job.contains("None"), "{job}");
        let log = std::fs::read_to_string(self.host.dir().join("log/qemu/vm.log")).unwrap();
        let failed = log.lines().find(|line| line.contains("failed") || line.contains("rror"));
        assert_eq!(failed, None, "the guest's write failed");
    }
}

fn image(lab: &Lab, name: &str, mib: u64) -> Disk {
    let file = lab.path(&format!("{name}.qcow2"));
    image::create(&file, Format::Qcow2, mib * MIB);
    image::fill_random(&file, Format::Qcow2, mib, MIB, 3 << 20);
    Disk::qcow2(name, &file)
}

#[test]
fn keepmark_killed_at_effects_of_a_domain_s_backup() {
    let mut rig = Rig::new();
    let mut table = Table::default();
    let effects = rig.effects(|_| true);
    for cut in cuts(&effects, 6) {
        let (trace, truth) = rig.struck_backup(|_| true, Some(cut), &mut |_| Fate::Killed);
        let was_published = rig.lab.look(truth);
        let outcome = rig.recover(was_published);
        match trace.struck {
            Some(effect) => table.note(&effect, cut.moment, &outcome),
            None => table.miss(),
        }
    }
    rig.lab.compare_all();
    table.print("keepmark killed, libvirt domain");
}
