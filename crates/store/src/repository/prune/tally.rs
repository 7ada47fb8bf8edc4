//! What each pack is used for: one place of every used blob is the one that stays.

use std::collections::{BTreeSet, HashMap};

use keepmark_model::prune::PackUse;

use crate::error::{Error, Result};
use crate::repository::backend::{Backend, FileKind};
use crate::repository::blob::BlobEntry;
use crate::repository::id::PackId;
use crate::repository::index::INDEX_CACHE;
use crate::repository::index::record::Record;
use crate::repository::index::run::Run;
use crate::repository::index::set::RecordSet;
use crate::repository::noun;
use crate::repository::prune::usage::Usage;

/// A pack and what is used in it.
#[derive(Debug, Clone, Copy)]
pub struct Pack {
    /// Its name.
    pub id: PackId,
    /// Bytes of the file, if it is there.
    pub size: Option<u64>,
    /// Its blobs, and those of them whose place is the one that stays.
    pub bytes: PackUse,
    /// Bytes of its blobs that are used, wherever they stay.
    any_used: u64,
    /// Where what stays should rather be.
    rank: Rank,
}

/// How good a place is for what stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It is known to be damaged.
    Damaged,
    /// It is marked to go.
    Marked,
    /// Nothing is known against it.
    Good,
}

/// A blob that is used, in a pack that is to go, and the place where it stays.
#[derive(Debug, Clone, Copy)]
pub struct Duplicate {
    /// The pack that is to go.
    pub leaving: PackId,
    /// The pack that stays.
    pub pack: PackId,
    /// Where in it.
    pub entry: BlobEntry,
}

/// All packs, and where each used blob stays.
pub struct Tally {
    /// Those of the index.
    pub packs: Vec<Pack>,
    /// Packs that are there and in no index, with their sizes in bytes.
    pub unknown: Vec<(PackId, u64)>,
    /// The places that stay.
    kept: RecordSet,
}

impl Tally {
    /// Counts. A used blob stays where most is used, but rather not in packs that are marked, and last of all in damaged ones.
    ///
    /// # Errors
    /// When a used blob is in no pack that is there.
    pub fn count(usage: &Usage, backend: &dyn Backend, marked: &BTreeSet<PackId>, damaged_packs: &BTreeSet<PackId>) -> Result<Self> {
        let table = usage.run.pack_table().map_err(|problem| damaged(&usage.run, problem))?;
        let mut sizes: HashMap<PackId, u64> = backend.list(FileKind::Pack)?.into_iter().collect();
        let pack = |id| Pack {
            id,
            size: sizes.remove(&id),
            bytes: PackUse { blob_bytes: 0, used_bytes: 0 },
            any_used: 0,
            rank: match (damaged_packs.contains(&id), marked.contains(&id)) {
                (true, _) => Rank::Damaged,
                (false, true) => Rank::Marked,
                (false, false) => Rank::Good,
            },
        };
        let packs = table.into_iter().map(pack).collect();
        let mut tally = Self { packs, unknown: sizes.into_iter().collect(), kept: RecordSet::new(&[usage.run.records]) };
        tally.unknown.sort_unstable();
        tally.add_up(usage)?;
        tally.choose_places(usage)?;
        Ok(tally)
    }

    fn pack(&mut self, record: &Record) -> Result<&mut Pack> {
        self.packs.get_mut(record.pack as usize).ok_or_else(|| Error::damaged(INDEX_CACHE, "records", "a record names no pack"))
    }

    fn add_up(&mut self, usage: &Usage) -> Result<()> {
        for (number, record) in (0..).zip(usage.run.iter()) {
            let record = record.map_err(|problem| damaged(&usage.run, problem))?;
            let (length, is_used) = (u64::from(record.entry.length), usage.used.contains((0, number)));
            let pack = self.pack(&record)?;
            pack.bytes.blob_bytes += length;
            pack.any_used += if is_used { length } else { 0 };
        }
        Ok(())
    }

    /// All places of a blob are neighbours in the run.
    fn choose_places(&mut self, usage: &Usage) -> Result<()> {
        let mut places: Vec<(u64, Record)> = Vec::new();
        for (number, record) in (0..).zip(usage.run.iter()) {
            let record = record.map_err(|problem| damaged(&usage.run, problem))?;
            if !usage.used.contains((0, number)) {
                continue;
            }
            if places.first().is_some_and(|(_, first)| first.entry.id != record.entry.id) {
                self.choose_of(&std::mem::take(&mut places))?;
            }
            places.push((number, record));
        }
        self.choose_of(&places)
    }

    /// Chooses for the blobs of one name: content that is a chunk and a tree at once has both.
    fn choose_of(&mut self, places: &[(u64, Record)]) -> Result<()> {
        use crate::repository::id::BlobKind::{Data, Tree};
        for kind in [Data, Tree] {
            let of_kind: Vec<&(u64, Record)> = places.iter().filter(|(_, record)| record.entry.kind == kind).collect();
            let Some((_, first)) = of_kind.first() else { continue };
            let mut best = None;
            for (number, record) in of_kind {
                let pack = self.pack(record)?;
                if pack.size.is_some_and(|size| size >= record.entry.end()) {
                    let share = u128::from(pack.any_used) * 1_000_000 / u128::from(pack.bytes.blob_bytes.max(1));
                    best = best.max(Some((pack.rank, share, pack.id, *number, record.pack, record.entry.length)));
                }
            }
            let Some((.., number, pack, length)) = best else {
                let pack = self.pack(first)?.id;
                return Err(Error::damaged("pack", pack, format!("it is gone or cut and had {} {}", noun(kind), first.entry.id)));
            };
            self.kept.insert((0, number));
            if let Some(pack) = self.packs.get_mut(pack as usize) {
                pack.bytes.used_bytes += u64::from(length);
            }
        }
        Ok(())
    }

    /// The blobs of these packs that are used and stay elsewhere, with every place that could have been theirs.
    ///
    /// # Errors
    /// When the local index is damaged.
    pub fn duplicates(&self, usage: &Usage, leaving: &BTreeSet<PackId>) -> Result<Vec<Duplicate>> {
        let (mut found, mut alike): (Vec<Duplicate>, Vec<(u64, Record)>) = (Vec::new(), Vec::new());
        if leaving.is_empty() {
            return Ok(found);
        }
        for (number, record) in (0..).zip(usage.run.iter()) {
            let record = record.map_err(|problem| damaged(&usage.run, problem))?;
            if alike.first().is_some_and(|(_, first)| first.entry.id != record.entry.id) {
                self.duplicates_of(&std::mem::take(&mut alike), leaving, &mut found);
            }
            if usage.used.contains((0, number)) {
                alike.push((number, record));
            }
        }
        self.duplicates_of(&alike, leaving, &mut found);
        Ok(found)
    }

    fn duplicates_of(&self, places: &[(u64, Record)], leaving: &BTreeSet<PackId>, found: &mut Vec<Duplicate>) {
        let pack = |record: &Record| self.packs.get(record.pack as usize);
        for (_, kept) in places.iter().filter(|(number, _)| self.kept.contains((0, *number))) {
            let others = places.iter().filter(|(number, other)| other.entry.kind == kept.entry.kind && !self.kept.contains((0, *number)));
            for (other, stays) in others.filter_map(|(_, other)| Some((pack(other)?.id, pack(kept)?.id))) {
                if leaving.contains(&other) {
                    found.push(Duplicate { leaving: other, pack: stays, entry: kept.entry });
                }
            }
        }
    }

    /// Bytes of these packs that are there.
    #[must_use]
    pub fn bytes_of(&self, packs: &BTreeSet<PackId>) -> u64 {
        let known = self.packs.iter().filter(|pack| packs.contains(&pack.id)).filter_map(|pack| pack.size);
        let unknown = self.unknown.iter().filter(|(id, _)| packs.contains(id)).map(|(_, size)| *size);
        known.chain(unknown).sum()
    }

    /// The blobs that stay in these packs, in the order in which they lie there.
    ///
    /// # Errors
    /// When the local index is damaged.
    pub fn contents(&self, run: &Run, packs: &BTreeSet<PackId>) -> Result<HashMap<PackId, Vec<BlobEntry>>> {
        let mut contents: HashMap<PackId, Vec<BlobEntry>> = HashMap::new();
        for (number, record) in (0..).zip(run.iter()) {
            let record = record.map_err(|problem| damaged(run, problem))?;
            let pack = self.packs.get(record.pack as usize).filter(|pack| self.kept.contains((0, number)) && packs.contains(&pack.id));
            if let Some(pack) = pack {
                contents.entry(pack.id).or_default().push(record.entry);
            }
        }
        contents.values_mut().for_each(|entries| entries.sort_by_key(|entry| entry.offset));
        Ok(contents)
    }
}

fn damaged(run: &Run, problem: String) -> Error {
    Error::damaged(INDEX_CACHE, run.place(), problem)
}
