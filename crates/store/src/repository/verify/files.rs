//! Checking files that no backup's content depends on: the index, keys and locks.

use crate::error::{Error, Result};
use crate::repository::backend::FileKind;
use crate::repository::id::Id;
use crate::repository::lock::file::LockFile;
use crate::repository::verify::damages::{Damages, problem_of};
use crate::repository::{Repository, index_file, rustic, sealed_file};

impl Repository {
    /// Reads every index file. What the local cache still knows of a damaged one must not count, so it is built anew then.
    pub(super) fn check_index_files(&self) -> Result<Vec<(Id, String)>> {
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

    /// Another key has opened the repository, and a lock is nobody's content: their damage hits no backup.
    pub(super) fn check_keys_and_locks(&self, damages: &mut Damages) -> Result<()> {
        let backend = &*self.core.backend;
        for (id, _) in backend.list(FileKind::Key)? {
            if let Some(problem) = rustic::damage_of_key(backend, &id)? {
                damages.add(format!("key {id}"), problem.to_owned(), None);
            }
        }
        for (id, _) in backend.list(FileKind::Lock)? {
            let read = sealed_file::read::<LockFile>(backend, &self.core.key, FileKind::Lock, &id);
            if let Err(error) = read
                && backend.size(FileKind::Lock, &id)?.is_some()
            {
                damages.add(format!("lock {id}"), problem_of(error), None);
            }
        }
        Ok(())
    }
}
