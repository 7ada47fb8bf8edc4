//! Checking that backups are whole: manifests, chains, the tables of each image, and on demand each image's bytes against its hash.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use keepmark_model::BackupId;
use keepmark_model::failure::in_one_line;
use keepmark_model::images::ImageTools;
use keepmark_model::seam::{Damage, Verification};

use crate::error::{Error, Result};
use crate::images::checksums::{Checksums, hash};
use crate::images::shelf::{Layer, Shelf};
use crate::images::write::image_size;

/// Checks backups, or all; see [`keepmark_model::seam::Store::verify`].
pub fn verify(
    tools: &dyn ImageTools,
    shelves: &[Shelf],
    ids: &[BackupId],
    read_data: bool,
    progress: &dyn Fn(u64, u64),
) -> Result<Verification> {
    let mut needs = Needs::default();
    for shelf in shelves {
        for id in shelf.ids()?.into_iter().filter(|id| !shelf.is_deleted(id)) {
            if ids.is_empty() || ids.contains(&id) {
                needs.add(shelf, &id);
            }
        }
    }
    if let Some(id) = ids.iter().find(|id| !needs.backups.contains(*id)) {
        return Err(Error::NoSuchBackup { id: id.to_string() });
    }
    let bytes_read = needs.check_images(tools, read_data, progress);
    Ok(needs.told(bytes_read))
}

/// What backups need, and what is wrong with it.
#[derive(Default)]
struct Needs {
    backups: BTreeSet<BackupId>,
    /// Each image, and for whom it is needed.
    images: BTreeMap<PathBuf, BTreeSet<BackupId>>,
    damages: Vec<Damage>,
}

impl Needs {
    fn add(&mut self, shelf: &Shelf, id: &BackupId) {
        self.backups.insert(id.clone());
        let manifest = match shelf.manifest(id) {
            Ok(manifest) => manifest,
            Err(error) => return self.blame(&error, [id.clone()]),
        };
        for disk in &manifest.disks {
            match shelf.chain(id, &disk.name) {
                Err(error) => self.blame(&error, [id.clone()]),
                Ok(chain) => self.add_chain(&chain, id, image_size(disk.size).0),
            }
        }
    }

    fn add_chain(&mut self, chain: &[Layer], id: &BackupId, size: u64) {
        if let Some(top) = chain.first().filter(|top| top.size != size) {
            let problem = format!("it has {} bytes and its disk {size}", top.size);
            self.blame(&Error::damaged("image", top.path.display(), problem), [id.clone()]);
        }
        for layer in chain {
            self.images.entry(layer.path.clone()).or_default().insert(id.clone());
        }
    }

    fn blame(&mut self, error: &Error, backups: impl IntoIterator<Item = BackupId>) {
        let (subject, problem) = if let Error::Damaged { kind, id, problem } = error {
            (format!("{kind} {id}"), problem.clone())
        } else {
            ("store".to_owned(), in_one_line(error))
        };
        match self.damages.iter_mut().find(|damage| damage.subject == subject && damage.problem == problem) {
            Some(damage) => damage.backups.extend(backups),
            None => self.damages.push(Damage { subject, problem, backups: backups.into_iter().collect() }),
        }
    }

    /// Checks each image once; gives how many bytes were read.
    fn check_images(&mut self, tools: &dyn ImageTools, read_data: bool, progress: &dyn Fn(u64, u64)) -> u64 {
        let images = std::mem::take(&mut self.images);
        let total = images.keys().map(|image| weight(image, read_data)).sum();
        let (mut done, mut bytes_read) = (0, 0);
        for (image, backups) in images {
            if let Err(error) = check_tables(tools, &image) {
                self.blame(&error, backups.clone());
            }
            if read_data {
                let read = check_bytes(&image, &mut |bytes| {
                    bytes_read += bytes;
                    progress(done + bytes, total);
                    done += bytes;
                    Ok(())
                });
                if let Err(error) = read {
                    self.blame(&error, backups);
                }
            } else {
                done += 1;
                progress(done, total);
            }
        }
        bytes_read
    }

    fn told(self, bytes_read: u64) -> Verification {
        let hit: BTreeSet<&BackupId> = self.damages.iter().flat_map(|damage| &damage.backups).collect();
        let good = self.backups.iter().filter(|id| !hit.contains(id)).cloned().collect();
        Verification { good, damages: self.damages, bytes_read }
    }
}

fn weight(image: &Path, read_data: bool) -> u64 {
    if read_data { std::fs::metadata(image).map_or(0, |facts| facts.len()) } else { 1 }
}

fn check_tables(tools: &dyn ImageTools, image: &Path) -> Result<()> {
    let damaged = |problem: String| Error::damaged("image", image.display(), problem);
    match tools.check(image) {
        Ok(check) if check.corruptions > 0 => Err(damaged(format!("qemu-img check finds {} mistakes in its tables", check.corruptions))),
        Ok(_) => Ok(()),
        Err(failure) => Err(damaged(in_one_line(&failure))),
    }
}

fn check_bytes(image: &Path, read: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
    let damaged = |problem: String| Error::damaged("image", image.display(), problem);
    let (Some(folder), Some(name)) = (image.parent(), image.file_name().and_then(|name| name.to_str())) else { return Ok(()) };
    let checksums = Checksums::read(folder).map_err(|error| damaged(format!("its hash is not known: {}", in_one_line(&error))))?;
    let found = hash(image, read).map_err(|error| damaged(in_one_line(&error)))?;
    if checksums.fits(name, &found) { Ok(()) } else { Err(damaged("it is not as it was written: it has another hash".into())) }
}
