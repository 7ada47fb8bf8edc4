//! Which packs of a repository go, and which are copied together with others, so that little space stays unused.

/// What is in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackUse {
    /// Bytes of all its blobs.
    pub blob_bytes: u64,
    /// Bytes of those that backups need from here.
    pub used_bytes: u64,
}

/// How much to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// So much of what stays may be unused, percent; from 100 on, all of it.
    pub unused_max_percent: f64,
    /// Most bytes to copy: they take their space twice for a while.
    pub copy_max: Option<u64>,
    /// Packs that are all used are copied together when they are below this size, bytes, and many.
    pub small_below: u64,
}

/// What to do, by places in the list of packs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Nothing in them is needed.
    pub unused: Vec<usize>,
    /// What is needed in them is copied into new packs.
    pub copied: Vec<usize>,
    /// Unused bytes in the packs that stay.
    pub left_unused_bytes: u64,
    /// Whether more would be copied were it not for [`Limits::copy_max`].
    pub is_cut: bool,
}

/// Small packs are left alone unless there are so many.
const SMALL_PACKS_MIN: usize = 32;

impl PackUse {
    fn unused_bytes(self) -> u64 {
        self.blob_bytes.saturating_sub(self.used_bytes)
    }

    /// Unused bytes in a million.
    fn unused_share(self) -> u128 {
        u128::from(self.unused_bytes()) * 1_000_000 / u128::from(self.blob_bytes.max(1))
    }
}

/// Chooses: packs without any use go; of the others those with the largest unused share are copied, until no more than the allowed part
/// of what stays is unused.
#[must_use]
pub fn choose(packs: &[PackUse], limits: &Limits) -> Choice {
    let numbered = || packs.iter().copied().enumerate();
    let mut choice =
        Choice { unused: numbered().filter(|(_, pack)| pack.used_bytes == 0).map(|(place, _)| place).collect(), ..Choice::default() };
    let mut wasteful: Vec<(usize, PackUse)> = numbered().filter(|(_, pack)| pack.used_bytes > 0 && pack.unused_bytes() > 0).collect();
    wasteful.sort_by_key(|(place, pack)| (std::cmp::Reverse((pack.unused_share(), pack.unused_bytes())), *place));
    choice.left_unused_bytes = wasteful.iter().map(|(_, pack)| pack.unused_bytes()).sum();
    let allowed = allowed_unused(packs.iter().map(|pack| pack.used_bytes).sum(), limits.unused_max_percent);
    let mut room = limits.copy_max.unwrap_or(u64::MAX);
    for (place, pack) in wasteful {
        if choice.left_unused_bytes <= allowed {
            break;
        }
        if choice.copy(place, pack, &mut room) {
            choice.left_unused_bytes -= pack.unused_bytes();
        }
    }
    let small: Vec<(usize, PackUse)> =
        numbered().filter(|(_, pack)| pack.used_bytes > 0 && pack.unused_bytes() == 0 && pack.blob_bytes < limits.small_below).collect();
    let small = if small.len() < SMALL_PACKS_MIN { Vec::new() } else { small };
    for (place, pack) in small {
        choice.copy(place, pack, &mut room);
    }
    choice
}

impl Choice {
    fn copy(&mut self, place: usize, pack: PackUse, room: &mut u64) -> bool {
        match room.checked_sub(pack.used_bytes) {
            Some(left) => {
                *room = left;
                self.copied.push(place);
                true
            }
            None => {
                self.is_cut = true;
                false
            }
        }
    }
}

/// Unused bytes that may stay beside so many used ones.
fn allowed_unused(used: u64, percent: f64) -> u64 {
    if percent >= 100.0 {
        return u64::MAX;
    }
    let share = percent.max(0.0) / (100.0 - percent.max(0.0));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is never negative")]
    let allowed = (used as f64 * share) as u64;
    allowed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packs(uses: &[(u64, u64)]) -> Vec<PackUse> {
        uses.iter().map(|(blob_bytes, used_bytes)| PackUse { blob_bytes: *blob_bytes, used_bytes: *used_bytes }).collect()
    }

    fn limits(unused_max_percent: f64, copy_max: Option<u64>) -> Limits {
        Limits { unused_max_percent, copy_max, small_below: 0 }
    }

    #[test]
    fn what_goes_and_what_is_copied() {
        let some = packs(&[(100, 100), (100, 0), (100, 90), (100, 20), (100, 50)]);
        let cases = [
            // 260 used: 13 bytes may be unused, so the two with most waste go, then the third.
            (5.0, None, vec![3, 4], 10, false),
            (0.0, None, vec![3, 4, 2], 0, false),
            (100.0, None, vec![], 140, false),
            (20.0, None, vec![3], 60, false),
            (0.0, Some(80), vec![3, 4], 10, true),
            // The first does not fit, a later one does.
            (0.0, Some(19), vec![], 140, true),
            (0.0, Some(0), vec![], 140, true),
        ];
        for (percent, copy_max, copied, left, is_cut) in cases {
            let choice = choose(&some, &limits(percent, copy_max));
            assert_eq!(choice, Choice { unused: vec![1], copied, left_unused_bytes: left, is_cut }, "{percent} {copy_max:?}");
        }
    }

    #[test]
    fn small_packs_are_copied_together_when_there_are_many() {
        let limits = Limits { small_below: 50, ..limits(5.0, None) };
        let of = |count: usize| choose(&vec![PackUse { blob_bytes: 10, used_bytes: 10 }; count], &limits).copied.len();
        assert_eq!([of(31), of(32), of(40)], [0, 32, 40]);
        assert_eq!(choose(&packs(&[(50, 50); 40]), &limits).copied.len(), 0, "they are large enough");
    }

    proptest! {
        #[test]
        fn limits_hold(uses in prop::collection::vec((1..1000_u64, 0..1000_u64), 0..60), percent in 0.0..100.0_f64, room in prop::option::of(0..20_000_u64)) {
            let uses: Vec<(u64, u64)> = uses.into_iter().map(|(all, used)| (all, used.min(all))).collect();
            let packs = packs(&uses);
            let choice = choose(&packs, &Limits { small_below: 100, ..limits(percent, room) });
            let copied: u64 = choice.copied.iter().map(|place| packs[*place].used_bytes).sum();
            prop_assert!(copied <= room.unwrap_or(u64::MAX));
            let used: u64 = packs.iter().map(|pack| pack.used_bytes).sum();
            let allowed = used as f64 * percent / (100.0 - percent);
            prop_assert!(choice.is_cut || choice.left_unused_bytes as f64 <= allowed);
            prop_assert!(choice.unused.iter().all(|place| packs[*place].used_bytes == 0));
            prop_assert!(choice.copied.iter().all(|place| packs[*place].used_bytes > 0));
            let stays: u64 = (0..packs.len()).filter(|place| !choice.copied.contains(place) && packs[*place].used_bytes > 0)
                .map(|place| packs[place].unused_bytes()).sum();
            prop_assert_eq!(stays, choice.left_unused_bytes);
        }
    }
}
