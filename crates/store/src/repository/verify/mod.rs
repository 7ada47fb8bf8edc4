//! Checking backups: every tree that is reachable, every chunk they name, and whom it hits when something is damaged.
//!
//! What was found good is remembered by its place in the index, so that shared content is looked at once and memory stays small:
//! one bit for a chunk, some 50 bytes for a tree. What is damaged is looked at again for every backup, so that each one hit is named.

mod damages;
mod files;
mod memory;
mod probe;
mod role;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use keepmark_model::BackupId;
use keepmark_model::seam::Verification;

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::core::Scratch;
use crate::repository::disk_table::ZeroNames;
use crate::repository::id::{BlobKind, ChunkId, Id, PackId, TreeId};
use crate::repository::index::{INDEX_CACHE, Place, View};
use crate::repository::pack::read_table;
use crate::repository::tree::{self, Node};
use crate::repository::verify::damages::{Damages, problem_of};
use crate::repository::verify::memory::Good;
use crate::repository::verify::probe::Outcome;
use crate::repository::verify::role::Role;
use crate::repository::{Repository, damaged_packs, noun};

/// Trees lie no deeper than this: `/<vm>/<disk>/<group>/<dir>`, with room for other programs' backups.
const DEPTH_MAX: usize = 100;

impl Repository {
    /// Checks these backups, or all if none are named; `read_data` reads and hashes every chunk that they need.
    ///
    /// # Errors
    /// When the repository cannot be read at all; damage is in the result.
    pub fn verify_backups(&self, ids: &[BackupId], read_data: bool, progress: &dyn Fn(u64, u64)) -> Result<Verification> {
        match self.verify_once(ids, read_data, progress) {
            // Only the cache: it is made anew, and everything is looked at again, since numbers of records are others then.
            Err(Error::Damaged { kind: INDEX_CACHE, .. }) => {
                self.index.rebuild()?;
                self.verify_once(ids, read_data, progress)
            }
            other => other,
        }
    }

    fn verify_once(&self, ids: &[BackupId], read_data: bool, progress: &dyn Fn(u64, u64)) -> Result<Verification> {
        let _lease = self.reading_lease()?;
        let mut damages = Damages::default();
        self.check_keys_and_locks(&mut damages)?;
        let damaged_indexes = self.check_index_files()?;
        let wanted = if ids.is_empty() { self.all_snapshots()? } else { ids.to_vec() };
        let mut verifier = Verifier::new(self, read_data, damages)?;
        let total = wanted.len() as u64;
        let mut good = Vec::new();
        for (done, id) in (0..).zip(&wanted) {
            progress(done, total);
            if verifier.backup(id)? {
                good.push(id.clone());
            }
        }
        verifier.zeros()?;
        verifier.tables()?;
        progress(total, total);
        let Verifier { damages, bytes_read, .. } = verifier;
        self.remember_packs(&damages.packs, read_data);
        Ok(Verification { good, damages: damages.into_list(damaged_indexes), bytes_read })
    }

    fn all_snapshots(&self) -> Result<Vec<BackupId>> {
        let (backups, damaged) = self.catalog()?;
        let damaged = damaged.into_iter().map(|(id, _)| BackupId::new(id.hex()));
        Ok(backups.into_iter().map(|backup| backup.id).chain(damaged).collect())
    }

    /// Lets the next backup and the next prune know what they cannot count on, here and on other hosts. Where nothing can be written, and
    /// nobody remembers it, damage inside of packs is not seen by them.
    fn remember_packs(&self, found: &BTreeSet<PackId>, read_data: bool) {
        drop(damaged_packs::remember(self, found));
        drop(damaged_packs::note(self, found));
        drop(damaged_packs::tidy(self, read_data));
    }
}

struct Verifier<'a> {
    repository: &'a Repository,
    view: View,
    read_data: bool,
    good: Good,
    /// Sizes of packs that were looked for.
    packs: HashMap<PackId, Option<u64>>,
    /// Packs that have something good.
    used: BTreeSet<PackId>,
    /// Names of zeros by chunk size, bytes.
    zero_names: HashMap<u64, ZeroNames>,
    /// Zeros that backups name: a restore needs them not, other programs do.
    zeros: BTreeMap<Id, BlobKind>,
    damages: Damages,
    bytes_read: u64,
    scratch: Scratch,
}

impl<'a> Verifier<'a> {
    fn new(repository: &'a Repository, read_data: bool, damages: Damages) -> Result<Self> {
        let view = repository.index.view();
        Ok(Self {
            repository,
            good: Good::new(&view),
            view,
            read_data,
            packs: HashMap::new(),
            used: BTreeSet::new(),
            zero_names: HashMap::new(),
            zeros: BTreeMap::new(),
            damages,
            bytes_read: 0,
            scratch: Scratch::new()?,
        })
    }

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
                self.damages.blame(vec![error], Some(id));
                return Ok(false);
            }
        };
        let (mut sound, mut roles) = (true, HashMap::new());
        for disk in &backup.manifest.disks {
            match backup.disk(disk.name.as_str()) {
                Ok(found) => drop(roles.insert(disk.name.as_str(), Role::Disk(found.layout))),
                Err(error) => {
                    self.damages.add(format!("snapshot {id}"), problem_of(error), Some(id));
                    sound = false;
                }
            }
        }
        for node in &backup.nodes {
            let role = roles.get(node.name.as_str()).copied().unwrap_or(Role::Plain);
            sound &= self.node(node, role, id, 0)?;
        }
        Ok(sound & self.chunks(&backup.nodes, Role::Plain, id)?)
    }

    fn node(&mut self, node: &Node, role: Role, backup: &BackupId, depth: usize) -> Result<bool> {
        match node.subtree {
            Some(_) if depth > DEPTH_MAX => {
                self.damages.add(format!("snapshot {backup}"), "its folders are nested too deep".to_owned(), Some(backup));
                Ok(false)
            }
            Some(tree) => self.tree(&tree, role, backup, depth + 1),
            None => Ok(true),
        }
    }

    fn tree(&mut self, id: &TreeId, role: Role, backup: &BackupId, depth: usize) -> Result<bool> {
        if let Some(zeros) = self.zero_names(role)?.and_then(|names| role.zeros(id, &names)) {
            self.zeros.extend(zeros.into_iter().map(|(kind, id)| (id, kind)));
            return Ok(true);
        }
        let places = self.repository.index.find_in(&self.view, id, BlobKind::Tree)?;
        if places.iter().any(|place| self.good.has_tree(place.record, role.form())) {
            return Ok(true);
        }
        let Some((place, nodes)) = self.load(id, &places, backup) else { return Ok(false) };
        if let Err(error) = role.check(id, &nodes) {
            self.damages.blame(vec![error], Some(backup));
            return Ok(false);
        }
        let mut sound = true;
        for (number, node) in (0..).zip(&nodes) {
            sound &= self.node(node, role.child(number), backup, depth)?;
        }
        sound &= self.chunks(&nodes, role, backup)?;
        if sound {
            self.good.add_tree(place.record, role.form());
        }
        Ok(sound)
    }

    fn zero_names(&mut self, role: Role) -> Result<Option<ZeroNames>> {
        let Some(size) = role.chunk_size() else { return Ok(None) };
        if let Some(names) = self.zero_names.get(&size) {
            return Ok(Some(*names));
        }
        let names = ZeroNames::new(size)?;
        self.zero_names.insert(size, names);
        Ok(Some(names))
    }

    /// Reads a tree from the first place that has it undamaged.
    fn load(&mut self, id: &TreeId, places: &[Place], backup: &BackupId) -> Option<(Place, Vec<Node>)> {
        let mut failures = Vec::new();
        for place in places {
            let read = self.repository.core.read_blob(&place.pack, &place.entry, &mut self.scratch);
            match read.and_then(|()| tree::decode(id, &self.scratch.plain)) {
                Ok(nodes) => {
                    self.bytes_read += u64::from(place.entry.length);
                    self.used.insert(place.pack);
                    self.damages.blame(failures, None);
                    return Some((*place, nodes));
                }
                Err(error) => failures.push(error),
            }
        }
        if failures.is_empty() {
            self.damages.miss(id.hex(), backup);
        }
        self.damages.blame(failures, Some(backup));
        None
    }

    /// Checks all chunks of a folder's files, and that they are as long as their place and their file say.
    fn chunks(&mut self, nodes: &[Node], role: Role, backup: &BackupId) -> Result<bool> {
        let zero = self.zero_names(role)?;
        let (mut sound, mut seen, mut unchecked, mut number) = (true, HashMap::new(), Vec::new(), 0..);
        for node in nodes {
            let mut length = 0_u64;
            for (id, number) in node.content.iter().zip(&mut number) {
                let fixed = role.chunk_length(number);
                let found = if zero.as_ref().is_some_and(|zero| role.is_zero_chunk(number, id, zero)) {
                    self.zeros.insert(*id, BlobKind::Data);
                    fixed
                } else {
                    match seen.get(id) {
                        Some(found) => *found,
                        None => *seen.entry(*id).insert_entry(self.locate(id, backup, &mut unchecked)?).get(),
                    }
                };
                sound &= found.is_some() && self.has_length(id, found, fixed, backup);
                length = length.saturating_add(found.unwrap_or(0));
            }
            if sound && length != node.size {
                let problem = format!("file {:?} has {length} bytes in chunks and should have {}", node.name, node.size);
                self.damages.add(format!("snapshot {backup}"), problem, Some(backup));
                sound = false;
            }
        }
        Ok(sound & self.check(&unchecked, backup)?)
    }

    fn has_length(&mut self, id: &ChunkId, found: Option<u64>, fixed: Option<u64>, backup: &BackupId) -> bool {
        let Some((found, fixed)) = found.zip(fixed).filter(|(found, fixed)| found != fixed) else { return true };
        let problem = format!("chunk {id} has {found} bytes and its place on the disk {fixed}");
        self.damages.add(format!("snapshot {backup}"), problem, Some(backup));
        false
    }

    /// Finds a chunk in the index; its length, if it is there. Those that are not known to be good are to be checked.
    fn locate(&mut self, id: &ChunkId, backup: &BackupId, unchecked: &mut Vec<Vec<Place>>) -> Result<Option<u64>> {
        let places = self.repository.index.find_in(&self.view, id, BlobKind::Data)?;
        let Some(first) = places.first() else {
            self.damages.miss(id.hex(), backup);
            return Ok(None);
        };
        let length = u64::from(first.entry.content_length());
        if !places.iter().any(|place| self.good.has_chunk(place.record)) {
            unchecked.push(places);
        }
        Ok(Some(length))
    }

    /// Checks chunks; each must be good in one of its places.
    fn check(&mut self, chunks: &[Vec<Place>], backup: &BackupId) -> Result<bool> {
        let mut sound = true;
        for outcomes in self.probe(chunks)? {
            let (good, failures) = self.take(outcomes);
            self.damages.blame(failures, if good { None } else { Some(backup) });
            sound &= good;
        }
        Ok(sound)
    }

    /// Whether one of a blob's places is good, and what is wrong with the others.
    fn take(&mut self, outcomes: Vec<Outcome>) -> (bool, Vec<Error>) {
        let (mut good, mut failures) = (false, Vec::new());
        for Outcome { place, result } in outcomes {
            match result {
                Ok(bytes) => {
                    self.good.add_chunk(place.record);
                    self.used.insert(place.pack);
                    self.bytes_read += bytes;
                    good = true;
                }
                Err(error) => failures.push(error),
            }
        }
        (good, failures)
    }

    /// Checks the zeros that backups name. Their loss hits no backup, since a restore knows them by their names, but restic needs them.
    fn zeros(&mut self) -> Result<()> {
        for (id, kind) in std::mem::take(&mut self.zeros) {
            let places = self.repository.index.find_in(&self.view, &id, kind)?;
            let outcomes = self.probe(&[places])?.into_iter().flatten().collect();
            let (good, failures) = self.take(outcomes);
            if !good {
                let why = failures.first().map_or_else(|| "it is in no index".to_owned(), ToString::to_string);
                let problem = format!("these zeros are lost ({why}): keepmark restores without them, restic does not");
                self.damages.add(format!("{} {id}", noun(kind)), problem, None);
            }
        }
        Ok(())
    }

    /// Checks the tables of the packs that were read. The index has the same, but it can be made anew from them only.
    fn tables(&mut self) -> Result<()> {
        if !self.read_data {
            return Ok(());
        }
        let core = &self.repository.core;
        for pack in std::mem::take(&mut self.used) {
            let Some(size) = core.backend.size(FileKind::Pack, &pack)? else { continue };
            if let Err(error) = read_table(&*core.backend, &core.key, &pack, size) {
                let problem = format!("its own table cannot be read, which only making a new index needs: {}", problem_of(error));
                self.damages.add(format!("pack {pack}"), problem, None);
            }
        }
        Ok(())
    }
}
