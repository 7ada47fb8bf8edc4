//! Stores that are wrong, damaged, full or in use: what fails says why, and what is whole still restores.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, damage};
use serde_json::Value;

use crate::gate::Gate;
use crate::lab::{Lab, MIB, assert_clean, assert_says, id, image_vm, our_bitmaps, text};
use crate::small_disk::SmallDisk;

#[test]
fn a_wrong_password_is_12() {
    let lab = Lab::new();
    let run = lab.keepmark.clone().password("another").exits(&["list"], 12);
    assert_says(&run, &["wrong password"]);
    assert_eq!(run.stdout, "");
}

#[test]
fn a_store_that_is_none_is_10() {
    let lab = Lab::without_store();
    let run = lab.keepmark.exits(&["list"], 10);
    assert_says(&run, &["there is no store", "Hint: keepmark init"]);

    std::fs::create_dir(lab.store()).unwrap();
    std::fs::write(lab.store().join("letter"), "dear").unwrap();
    lab.keepmark.exits(&["list"], 10);
    lab.keepmark.exits(&["list", "--store", text(&lab.store().join("letter"))], 10);
    let refused = lab.keepmark.exits(&["init"], 1);
    assert_says(&refused, &["cannot create a repository"]);
}

#[test]
fn a_second_init_changes_nothing() {
    let lab = Lab::new();
    let before = damage::files(&lab.store());
    lab.keepmark.exits(&["init"], 1);
    assert_eq!(damage::files(&lab.store()), before);
    lab.keepmark.ok(&["list"]);
}

/// Two VMs of unlike content, `big` and `small`, each backed up once; their images.
fn two_backups(lab: &Lab) -> ([PathBuf; 2], [Value; 2]) {
    let make = |name: &str, seed, length: u64| {
        let path = lab.qcow2(name, 32 * MIB);
        image::fill_random(&path, Format::Qcow2, seed, MIB, usize::try_from(length).unwrap());
        (lab.keepmark.backup(&image_vm("vda", &path), &["--name", name]), path)
    };
    // The first one stores the chunk of zeros, which both share.
    let (small, small_image) = make("small", 2, MIB);
    let (big, big_image) = make("big", 1, 8 * MIB);
    ([big_image, small_image], [big, small])
}

/// Fails the test unless `verify` finds the one backup damaged and the other whole, and the other restores.
#[track_caller]
fn assert_only_hits(lab: &Lab, verify: &[&str], hit: (&Value, &str), whole: (&Value, &str, &Path)) {
    let found = lab.keepmark.exits(&[&["verify", "--json"], verify].concat(), 3).event("finished");
    assert_eq!(found["damaged"], serde_json::json!([hit.0["backup"]]), "{found}");
    assert_eq!(found["good"], serde_json::json!([whole.0["backup"]]), "{found}");
    let words = lab.keepmark.exits(&[&["verify"], verify].concat(), 3);
    assert_says(&words, &[&id(hit.0)[..8]]);
    let to = lab.path("whole");
    restore_beside_damage(lab, &format!("{}@latest", whole.1), &to);
    image::assert_same(&to.join("vda.raw"), Format::Raw, whole.2, Format::Qcow2);
    let failed = lab.keepmark.run(&["restore", &format!("{}@latest", hit.1), "--to", text(&lab.path("hit"))]);
    assert_ne!(failed.code, Some(0), "a damaged backup was restored");
    assert!(!lab.path("hit/vda.raw").exists());
}

/// Another backup's damage may be a finding; this one's restore must succeed.
#[track_caller]
fn restore_beside_damage(lab: &Lab, backup: &str, to: &Path) {
    let run = lab.keepmark.run(&["restore", backup, "--to", text(to)]);
    assert!(matches!(run.code, Some(0 | 3)), "{:?} {}", run.code, run.stderr);
}

#[test]
fn a_damaged_pack_is_named_with_the_backups_it_hits() {
    let lab = Lab::new();
    let ([_, small_image], [big, small]) = two_backups(&lab);
    damage::flip_middle(&lab.files("data")[0]);
    lab.keepmark.ok(&["verify"]);
    assert_only_hits(&lab, &["--read-data"], (&big, "big"), (&small, "small", &small_image));
}

#[test]
fn a_missing_pack_is_found_without_reading_data() {
    let lab = Lab::new();
    let ([_, small_image], [big, small]) = two_backups(&lab);
    damage::delete(&lab.files("data")[0]);
    assert_only_hits(&lab, &[], (&big, "big"), (&small, "small", &small_image));
}

#[test]
fn a_truncated_pack_is_found_without_reading_data() {
    let lab = Lab::new();
    let ([_, small_image], [big, small]) = two_backups(&lab);
    damage::halve(&lab.files("data")[0]);
    assert_only_hits(&lab, &[], (&big, "big"), (&small, "small", &small_image));
}

#[test]
fn a_damaged_snapshot_is_a_finding_and_the_others_stay_listed() {
    let lab = Lab::new();
    let ([_, small_image], [big, small]) = two_backups(&lab);
    damage::flip_middle(&lab.store().join("snapshots").join(id(&big)));
    // A cache may go on knowing what it was, but verify must not believe it.
    assert_says(&lab.keepmark.exits(&["verify"], 3), &[&id(&big)[..8]]);
    std::fs::remove_dir_all(lab.path("cache")).unwrap();
    let listed = lab.keepmark.exits(&["list", "--json"], 3);
    assert_says(&listed, &[&id(&big)[..8]]);
    assert_eq!(listed.json().iter().map(|backup| &backup["id"]).collect::<Vec<_>>(), [&small["backup"]]);
    let to = lab.path("whole");
    // The damaged one might be the latest; an id means itself.
    lab.keepmark.exits(&["restore", "small@latest", "--to", text(&to)], 3);
    image::assert_same(&to.join("vda.raw"), Format::Raw, &small_image, Format::Qcow2);
    image::assert_same(&lab.restore(id(&small), "by id").join("vda.raw"), Format::Raw, &small_image, Format::Qcow2);
}

/// The index repeats what the packs' headers say, so nothing is lost with it: restic makes it anew.
#[test]
fn a_damaged_index_hits_what_it_lists_until_restic_has_rebuilt_it() {
    let lab = Lab::new();
    let ([big_image, small_image], [big, _]) = two_backups(&lab);
    let index = lab.files("index").into_iter().next().unwrap();
    damage::flip_middle(&index);
    let found = lab.keepmark.exits(&["verify", "--json"], 3);
    assert_says(&found, &[&index.file_name().unwrap().to_str().unwrap()[..8], &id(&big)[..8]]);
    assert_eq!(found.event("finished")["damaged"], serde_json::json!([big["backup"]]));
    let small_to = lab.path("small");
    lab.keepmark.exits(&["restore", "small@latest", "--to", text(&small_to)], 3);
    image::assert_same(&small_to.join("vda.raw"), Format::Raw, &small_image, Format::Qcow2);

    lab.restic().run(&["rebuild-index"]);
    lab.keepmark.ok(&["verify", "--read-data"]);
    image::assert_same(&lab.restore("big@latest", "big").join("vda.raw"), Format::Raw, &big_image, Format::Qcow2);
}

#[test]
fn a_base_that_cannot_be_read_any_more_is_not_built_upon() {
    let lab = Lab::new();
    let mut qemu = lab.one_disk();
    lab.keepmark.backup(&qemu.vm(), &[]);
    let trees = lab.files("data").pop().unwrap();
    // The trees of the disk come first, so that the manifest can still be read.
    damage::flip_bit(&trees, 40, 1);
    qemu.write("vda", 3, 0, MIB);
    let through = lab.witness(&qemu);
    let run = lab.keepmark.exits(&["backup", &through.vm(), "--json"], 3);
    let second = run.event("finished");
    assert_ne!(second["kind"], "incremental");
    assert_says(&run, &["the base cannot be read"]);
    let to = lab.path("out");
    restore_beside_damage(&lab, id(&second), &to);
    through.take().assert_restored(&to, Format::Raw);
    assert_clean(&mut qemu);
}

/// A powered-off VM with one backup and a change since.
fn changed_image(lab: &Lab) -> (PathBuf, String) {
    let image = lab.qcow2("web", 32 * MIB);
    image::fill_random(&image, Format::Qcow2, 1, 0, usize::try_from(6 * MIB).unwrap());
    lab.keepmark.backup(&image_vm("vda", &image), &["--name", "web"]);
    lab.list();
    image::fill_random(&image, Format::Qcow2, 2, 20 * MIB, usize::try_from(MIB).unwrap());
    let vm = image_vm("vda", &image);
    (image, vm)
}

#[test]
fn a_base_that_lost_chunks_is_not_built_upon_and_what_is_lost_is_stored_again() {
    for remembered in [true, false] {
        let lab = Lab::new();
        let (image, vm) = changed_image(&lab);
        damage::delete(&lab.files("data")[0]);
        if !remembered {
            std::fs::remove_dir_all(lab.path("cache")).unwrap();
        }
        let run = lab.keepmark.exits(&["backup", &vm, "--name", "web", "--json"], 3);
        let second = run.event("finished");
        assert_eq!(second["kind"], if remembered { "resync" } else { "full" }, "{second}");
        image::assert_same(&lab.restore(id(&second), "out").join("vda.raw"), Format::Raw, &image, Format::Qcow2);
        let found = lab.keepmark.exits(&["verify", "--read-data", "--json"], 3).event("finished");
        assert_eq!(found["good"], serde_json::json!([second["backup"]]));
    }
}

#[test]
fn what_a_verification_found_damaged_is_not_built_upon() {
    let lab = Lab::new();
    let (image, vm) = changed_image(&lab);
    damage::flip_middle(&lab.files("data")[0]);
    lab.keepmark.exits(&["verify", "--read-data"], 3);
    let run = lab.keepmark.exits(&["backup", &vm, "--name", "web", "--json"], 3);
    assert_eq!(run.event("finished")["kind"], "resync");
    assert_says(&run, &["the base cannot be read"]);
    image::assert_same(&lab.restore(id(&run.event("finished")), "out").join("vda.raw"), Format::Raw, &image, Format::Qcow2);
    // The first one's chunks were stored again, too; whether the old copies are looked at is left open.
    let found = lab.keepmark.run(&["verify", "--read-data", "--json"]).event("finished");
    assert_eq!(found["damaged"], serde_json::json!([]), "{found}");
}

#[test]
fn a_damaged_lock_is_11_for_writers_and_nothing_to_readers() {
    let lab = Lab::new();
    let (image, vm) = changed_image(&lab);
    std::fs::write(lab.store().join("locks").join("ab".repeat(32)), "rubbish").unwrap();
    let refused = lab.keepmark.exits(&["backup", &vm, "--name", "web"], 11);
    assert_says(&refused, &["cannot be read", "Hint:", "restic unlock --remove-all"]);
    lab.restore("web@latest", "out");
    assert_says(&lab.keepmark.exits(&["verify"], 3), &["lock abab", "hits no backup"]);
    lab.restic().run(&["unlock", "--remove-all"]);
    let second = lab.keepmark.backup(&vm, &["--name", "web"]);
    assert_eq!(second["kind"], "incremental");
    image::assert_same(&lab.restore(id(&second), "again").join("vda.raw"), Format::Raw, &image, Format::Qcow2);
}

#[test]
fn a_cache_folder_that_cannot_be_written_costs_time_only() {
    let lab = Lab::new();
    let (image, vm) = changed_image(&lab);
    std::fs::remove_dir_all(lab.path("cache")).unwrap();
    std::fs::write(lab.path("cache"), "no folder").unwrap();
    let run = lab.keepmark.ok(&["backup", &vm, "--name", "web", "--json"]);
    assert_says(&run, &["the cache folder cannot be used"]);
    assert_eq!(run.event("finished")["kind"], "incremental");
    image::assert_same(&lab.restore("web@latest", "out").join("vda.raw"), Format::Raw, &image, Format::Qcow2);
    lab.keepmark.ok(&["verify", "--read-data"]);
}

#[test]
fn a_full_store_fails_the_backup_only_and_goes_on_after_space_is_made() {
    let lab = Lab::without_store();
    let disk = SmallDisk::mount(&lab.store(), "16m");
    lab.keepmark.ok(&["init"]);
    let mut qemu = lab.one_disk();
    let first = lab.keepmark.backup(&qemu.vm(), &[]);
    let witness = keepmark_testkit::Witness::hold(&mut qemu, &lab.path("first"));
    witness.release(&mut qemu);
    let noise = lab.path("noise");
    std::fs::write(&noise, image::random_bytes(7, usize::try_from(24 * MIB).unwrap())).unwrap();
    qemu.qemu_io("vda", &format!("write -s {} {} {}", noise.display(), 16 * MIB, 24 * MIB));
    let before = our_bitmaps(&mut qemu);

    let failed = lab.keepmark.exits(&["backup", &qemu.vm()], 1);
    assert_says(&failed, &["No space left", "Hint: make space"]);
    assert_clean(&mut qemu);
    assert_eq!(our_bitmaps(&mut qemu), before, "the failed backup's checkpoint stayed, or the base's went");
    assert_eq!(lab.list().len(), 1);
    witness.assert_restored(&lab.restore(id(&first), "out1"), Format::Raw);

    disk.grow("96m");
    let second = lab.keepmark.backup(&qemu.vm(), &[]);
    assert_eq!(second["kind"], "incremental");
    let moment = keepmark_testkit::Witness::hold(&mut qemu, &lab.path("second"));
    moment.assert_restored(&lab.restore(id(&second), "out2"), Format::Raw);
    lab.restic().check();
}

#[test]
fn stock_restic_prunes_not_while_a_backup_runs_and_is_waited_for_when_it_came_first() {
    let lab = Lab::new();
    let mut qemu = lab.vm().disk(Disk::qcow2("vda", &lab.qcow2("vda", 64 * MIB))).start();
    qemu.write("vda", 1, 0, 4 * MIB);
    let gate = Gate::before("block-export-add", &qemu, &lab);
    let running = lab.keepmark.spawn(&["backup", &gate.vm(), "--json"]);
    gate.wait();
    let prune = lab.restic().output(&["prune"]);
    assert!(!prune.status.success(), "restic pruned beside a running backup");
    assert!(String::from_utf8_lossy(&prune.stderr).contains("lock"), "{prune:?}");
    gate.open();
    assert_eq!(running.wait(Duration::from_secs(60)).code, Some(0));
    lab.restic().prune();
    lab.restic().check();
}

/// restic holds its exclusive lock as long as the check's input is held back by a stopped process.
#[test]
fn a_store_that_restic_holds_exclusively_is_11() {
    let lab = Lab::new();
    let image = lab.qcow2("a", MIB);
    lab.keepmark.backup(&image_vm("vda", &image), &["--name", "web"]);
    let mut check =
        keepmark_testkit::process::Owned::spawn(lab.restic().command(&["check", "--read-data", "-q"]).stdout(std::process::Stdio::null()));
    let locks = lab.store().join("locks");
    keepmark_testkit::process::wait_for("restic's lock", Duration::from_secs(20), || {
        assert!(check.ended().is_none(), "restic was done before it was stopped");
        std::fs::read_dir(&locks).unwrap().flatten().any(|entry| entry.file_name().len() == 64).then_some(())
    });
    check.signal(rustix::process::Signal::STOP);
    let run = lab.keepmark.exits(&["backup", &image_vm("vda", &image), "--name", "web"], 11);
    assert_says(&run, &["locked by process", "Hint:"]);
    check.signal(rustix::process::Signal::CONT);
    assert!(check.wait(Duration::from_secs(60)).success());
}

/// keepmark, as `Keepmark::command` gives it, with system calls that fail.
fn with_failing_calls(lab: &Lab, calls: &str, error: &str, arguments: &[&str]) -> std::process::Output {
    let inner = lab.keepmark.command(arguments);
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:error={error}")]);
    command.arg(inner.get_program()).args(inner.get_args()).env_clear();
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).output().unwrap()
}

/// NFS, sshfs, 9P and older ZFS cannot rename without replacing, and some of them give no second names either.
#[test]
fn init_works_where_nothing_can_be_renamed_without_replacing() {
    for (calls, error) in [("renameat2", "EINVAL"), ("renameat2", "EOPNOTSUPP"), ("renameat2,link,linkat", "ENOSYS")] {
        let lab = Lab::without_store();
        for place in [text(&lab.store()).to_owned(), format!("images:{}", text(&lab.path("images")))] {
            let made = with_failing_calls(&lab, calls, error, &["init", &place]);
            assert!(made.status.success(), "{calls} {error} {place}: {}", String::from_utf8_lossy(&made.stderr));
            lab.keepmark.ok(&["list", "--store", &place]);
            lab.keepmark.exits(&["init", &place], 1);
        }
    }
}

#[test]
fn an_init_that_fails_takes_back_what_it_made() {
    let lab = Lab::without_store();
    std::fs::create_dir(lab.path("there")).unwrap();
    for (kind, folder, made) in [("", "a/store", "a"), ("", "there", "there"), ("images:", "b/images", "b")] {
        let place = format!("{kind}{}", text(&lab.path(folder)));
        let failed = with_failing_calls(&lab, "renameat2,link,linkat", "EIO", &["init", &place]);
        assert_eq!(failed.status.code(), Some(1));
        let left = std::fs::read_dir(lab.path(made)).map_or(0, Iterator::count);
        assert!(left == 0 && lab.path(made).exists() == (made == "there"), "{place}");
        lab.keepmark.ok(&["init", &place]);
    }
}

/// Whoever can write into a store may have written a manifest by hand.
#[test]
fn a_name_that_leads_out_of_its_folder_writes_nothing() {
    let lab = Lab::without_store();
    let store = format!("images:{}", lab.store().display());
    lab.keepmark.ok(&["init", &store]);
    let path = lab.qcow2("vda", MIB);
    image::fill_random(&path, Format::Qcow2, 1, 0, 65_536);
    let backup = lab.keepmark.backup(&image_vm("vda", &path), &["--name", "web"]);
    let folder = lab.store().join("web").join(id(&backup));
    let manifest = folder.join("manifest.json");
    let written = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, written.replace("\"vda\"", "\"../../escaped\"")).unwrap();
    std::fs::copy(folder.join("vda.qcow2"), lab.store().join("escaped.qcow2")).unwrap();
    let refused = lab.keepmark.run(&["restore", id(&backup), "--to", text(&lab.path("to/web"))]);
    assert_ne!(refused.code, Some(0));
    assert!(!lab.path("escaped.raw").exists() && !lab.path("to/escaped.raw").exists());
    let listed = lab.keepmark.exits(&["list"], 3);
    assert_says(&listed, &["damaged"]);
    std::fs::write(&manifest, written).unwrap();
    lab.keepmark.ok(&["restore", id(&backup), "--to", text(&lab.path("to/web"))]);
}

/// Backups into both of two copies with one id would take each other's checkpoints away for ever.
#[test]
fn two_copies_of_a_store_are_told_and_one_gets_an_id_of_its_own() {
    for kind in ["", "images:"] {
        let lab = Lab::without_store();
        let [store, copy] = ["store", "copy"].map(|name| format!("{kind}{}", text(&lab.path(name))));
        lab.keepmark.ok(&["init", &store]);
        let path = lab.qcow2("vda", 32 * MIB);
        image::fill_random(&path, Format::Qcow2, 1, MIB, 65_536);
        let into = |place: &str| lab.keepmark.backup(&image_vm("vda", &path), &["--name", "web", "--store", place]);
        into(&store);
        assert!(Command::new("cp").arg("-a").arg(lab.path("store")).arg(lab.path("copy")).status().unwrap().success());
        let plain = ["backup", &image_vm("vda", &path), "--name", "web", "--no-checkpoint", "--store"];
        assert_says(&lab.keepmark.exits(&[&plain[..], &[&copy]].concat(), 3), &["is a copy", "keepmark adopt-copy"]);
        lab.keepmark.ok(&[&plain[..], &[&store]].concat());
        lab.keepmark.ok(&["adopt-copy", &copy]);
        assert_says(&lab.keepmark.exits(&["adopt-copy", &store], 2), &["no copy"]);
        for seed in 2..5 {
            image::fill_random(&path, Format::Qcow2, seed, seed * MIB, 65_536);
            for place in [&store, &copy] {
                assert_eq!(into(place)["kind"], "incremental", "{place}, {seed}");
            }
        }
    }
}
