//! The scenarios: each a short list of steps with what must come of them, on every bench alike.
//!
//! Bitmaps are expected as [`super::SeenBitmap`] says them: `c1 recording 3; other stopped 0 | c1 recording 1` is an active image with
//! two bitmaps above one with one, 3, 0 and 1 units dirty. Deltas and data are lists of (first unit, number of units).

mod bitmaps;
mod chain;
mod files;
pub mod libvirt;
mod others;
mod point;
mod shape;

use super::{Play, Played};

/// A scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it is about: `bitmaps`, `point`, `shape`, `chain`, `files` or `others`.
    pub about: &'static str,
    /// What it shows, as a test is called.
    pub name: &'static str,
    /// Its steps.
    pub steps: fn(&mut Play<'_>) -> Played,
}

macro_rules! scenarios {
    ($($module:ident: $($name:ident),* $(,)?;)*) => {
        /// All scenarios.
        pub const SCENARIOS: &[Scenario] = &[$($(Scenario { about: stringify!($module), name: stringify!($name), steps: $module::$name }),*),*];
    };
}

scenarios! {
    bitmaps:
        a_checkpoint_records_what_comes_after_it,
        an_orderly_end_stores_bitmaps_and_they_go_on,
        a_new_bitmap_is_absent_after_a_kill,
        stored_bitmaps_are_inconsistent_after_a_kill,
        a_disabled_bitmap_is_lost_in_a_kill_too,
        a_removal_survives_a_kill,
        an_inconsistent_bitmap_can_only_be_removed,
        a_disabled_bitmap_misses_writes,
        a_cleared_bitmap_forgets,
        bitmaps_of_raw_images_live_in_memory,
        foreign_bitmaps_are_left_alone,
        a_bitmap_has_the_granularity_of_its_image,
        zeros_and_discards_are_recorded,
        a_bitmap_that_a_job_holds_is_busy;
    point:
        a_moment_stays_while_the_guest_writes_on,
        a_discard_does_not_reach_a_moment,
        a_delta_is_what_was_written_between_two_checkpoints,
        a_dropped_moment_leaves_nothing,
        a_moment_without_checkpoint_leaves_no_bitmap,
        a_checkpoint_is_on_all_disks_or_none,
        a_checkpoint_on_some_disks_is_on_those_only,
        what_cannot_be_had_is_refused,
        a_moment_that_is_killed_is_gone,
        removed_checkpoints_are_gone_from_all_disks,
        a_paused_vm_stays_paused,
        nothing_changes_the_images_below_a_moment,
        what_changed_after_the_look_is_refused_at_the_moment;
    shape:
        a_grown_part_is_clean,
        a_shrunk_and_grown_disk_is_silently_zero,
        a_cut_inside_a_cluster,
        a_cut_above_a_longer_image,
        a_cut_inside_a_bit,
        a_cut_inside_a_cluster_of_several_bits_loses_some,
        a_busy_bitmap_forbids_another_size,
        holes_and_zeros_are_told;
    chain:
        a_snapshot_without_bitmaps_freezes_those_below,
        a_moment_of_a_chain_stays_while_the_guest_writes_on,
        a_snapshot_with_bitmaps_goes_on_under_the_same_names,
        bitmaps_above_are_lost_in_a_kill_and_those_below_are_not,
        a_commit_is_recorded_below,
        a_commit_of_a_coarser_image,
        a_disabled_bitmap_below_misses_a_commit,
        a_stream_is_not_recorded,
        images_of_different_size_make_everything_count,
        bitmaps_below_cannot_be_removed;
    files:
        a_mirrored_disk_has_no_bitmaps,
        convert_drops_bitmaps_unless_told,
        amend_drops_bitmaps,
        a_copy_of_an_open_image_has_worthless_bitmaps,
        a_copy_of_a_closed_image_is_as_it_was;
    others:
        a_bitmap_that_somebody_merged_into_ours_adds_to_it,
        a_bitmap_that_was_made_anew_has_forgotten,
        a_mirror_that_ended_after_the_look_is_refused_at_the_moment,
        mirror_and_commit_are_refused_during_a_moment;
}
