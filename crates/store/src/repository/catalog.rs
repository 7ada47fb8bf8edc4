//! All backups of a repository: their snapshots and manifests, remembered in the local cache so that only new ones are read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use keepmark_model::manifest::{Manifest, StoredBackup, in_order};
use keepmark_model::{BackupId, FileName, VmId};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::manifest;
use crate::repository::Repository;
use crate::repository::backend::FileKind;
use crate::repository::cache_file;
use crate::repository::core::Scratch;
use crate::repository::id::{BlobKind, Id, TreeId};
use crate::repository::layout::Layout;
use crate::repository::sealed_file;
use crate::repository::snapshot::Snapshot;
use crate::repository::tree::Node;
use crate::repository::write::MANIFEST;

/// Largest small file of a backup that is read, bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// The cache's file name; another version has another name.
const CACHE_FILE: &str = "backups-2";

/// What the cache has of a snapshot: nothing if it is not ours.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Remembered {
    manifest: Option<Manifest>,
}

/// All backups, and the snapshots that are damaged.
type Catalog = (Vec<StoredBackup>, Vec<(Id, Error)>);

/// A backup with the nodes of its VM's folder.
pub(crate) struct LoadedBackup {
    pub(crate) id: BackupId,
    pub(crate) manifest: Manifest,
    pub(crate) nodes: Vec<Node>,
}

/// A disk of a backup.
pub(crate) struct LoadedDisk {
    pub(crate) layout: Layout,
    pub(crate) tree: TreeId,
}

impl LoadedBackup {
    pub(crate) fn disk(&self, name: &str) -> Result<LoadedDisk> {
        let missing = || Error::NoSuchPart { backup: self.id.short().to_owned(), what: "disk", name: name.to_owned() };
        let tree = self.nodes.iter().find(|node| node.name == name).and_then(|node| node.subtree).ok_or_else(missing)?;
        let disk = self.manifest.disks.iter().find(|disk| disk.name.as_str() == name).ok_or_else(missing)?;
        let layout = Layout::new(disk.size.0, disk.chunk_size.bytes());
        Ok(LoadedDisk { layout: layout.ok_or_else(|| Error::damaged("manifest", &self.id, "a disk is larger than any"))?, tree })
    }
}

impl Repository {
    /// All backups of one VM or of all, oldest first, and what is wrong with those that cannot be listed.
    ///
    /// # Errors
    /// When the repository cannot be listed.
    pub fn list(&self, vm: Option<&VmId>) -> Result<(Vec<StoredBackup>, Vec<String>)> {
        let (all, problems) = self.catalog()?;
        let backups: Vec<StoredBackup> = all.into_iter().filter(|backup| vm.is_none_or(|vm| backup.manifest.vm_id() == *vm)).collect();
        Ok((in_order(backups), problems.into_iter().map(|(_, error)| error.to_string()).collect()))
    }

    /// All backups in the order of their ids, and the snapshots that are damaged.
    pub(crate) fn catalog(&self) -> Result<Catalog> {
        let path = self.cache.join(CACHE_FILE);
        let mut known = load(&path);
        let listed = self.core.backend.list(FileKind::Snapshot)?;
        if listed.iter().any(|(id, _)| !known.contains_key(id)) {
            // What another host wrote is in index files that are new, too.
            self.index.refresh()?;
        }
        let (mut current, mut problems, mut scratch, mut fresh) = (BTreeMap::new(), Vec::new(), Scratch::new()?, false);
        for (id, _) in listed {
            let remembered = match known.remove(&id) {
                Some(remembered) => remembered,
                None => match self.read_manifest(&id, &mut scratch) {
                    Ok(manifest) => {
                        fresh = true;
                        Remembered { manifest }
                    }
                    Err(error) => {
                        let of_the_snapshot = matches!(error, Error::Damaged { kind: "snapshot", .. });
                        let error = if of_the_snapshot { error } else { Error::damaged("snapshot", id, error) };
                        problems.push((id, error));
                        continue;
                    }
                },
            };
            current.insert(id, remembered);
        }
        if fresh || !known.is_empty() {
            // Only a cache: without it the next listing takes longer.
            drop(save(&path, &current));
        }
        let pinned: BTreeSet<Id> = self.core.backend.list(FileKind::Pin)?.into_iter().map(|(id, _)| id).collect();
        let backups = current.into_iter().filter_map(|(id, remembered)| {
            let backup = StoredBackup::new(BackupId::new(id.hex()), remembered.manifest?);
            Some(StoredBackup { pinned: pinned.contains(&id), ..backup })
        });
        Ok((backups.collect(), problems))
    }

    /// The manifest of a snapshot, or nothing if it is none of ours.
    fn read_manifest(&self, id: &Id, scratch: &mut Scratch) -> Result<Option<Manifest>> {
        let snapshot: Snapshot = sealed_file::read(&*self.core.backend, &self.core.key, FileKind::Snapshot, id)?;
        if !snapshot.is_ours() {
            return Ok(None);
        }
        let nodes = self.vm_nodes(id, &snapshot, scratch)?;
        self.manifest(id, &nodes, scratch).map(Some)
    }

    fn vm_nodes(&self, id: &Id, snapshot: &Snapshot, scratch: &mut Scratch) -> Result<Vec<Node>> {
        let root = self.load_tree(&snapshot.tree, scratch)?;
        let vm = root.iter().find_map(|node| node.subtree).ok_or_else(|| Error::damaged("snapshot", id, "it has no folder of a VM"))?;
        let nodes = self.load_tree(&vm, scratch)?;
        let bad = nodes.iter().find_map(|node| FileName::new(&node.name).err());
        bad.map_or(Ok(nodes), |error| Err(Error::damaged("snapshot", id, error)))
    }

    fn manifest(&self, id: &Id, nodes: &[Node], scratch: &mut Scratch) -> Result<Manifest> {
        let node = nodes.iter().find(|node| node.name == MANIFEST).ok_or_else(|| Error::damaged("snapshot", id, "it has no manifest"))?;
        let bytes = self.read_file(node, scratch)?;
        manifest::decode(&bytes).map_err(|problem| Error::damaged("snapshot", id, format!("its manifest {problem}")))
    }

    /// The content of a small file.
    pub(crate) fn read_file(&self, node: &Node, scratch: &mut Scratch) -> Result<Vec<u8>> {
        if node.size > FILE_BYTES_MAX {
            return Err(Error::damaged("file", &node.name, "it is too large"));
        }
        let mut content = Vec::new();
        for piece in &node.content {
            self.load_blob(piece, BlobKind::Data, scratch)?;
            content.extend_from_slice(&scratch.plain);
        }
        if content.len() as u64 == node.size { Ok(content) } else { Err(Error::damaged("file", &node.name, "it has another size")) }
    }

    /// A backup with its manifest and the nodes of its folder, from the repository itself.
    pub(crate) fn load_backup(&self, id: &BackupId) -> Result<LoadedBackup> {
        let missing = || Error::NoSuchBackup { id: id.to_string() };
        let file = Id::parse(id.as_str()).ok_or_else(missing)?;
        if self.core.backend.size(FileKind::Snapshot, &file)?.is_none() {
            return Err(missing());
        }
        let snapshot: Snapshot = sealed_file::read(&*self.core.backend, &self.core.key, FileKind::Snapshot, &file)?;
        if !snapshot.is_ours() {
            return Err(missing());
        }
        let mut scratch = Scratch::new()?;
        let nodes = match self.vm_nodes(&file, &snapshot, &mut scratch) {
            Err(Error::Missing { .. }) => {
                // Another host may have written it after our index was read.
                self.index.refresh()?;
                self.vm_nodes(&file, &snapshot, &mut scratch)?
            }
            other => other?,
        };
        let manifest = self.manifest(&file, &nodes, &mut scratch)?;
        Ok(LoadedBackup { id: id.clone(), manifest, nodes })
    }
}

fn load(path: &Path) -> BTreeMap<Id, Remembered> {
    cache_file::load(path).and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
}

fn save(path: &Path, known: &BTreeMap<Id, Remembered>) -> std::io::Result<()> {
    cache_file::save(path, &serde_json::to_vec(known)?)
}
