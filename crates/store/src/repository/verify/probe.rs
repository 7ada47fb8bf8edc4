//! Whether blobs are where the index says: by the size of their packs, or by reading them with several threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Scratch;
use crate::repository::index::Place;
use crate::repository::verify::Verifier;

/// What became of looking at one place of a blob.
pub struct Outcome {
    /// Where.
    pub place: Place,
    /// Bytes that were read, or what is wrong.
    pub result: std::result::Result<u64, Error>,
}

impl Verifier<'_> {
    /// Looks at all places of each blob until one is good.
    pub(super) fn probe(&mut self, blobs: &[Vec<Place>]) -> Result<Vec<Vec<Outcome>>> {
        if self.read_data { self.read(blobs) } else { blobs.iter().map(|places| self.look(places)).collect() }
    }

    /// Whether the pack is there and long enough, without reading it.
    fn look(&mut self, places: &[Place]) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for place in places {
            let size = match self.packs.get(&place.pack) {
                Some(size) => *size,
                None => *self.packs.entry(place.pack).or_insert(self.repository.core.backend.size(FileKind::Pack, &place.pack)?),
            };
            let result = match size {
                Some(size) if place.entry.end() <= size => Ok(0),
                Some(size) => Err(Error::damaged("pack", place.pack, format!("it has only {size} bytes"))),
                None => Err(Error::damaged("pack", place.pack, "it is not there")),
            };
            outcomes.push(Outcome { place: *place, result });
        }
        Ok(outcomes)
    }

    /// Reads chunks with several threads.
    fn read(&self, chunks: &[Vec<Place>]) -> Result<Vec<Vec<Outcome>>> {
        let (next, workers) = (AtomicUsize::new(0), self.repository.workers.min(chunks.len()));
        let work = || -> Result<Vec<(usize, Vec<Outcome>)>> {
            let (mut scratch, mut done) = (Scratch::new()?, Vec::new());
            while let Some((number, places)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|number| Some((number, chunks.get(number)?)))
            {
                done.push((number, self.try_places(places, &mut scratch)));
            }
            Ok(done)
        };
        let parts = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(Error::internal("verify", "a thread panicked"))))
                .collect::<Result<Vec<_>>>()
        })?;
        let mut all: Vec<_> = parts.into_iter().flatten().collect();
        all.sort_by_key(|(number, _)| *number);
        Ok(all.into_iter().map(|(_, outcomes)| outcomes).collect())
    }

    /// Reads a chunk from one place after the other until one is good.
    fn try_places(&self, places: &[Place], scratch: &mut Scratch) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for place in places {
            let result = self.repository.core.read_blob(&place.pack, &place.entry, scratch).map(|()| u64::from(place.entry.length));
            let good = result.is_ok();
            outcomes.push(Outcome { place: *place, result });
            if good {
                break;
            }
        }
        outcomes
    }
}
