//! The watchdog is killed at every effect of a backup, alone or together with keepmark: then only the marks in QEMU tell the
//! next run that a pause or freeze is ours.

use std::time::Duration;

use keepmark_testkit::process::wait_for;
use nix::sys::signal::{Signal, kill};

use crate::campaign::Campaign;
use crate::children::{child, is_dead};
use crate::guest;
use crate::lab::{Lab, kind};
use crate::live::Rig;
use crate::tracer::{Cut, Fate, Moment, Trace};

fn counts(effect: &str) -> bool {
    ["qmp ", "agent ", "watchdog "].iter().any(|kind| effect.starts_with(kind))
}

/// Says whether there was one.
fn kill_watchdog(keepmark: u32) -> bool {
    let Some(watchdog) = child(keepmark, "internal-watchdog") else { return false };
    kill(watchdog, Signal::SIGKILL).unwrap();
    wait_for("the watchdog to die", Duration::from_secs(10), || is_dead(watchdog).then_some(()));
    true
}

/// Up to where the guest runs again and its marks are gone.
fn of_the_watchdog(effects: &[String]) -> &[String] {
    let last = effects.iter().rposition(|effect| effect.starts_with("watchdog ")).unwrap();
    &effects[..effects.len().min(last + 2)]
}

impl Rig {
    fn without_watchdog(&mut self, cut: Cut, fate: Fate) -> (Trace, bool) {
        let mut had_one = false;
        let trace = self.struck_backup(&[], counts, Some(cut), &mut |keepmark| {
            had_one = kill_watchdog(keepmark);
            fate
        });
        (trace, had_one)
    }

    /// Nobody but the next backup wakes the guest. Says what it did.
    #[track_caller]
    fn next_run_heals(&mut self) -> String {
        let stood = self.qemu.status() != "running";
        assert!(!self.lab.look(None), "published before the moment was over");
        let next = self.next_backup();
        self.wait_running();
        self.assert_clean();
        self.lab.compare_newest(1);
        if stood { format!("{}, pause ended", kind(&next)) } else { kind(&next) }
    }
}

#[test]
fn watchdog_and_keepmark_killed_at_effects_of_a_backup() {
    let mut rig = Rig::new(Lab::new());
    let effects = rig.effects(&[], counts);
    let mut campaign = Campaign::over(of_the_watchdog(&effects), 4);
    while let Some(cut) = campaign.next_cut() {
        let (trace, had_one) = rig.without_watchdog(cut, Fate::Killed);
        let outcome = rig.next_run_heals();
        campaign.count(trace.struck.as_deref().filter(|_| had_one), cut.moment, &outcome);
    }
    rig.lab.compare_all();
    campaign.print("watchdog and keepmark killed");
}

#[test]
fn watchdog_killed_at_effects_of_a_backup() {
    let mut rig = Rig::new(Lab::new());
    let effects = rig.effects(&[], counts);
    let mut campaign = Campaign::over(of_the_watchdog(&effects), 4);
    while let Some(cut) = campaign.next_cut() {
        let (trace, had_one) = rig.without_watchdog(cut, Fate::Spared);
        let code = trace.code;
        rig.wait_running();
        rig.assert_clean();
        let truth = rig.through().take_if_any();
        let was_published = rig.lab.look(truth);
        assert!(if was_published { code == Some(0) } else { code == Some(1) }, "{:?}: {code:?} {}", trace.struck, rig.lab.printed());
        let outcome = format!("{}, {}", if was_published { "published" } else { "failed" }, rig.recover());
        campaign.count(trace.struck.as_deref().filter(|_| had_one), cut.moment, &outcome);
    }
    rig.lab.compare_all();
    campaign.print("watchdog killed");
}

/// Strikes right after the first effect that is called so.
fn after(effects: &[String], name: &str) -> Cut {
    Cut { number: effects.iter().position(|effect| effect == name).unwrap(), moment: Moment::After }
}

#[test]
fn a_real_guest_s_freeze_and_pause_are_ended_by_their_marks_alone() {
    let mut rig = guest::rig();
    let effects = rig.effects(&[], counts);

    let (trace, had_one) = rig.without_watchdog(after(&effects, "agent guest-fsfreeze-freeze"), Fate::Killed);
    assert!(had_one && trace.struck.is_some());
    assert_eq!(rig.qemu.agent().execute("guest-fsfreeze-status"), "frozen");
    rig.next_run_heals();
    rig.qemu.serial.wait_writes(2, guest::WRITES_AGAIN_MAX);

    let (trace, had_one) = rig.without_watchdog(after(&effects, "qmp stop"), Fate::Killed);
    assert!(had_one && trace.struck.is_some());
    assert_eq!(rig.qemu.status(), "paused");
    assert!(rig.next_run_heals().ends_with("pause ended"));
    rig.qemu.serial.wait_writes(2, guest::WRITES_AGAIN_MAX);
    rig.qemu.assert_guest_unharmed();
    rig.lab.compare_all();
}

/// Without anybody who would end it, nothing is begun: neither freeze nor pause.
#[test]
fn a_guest_is_not_frozen_when_the_watchdog_has_died() {
    let mut rig = guest::rig();
    let effects = rig.effects(&[], counts);
    let cut = after(&effects, "watchdog freezing");
    let (trace, had_one) = rig.without_watchdog(Cut { moment: Moment::Before, ..cut }, Fate::Spared);
    assert!(had_one && trace.code == Some(1), "{:?} {}", trace.code, rig.lab.printed());
    assert!(!trace.effects.iter().any(|effect| effect == "agent guest-fsfreeze-freeze" || effect == "qmp stop"), "{:?}", trace.effects);
    let said = rig.lab.printed();
    assert!(said.contains("watchdog") && said.contains("Hint:"), "{said}");
    rig.assert_clean();
    rig.recover();
    rig.qemu.serial.wait_writes(2, guest::WRITES_AGAIN_MAX);
    rig.qemu.assert_guest_unharmed();
}
