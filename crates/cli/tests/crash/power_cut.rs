//! The store's disk is cut off at every effect on it: what was not synced is lost, as in a power cut.
//!
//! The store lies on a file system of its own (ext4, nothing written back by itself), which is shut down without its journal
//! being flushed (`EXT4_IOC_SHUTDOWN`), unmounted, and mounted again. It needs root and loop devices.

use keepmark_testkit::mount::Mount;

use crate::campaign::Campaign;
use crate::lab::Lab;
use crate::live::Rig;
use crate::tracer::Fate;

fn counts(effect: &str) -> bool {
    effect.contains(" store/")
}

fn campaign(name: &str, fate: Fate, share: usize) {
    let lab = Lab::new();
    let folder = lab.path("store");
    let disk = Mount::new(lab.path("store.img"), folder.clone());
    let mut rig = Rig::new(lab);
    let effects = rig.effects(&[], counts);
    let mut campaign = Campaign::over(&effects, share);
    while let Some(cut) = campaign.next_cut() {
        let trace = rig.struck_backup(&[], counts, Some(cut), &mut |_| {
            Mount::cut_off(&folder);
            fate
        });
        disk.come_back();
        let outcome = rig.recover();
        campaign.count(trace.struck.as_deref(), cut.moment, &outcome);
    }
    rig.lab.compare_all();
    campaign.print(name);
    drop(rig);
}

#[test]
fn store_cut_off_and_keepmark_killed() {
    campaign("store's disk cut off, keepmark killed", Fate::Killed, 5);
}

#[test]
fn store_cut_off_and_keepmark_left_alone() {
    campaign("store's disk cut off, keepmark goes on", Fate::Spared, 3);
}
