//! The order in which the moment of a backup is fixed where it takes more than one transaction: a race ends in a superset, never in a gap.

use crate::rules::{Rule, broken};

/// Somebody changed what a moment stood on while it was there. It was put right; what had not been read by then cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Overtaken {
    /// What was done, in words.
    pub what: String,
}

/// One step towards a frozen moment. Anybody may write between two of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MomentStep {
    /// The new checkpoint's bitmap starts on all disks, and an empty bitmap for the delta is put beside it.
    NewBitmaps,
    /// From here on the disks' old content is kept: this is the moment.
    Filters,
    /// What the base's bitmap has recorded goes into the delta.
    Merge,
}

/// The steps in their order.
///
/// What is written before the filters is in the content, in the new bitmap and in the delta. What is written after them is in the new bitmap
/// and, until the merge, in the delta. With the filters first, a write just behind them would be in neither content nor new bitmap,
/// and the next incremental would lack it (docs/decisions/0010-the-order-at-the-moment.md).
#[must_use]
pub fn steps() -> [MomentStep; 3] {
    if broken(Rule::MomentOrder) {
        return [MomentStep::Filters, MomentStep::NewBitmaps, MomentStep::Merge];
    }
    [MomentStep::NewBitmaps, MomentStep::Filters, MomentStep::Merge]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_start_before_the_moment_and_the_delta_is_complete_after_it() {
        assert_eq!(steps(), [MomentStep::NewBitmaps, MomentStep::Filters, MomentStep::Merge]);
    }
}
