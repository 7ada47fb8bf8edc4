//! Audit: what of the blocks that the bitmaps call clean is looked at again, and what that proves.
//!
//! Three checks cost next to nothing beside an incremental. *End*: a disk that was cut and grown back lost everything behind the
//! cut, so it lost the last of its clean content: if that one chunk, which in the base is not all zeros, is as it was, and what lies in its
//! cluster and holds data behind it, no cut harmed anything clean, however large the disk is and wherever the cut lay. *Allocation*: a clean chunk that is a hole now and held data in the base
//! is a contradiction at once; one whose holes and data lie otherwise than the base's may be one, and is read. *Sample*: clean
//! chunks chosen at random are read and compared with the base by hash. All have bounds that do not grow with the disk.

use serde::{Deserialize, Serialize};

use crate::extents::{ChunkIndex, ChunkSize, Extent, Extents, Size};
use crate::rules::{Rule, broken};

/// How much of a disk the allocation check covers in one backup; a larger disk takes turns.
pub const WINDOW_BYTES: u64 = 16 << 30;
/// The first window in which the last clean data are looked for.
const END_BYTES: u64 = 64 << 20;
/// Most chunks that are compared behind the cluster of the last clean content.
pub const END_CHUNKS_MAX: usize = 64;
/// Fewest chunks that the default sample reads.
pub const SAMPLE_CHUNKS_MIN: u64 = 4;
/// The default sample reads at most this share of what the incremental reads, in percent.
pub const SAMPLE_PERCENT: u64 = 4;

/// How much the user wants audited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditWish {
    /// So little that it costs under 5 % of the incremental.
    Default,
    /// Neither sample nor allocation check; the end is looked at all the same.
    Off,
    /// So many chunks of each disk.
    Chunks(u64),
    /// This share of the clean data of each disk, in percent.
    Percent(u8),
}

/// What was audited of a disk, as the manifest keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The part of the disk whose allocation was compared with the base's.
    pub allocation_checked: Extent,
    /// Bytes in that part that are called clean and hold data in the base.
    pub clean_bytes: u64,
    /// Bytes of the random sample.
    pub sampled_bytes: u64,
    /// With 95 % confidence at most this share of the clean data in that part has changed unnoticed, in parts per million.
    pub undetected_max_ppm: u32,
}

/// What the allocation of clean chunks says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Suspicion {
    /// Clean chunks that are holes now and held data in the base: the bitmap lied.
    pub contradictions: Extents,
    /// Clean chunks whose allocation fits the base only if their content is right: to be read and compared.
    pub to_compare: Extents,
}

/// The part of a disk whose turn it is, after the part that the last backup checked.
#[must_use]
pub fn window(size: Size, last: Option<Extent>) -> Extent {
    let start = last.map_or(0, |extent| extent.end);
    // Never less than a whole window, where there is one: a disk that grew must not have its new end looked at only.
    let start = if start >= size.0 { 0 } else { start.min(size.0.saturating_sub(WINDOW_BYTES)) };
    Extent::new(start, start.saturating_add(WINDOW_BYTES).min(size.0))
}

/// Windows from the end of a disk to its start, in which the last clean data are looked for; small first, since mostly they lie there.
pub fn windows_from_end(size: Size) -> impl Iterator<Item = Extent> {
    let mut end = size.0;
    let mut length = END_BYTES;
    std::iter::from_fn(move || {
        let window = Extent::new(end.saturating_sub(length), end);
        end = window.start;
        length = length.saturating_mul(4).min(WINDOW_BYTES);
        (!window.is_empty()).then_some(window)
    })
}

/// The chunks of a window that are called clean and may hold something in the base, from its end; both sets are whole chunks.
///
/// A store may keep zeros that were written as data, and zeros are what a cut leaves: only bytes tell which of these is the proof.
pub fn clean_from_end(data_then: &Extents, changed: &Extents, chunk: ChunkSize) -> impl Iterator<Item = ChunkIndex> {
    data_then.difference(changed).chunks(chunk).collect::<Vec<_>>().into_iter().rev()
}

/// Where the end that is looked at begins: with the cluster of the last clean content, or at the disk's start where there is none.
///
/// A cut inside a cluster leaves what is behind it in its cluster: it comes back when the disk grows again, but the bits that were set for
/// it do not. So all that is clean in that cluster, and whatever holds data behind it that the base does not know of, may be such a rest.
#[must_use]
pub fn end(last: Option<ChunkIndex>, cluster: u64, chunk: ChunkSize, size: Size) -> Extent {
    let start = last.map_or(0, |last| chunk.extent(last, size).start);
    Extent::new(start / cluster.max(1) * cluster.max(1), size.0)
}

/// The clean chunks of the end that hold data now or held some in the base: all of the cluster of the last clean content, since they are
/// the proof, and of very many behind it the last ones.
///
/// An image that is thick with zeros behind its content would else be read whole each time; what a cut inside a large cluster brings back
/// there is left to the sample.
#[must_use]
pub fn end_chunks(
    last: Option<ChunkIndex>,
    cluster: u64,
    changed: &Extents,
    (now, then): (&Extents, &Extents),
    chunk: ChunkSize,
    size: Size,
) -> Vec<ChunkIndex> {
    let clean = Extents::from_iter([end(last, cluster, chunk, size)]).round_out(chunk, size).difference(changed);
    let chunks: Vec<ChunkIndex> = now.union(then).round_out(chunk, size).intersection(&clean).chunks(chunk).collect();
    let cluster = cluster.max(1);
    let proof_end = last.map_or(0, |last| chunk.extent(last, size).end.div_ceil(cluster).saturating_mul(cluster));
    let (mut found, behind): (Vec<_>, Vec<_>) = chunks.into_iter().partition(|index| chunk.extent(*index, size).start < proof_end);
    if broken(Rule::EndProof) {
        found.clear();
    }
    found.extend(&behind[behind.len().saturating_sub(END_CHUNKS_MAX)..]);
    found
}

/// Compares allocation now with the base's within a window.
///
/// `changed` and `data_then` are whole chunks; `data_now` is as fine as the hypervisor says.
#[must_use]
pub fn suspicion(window: Extent, changed: &Extents, data_now: &Extents, data_then: &Extents, chunk: ChunkSize, size: Size) -> Suspicion {
    let clean = Extents::from_iter([window]).round_out(chunk, size).difference(changed);
    let holes = clean.difference(data_now).round_out(chunk, size).intersection(&clean);
    let holding = data_now.round_out(chunk, size).intersection(&clean);
    let contradictions = clean.difference(&holding).intersection(data_then);
    let appeared = holding.difference(data_then);
    let mixed = holding.intersection(&holes).intersection(data_then);
    Suspicion { contradictions, to_compare: appeared.union(&mixed) }
}

/// How many clean chunks the sample reads, for an incremental that reads `changed` chunks and leaves `clean` ones with data.
#[must_use]
pub fn sample_count(wish: AuditWish, changed: u64, clean: u64) -> u64 {
    match wish {
        AuditWish::Off => 0,
        AuditWish::Chunks(count) => count.min(clean),
        AuditWish::Percent(percent) => clean.saturating_mul(u64::from(percent.min(100))).div_ceil(100),
        AuditWish::Default => (changed.saturating_mul(SAMPLE_PERCENT) / 100).max(SAMPLE_CHUNKS_MIN).min(clean),
    }
}

/// `count` different chunks of a set of whole chunks, chosen evenly by `seed`, in order of the disk.
#[must_use]
pub fn sample(within: &Extents, chunk: ChunkSize, count: u64, seed: u64) -> Vec<ChunkIndex> {
    let total: u64 = within.iter().map(|extent| chunk.count(Size(extent.len()))).sum();
    let mut ordinals = distinct_below(total, count.min(total), seed).into_iter().peekable();
    let mut chosen = Vec::new();
    let mut passed = 0;
    for extent in within.iter() {
        let first = chunk.index(extent.start).0;
        let here = chunk.count(Size(extent.len()));
        while let Some(ordinal) = ordinals.next_if(|ordinal| *ordinal < passed + here) {
            chosen.push(ChunkIndex(first + ordinal - passed));
        }
        passed += here;
    }
    chosen
}

/// Floyd's way to `count` different numbers below `total`, sorted.
fn distinct_below(total: u64, count: u64, seed: u64) -> std::collections::BTreeSet<u64> {
    let mut chosen = std::collections::BTreeSet::new();
    let mut state = seed;
    for upper in total - count..total {
        let candidate = next_random(&mut state) % (upper + 1);
        if !chosen.insert(candidate) {
            chosen.insert(upper);
        }
    }
    chosen
}

/// SplitMix64: good enough to choose a sample, and the same everywhere.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The largest share of clean chunks, in parts per million, that may be wrong if none of `sampled` even draws was, at 95 % confidence.
#[must_use]
pub fn undetected_max_ppm(sampled: u64, clean: u64) -> u32 {
    if sampled >= clean {
        return 0;
    }
    // 1 - 0.05^(1/n) without floating point would be a table; what is lost by rounding up is one part in a million.
    #[expect(clippy::cast_precision_loss, reason = "a count of draws needs no more than 53 bits")]
    let share = if sampled == 0 { 1.0 } else { 1.0 - 0.05_f64.powf(1.0 / sampled as f64) };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share from 0 to 1 times a million fits")]
    let ppm = (share * 1e6).ceil() as u32;
    ppm
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: u64 = 4096;

    fn chunk() -> ChunkSize {
        ChunkSize::try_from(4096).unwrap()
    }

    fn chunks(list: &[(u64, u64)]) -> Extents {
        list.iter().map(|&(start, end)| Extent::new(start * CHUNK, end * CHUNK)).collect()
    }

    #[test]
    fn the_window_takes_turns_and_wraps() {
        let size = Size(WINDOW_BYTES * 2 + 5);
        let first = window(size, None);
        let second = window(size, Some(first));
        let third = window(size, Some(second));
        assert_eq!((first.start, second.start, third), (0, WINDOW_BYTES, Extent::new(WINDOW_BYTES + 5, size.0)));
        assert_eq!(window(size, Some(third)), first);
        assert_eq!(window(Size(100), Some(Extent::new(0, 100))), Extent::new(0, 100));
        assert_eq!(window(Size(50), Some(Extent::new(0, 100))), Extent::new(0, 50));
        assert_eq!(window(Size(150), Some(Extent::new(0, 100))), Extent::new(0, 150), "a disk that grew");
    }

    #[test]
    fn the_end_is_the_cluster_of_the_last_clean_content_and_what_appeared_behind_it() {
        let size = Size(12 * CHUNK);
        assert_eq!(end(Some(ChunkIndex(5)), 4 * CHUNK, chunk(), size), Extent::new(4 * CHUNK, size.0));
        assert_eq!(end(Some(ChunkIndex(5)), 1, chunk(), size), Extent::new(5 * CHUNK, size.0));
        assert_eq!(end(None, 4 * CHUNK, chunk(), size), Extent::new(0, size.0));
        // 4: then and now, 5: last clean content, 6: changed, 7: hole, 9: half of it appeared
        let (changed, then) = (chunks(&[(6, 7)]), chunks(&[(0, 2), (4, 7)]));
        let mut now = chunks(&[(0, 2), (4, 7)]);
        now.push(Extent::at(9 * CHUNK, 512));
        let found = |now: &Extents| end_chunks(Some(ChunkIndex(5)), 4 * CHUNK, &changed, (now, &then), chunk(), size);
        assert_eq!(found(&now), [4, 5, 9].map(ChunkIndex));
        assert_eq!(found(&chunks(&[])), [4, 5].map(ChunkIndex), "a chunk that became a hole is compared, too");
    }

    #[test]
    fn of_very_many_chunks_behind_the_proof_the_last_ones_are_compared() {
        let size = Size(1000 * CHUNK);
        let found = |last: Option<u64>, cluster: u64| {
            let (now, then) = (Extents::whole(size), Extents::new());
            end_chunks(last.map(ChunkIndex), cluster, &Extents::new(), (&now, &then), chunk(), size)
        };
        let behind: Vec<ChunkIndex> = (936..1000).map(ChunkIndex).collect();
        assert_eq!((behind.len(), found(None, 1)), (END_CHUNKS_MAX, behind.clone()));
        let with = |proof: &[u64]| proof.iter().copied().map(ChunkIndex).chain(behind.clone()).collect::<Vec<_>>();
        assert_eq!(found(Some(5), 1), with(&[5]));
        assert_eq!(found(Some(5), 4 * CHUNK), with(&[4, 5, 6, 7]));
        assert_eq!(found(Some(935), 1), with(&[935]));
        assert_eq!(found(Some(936), 1), behind);
    }

    #[test]
    fn each_pair_of_then_and_now_has_its_answer() {
        // chunk 0 data/data, 1 data then and hole now, 2 hole then and data now, 3 changed, 4 hole/hole, 5 half a hole now
        let size = Size(6 * CHUNK);
        let then = chunks(&[(0, 2), (3, 4), (5, 6)]);
        let mut now = chunks(&[(0, 1), (2, 3)]);
        now.push(Extent::new(5 * CHUNK, 5 * CHUNK + 512));
        let found = suspicion(Extent::new(0, size.0), &chunks(&[(3, 4)]), &now, &then, chunk(), size);
        assert_eq!(found, Suspicion { contradictions: chunks(&[(1, 2)]), to_compare: chunks(&[(2, 3), (5, 6)]) });
    }

    #[test]
    fn what_agrees_or_is_outside_the_window_is_not_suspect() {
        let size = Size(8 * CHUNK);
        let same = chunks(&[(1, 3), (6, 8)]);
        assert_eq!(suspicion(Extent::new(0, size.0), &Extents::new(), &same, &same, chunk(), size), Suspicion::default());
        let outside = suspicion(Extent::new(0, 4 * CHUNK), &Extents::new(), &chunks(&[(1, 3)]), &same, chunk(), size);
        assert_eq!(outside, Suspicion::default());
    }

    #[test]
    fn windows_from_the_end_cover_the_disk_once() {
        for size in [0, 1, END_BYTES, END_BYTES + 1, 3 * WINDOW_BYTES + 512] {
            let windows: Vec<Extent> = windows_from_end(Size(size)).collect();
            assert_eq!(windows.iter().map(|window| window.len()).sum::<u64>(), size);
            assert_eq!(windows.iter().copied().collect::<Extents>(), Extents::whole(Size(size)));
            assert!(windows.windows(2).all(|pair| pair[1].end == pair[0].start && pair[1].len() <= WINDOW_BYTES));
        }
    }

    #[test]
    fn whatever_a_cut_takes_of_clean_data_it_takes_the_last() {
        let from_end = |then: &[(u64, u64)], changed: &[(u64, u64)]| {
            clean_from_end(&chunks(then), &chunks(changed), chunk()).map(|index| index.0).collect::<Vec<_>>()
        };
        assert_eq!(from_end(&[(0, 3), (5, 8)], &[]), [7, 6, 5, 2, 1, 0]);
        assert_eq!(from_end(&[(0, 3), (5, 8)], &[(6, 9)]), [5, 2, 1, 0]);
        assert_eq!(from_end(&[(0, 3), (5, 8)], &[(4, 20)]), [2, 1, 0]);
        assert!(from_end(&[(0, 3)], &[(0, 3)]).is_empty() && from_end(&[], &[]).is_empty());
    }

    #[test]
    fn the_default_sample_is_small_and_never_more_than_there_is() {
        for (wish, changed, clean, expected) in [
            (AuditWish::Default, 0, 1000, 4),
            (AuditWish::Default, 1000, 10_000, 40),
            (AuditWish::Default, 1000, 3, 3),
            (AuditWish::Off, 1000, 1000, 0),
            (AuditWish::Chunks(7), 0, 5, 5),
            (AuditWish::Percent(10), 0, 1001, 101),
            (AuditWish::Percent(200), 0, 10, 10),
        ] {
            assert_eq!(sample_count(wish, changed, clean), expected, "{wish:?} {changed} {clean}");
        }
    }

    #[test]
    fn the_bound_follows_from_the_sample() {
        for (sampled, clean, expected) in [(0, 10, 1_000_000), (59, 10_000, 49_508), (299, 10_000, 9_970), (10, 10, 0), (0, 0, 0)] {
            assert_eq!(undetected_max_ppm(sampled, clean), expected, "{sampled} of {clean}");
        }
    }

    #[test]
    fn random_numbers_are_those_of_splitmix64_so_that_a_seed_means_the_same_sample_for_ever() {
        let mut state = 0;
        let numbers = [next_random(&mut state), next_random(&mut state), next_random(&mut state)];
        assert_eq!(numbers, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    proptest! {
        /// On a disk of any size, and whatever holds data behind it, the one chunk that proves that there was no cut is compared.
        #[test]
        fn the_last_clean_content_is_always_compared(last in 0..500_u64, behind in 0..2000_u64, size in 1..3000_u64, cluster in 0..6_u32) {
            let size = Size((last + behind + size) * CHUNK);
            let then = chunks(&[(last, last + 1)]);
            let now = chunks(&[(last + 1, last + 1 + behind)]);
            let found = end_chunks(Some(ChunkIndex(last)), CHUNK << cluster, &Extents::new(), (&now, &then), chunk(), size);
            prop_assert!(found.contains(&ChunkIndex(last)));
            prop_assert!(found.len() <= END_CHUNKS_MAX + (1 << cluster));
        }

        #[test]
        fn a_sample_has_different_chunks_of_the_set_in_order(pairs in proptest::collection::vec((0..500_u64, 1..20_u64), 1..8), count in 0..60_u64, seed: u64) {
            let set: Extents = pairs.into_iter().map(|(start, len)| Extent::at(start * CHUNK, len * CHUNK)).collect();
            let all: Vec<ChunkIndex> = set.chunks(chunk()).collect();
            let chosen = sample(&set, chunk(), count, seed);
            prop_assert_eq!(chosen.len() as u64, count.min(all.len() as u64));
            prop_assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(chosen.iter().all(|index| all.contains(index)));
        }

        #[test]
        fn every_chunk_can_be_chosen(seed in 0..200_u64) {
            let set = chunks(&[(0, 3)]);
            let chosen: std::collections::BTreeSet<u64> = (0..40).flat_map(|n| sample(&set, chunk(), 1, seed * 40 + n)).map(|index| index.0).collect();
            prop_assert_eq!(chosen.len(), 3);
        }
    }
}
