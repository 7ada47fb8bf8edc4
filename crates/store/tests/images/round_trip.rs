//! Backups of every kind restore to what was stored, over disks that grow, shrink and end in the midst of a cluster.

use keepmark_model::Extents;
use keepmark_model::seam::Store as _;
use keepmark_model::{ChunkIndex, Extent};

use crate::common::noise;
use crate::shelf::{CHUNK, Lab, On, Silent, vda};

/// Eight clusters: noise, and holes.
fn disk(seed: u64, bytes: usize) -> Vec<u8> {
    let mut content = noise(seed, bytes);
    content[3 * CHUNK..5 * CHUNK].fill(0);
    content
}

fn changed(content: &[u8], seed: u64) -> Vec<u8> {
    let mut next = content.to_vec();
    next[CHUNK..2 * CHUNK].copy_from_slice(&noise(seed, CHUNK));
    next[2 * CHUNK..3 * CHUNK].fill(0);
    next[4 * CHUNK..4 * CHUNK + 100].fill(7);
    next
}

#[test]
fn every_kind_restores_also_by_qemu_img_alone() {
    for (compress, size) in
        [(false, 8 * CHUNK), (true, 8 * CHUNK), (false, 8 * CHUNK + 1536), (true, 8 * CHUNK + 1536), (false, 8 * CHUNK + 100)]
    {
        let mut lab = Lab::with(compress);
        let contents = [disk(1, size), changed(&disk(1, size), 2), changed(&disk(5, size), 3)];
        let full = lab.backup(&contents[0], On::Nothing).unwrap();
        let next = lab.backup(&contents[1], On::Base(&full)).unwrap();
        let resync = lab.backup(&contents[2], On::Compared(&next)).unwrap();
        let differential = lab.backup(&contents[2], On::Base(&full)).unwrap();
        let all = [full, next, resync, differential];
        lab.check(&all);
        if size % 512 == 0 {
            all.iter().for_each(|id| lab.check_with_qemu_img(id));
        }
        let found = lab.store.verify(&[], true, &|_, _| {}).unwrap();
        assert_eq!((found.good.len(), found.damages), (4, vec![]));
    }
}

#[test]
fn disks_grow_and_shrink() {
    let mut lab = Lab::new();
    let sizes = [8 * CHUNK, 12 * CHUNK + 512, 6 * CHUNK + 1024, 9 * CHUNK, 20 * CHUNK];
    let contents: Vec<Vec<u8>> = sizes.iter().zip(1..).map(|(size, seed)| disk(seed, *size)).collect();
    let mut ids = vec![lab.backup(&contents[0], On::Nothing).unwrap()];
    for content in &contents[1..] {
        let newest = ids.last().unwrap().clone();
        ids.push(lab.backup(content, On::Base(&newest)).unwrap());
        ids.push(lab.backup(content, On::Compared(&newest)).unwrap());
    }
    lab.check(&ids);
    ids.iter().for_each(|id| lab.check_with_qemu_img(id));
}

#[test]
fn a_resync_stores_only_what_differs() {
    let mut lab = Lab::new();
    let content = noise(1, 32 * CHUNK);
    let full = lab.backup(&content, On::Nothing).unwrap();
    let mut next = content.clone();
    next[7 * CHUNK] ^= 1;
    next[9 * CHUNK..10 * CHUNK].fill(0);
    let resync = lab.backup(&next, On::Compared(&full)).unwrap();
    let same = lab.backup(&next, On::Compared(&resync)).unwrap();
    let bytes = |id| std::fs::metadata(lab.image(id)).unwrap().len();
    // A cluster of data, the table that names it, and its refcounts.
    assert!(bytes(&resync) <= bytes(&same) + 3 * CHUNK as u64, "{} and {} bytes", bytes(&resync), bytes(&same));
    assert!(bytes(&full) > 32 * CHUNK as u64);
    lab.check(&[full.clone(), resync.clone(), same.clone()]);
    let listed = lab.store.backups(None).unwrap().0;
    let below: Vec<_> = listed.iter().map(|backup| backup.builds_on.clone()).collect();
    assert_eq!(below, [vec![], vec![full], vec![resync]]);
}

#[test]
fn a_reader_answers_the_audit() {
    let mut lab = Lab::new();
    let content = disk(1, 8 * CHUNK + 512);
    let full = lab.backup(&content, On::Nothing).unwrap();
    let reader = lab.store.open(&full).unwrap();
    let data = reader.data(&vda(), &Extents::from_iter([Extent::new(0, 1 << 30)])).unwrap();
    let end = content.len() as u64;
    assert_eq!(data.iter().collect::<Vec<_>>(), [Extent::new(0, 3 * CHUNK as u64), Extent::new(5 * CHUNK as u64, end)]);
    let same = |index: usize, bytes: &[u8]| reader.is_same(&vda(), ChunkIndex(index as u64), bytes).unwrap();
    assert!(same(0, &content[..CHUNK]) && same(3, &vec![0; CHUNK]) && same(8, &content[8 * CHUNK..]));
    assert!(!same(1, &content[..CHUNK]) && !same(3, &content[..CHUNK]));
    assert_eq!(reader.files(), ["manifest.json", "vm.json"]);
    assert_eq!(reader.file("vm.json").unwrap(), b"{}");
    assert!(reader.file("../x").is_err() && reader.file("vda.qcow2").is_err());
}

#[test]
fn a_pin_is_listed_and_taken_away() {
    let mut lab = Lab::new();
    let id = lab.backup(&disk(1, 8 * CHUNK), On::Nothing).unwrap();
    let pinned = |lab: &Lab| lab.store.backups(None).unwrap().0[0].pinned;
    lab.store.pin(&id, true).unwrap();
    assert!(pinned(&lab));
    lab.store.delete(std::slice::from_ref(&id), &Silent).unwrap_err();
    lab.store.pin(&id, false).unwrap();
    assert!(!pinned(&lab));
}
