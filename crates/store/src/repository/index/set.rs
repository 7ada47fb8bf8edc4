//! Sets of records of the index: one bit each.

/// Number of a record in a view of the index: run and place in it.
pub type RecordNumber = (usize, u64);

/// A set of records.
pub struct RecordSet(Vec<Vec<u64>>);

impl RecordSet {
    /// An empty set over runs with so many records.
    #[must_use]
    pub fn new(sizes: &[u64]) -> Self {
        Self(sizes.iter().map(|records| vec![0; usize::try_from(records.div_ceil(64)).unwrap_or(0)]).collect())
    }

    /// Whether a record is in it.
    #[must_use]
    pub fn contains(&self, record: RecordNumber) -> bool {
        let word = usize::try_from(record.1 / 64).ok().and_then(|word| self.0.get(record.0)?.get(word));
        word.is_some_and(|word| *word & (1 << (record.1 % 64)) != 0)
    }

    /// Adds a record.
    pub fn insert(&mut self, record: RecordNumber) {
        let word = usize::try_from(record.1 / 64).ok().and_then(|word| self.0.get_mut(record.0)?.get_mut(word));
        if let Some(word) = word {
            *word |= 1 << (record.1 % 64);
        }
    }
}
