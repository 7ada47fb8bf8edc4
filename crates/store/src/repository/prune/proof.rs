//! The proof that what goes is not needed: of everything that is used and also lies elsewhere, the copy that stays is read whole first.
//!
//! Two copies of a blob are there because somebody could not read one of them. Which one that was, this host may not know.

use std::collections::{BTreeMap, BTreeSet};

use keepmark_model::seam::Monitor;

use crate::error::{Error, Result};
use crate::repository::core::Scratch;
use crate::repository::id::PackId;
use crate::repository::prune::Plan;
use crate::repository::{Repository, damaged_packs};

/// What it is called on the screen.
const PROVE: &str = "prove";

/// Those of the packs that are to go of which something stays in a place that cannot be read. That is told, and noted for everybody.
pub fn unproved(repository: &Repository, plan: &Plan, monitor: &dyn Monitor) -> Result<BTreeSet<PackId>> {
    let duplicates = plan.tally.duplicates(&plan.usage, &plan.leaving())?;
    let total = duplicates.iter().map(|duplicate| u64::from(duplicate.entry.length)).sum();
    let (mut scratch, mut done) = (Scratch::new()?, 0);
    let (mut unproved, mut unreadable) = (BTreeSet::new(), BTreeMap::new());
    for duplicate in duplicates {
        if monitor.interrupted() {
            return Err(Error::Interrupted);
        }
        if let Err(error) = repository.core.read_blob(&duplicate.pack, &duplicate.entry, &mut scratch) {
            unproved.insert(duplicate.leaving);
            unreadable.entry(duplicate.pack).or_insert(error);
        }
        done += u64::from(duplicate.entry.length);
        monitor.progress(PROVE, done, total);
    }
    if total > 0 {
        monitor.finished(PROVE);
    }
    unreadable.values().for_each(|error| monitor.finding(&format!("{error}; what is used of it is also elsewhere, and stays there")));
    // Without the note the next prune finds it again.
    drop(damaged_packs::note(repository, &unreadable.into_keys().collect()));
    Ok(unproved)
}
