//! What was found good already, so that shared content is looked at once.

use std::collections::HashSet;

use crate::repository::index::View;
use crate::repository::index::set::{RecordNumber, RecordSet};
use crate::repository::verify::role::Form;

/// Chunks and trees that are good.
pub struct Good {
    chunks: RecordSet,
    /// A tree is good in its form: the folder of a disk's end is not one of its middle.
    trees: HashSet<(RecordNumber, Form)>,
}

impl Good {
    /// Nothing yet.
    pub fn new(view: &View) -> Self {
        Self { chunks: RecordSet::new(&view.sizes()), trees: HashSet::new() }
    }

    /// Whether a chunk is known to be good.
    pub fn has_chunk(&self, record: RecordNumber) -> bool {
        self.chunks.contains(record)
    }

    /// A chunk is good.
    pub fn add_chunk(&mut self, record: RecordNumber) {
        self.chunks.insert(record);
    }

    /// Whether a tree and all below it are known to be good in this form.
    pub fn has_tree(&self, record: RecordNumber, form: Form) -> bool {
        self.trees.contains(&(record, form))
    }

    /// A tree and all below it are good.
    pub fn add_tree(&mut self, record: RecordNumber, form: Form) {
        self.trees.insert((record, form));
    }
}
