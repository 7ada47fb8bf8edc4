//! keepmark, libvirtd or QEMU is killed at every effect of a backup of a running libvirt domain that goes on being written to.

use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::wait_for;
use keepmark_testkit::{Disk, Domain, Guest as Kernel, LibvirtHost, Qmp, Serial, Witness};
use serde_json::{Value, json};

use crate::campaign::{Campaign, seed};
use crate::lab::{Lab, MIB, kind};
use crate::table::Table;
use crate::tracer::{self, Cut, Fate, Moment, Script, Trace};

const NAME: &str = "vm";
const PATIENCE: Duration = Duration::from_secs(120);
/// Longest time until the guest writes again after keepmark was killed: a thaw, under software emulation.
const WRITES_AGAIN_MAX: Duration = Duration::from_secs(20);
/// Sizes of the disks, in MiB.
const DISKS: [(&str, u64); 2] = [("vda", 24), ("sda", 8)];
/// What fixes the moment: libvirt's call, or QEMU's command where a dead job of libvirt's holds the domain.
const BEGIN: &str = "libvirt backup-begin";
const BEGIN_HELD: &str = "qmp transaction";

/// A running domain of two disks on a libvirtd of its own, and a store.
struct Rig {
    guest: Guest,
    // Before the lab's folder, in which its files lie.
    host: LibvirtHost,
    lab: Lab,
    /// Whether a dead job of libvirt's holds the domain.
    is_held: bool,
    /// Whether its backups are pushed, as long as nothing holds it.
    is_pushed: bool,
}

/// What is asked of QEMU by a monitor that libvirt does not use, and a guest's writes by it, the same in every run of the tests.
struct Guest {
    monitor: Qmp,
    disks: Vec<Disk>,
    done: u64,
    /// A real guest writes itself, and is frozen by its agent at each moment.
    serial: Option<Serial>,
}

impl Guest {
    /// Writes a few KiB somewhere, or discards them.
    fn write(&mut self) {
        if self.serial.is_some() {
            return;
        }
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
    /// Without a guest, with one full backup.
    fn new() -> Self {
        Self::with(None, false, |lab| drop(lab.ok(&["init"])))
    }

    /// The same with a store of images, into which libvirt pushes.
    fn pushing() -> Self {
        Self::with(None, true, Lab::init_images)
    }

    /// With one full backup in the store that `init` makes.
    fn with(kernel: Option<&Kernel>, is_pushed: bool, init: fn(&Lab)) -> Self {
        let mut lab = Lab::new();
        let host = LibvirtHost::start(&lab.path("host"));
        lab.keepmark = lab.keepmark.clone().env("LIBVIRT_DEFAULT_URI", &host.uri());
        init(&lab);
        let disks: Vec<Disk> = DISKS.map(|(name, mib)| image(&lab, name, mib, kernel.is_some())).into();
        let builder = disks.iter().cloned().fold(host.domain(NAME).monitor(), keepmark_testkit::DomainBuilder::disk);
        let booted = kernel.map(|kernel| builder.clone().guest(kernel).agent().mount(&["vda", "sda"]).writer("sda", 20));
        let domain = booted.unwrap_or(builder).start();
        let serial = kernel.map(|_| domain.wait_ready());
        if serial.is_some() {
            wait_for("the guest's agent", PATIENCE, || domain.try_virsh("domtime", &[]).ok());
        }
        let guest = Guest { monitor: domain.monitor(), disks, done: 0, serial };
        let mut rig = Self { guest, host, lab, is_held: false, is_pushed };
        rig.next_backup();
        rig
    }

    /// Without a guest, with one full backup, and from then on held by a dead job.
    fn held() -> Self {
        let mut rig = Self::new();
        rig.domain().wedge();
        rig.is_held = true;
        rig
    }

    fn begin(&self) -> &'static str {
        if self.is_held { BEGIN_HELD } else { BEGIN }
    }

    fn domain(&self) -> Domain<'_> {
        self.host.defined(NAME)
    }

    /// After its QEMU was killed.
    fn start_again(&mut self) {
        if self.domain().state() == "running" {
            return;
        }
        self.domain().start();
        self.guest.monitor = self.domain().monitor();
    }

    /// After libvirtd was killed: a push that ended while it was dead leaves its job behind.
    fn look_who_holds(&mut self) {
        self.is_held = self.domain().try_virsh("domjobinfo", &[]).is_err();
    }

    /// Ends the dead job that a killed push left behind, so that the next one is a push again.
    fn set_free(&mut self) {
        if self.is_pushed && self.is_held {
            self.domain().destroy();
            self.host.restart_libvirtd();
            self.start_again();
            self.is_held = false;
        }
    }

    /// A real guest goes on by itself.
    #[track_caller]
    fn wait_writes(&mut self) {
        let serial = self.guest.serial.as_mut().unwrap();
        serial.wait_writes(2, WRITES_AGAIN_MAX);
        serial.assert_unharmed();
    }

    fn write_some(&mut self) {
        (0..8).for_each(|_| self.guest.write());
    }

    /// A backup that nobody disturbs while the guest writes on; what it says of itself.
    #[track_caller]
    fn next_backup(&mut self) -> Value {
        let (trace, truth) =
            self.struck_backup(|effect| effect.starts_with("libvirt ") || effect == BEGIN_HELD, None, &mut |_| Fate::Spared);
        let printed = self.lab.printed();
        assert_eq!(trace.code, Some(0), "{printed}");
        assert!(self.lab.look(truth), "{printed}");
        let mut events = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.rfind(|event| event["event"] == "finished").unwrap()
    }

    /// A backup that is struck at `cut`; the guest writes before every effect of it. Gives the truth of its moment, if it came so far.
    fn struck_backup(
        &mut self,
        counts: fn(&str) -> bool,
        cut: Option<Cut>,
        strike: &mut (dyn FnMut(&LibvirtHost) -> Fate + Send),
    ) -> (Trace, Option<Witness>) {
        self.write_some();
        let command =
            self.lab.keepmark.command(&["backup", NAME, "--json", "--mode", if self.is_pushed && !self.is_held { "push" } else { "pull" }]);
        let begin = self.begin();
        let Self { guest, host, lab, .. } = self;
        let mut truth = None;
        let mut meanwhile = |effect: &str| {
            // Its QEMU may have been killed.
            if host.qemu(NAME).is_none() {
                return;
            }
            guest.write();
            if effect == begin {
                truth = Some(guest.truth(lab));
            }
        };
        let script = Script { root: lab.root(), counts, cut, meanwhile: &mut meanwhile, goes_on: true, strike: &mut |_| strike(host) };
        (tracer::run(&command, script), truth)
    }

    /// The effects of an undisturbed backup.
    fn effects(&mut self, counts: fn(&str) -> bool) -> Vec<String> {
        let (trace, truth) = self.struck_backup(counts, None, &mut |_| Fate::Spared);
        assert_eq!(trace.code, Some(0), "{}", self.lab.printed());
        let is_seen = trace.effects.iter().any(|effect| effect == self.begin());
        assert!(is_seen, "{:#?}", trace.effects);
        assert!(self.lab.look(truth), "{}", self.lab.printed());
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

    /// Fails the test unless libvirt and QEMU agree about the checkpoints that a next backup may build on, have nothing else of ours, and the guest saw no error.
    #[track_caller]
    fn assert_clean(&mut self) {
        self.lab.assert_no_leftovers();
        let known = self.domain().checkpoints();
        let nodes = self.guest.monitor.execute("query-named-block-nodes", json!({ "flat": true }));
        let mut bitmaps: Vec<&str> = nodes
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|node| node["dirty-bitmaps"].as_array().into_iter().flatten())
            .filter_map(|bitmap| bitmap["name"].as_str())
            .collect();
        bitmaps.sort_unstable();
        assert_eq!(known, self.lab.needed_bitmaps(1));
        assert_eq!(bitmaps, self.lab.needed_bitmaps(DISKS.len()));
        let nodes = nodes.to_string();
        assert!(!nodes.contains("km1tmp") && !nodes.contains(self.lab.path("scratch").to_str().unwrap()), "{nodes}");
        for query in ["query-block-exports", "query-jobs"] {
            assert_eq!(self.guest.monitor.execute(query, json!({})), json!([]), "{query}");
        }
        assert!(self.guest.monitor.try_execute("nbd-server-stop", json!({})).is_err(), "the NBD server still ran");
        let job = self.domain().try_virsh("domjobinfo", &[]);
        assert!(job.as_ref().is_ok_and(|job| job.contains("None")) || self.is_held && job.is_err(), "{job:?}");
        let log = std::fs::read_to_string(self.host.dir().join("log/qemu/vm.log")).unwrap();
        let failed = log.lines().find(|line| line.contains("failed") || line.contains("rror"));
        assert_eq!(failed, None, "the guest's write failed");
    }
}

fn image(lab: &Lab, name: &str, mib: u64, is_mounted: bool) -> Disk {
    let file = lab.path(&format!("{name}.qcow2"));
    if is_mounted {
        image::mkfs_ext4(&file, Format::Qcow2, mib.max(24) * MIB, None);
    } else {
        image::create(&file, Format::Qcow2, mib * MIB);
        image::fill_random(&file, Format::Qcow2, mib, MIB, 3 << 20);
    }
    Disk::qcow2(name, &file)
}

/// What concerns libvirt, and what the store does in between.
fn counts(effect: &str) -> bool {
    let of_the_store = ["create store/tmp", "rename store/data", "rename store/index", "rename store/snapshots"];
    ["libvirt ", "watchdog ", "start "].iter().any(|kind| effect.starts_with(kind))
        || effect.ends_with(" scratch")
        || effect.ends_with(" run")
        || of_the_store.contains(&effect)
}

/// Strikes at a share of the effects; `after` is what is done when keepmark has ended.
fn campaign(
    name: &str,
    mut rig: Rig,
    counts: fn(&str) -> bool,
    share: usize,
    mut strike: impl FnMut(&LibvirtHost) -> Fate + Send,
    after: fn(&mut Rig),
) {
    let effects = rig.effects(counts);
    let mut campaign = Campaign::over(&effects, share);
    while let Some(cut) = campaign.next_cut() {
        let (trace, truth) = rig.struck_backup(counts, Some(cut), &mut strike);
        after(&mut rig);
        let was_published = rig.lab.look(truth);
        let struck = trace.struck.clone().unwrap_or_default();
        // Who was not killed says truly whether there is a backup.
        let is_told = trace.code.is_none() || was_published == matches!(trace.code, Some(0 | 3));
        assert!(is_told, "{struck}: {:?} {}", trace.code, rig.lab.printed());
        let outcome = rig.recover(was_published);
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
        rig.set_free();
    }
    rig.lab.compare_all();
    campaign.print(name);
}

#[test]
fn keepmark_killed_at_effects_of_a_domain_s_backup() {
    campaign("keepmark killed, libvirt domain", Rig::new(), |_| true, 3, |_| Fate::Killed, |_| ());
}

#[test]
fn libvirtd_killed_at_effects_of_a_domain_s_backup() {
    let strike = |host: &LibvirtHost| {
        host.kill_libvirtd();
        host.restart_libvirtd();
        Fate::Spared
    };
    campaign("libvirtd killed and restarted", Rig::new(), counts, 2, strike, |_| ());
}

/// A domain that a dead job holds: its moment is fixed through QEMU's monitor.
#[test]
fn keepmark_killed_at_effects_of_a_held_domain_s_backup() {
    campaign("keepmark killed, held libvirt domain", Rig::held(), |_| true, 3, |_| Fate::Killed, |_| ());
}

#[test]
fn libvirtd_killed_at_effects_of_a_held_domain_s_backup() {
    let strike = |host: &LibvirtHost| {
        host.kill_libvirtd();
        host.restart_libvirtd();
        Fate::Spared
    };
    let counts = |effect: &str| counts(effect) || effect.starts_with("qmp ");
    campaign("libvirtd killed and restarted, held libvirt domain", Rig::held(), counts, 2, strike, |_| ());
}

/// libvirtd answers before all is done: it is killed some time after its answer, each time another one.
#[test]
fn libvirtd_killed_after_it_answered_that_a_backup_ends() {
    let mut rig = Rig::new();
    let mut table = Table::default();
    let counts = |effect: &str| effect.starts_with("libvirt ");
    let number = rig.effects(counts).iter().position(|effect| effect == "libvirt abort-job").unwrap();
    for delay in delays() {
        let (trace, truth) = rig.struck_backup(counts, Some(Cut { number, moment: Moment::After }), &mut |host| {
            std::thread::sleep(Duration::from_millis(delay));
            host.kill_libvirtd();
            host.restart_libvirtd();
            Fate::Spared
        });
        assert_eq!(trace.code, Some(0), "after {delay} ms: {}", rig.lab.printed());
        let was_published = rig.lab.look(truth);
        let outcome = rig.recover(was_published);
        table.note(&trace.struck.unwrap(), Moment::After, &outcome);
    }
    rig.lab.compare_all();
    table.print("libvirtd killed after it answered that a backup ends");
}

/// In milliseconds; of a share only one, another one each time.
fn delays() -> Vec<u64> {
    let all = [0, 2, 4, 6, 8, 10, 15, 20, 30, 50];
    if std::env::var("KEEPMARK_CRASH").is_ok_and(|wish| wish == "all") { all.into() } else { vec![all[seed() % all.len()]] }
}

#[test]
fn qemu_killed_at_effects_of_a_domain_s_backup() {
    let strike = |host: &LibvirtHost| {
        host.kill_qemu(NAME);
        Fate::Spared
    };
    campaign("QEMU killed, libvirt domain", Rig::new(), counts, 1, strike, Rig::start_again);
}

/// The guest's file systems are frozen by its agent through libvirt: whoever dies, they are thawed.
#[test]
fn keepmark_killed_at_effects_on_a_real_guest_s_domain() {
    let rig = Rig::with(Some(&Kernel::build()), false, |lab| drop(lab.ok(&["init"])));
    campaign("keepmark killed, libvirt domain, real guest", rig, counts, 1, |_| Fate::Killed, Rig::wait_writes);
}

/// What is pushed is of the moment or is not listed, whoever dies.
fn pushed(name: &str, share: usize, strike: impl FnMut(&LibvirtHost) -> Fate + Send, after: fn(&mut Rig), counts: fn(&str) -> bool) {
    let rig = Rig::pushing();
    assert!(std::fs::read_to_string(rig.lab.path("stdout")).unwrap().contains("written by the hypervisor"), "nothing was pushed");
    campaign(name, rig, counts, share, strike, after);
}

#[test]
fn keepmark_killed_at_effects_of_a_domain_s_push() {
    pushed("keepmark killed, libvirt pushes", 3, |_| Fate::Killed, |_| (), |_| true);
}

#[test]
fn qemu_killed_at_effects_of_a_domain_s_push() {
    let strike = |host: &LibvirtHost| {
        host.kill_qemu(NAME);
        Fate::Spared
    };
    pushed("QEMU killed, libvirt pushes", 1, strike, Rig::start_again, counts);
}

#[test]
fn libvirtd_killed_at_effects_of_a_domain_s_push() {
    let strike = |host: &LibvirtHost| {
        host.kill_libvirtd();
        host.restart_libvirtd();
        Fate::Spared
    };
    pushed("libvirtd killed and restarted, libvirt pushes", 4, strike, Rig::look_who_holds, counts);
}
