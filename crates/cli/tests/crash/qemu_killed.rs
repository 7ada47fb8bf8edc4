//! QEMU is killed at every effect of a backup: keepmark fails cleanly, and the next backup after QEMU's restart is right.

use keepmark_testkit::process::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::campaign::Campaign;
use crate::children::is_dead;
use crate::lab::Lab;
use crate::live::Rig;
use crate::tracer::{Cut, Fate, Trace};

/// What is said to QEMU, and what the store does last: between these nothing else concerns QEMU.
fn counts(effect: &str) -> bool {
    effect.starts_with("qmp ") || effect.starts_with("watchdog ") || effect == "rename store/snapshots" || effect == "rename store/index"
}

impl Rig {
    fn killing_qemu(&mut self, cut: Cut, fate: Fate) -> Trace {
        let qemu = Pid::from_raw(i32::try_from(self.qemu.id()).unwrap());
        self.struck_backup(&[], counts, Some(cut), &mut |_| {
            kill(qemu, Signal::SIGKILL).unwrap();
            // Its sockets are closed when it is gone, not when it is told to go.
            wait_for("QEMU to die", std::time::Duration::from_secs(10), || is_dead(qemu).then_some(()));
            fate
        })
    }

    fn restart(self) -> Self {
        let Self { through, qemu, lab, attached, writes } = self;
        drop(through);
        let mut rig = Self { through: None, qemu: qemu.kill9().start(), lab, attached, writes };
        rig.attach();
        rig
    }
}

/// The guest's writes during the backup end with QEMU, so that no write is attempted after the strike.
fn campaign(name: &str, fate: Fate, share: usize) {
    let mut rig = Rig::new(Lab::new());
    let effects = rig.effects(&[], counts);
    let mut campaign = Campaign::over(&effects, share);
    while let Some(cut) = campaign.next_cut() {
        let trace = rig.killing_qemu(cut, fate);
        let Some(effect) = trace.struck else {
            campaign.count(None, cut.moment, &rig.recover());
            continue;
        };
        if fate == Fate::Spared {
            // Before publication it has to fail; afterwards there is a backup, and what cannot be tidied up is a finding.
            assert!(matches!(trace.code, Some(0 | 1 | 3 | 13)), "{effect}: {:?} {}", trace.code, rig.lab.printed());
        }
        let truth = rig.through().take_if_any();
        rig = rig.restart();
        let was_published = rig.lab.look(truth);
        assert!(fate == Fate::Killed || was_published == matches!(trace.code, Some(0 | 3)), "{effect}: {}", rig.lab.printed());
        let outcome = rig.recover();
        let outcome = if was_published { format!("{outcome} after publication") } else { outcome };
        campaign.count(Some(&effect), cut.moment, &outcome);
    }
    rig.lab.compare_all();
    campaign.print(name);
}

#[test]
fn qemu_killed_at_effects_of_a_backup() {
    campaign("QEMU killed", Fate::Spared, 3);
}

#[test]
fn qemu_and_keepmark_killed_at_once() {
    campaign("QEMU and keepmark killed", Fate::Killed, 2);
}
