//! What a verification found damaged, and whom it hits.

use std::collections::{BTreeMap, BTreeSet};

use keepmark_model::BackupId;
use keepmark_model::seam::Damage;

use crate::error::Error;
use crate::repository::id::{Id, PackId};

/// What is damaged, by its name.
#[derive(Default)]
pub struct Damages {
    found: BTreeMap<String, (String, BTreeSet<BackupId>)>,
    /// Blobs in no index, and who needs them.
    missing: BTreeSet<String>,
    missed_by: BTreeSet<BackupId>,
    /// Packs of which something could not be read.
    pub packs: BTreeSet<PackId>,
}

impl Damages {
    /// Something is damaged; it hits a backup, or none as far as is known.
    pub fn add(&mut self, subject: String, problem: String, backup: Option<&BackupId>) {
        let (_, backups) = self.found.entry(subject).or_insert_with(|| (problem, BTreeSet::new()));
        backups.extend(backup.cloned());
    }

    /// A backup needs a blob that is in no index.
    pub fn miss(&mut self, id: String, backup: &BackupId) {
        // A few names are enough for a message; a lost index may have had millions.
        if self.missing.len() < 1000 {
            self.missing.insert(id);
        }
        self.missed_by.insert(backup.clone());
    }

    /// These could not be read; they hit a backup, or none if another copy is good.
    pub fn blame(&mut self, failures: Vec<Error>, backup: Option<&BackupId>) {
        for failure in failures {
            let subject = if let Error::Damaged { kind, id, .. } = &failure {
                self.packs.extend(Id::parse(id).filter(|_| *kind == "pack"));
                format!("{kind} {id}")
            } else {
                failure.to_string()
            };
            self.add(subject, problem_of(failure), backup);
        }
    }

    /// What is in no index is laid to the damaged index files, where there are any.
    pub fn into_list(mut self, damaged_indexes: Vec<(Id, String)>) -> Vec<Damage> {
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

/// What is wrong, without the name that stands before it.
pub fn problem_of(error: Error) -> String {
    if let Error::Damaged { problem, .. } = error { problem } else { error.to_string() }
}
