//! The damage matrix: each kind of file of a repository and of the local cache, damaged in each way. Run with `--nocapture` it prints the table.
//!
//! For each cell: what a verification finds and which backups it names, that those and no others fail to restore, that no restore
//! ever gives wrong bytes, and that the next backup either restores or is not published, or, where damage shows only to
//! who reads everything, is named by such a verification.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]
#![expect(clippy::print_stdout, reason = "the table is for people")]

#[path = "../common/mod.rs"]
mod common;
mod expect;
mod world;

use std::fs;
use std::path::Path;

use common::{backup, diff, noise, put_data, restore};
use expect::{DAMAGES, Damage, Expected, Next, expected};
use keepmark_model::seam::Store as _;
use keepmark_model::{BackupId, Failure};
use keepmark_store::{Error, Repository};
use world::{ALL, File, Whose, World};

fn inflict(damage: Damage, path: &Path, other: &[u8]) {
    let mut content = fs::read(path).unwrap();
    let last = content.len() - 1;
    match damage {
        Damage::Deleted => return fs::remove_file(path).unwrap(),
        Damage::Emptied => content.clear(),
        Damage::Halved => content.truncate(content.len() / 2),
        Damage::FirstByte => content[0] ^= 0x10,
        Damage::MiddleByte => content[last / 2] ^= 1,
        Damage::LastByte => content[last] ^= 0x80,
        Damage::Replaced => content = other.to_vec(),
    }
    fs::write(path, content).unwrap();
}

fn damaged(template: &World, file: File, whose: Whose, damage: Damage) -> World {
    let world = template.copy();
    let (path, other) = &world.files[&(file, whose)];
    inflict(damage, path, other);
    world
}

/// What a verification found: nothing, or whom it hits.
fn verify(world: &World, repository: &Repository, read_data: bool) -> Option<Vec<Whose>> {
    let result = repository.verify(&[], read_data, &|_, _| {}).unwrap();
    let hit = |whose: &Whose| result.damages.iter().any(|damage| damage.backups.contains(&world.backups[whose].0));
    for whose in ALL {
        assert!(!(hit(&whose) && result.good.contains(&world.backups[&whose].0)), "{whose:?} is both good and hit");
    }
    (!result.damages.is_empty()).then(|| ALL.into_iter().filter(hit).collect())
}

/// What became of the VM's next backup, made as the engine makes it: on the newest that is listed, and anew where that is damaged.
fn next(world: &World, repository: &Repository) -> (Next, Option<(BackupId, Vec<u8>)>) {
    let mut content = world.backups[&Whose::Second].1.clone();
    content[3 << 20..(3 << 20) + 50_000].copy_from_slice(&noise(9, 50_000));
    let listed = repository.backups(Some(&common::vm().id())).unwrap().0;
    let base = listed.last().and_then(|newest| world.backups.values().find(|(id, _)| *id == newest.id));
    let on_base = base.map(|(id, then)| backup(repository, "2026-11-23T08:00:00Z", &content, Some(id), &diff(then, &content)));
    match on_base {
        Some(Ok(id)) => (Next::Incremental, Some((id, content))),
        Some(Err(failure)) if !is_damage(&failure) => (Next::Refused, None),
        Some(Err(_)) | None => {
            let id = backup(repository, "2026-11-23T08:00:00Z", &content, None, &put_data(&content)).unwrap();
            (Next::Anew, Some((id, content)))
        }
    }
}

fn is_damage(failure: &Failure) -> bool {
    matches!(failure.get(), Some(Error::Damaged { .. } | Error::Missing { .. }))
}

/// Whether the backup restores on a host that has never seen the repository.
fn restores_elsewhere(world: &World, backup: &(BackupId, Vec<u8>)) -> bool {
    fs::remove_dir_all(world.place.cache()).unwrap();
    restore(&world.place.open(), &backup.0, "vda", backup.1.len()).is_ok_and(|restored| restored == backup.1)
}

/// The next backup and what it must be. One that was published restores; or, if the damage could not be seen, is named.
fn check_next(world: &World, must: Next, cell: &str) -> String {
    let repository = world.place.open();
    let (became, published) = next(world, &repository);
    drop(repository);
    let Some(published) = published else {
        assert_eq!(must, Next::Refused, "{cell}: the next backup was refused");
        return "refused".to_owned();
    };
    assert!(must == became || must == Next::Unseen, "{cell}: the next backup is {became:?} and should be {must:?}");
    if restores_elsewhere(world, &published) {
        return format!("{became:?}").to_lowercase();
    }
    assert_eq!(must, Next::Unseen, "{cell}: the next backup was published and does not restore");
    let named = world.place.open().verify(&[], true, &|_, _| {}).unwrap().damages;
    assert!(named.iter().any(|damage| damage.backups.contains(&published.0)), "{cell}: nobody names the next backup");
    "inherits the damage, is named".to_owned()
}

fn check_cell(template: &World, file: File, whose: Whose, damage: Damage) -> [String; 6] {
    let cell = format!("{file:?} of {whose:?}, {damage:?}");
    let must: Expected = expected(file, whose, damage);
    let world = damaged(template, file, whose, damage);
    let row = |said: [String; 4]| {
        let [verify, read, next, after] = said;
        [format!("{file:?} of {whose:?}").to_lowercase(), format!("{damage:?}").to_lowercase(), verify, read, next, after]
    };
    let repository = match Repository::open(&world.place.repository(), common::PASSWORD, world.place.options()) {
        Ok(repository) => repository,
        Err(error) => {
            assert!(!must.opens, "{cell}: {error}");
            let said = error.to_string().replace(&world.place.repository().display().to_string(), "REPOSITORY");
            return row([said, String::new(), "refused".into(), String::new()]);
        }
    };
    assert!(must.opens, "{cell}: it opens");
    let found = verify(&world, &repository, false);
    assert_eq!(found, must.verify, "{cell}: verify");
    let found_by_reading = verify(&world, &repository, true);
    assert_eq!(found_by_reading, must.read, "{cell}: verify --read-data");
    for whose in ALL {
        let listed = (file, damage) != (File::Snapshot, Damage::Deleted)
            || !matches!(world.files.get(&(file, whose)), Some((path, _)) if !path.exists());
        let hit = must.read.as_ref().is_some_and(|hit| hit.contains(&whose));
        assert_eq!(world.restores(&repository, whose), listed && !hit, "{cell}: restore of {whose:?}");
    }
    drop(repository);
    let after = check_next(&world, must.after, &format!("{cell}, verified"));
    let next = check_next(&damaged(template, file, whose, damage), must.next, &cell);
    row([words(found), words(found_by_reading), next, after])
}

fn words(found: Option<Vec<Whose>>) -> String {
    match found {
        None => "nothing".to_owned(),
        Some(hit) if hit.is_empty() => "found, hits none".to_owned(),
        Some(hit) => format!("hits {}", hit.iter().map(|whose| format!("{whose:?}").to_lowercase()).collect::<Vec<_>>().join(" and ")),
    }
}

fn check_all(wanted: &[File]) {
    let template = World::new();
    let mut lines = vec![
        "| file | damage | verify | verify --read-data | next backup | the same, verified before |\n|---|---|---|---|---|---|".to_owned(),
    ];
    for (file, whose) in template.files.keys().filter(|(file, _)| wanted.contains(file)) {
        for damage in DAMAGES {
            lines.push(format!("| {} |", check_cell(&template, *file, *whose, damage).join(" | ")));
        }
    }
    assert!(lines.len() > wanted.len() * DAMAGES.len());
    println!("{}", lines.join("\n"));
}

#[test]
fn config_keys_locks_and_the_local_cache() {
    check_all(&[File::Config, File::Key, File::Lock, File::CachedIndex, File::CachedBackups, File::CachedNeeds]);
}

#[test]
fn snapshots_and_index() {
    check_all(&[File::Snapshot, File::Index]);
}

#[test]
fn packs_of_trees() {
    check_all(&[File::Trees]);
}

#[test]
fn packs_of_data() {
    check_all(&[File::Data]);
}
