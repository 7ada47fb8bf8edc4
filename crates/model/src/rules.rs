//! Rules that a test build can break on purpose, to show that the simulation notices; a shipped build has no switch for it.

/// A rule of the derivation or of the engine. What breaks when it is broken stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Rule {
    /// An inconsistent bitmap is not believed.
    Inconsistent = 1,
    /// A disabled bitmap is not believed.
    Disabled,
    /// A bitmap that a job holds is not used.
    Busy,
    /// The image that is written now must have the bitmap.
    Overlay,
    /// No image between two that have the bitmap may lack it.
    Gap,
    /// A disk that is smaller than at the checkpoint is read whole.
    Shrunk,
    /// An image that was another disk's is not built upon.
    Swapped,
    /// The lowest image that has the bitmap must be the one in which it began.
    Origin,
    /// That image must be the same file, not a copy.
    Identity,
    /// What lies beyond the size at the checkpoint counts as changed.
    Growth,
    /// What changed is rounded out to chunks.
    Rounding,
    /// A clean hole that held data in the base is a contradiction.
    Allocation,
    /// The last clean data are compared with the base.
    End,
    /// Which data are the last is told by their bytes.
    EndByBytes,
    /// The frozen disk must have the size of the plan.
    SizeChanged,
    /// Checkpoints of other stores stay.
    OtherStores,
    /// Checkpoints that were made for this store and not published go.
    Orphans,
    /// A differential's delta is that of its anchor's own checkpoint.
    Anchor,
    /// The anchor's checkpoint stays while differentials may build on it.
    AnchorStays,
    /// The new bitmaps start before the moment.
    MomentOrder,
    /// A checkpoint that a manifest names is its own store's, wherever the manifest is.
    StoreTag,
    /// What is on backing images alone is not this VM's.
    OwnImages,
    /// The last clean content is among what is compared at the end.
    EndProof,
    /// A checkpoint goes when its bitmap was contradicted, whatever becomes of the run.
    Condemned,
    /// A sequence's order is that of its numbers.
    Sequence,
}

/// Whether a rule is broken on purpose: never, in a shipped build.
#[cfg(not(feature = "sabotage"))]
#[must_use]
pub const fn broken(_: Rule) -> bool {
    false
}

#[cfg(feature = "sabotage")]
static BROKEN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Whether a rule is broken on purpose.
#[cfg(feature = "sabotage")]
#[must_use]
pub fn broken(rule: Rule) -> bool {
    BROKEN.load(std::sync::atomic::Ordering::Relaxed) == rule as u8
}

/// Breaks one rule from now on, or none.
#[cfg(feature = "sabotage")]
pub fn break_only(rule: Option<Rule>) {
    BROKEN.store(rule.map_or(0, |rule| rule as u8), std::sync::atomic::Ordering::Relaxed);
}
