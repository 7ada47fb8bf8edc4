//! What a backup needs to be whole: packs and how long each must be, and the index files that were there.
//!
//! An incremental takes most of its chunks from its base unseen, so it must not be built on a base that has lost some. Looking
//! at every chunk would cost as much as the disk is large. So what a backup needs is remembered in the local cache when it is
//! published, and the next one only looks whether those files are still there and long enough: one `stat` for 16 MiB of content.
//! Where something is gone, or nothing is remembered, the base's tables are walked chunk by chunk.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use keepmark_model::{BackupId, VmId};

use crate::error::Result;
use crate::repository::backend::{Backend, FileKind};
use crate::repository::cache_file;
use crate::repository::id::{ID_BYTES, Id, PackId};
use crate::repository::index::Place;

/// Folder in the repository's cache; another version has another name.
const FOLDER: &str = "needs-1";
const NUMBER_BYTES: usize = 8;
const RECORD_BYTES: usize = ID_BYTES + NUMBER_BYTES;

/// Files by their id and length, bytes.
type Lengths = BTreeMap<Id, u64>;

/// What a backup needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// Packs, and how much of each.
    pub packs: Lengths,
    /// All index files there were when it was published, as long as they were.
    pub indexes: Lengths,
}

/// What became of index files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indexes {
    /// They are as they were: what was found in them then is still in them.
    Same,
    /// Some are gone, for example because somebody pruned.
    Gone,
    /// Some have another length: what the local cache knows of them is not to be believed.
    Damaged,
}

impl Needs {
    /// Adds a place that the backup needs.
    pub fn add(&mut self, place: &Place) {
        self.add_pack(place.pack, place.entry.end());
    }

    /// Adds so much of a pack.
    pub fn add_pack(&mut self, pack: PackId, length: u64) {
        let needed = self.packs.entry(pack).or_default();
        *needed = length.max(*needed);
    }

    /// Adds what another needs.
    pub fn extend(&mut self, other: &Self) {
        other.packs.iter().for_each(|(pack, length)| self.add_pack(*pack, *length));
    }

    /// What became of the index files since.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn indexes_now(&self, backend: &dyn Backend) -> Result<Indexes> {
        let listed: Lengths = backend.list(FileKind::Index)?.into_iter().collect();
        let now: Vec<_> = self.indexes.iter().map(|(id, length)| listed.get(id).map(|now| now == length)).collect();
        Ok(if now.contains(&Some(false)) {
            Indexes::Damaged
        } else if now.contains(&None) {
            Indexes::Gone
        } else {
            Indexes::Same
        })
    }
}

/// Backups of one VM; its id may have characters that are none of a file name everywhere.
fn folder(cache: &Path, vm: &VmId) -> PathBuf {
    cache.join(FOLDER).join(Id::of(vm.as_str().as_bytes()).hex())
}

/// Stands first in a file, so that no backup's can be taken for another's.
fn owner(backup: &BackupId) -> Id {
    Id::of(backup.as_str().as_bytes())
}

/// What is remembered of a backup, if anything is.
pub fn load(cache: &Path, vm: &VmId, backup: &BackupId) -> Option<Needs> {
    let bytes = cache_file::load(&folder(cache, vm).join(backup.as_str()))?;
    let (whose, rest) = bytes.split_first_chunk::<ID_BYTES>()?;
    if Id(*whose) != owner(backup) {
        return None;
    }
    let (count, records) = rest.split_first_chunk::<NUMBER_BYTES>()?;
    let count = usize::try_from(u64::from_le_bytes(*count)).ok()?;
    let mut files = records.chunks_exact(RECORD_BYTES).filter_map(decode);
    let indexes = files.by_ref().take(count).collect();
    Some(Needs { indexes, packs: files.collect() })
}

fn decode(record: &[u8]) -> Option<(Id, u64)> {
    let (id, number) = record.split_first_chunk::<ID_BYTES>()?;
    Some((Id(*id), u64::from_le_bytes(number.try_into().ok()?)))
}

/// Remembers what a backup needs. `alone`: the VM's older ones are forgotten, because nothing will be built on them any more.
pub fn save(cache: &Path, vm: &VmId, backup: &BackupId, needs: &Needs, alone: bool) -> std::io::Result<()> {
    let mut bytes = owner(backup).0.to_vec();
    bytes.extend_from_slice(&(needs.indexes.len() as u64).to_le_bytes());
    for (id, length) in needs.indexes.iter().chain(&needs.packs) {
        bytes.extend_from_slice(&id.0);
        bytes.extend_from_slice(&length.to_le_bytes());
    }
    let folder = folder(cache, vm);
    if alone && folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    cache_file::save(&folder.join(backup.as_str()), &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Needs {
        let mut needs = Needs { indexes: BTreeMap::from([(Id([1; 32]), 100), (Id([2; 32]), 200)]), ..Needs::default() };
        for (pack, length) in [(3, 30), (4, 40), (3, 20), (4, 50)] {
            needs.add_pack(Id([pack; 32]), length);
        }
        needs
    }

    fn vm() -> VmId {
        VmId::new("web").unwrap()
    }

    #[test]
    fn what_is_remembered_reads_back_and_what_nothing_builds_on_is_forgotten() {
        let cache = tempfile::tempdir().unwrap();
        let other = VmId::new("db").unwrap();
        let [old, base, new] = ["old", "base", "new"].map(BackupId::new);
        save(cache.path(), &other, &old, &sample(), true).unwrap();
        for (id, alone) in [(&old, true), (&base, true), (&new, false)] {
            save(cache.path(), &vm(), id, &sample(), alone).unwrap();
        }
        assert_eq!(sample().packs, BTreeMap::from([(Id([3; 32]), 30), (Id([4; 32]), 50)]));
        let loaded = [&old, &base, &new].map(|id| load(cache.path(), &vm(), id));
        assert_eq!(loaded, [None, Some(sample()), Some(sample())]);
        assert_eq!(load(cache.path(), &other, &old), Some(sample()));
        fs::copy(folder(cache.path(), &vm()).join("base"), folder(cache.path(), &vm()).join("new")).unwrap();
        assert_eq!(load(cache.path(), &vm(), &new), None, "it is another's");
    }

    #[test]
    fn whatever_is_damaged_was_never_remembered() {
        let cache = tempfile::tempdir().unwrap();
        let id = BackupId::new("backup");
        save(cache.path(), &vm(), &id, &sample(), true).unwrap();
        let path = folder(cache.path(), &vm()).join(id.as_str());
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(load(cache.path(), &vm(), &id), None, "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert_eq!(load(cache.path(), &vm(), &id), None, "{at} bytes");
        }
    }
}
