//! Checking backups: every tree that is reachable, every chunk they name, and whom it hits when something is damaged.
//!
//! What was found good is remembered by its place in the index, one bit each, so that shared content is looked at once and
//! memory stays small. What is damaged is looked at again for every backup, so that each one hit is named.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use keepmark_model::BackupId;
use keepmark_model::seam::{Damage, Verification};

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::repository::backend::FileKind;
use crate::repository::catalog::LoadedBackup;
use crate::repository::core::Scratch;
use crate::repository::id::{BlobKind, ChunkId, Id, PackId, TreeId};
use crate::repository::index::{Place, View};
use crate::repository::tree::{self, Node};
use crate::repository::{index_file, sealed_file};

/// Trees lie no deeper than this: `/<vm>/<disk>/<group>/<dir>`, with room for other programs' backups.
const DEPTH_MAX: usize = 100;

impl Repository {
    /// Checks these backups, or all if none are named; `read_data` reads and hashes every chunk that they need.
    ///
    /// # Errors
    /// When the repository cannot be read at all; damage is in the result.
    pub fn verify_backups(&self, ids: &[BackupId], read_data: bool, progress: &dyn Fn(u64, u64)) -> Result<Verification> {
        let _lease = self.lease()?;
        let damaged_indexes = self.check_index_files()?;
        let ids = if ids.is_empty() { self.all_snapshots()? } else { ids.to_vec() };
        let view = self.index.view();
        let good = RecordSet(view.sizes().iter().map(|records| vec![0; usize::try_from(records.div_ceil(64)).unwrap_or(0)]).collect());
        let mut verifier = Verifier {
            repository: self,
            view,
            read_data,
            good,
            packs: HashMap::new(),
            damages: Damages::default(),
            bytes_read: 0,
            scratch: Scratch::new()?,
        };
        let total = ids.len() as u64;
        let mut sound = Vec::new();
        for (done, id) in (0..).zip(&ids) {
            progress(done, total);
            if verifier.backup(id)? {
                sound.push(id.clone());
            }
        }
        progress(total, total);
        Ok(Verification { good: sound, damages: verifier.damages.into_list(damaged_indexes), bytes_read: verifier.bytes_read })
    }

    fn all_snapshots(&self) -> Result<Vec<BackupId>> {
        let (backups, damaged) = self.catalog()?;
        let damaged = damaged.into_iter().map(|(id, _)| BackupId::new(id.hex()));
        Ok(backups.into_iter().map(|backup| backup.id).chain(damaged).collect())
    }

    /// Reads every index file. What the local cache still knows of a damaged one must not count, so it is built anew then.
    fn check_index_files(&self) -> Result<Vec<(Id, String)>> {
        let mut damaged = Vec::new();
        for (id, _) in self.core.backend.list(FileKind::Index)? {
            let content = sealed_file::content(&*self.core.backend, &self.core.key, FileKind::Index, &id);
            let outcome =
                content.and_then(|content| index_file::decode(content, &mut |_, _| {}).map_err(|error| Error::damaged("index", id, error)));
            if let Err(error) = outcome {
                damaged.push((id, problem_of(error)));
            }
        }
        if !damaged.is_empty() {
            self.index.rebuild()?;
        }
        Ok(damaged)
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

/// What is damaged, by its name.
#[derive(Default)]
struct Damages {
    found: BTreeMap<String, (String, BTreeSet<BackupId>)>,
    /// Blobs in no index, and who needs them.
    missing: BTreeSet<String>,
    missed_by: BTreeSet<BackupId>,
}

impl Damages {
    fn add(&mut self, subject: String, problem: String, backup: Option<&BackupId>) {
        let (_, backups) = self.found.entry(subject).or_insert_with(|| (problem, BTreeSet::new()));
        backups.extend(backup.cloned());
    }

    fn miss(&mut self, id: String, backup: &BackupId) {
        // A few names are enough for a message; a lost index may have had millions.
        if self.missing.len() < 1000 {
            self.missing.insert(id);
        }
        self.missed_by.insert(backup.clone());
    }

    /// What is in no index is laid to the damaged index files, where there are any.
    fn into_list(mut self, damaged_indexes: Vec<(Id, String)>) -> Vec<Damage> {
        let missed_by = std::mem::take(&mut self.missed_by);
        if let (Some(id), true) = (self.missing.first(), damaged_indexes.is_empty()) {
            let more = self.missing.len().saturating_sub(1);
            let problem = format!("blob {id} and {more} more that backups need are in none of the index files");
            self.found.insert("index".to_owned(), (problem, missed_by.clone()));
        }
        for (id, problem) in damaged_indexes {
            self.found.insert(format!("index {id}"), (problem, missed_by.clone()));
        }
        let list = self.found.into_iter();
        list.map(|(subject, (problem, backups))| Damage { subject, problem, backups: backups.into_iter().collect() }).collect()
    }
}

struct Verifier<'a> {
    repository: &'a Repository,
    view: View,
    read_data: bool,
    /// Trees whose whole content is good, and chunks that are.
    good: RecordSet,
    packs: HashMap<PackId, Option<u64>>,
    damages: Damages,
    bytes_read: u64,
    scratch: Scratch,
}

/// What became of reading one chunk.
struct Outcome {
    place: Place,
    result: std::result::Result<u64, Error>,
}

impl Verifier<'_> {
    /// Checks one backup; says whether it can be restored whole.
    fn backup(&mut self, id: &BackupId) -> Result<bool> {
        let backup = match self.repository.load_backup(id) {
            Ok(backup) => backup,
            Err(error @ Error::NoSuchBackup { .. }) => return Err(error),
            Err(Error::Missing { kind: _, id: blob }) => {
                self.damages.miss(blob, id);
                return Ok(false);
            }
            Err(error) => {
                self.blame(vec![error], Some(id));
                return Ok(false);
            }
        };
        let mut sound = self.shape(&backup);
        for node in &backup.nodes {
            sound &= self.node(node, id, 0)?;
        }
        Ok(sound & self.chunks(&backup.nodes, id)?)
    }

    /// Whether every disk of the manifest is there, with as many groups as its size needs.
    fn shape(&mut self, backup: &LoadedBackup) -> bool {
        let mut sound = true;
        for disk in &backup.manifest.disks {
            if let Err(error) = backup.disk(disk.name.as_str()) {
                self.damages.add(format!("snapshot {}", backup.id), problem_of(error), Some(&backup.id));
                sound = false;
            }
        }
        sound
    }

    fn node(&mut self, node: &Node, backup: &BackupId, depth: usize) -> Result<bool> {
        match node.subtree {
            Some(_) if depth > DEPTH_MAX => {
                self.damages.add(format!("snapshot {backup}"), "its folders are nested too deep".to_owned(), Some(backup));
                Ok(false)
            }
            Some(tree) => self.tree(&tree, backup, depth + 1),
            None => Ok(true),
        }
    }

    fn tree(&mut self, id: &TreeId, backup: &BackupId, depth: usize) -> Result<bool> {
        let places = self.repository.index.find_in(&self.view, id, BlobKind::Tree)?;
        if places.iter().any(|place| self.good.contains(place.record)) {
            return Ok(true);
        }
        let Some((place, nodes)) = self.load(id, &places, backup) else { return Ok(false) };
        let mut sound = true;
        for node in &nodes {
            sound &= self.node(node, backup, depth)?;
        }
        sound &= self.chunks(&nodes, backup)?;
        if sound {
            self.good.insert(place.record);
        }
        Ok(sound)
    }

    /// Reads a tree from the first place that has it undamaged.
    fn load(&mut self, id: &TreeId, places: &[Place], backup: &BackupId) -> Option<(Place, Vec<Node>)> {
        let mut failures = Vec::new();
        for place in places {
            let read = self.repository.core.read_blob(&place.pack, &place.entry, &mut self.scratch);
            match read.and_then(|()| tree::decode(id, &self.scratch.plain)) {
                Ok(nodes) => {
                    self.bytes_read += u64::from(place.entry.length);
                    self.blame(failures, None);
                    return Some((*place, nodes));
                }
                Err(error) => failures.push(error),
            }
        }
        if failures.is_empty() {
            self.damages.miss(id.hex(), backup);
        }
        self.blame(failures, Some(backup));
        None
    }

    fn blame(&mut self, failures: Vec<Error>, backup: Option<&BackupId>) {
        for failure in failures {
            let subject = if let Error::Damaged { kind, id, .. } = &failure { format!("{kind} {id}") } else { failure.to_string() };
            self.damages.add(subject, problem_of(failure), backup);
        }
    }

    /// Checks all chunks of a folder's files, and that the files are as long as they say.
    fn chunks(&mut self, nodes: &[Node], backup: &BackupId) -> Result<bool> {
        let (mut sound, mut seen, mut unchecked) = (true, HashMap::new(), Vec::new());
        for node in nodes {
            let mut length = 0_u64;
            for id in &node.content {
                let found = match seen.get(id) {
                    Some(found) => *found,
                    None => {
                        let found = self.locate(id, backup, &mut unchecked)?;
                        seen.insert(*id, found);
                        found
                    }
                };
                sound &= found.is_some();
                length = length.saturating_add(found.unwrap_or(0));
            }
            if sound && length != node.size {
                let problem = format!("file {:?} has {length} bytes in chunks and should have {}", node.name, node.size);
                self.damages.add(format!("snapshot {backup}"), problem, Some(backup));
                sound = false;
            }
        }
        Ok(sound & self.check(unchecked, backup)?)
    }

    /// Finds a chunk in the index; its length, if it is there. Those that are not known to be good are to be checked.
    fn locate(&mut self, id: &ChunkId, backup: &BackupId, unchecked: &mut Vec<Vec<Place>>) -> Result<Option<u64>> {
        let places = self.repository.index.find_in(&self.view, id, BlobKind::Data)?;
        let Some(first) = places.first() else {
            self.damages.miss(id.hex(), backup);
            return Ok(None);
        };
        let length = u64::from(first.entry.content_length());
        if !places.iter().any(|place| self.good.contains(place.record)) {
            unchecked.push(places);
        }
        Ok(Some(length))
    }

    /// Checks chunks; each must be good in one of its places.
    fn check(&mut self, chunks: Vec<Vec<Place>>, backup: &BackupId) -> Result<bool> {
        let outcomes =
            if self.read_data { self.read(&chunks)? } else { chunks.iter().map(|places| self.look(places)).collect::<Result<Vec<_>>>()? };
        let mut sound = true;
        for outcomes in outcomes {
            let (mut good, mut failures) = (false, Vec::new());
            for Outcome { place, result } in outcomes {
                match result {
                    Ok(bytes) => {
                        self.good.insert(place.record);
                        self.bytes_read += bytes;
                        good = true;
                    }
                    Err(error) => failures.push(error),
                }
            }
            self.blame(failures, if good { None } else { Some(backup) });
            sound &= good;
        }
        Ok(sound)
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

/// What is wrong, without the name that stands before it.
fn problem_of(error: Error) -> String {
    if let Error::Damaged { problem, .. } = error { problem } else { error.to_string() }
}
