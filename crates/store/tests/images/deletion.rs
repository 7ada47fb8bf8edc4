//! Deletion by merging: whatever is deleted of whatever shape of chain, what is left restores, here and by qemu-img alone.
//!
//! A shape says for each backup what it builds on: nothing, the one before, or the last full. What lies on one full has nothing to do
//! with what lies on another, so a shape with several fulls is no more than several shapes with one: those with one are taken in
//! every length with every subset, those with several by a share. Of longer ones each run takes a share, another one each time,
//! unless `KEEPMARK_ALL` is set.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a failed assumption is a failed test; what ran is said")]

use keepmark_model::BackupId;
use keepmark_model::seam::Store as _;

use crate::common::noise;
use crate::shelf::{CHUNK, Lab, On, Silent};

/// What a backup builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Full,
    Differential,
    Incremental,
}

/// All shapes of so many backups, each once: right after a full, a differential is an incremental.
fn shapes(length: usize) -> Vec<Vec<Step>> {
    let mut shapes = vec![vec![Step::Full]];
    for _ in 1..length {
        let longer = |shape: &Vec<Step>| {
            let after_full = shape.last() == Some(&Step::Full);
            let next = [Step::Full, Step::Incremental, Step::Differential];
            next.into_iter()
                .filter(move |step| !after_full || *step != Step::Differential)
                .map(|step| [&shape[..], &[step]].concat())
                .collect::<Vec<_>>()
        };
        shapes = shapes.iter().flat_map(longer).collect();
    }
    shapes
}

const CLUSTERS: usize = 12;

/// The disk's content at each backup: clusters change, become zero, become data again; every third time it changes its size.
fn contents(length: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut content = noise(seed, CLUSTERS * CHUNK);
    content[2 * CHUNK..4 * CHUNK].fill(0);
    let mut all = vec![content.clone()];
    for number in 1..length {
        let draw = noise(seed * 31 + number as u64, 8);
        let place = |index: usize| usize::from(draw[index]) % 8 * CHUNK;
        content[place(0)..place(0) + CHUNK].copy_from_slice(&noise(seed + 1000 * number as u64, CHUNK));
        content[place(1)..place(1) + CHUNK].fill(0);
        content[place(2)..place(2) + 10].fill(draw[3]);
        if number % 3 == 0 {
            content.resize(8 * CHUNK + usize::from(draw[4]) % 8 * CHUNK + usize::from(draw[5]) % 4 * 512, draw[6]);
        }
        all.push(content.clone());
    }
    all
}

/// A store with a chain of this shape.
fn build(shape: &[Step], seed: u64) -> (Lab, Vec<BackupId>) {
    let mut lab = Lab::new();
    let (mut ids, mut full) = (Vec::<BackupId>::new(), 0);
    for (number, (step, content)) in shape.iter().zip(contents(shape.len(), seed)).enumerate() {
        let below = match step {
            Step::Full => None,
            Step::Differential => Some(ids[full].clone()),
            Step::Incremental => ids.last().cloned(),
        };
        if *step == Step::Full {
            full = number;
        }
        ids.push(lab.backup(&content, below.as_ref().map_or(On::Nothing, On::Base)).unwrap());
    }
    (lab, ids)
}

fn without(ids: &[BackupId], subset: u32) -> (Vec<BackupId>, Vec<BackupId>) {
    let indexed =
        |wanted: u32| ids.iter().enumerate().filter(move |(number, _)| subset >> number & 1 == wanted).map(|(_, id)| id.clone()).collect();
    (indexed(1), indexed(0))
}

/// Deletes a subset and looks at what is left.
fn check(shape: &[Step], subset: u32, seed: u64) {
    let (lab, ids) = build(shape, seed);
    let (gone, left) = without(&ids, subset);
    lab.store.delete(&gone, &Silent).unwrap_or_else(|error| panic!("{shape:?} without {subset:b}, seed {seed}: {error}"));
    lab.check(&left);
    left.iter().for_each(|id| lab.check_with_qemu_img(id));
    let found = lab.store.verify(&[], true, &|_, _| {}).unwrap();
    assert_eq!((found.good.len(), found.damages), (left.len(), vec![]), "{shape:?} without {subset:b}, seed {seed}");
    for id in &gone {
        assert!(!lab.vm_folder().join(id.as_str()).exists(), "{shape:?} without {subset:b}: {id} is still there");
    }
    let files = std::fs::read_dir(lab.vm_folder()).unwrap().count();
    assert_eq!(files, left.len() + 1, "{shape:?} without {subset:b}: something is left over");
}

/// Every shape with one full and every subset of so many backups, or one in `share`; and a few with several fulls.
fn check_shapes(length: usize, share: usize) {
    let share = if std::env::var_os("KEEPMARK_ALL").is_some() { 1 } else { share };
    let subsets = |shape: Vec<Step>| (1..1_u32 << length).map(move |subset| (shape.clone(), subset));
    let (one, several): (Vec<_>, Vec<_>) = shapes(length).into_iter().partition(|shape| !shape[1..].contains(&Step::Full));
    let (one, several): (Vec<_>, Vec<_>) = (one.into_iter().flat_map(subsets).collect(), several.into_iter().flat_map(subsets).collect());
    let checked = check_some(&one, share) + check_some(&several, share.max(several.len() / 4).max(1));
    println!("{checked} of {} shapes and subsets with one full, and {} with several, of {length} backups", one.len(), several.len());
}

/// One in `share` of the cases; gives how many.
fn check_some(cases: &[(Vec<Step>, u32)], share: usize) -> usize {
    let seed = usize::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_micros()).unwrap();
    let chosen: Vec<_> = cases.iter().enumerate().skip(seed % share).step_by(share).collect();
    chosen.iter().for_each(|(number, (shape, subset))| check(shape, *subset, *number as u64));
    chosen.len()
}

#[test]
fn any_of_up_to_three() {
    (1..=3).for_each(|length| check_shapes(length, 1));
}

#[test]
fn any_of_four() {
    check_shapes(4, 2);
}

#[test]
fn any_of_five() {
    check_shapes(5, 11);
}

#[test]
fn any_of_six() {
    check_shapes(6, 51);
}

#[test]
fn any_of_seven() {
    check_shapes(7, 211);
}

#[test]
fn one_after_the_other_until_one_is_left() {
    let shape =
        [Step::Full, Step::Incremental, Step::Incremental, Step::Differential, Step::Incremental, Step::Incremental, Step::Incremental];
    let (lab, mut ids) = build(&shape, 7);
    for place in [3, 1, 0, 3, 0, 0] {
        lab.store.delete(&[ids.remove(place)], &Silent).unwrap();
        lab.check(&ids);
    }
    lab.check_with_qemu_img(&ids[0]);
}

/// An image that ends in the midst of a cluster hides what lies below it from there on, also in that cluster.
#[test]
fn what_a_short_image_hides_stays_hidden() {
    let sizes = [9 * CHUNK, 12 * CHUNK + 512, 6 * CHUNK + 1024, 9 * CHUNK, 7 * CHUNK + 512, 20 * CHUNK];
    for subset in 1..(1_u32 << sizes.len()) - 1 {
        let mut lab = Lab::new();
        let mut ids: Vec<BackupId> = Vec::new();
        for (number, size) in sizes.iter().enumerate() {
            let mut content = noise(1, sizes[0]);
            content.resize(*size, 0);
            content[number * CHUNK..number * CHUNK + 9].fill(9);
            let on = ids.last().cloned();
            ids.push(lab.backup(&content, on.as_ref().map_or(On::Nothing, On::Compared)).unwrap());
        }
        let (gone, left) = without(&ids, subset);
        lab.store.delete(&gone, &Silent).unwrap();
        lab.check(&left);
    }
}

#[test]
fn a_consolidated_backup_needs_no_other() {
    let (lab, ids) = build(&[Step::Full, Step::Incremental, Step::Incremental, Step::Incremental], 3);
    lab.store.consolidate(&ids[2], &Silent).unwrap();
    let listed = lab.store.backups(None).unwrap().0;
    let below: Vec<_> = listed.iter().map(|backup| backup.builds_on.clone()).collect();
    assert_eq!(below, [vec![], vec![ids[0].clone()], vec![], vec![ids[2].clone()]]);
    lab.check(&ids);
    ids.iter().for_each(|id| lab.check_with_qemu_img(id));
    lab.store.delete(&ids[..2], &Silent).unwrap();
    lab.check(&ids[2..]);
}

#[test]
fn compressed_images_stay_compressed() {
    let mut lab = Lab::with(true);
    let mut content = vec![1; 32 * CHUNK];
    let full = lab.backup(&content, On::Nothing).unwrap();
    content[..CHUNK].fill(2);
    let next = lab.backup(&content, On::Base(&full)).unwrap();
    lab.store.delete(&[full], &Silent).unwrap();
    lab.check(std::slice::from_ref(&next));
    assert!(std::fs::metadata(lab.image(&next)).unwrap().len() < 8 * CHUNK as u64 + 512 * 1024);
}

/// The middle of a chain: what is written is the middle's and its dependant's clusters, whatever the disk has.
#[test]
fn deleting_the_middle_costs_what_is_merged() {
    let mut lab = Lab::new();
    let mut content = noise(1, 512 * CHUNK);
    let full = lab.backup(&content, On::Nothing).unwrap();
    content[..CHUNK].fill(2);
    let middle = lab.backup(&content, On::Base(&full)).unwrap();
    content[9 * CHUNK..10 * CHUNK].fill(3);
    let newest = lab.backup(&content, On::Base(&middle)).unwrap();
    let before = std::fs::metadata(lab.image(&newest)).unwrap().len();
    lab.store.delete(&[middle], &Silent).unwrap();
    lab.check(&[full, newest.clone()]);
    assert_eq!(std::fs::metadata(lab.image(&newest)).unwrap().len(), before + CHUNK as u64);
}

#[test]
fn while_somebody_writes_it_is_only_unlisted_and_goes_later() {
    let (mut lab, ids) = build(&[Step::Full, Step::Incremental, Step::Incremental], 5);
    let writing = lab.store.begin(&crate::common::vm().id(), "2026-12-01T00:00:00Z".parse().unwrap()).unwrap();
    lab.store.delete(&ids[..2], &Silent).unwrap();
    let (shelf, image) = (lab.vm_folder(), |id: &BackupId| lab.image(id));
    assert!(image(&ids[0]).exists() && image(&ids[1]).exists() && shelf.join(ids[0].as_str()).join("deleted.json").exists());
    lab.check(&ids[2..]);
    assert!(lab.store.consolidate(&ids[2], &Silent).unwrap_err().to_string().contains("somebody else"));
    drop(writing);
    let content = lab.truth[&ids[2]].clone();
    let next = lab.backup(&content, On::Base(&ids[2])).unwrap();
    assert!(!lab.image(&ids[0]).exists() && !lab.image(&ids[1]).exists());
    lab.check(&[ids[2].clone(), next]);
}

#[test]
fn nothing_goes_that_a_damaged_image_may_need() {
    let (lab, ids) = build(&[Step::Full, Step::Incremental, Step::Incremental, Step::Incremental], 5);
    let header = std::fs::read(lab.image(&ids[1])).unwrap();
    std::fs::write(lab.image(&ids[1]), b"damaged").unwrap();
    lab.store.delete(std::slice::from_ref(&ids[0]), &Silent).unwrap_err();
    assert!(lab.image(&ids[0]).exists());
    std::fs::write(lab.image(&ids[1]), header).unwrap();
    lab.store.prune(&prune(), &Silent).unwrap();
    assert!(!lab.image(&ids[0]).exists());
    lab.check(&ids[1..]);
}

fn prune() -> keepmark_model::seam::PruneRequest {
    keepmark_model::seam::PruneRequest { dry_run: false, unused_max_percent: 5.0, repack_max: None, delay: std::time::Duration::ZERO }
}
