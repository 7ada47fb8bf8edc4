//! What was found good already, so that shared content is looked at once.

use std::collections::HashSet;

use crate::repository::index::View;
use crate::repository::verify::role::Form;

/// Number of a record in a view of the index: run and place in it.
type Record = (usize, u64);

/// Chunks and trees that are good.
pub struct Good {
    chunks: RecordSet,
    /// A tree is good in its form: the folder of a disk's end is not one of its middle.
    trees: HashSet<(Record, Form)>,
}

impl Good {
    /// Nothing yet.
    pub fn new(view: &View) -> Self {
        let empty = |records: &u64| vec![0; usize::try_from(records.div_ceil(64)).unwrap_or(0)];
        Self { chunks: RecordSet(view.sizes().iter().map(empty).collect()), trees: HashSet::new() }
    }

    /// Whether a chunk is known to be good.
    pub fn has_chunk(&mut self, record: Record) -> bool {
        self.chunks.contains(record)
    }

    /// A chunk is good.
    pub fn add_chunk(&mut self, record: Record) {
        self.chunks.insert(record);
    }

    /// Whether a tree and all below it are known to be good in this form.
    pub fn has_tree(&self, record: Record, form: Form) -> bool {
        self.trees.contains(&(record, form))
    }

    /// A tree and all below it are good.
    pub fn add_tree(&mut self, record: Record, form: Form) {
        self.trees.insert((record, form));
    }
}

/// A set of records of the index.
struct RecordSet(Vec<Vec<u64>>);

impl RecordSet {
    fn word(&mut self, record: (usize, u64)) -> Option<&mut u64> {
        let word = usize::try_from(record.1 / 64).ok()?;
        self.0.get_mut(record.0)?.get_mut(word)
    }

    fn contains(&mut self, record: (usize, u64)) -> bool {
        self.word(record).is_some_and(|word| *word & (1 << (record.1 % 64)) != 0)
    }

    fn insert(&mut self, record: (usize, u64)) {
        if let Some(word) = self.word(record) {
            *word |= 1 << (record.1 % 64);
        }
    }
}
