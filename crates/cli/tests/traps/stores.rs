//! One VM, several stores: each has its own base, a dead one costs the others nothing, and one that is not seen any more is given up.

use serde_json::json;

use crate::stage::{MIB, Stage, checkpoint, checkpoints, is, of_disk};

#[test]
fn two_stores_in_different_rhythm_have_a_base_each() {
    let stage = Stage::new();
    let other = stage.other_store("second");
    let mut vm = stage.backed_up();
    let weekly = stage.live_in(&other, &mut vm, &[], is("full", &["first backup"]));
    for (day, place) in [3_u64, 5, 7].into_iter().enumerate() {
        vm.qemu.write("vda", 10 + u8::try_from(day).unwrap(), place * MIB, MIB);
        let daily = stage.live(&mut vm, is("incremental", &[]));
        assert_eq!(of_disk(&daily, "vda")["read_bytes"], MIB);
        let mut both = [stage.keepmark.needed_checkpoints(None), other.needed_checkpoints(None)].concat();
        both.sort_unstable();
        assert_eq!(checkpoints(&mut vm.qemu), both, "a store removes its own only");
        assert!(both.len() == 3 && [&daily, &weekly].iter().all(|backup| both.contains(&checkpoint(backup).to_owned())), "{both:?}");
    }
    let weekly = stage.live_in(&other, &mut vm, &[], is("incremental", &[]));
    assert_eq!(of_disk(&weekly, "vda")["read_bytes"], 3 * MIB);
    assert_eq!(checkpoints(&mut vm.qemu).len(), 4, "the last full and the last backup of each store");
}

#[test]
fn a_dead_store_costs_the_others_nothing() {
    let stage = Stage::new();
    let other = stage.other_store("second");
    let mut vm = stage.backed_up();
    stage.live_in(&other, &mut vm, &[], is("full", &[]));
    std::fs::remove_dir_all(stage.path("second")).unwrap();
    other.exits(&["backup", &vm.qemu.vm()], 10);
    for _ in 0..2 {
        vm.qemu.write("vda", 7, 3 * MIB, MIB);
        stage.live(&mut vm, is("incremental", &[]));
    }
    assert_eq!(checkpoints(&mut vm.qemu).len(), 3, "the dead store's, and the last full and the last backup of the other");
}

/// A checkpoint of another store that was made so long ago, as its name says.
fn aged(vm: &mut crate::stage::Vm, days: i64) -> String {
    let made = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
    // Digits of no store of these tests, except with a chance of 1 in 65,536.
    let name = format!("km1-{}-0123456789ab", made.strftime("%Y%m%dT%H%M%SZ"));
    vm.qemu.qmp("block-dirty-bitmap-add", json!({"node": "node-vda", "name": name, "persistent": true}));
    name
}

#[test]
fn a_store_that_was_not_seen_for_long_stops_holding_its_checkpoint() {
    let stage = Stage::new();
    let mut vm = stage.backed_up();
    let (recent, old) = (aged(&mut vm, 34), aged(&mut vm, 36));
    let finished = stage.live(&mut vm, is("incremental", &[]));
    let is_full = |name: &String| name != checkpoint(&finished);
    let full = stage.keepmark.needed_checkpoints(None).into_iter().find(is_full).unwrap();
    let mut expected = [full.clone(), checkpoint(&finished).to_owned(), recent.clone()];
    expected.sort();
    assert_eq!(checkpoints(&mut vm.qemu), expected, "{old} goes, {recent} stays");

    stage.keepmark.configure("hold_checkpoints_days = 0\n");
    let ancient = aged(&mut vm, 4000);
    stage.live(&mut vm, is("incremental", &[]));
    assert!(checkpoints(&mut vm.qemu).contains(&ancient), "0 holds for ever");

    stage.keepmark.configure("hold_checkpoints_days = 7\n");
    let finished = stage.live(&mut vm, is("incremental", &[]));
    assert_eq!(checkpoints(&mut vm.qemu), [&full, checkpoint(&finished)]);
}

#[test]
fn a_store_that_comes_back_after_it_was_given_up_resyncs_and_goes_on() {
    let stage = Stage::new();
    let other = stage.other_store("second");
    let mut vm = stage.backed_up();
    let held = stage.live_in(&other, &mut vm, &[], is("full", &[]));
    vm.qemu.write("vda", 7, 3 * MIB, MIB);
    // As the first store does it when its time is over.
    crate::stage::bitmap(&mut vm.qemu, "remove", "node-vda", checkpoint(&held));
    let back = stage.live_in(&other, &mut vm, &[], is("resync", &["bitmap is gone"]));
    assert!(of_disk(&back, "vda")["stored_bytes"].as_u64().unwrap() < 2 * MIB, "{back}");
    vm.qemu.write("vda", 8, 5 * MIB, MIB);
    stage.live_in(&other, &mut vm, &[], is("incremental", &[]));
    stage.live(&mut vm, is("incremental", &[]));
}
