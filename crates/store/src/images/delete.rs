//! Deleting: a backup is off the list at once; then its dependants take in what they need of it, and its folder goes.
//!
//! Each step follows from what lies in the folders, so whoever comes next goes on where somebody died.

use std::collections::BTreeSet;

use keepmark_model::images::ImageTools;
use keepmark_model::seam::{Monitor, Pruned};
use keepmark_model::{BackupId, DiskName};

use crate::error::{Error, Result};
use crate::images::lock::VmLock;
use crate::images::merge::Merger;
use crate::images::shelf::Shelf;
use crate::images::{durable, place};

/// Takes backups off the list. Their images stay for now, so all others are whole.
///
/// # Errors
/// [`Error::NoSuchBackup`], [`Error::Pinned`]: then none went.
pub fn unlist(backups: &[(Shelf, BackupId)]) -> Result<()> {
    for (shelf, id) in backups {
        if shelf.folder_of(id).join(place::PINNED).exists() {
            return Err(Error::Pinned { id: id.to_string() });
        }
    }
    backups.iter().try_for_each(|(shelf, id)| {
        let folder = shelf.folder_of(id);
        durable::rename(&folder.join(place::MANIFEST), &folder.join(place::DELETED))
    })
}

/// Finishes what was begun in a VM's folder: merges what is needed of deleted backups, removes the rest.
/// Does nothing while somebody writes there: that one, or the next, does it.
///
/// # Errors
/// The first thing that could not be done; everything else was.
pub fn finish(tools: &dyn ImageTools, shelf: &Shelf, monitor: &dyn Monitor) -> Result<Pruned> {
    let Some(_alone) = VmLock::alone(shelf.folder())? else {
        let waiting = format!("somebody works on the backups in {}", shelf.folder().display());
        return Ok(if deleted(shelf)?.is_empty() { Pruned::default() } else { Pruned { waiting: vec![waiting], ..Pruned::default() } });
    };
    place::sweep(shelf.folder())?;
    let (deleted, mut pruned) = (deleted(shelf)?, Pruned::default());
    if deleted.is_empty() {
        return Ok(pruned);
    }
    let merged = merge_all(&Merger { tools, shelf, monitor });
    let needed = needed(shelf)?;
    for id in deleted.iter().filter(|id| needed.as_ref().is_some_and(|needed| !needed.contains(*id))) {
        remove(shelf, id, &mut pruned)?;
    }
    merged.map(|()| pruned)
}

fn deleted(shelf: &Shelf) -> Result<Vec<BackupId>> {
    Ok(shelf.ids()?.into_iter().filter(|id| shelf.is_deleted(id)).collect())
}

/// Each image that lies on deleted ones takes in what they hold. One that cannot does not keep the others from it.
fn merge_all(merger: &Merger<'_>) -> Result<()> {
    let mut first = Ok(());
    for id in kept(merger.shelf)? {
        let merged = merge_disks(merger, &id);
        if first.is_ok() {
            first = merged;
        }
    }
    first
}

fn merge_disks(merger: &Merger<'_>, id: &BackupId) -> Result<()> {
    let mut first = Ok(());
    for disk in merger.shelf.disks(id)? {
        let merged = merge(merger, id, &disk);
        if first.is_ok() {
            first = merged;
        }
    }
    first
}

fn merge(merger: &Merger<'_>, id: &BackupId, disk: &DiskName) -> Result<()> {
    let chain = merger.shelf.chain(id, disk)?;
    let is_kept = |id: &BackupId| !merger.shelf.is_deleted(id);
    if chain.get(1).is_none_or(|below| is_kept(&below.backup)) {
        return Ok(());
    }
    let onto = chain.iter().skip(1).map(|layer| &layer.backup).find(|below| is_kept(below));
    merger.merge(id, disk, onto)
}

/// Everything that is not deleted, damaged or not.
fn kept(shelf: &Shelf) -> Result<Vec<BackupId>> {
    Ok(shelf.ids()?.into_iter().filter(|id| !shelf.is_deleted(id)).collect())
}

/// The backups whose images others need; nothing if that cannot be told, since an image is damaged.
fn needed(shelf: &Shelf) -> Result<Option<BTreeSet<BackupId>>> {
    let mut needed = BTreeSet::new();
    for id in kept(shelf)? {
        match needed_by(shelf, &id) {
            Ok(backups) => needed.extend(backups),
            Err(Error::Damaged { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(needed))
}

fn needed_by(shelf: &Shelf, id: &BackupId) -> Result<BTreeSet<BackupId>> {
    let mut needed = BTreeSet::new();
    for disk in shelf.disks(id)? {
        needed.extend(shelf.chain(id, &disk)?.into_iter().map(|layer| layer.backup));
    }
    Ok(needed)
}

/// Removes a backup's folder, which has no backup's name any more when it begins to be taken apart.
fn remove(shelf: &Shelf, id: &BackupId, pruned: &mut Pruned) -> Result<()> {
    let gone = shelf.folder().join(place::temporary_name());
    pruned.removed_files += place::entries(&shelf.folder_of(id))?.len() as u64;
    pruned.removed_bytes += place::bytes(&shelf.folder_of(id))?;
    durable::rename(&shelf.folder_of(id), &gone)?;
    durable::remove_all(&gone)
}
