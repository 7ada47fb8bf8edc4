//! The two seams: what the engine needs of a hypervisor and of a store, so that real ones and simulated ones are alike to it.
//!
//! Nothing here does I/O; drivers do. Every method blocks. Failures say by their class what they mean to the caller.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::extents::{ChunkIndex, ChunkSize, Extent, Extents, Size};
use crate::facts::VmFacts;
use crate::failure::{Failure, FailureClass};
use crate::manifest::{Consistency, Manifest, StoredBackup};
use crate::names::{BackupId, CheckpointName, DiskName, StoreId, VmId};
use crate::pushing::{CannotPush, Push, PushPlace, PushTarget, Pushing};
use crate::writing::{Rest, Unfinished, WriteRequest, Writing};

/// What every call across a seam returns.
pub type Result<T> = std::result::Result<T, Failure>;

// ---- hypervisor ---------------------------------------------------------------------------------------------------------

/// One VM, running or powered off, under whatever owns it.
pub trait Hypervisor {
    /// Looks at the VM. Changes nothing.
    ///
    /// # Errors
    /// `Unreachable` when nobody answers, `Locked` when another process holds the images.
    fn facts(&mut self) -> Result<VmFacts>;

    /// Removes what earlier runs of keepmark left behind (nodes, filters, exports, jobs, temporary bitmaps, a pause or a freeze),
    /// found by prefix; never checkpoints. Says in words what was removed.
    ///
    /// # Errors
    /// When something of ours is there and cannot be removed.
    fn clean_up(&mut self) -> Result<Vec<String>>;

    /// Fixes one moment over all disks of the request, starts its checkpoint there, and makes the moment readable.
    /// Either all of it happened or, on error, none of it and nothing is left.
    ///
    /// # Errors
    /// When the point cannot be made; the VM goes on as before.
    fn begin(&mut self, request: &PointRequest) -> Result<Box<dyn FrozenPoint + '_>>;

    /// How it writes images itself, where it can.
    fn pushing(&self) -> Pushing {
        Pushing::OfTheMoment
    }

    /// Whether it can write images in this place itself ([`FrozenPoint::push`]). Changes nothing.
    ///
    /// # Errors
    /// When it cannot; why, in words.
    fn can_push(&mut self, _place: &PushPlace) -> std::result::Result<(), CannotPush> {
        Err(CannotPush::new("only a running VM's QEMU can"))
    }

    /// Removes bitmaps of these checkpoints from all disks and layers where they are and can be removed, in one transaction
    /// where the hypervisor has one. Names that are nowhere are fine.
    ///
    /// # Errors
    /// When the hypervisor refuses; then none was removed.
    fn remove_checkpoints(&mut self, names: &[CheckpointName]) -> Result<()>;

    /// What is needed besides the disks to bring the VM back.
    ///
    /// # Errors
    /// When the hypervisor does not tell.
    fn definition(&mut self) -> Result<Definition>;

    /// Whether the disks may be written now.
    ///
    /// # Errors
    /// When the hypervisor does not tell.
    fn rest(&mut self) -> Result<Rest>;

    /// Disks that a revert began to write and did not finish.
    ///
    /// # Errors
    /// When the hypervisor does not tell.
    fn unfinished(&mut self) -> Result<Vec<Unfinished>>;

    /// Looks what the VM has when it starts anew, before it is shut down so that these disks can be written; says in words what becomes of
    /// others.
    ///
    /// # Errors
    /// When one of these would be another one then, or gone. Nothing has happened.
    fn before_power_down(&mut self, disks: &[DiskName]) -> Result<Vec<String>> {
        let _ = disks;
        Ok(Vec::new())
    }

    /// Asks the guest to power down and waits until it has; gives the VM at rest.
    ///
    /// # Errors
    /// When it does not within the time, or `interrupted` says so: it goes on running then.
    fn power_down(self: Box<Self>, within: Duration, interrupted: &dyn Fn() -> bool) -> Result<Box<dyn Hypervisor>>;

    /// Opens disks of a resting VM for writing, guarded against being started half written.
    ///
    /// # Errors
    /// When they cannot be written; nothing is left then.
    fn begin_writing(&mut self, request: &WriteRequest) -> Result<Box<dyn Writing + '_>>;

    /// Closes as [`Hypervisor::close`] does, and starts the guest anew that [`Hypervisor::power_down`] has shut down.
    ///
    /// # Errors
    /// When it cannot be started.
    fn start(self: Box<Self>) -> Result<()>;

    /// Ends the connection; for powered-off images: closes them, which is when their new bitmaps become durable.
    ///
    /// # Errors
    /// When closing fails: the new bitmaps may then be absent, which the next run sees.
    fn close(self: Box<Self>) -> Result<()>;
}

/// What brings a VM back besides its disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definition {
    /// Small files.
    pub files: Vec<SavedFile>,
    /// What could not be saved and is needed, in words.
    pub findings: Vec<String>,
}

impl From<Vec<SavedFile>> for Definition {
    fn from(files: Vec<SavedFile>) -> Self {
        Self { files, findings: Vec::new() }
    }
}

/// A small file that is saved beside the disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedFile {
    /// File name, no folders.
    pub name: String,
    /// Content.
    pub content: Vec<u8>,
}

/// What is wanted of a frozen point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointRequest {
    /// Disks and the checkpoint whose delta is wanted of each.
    pub disks: Vec<PointDisk>,
    /// The checkpoint to start at this moment, on all these disks, or none.
    pub checkpoint: Option<CheckpointName>,
    /// Part of every temporary name of this run; letters and digits.
    pub run: String,
    /// Whether to quiesce the guest's file systems by its agent.
    pub freeze: Freeze,
    /// What of it is pushed.
    pub push: Push,
}

/// One disk of a frozen point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointDisk {
    /// Which disk.
    pub name: DiskName,
    /// The checkpoint whose bitmap (united over the layers that have it) is the delta; none reads without one.
    pub since: Option<CheckpointName>,
}

/// Whether the guest's file systems are quiesced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freeze {
    /// Do not ask the agent.
    Never,
    /// Ask it if there is one; go on crash-consistent when it does not answer within the deadline.
    IfPossible {
        /// How long the guest may stay frozen at most.
        deadline: Duration,
    },
}

/// What was achieved when the moment was fixed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// How long the VM's processors stood still for it.
    pub pause: Duration,
    /// How long the guest's file systems were frozen.
    pub frozen: Option<Duration>,
    /// What that makes of the backup.
    pub consistency: Consistency,
    /// What went otherwise than wanted, in words (agent hung, scratch in another place).
    pub findings: Vec<String>,
    /// What is worth saying and takes nothing from the backup, in words.
    pub notes: Vec<String>,
}

/// One moment of all disks, readable while the guest goes on. Dropping it without [`FrozenPoint::release`] must clean up too.
pub trait FrozenPoint {
    /// What was achieved.
    fn moment(&self) -> &Moment;

    /// Opens one disk for reading.
    ///
    /// # Errors
    /// When the disk is not of this point, its server does not answer, or the moment consists of images that are being written.
    fn disk(&mut self, name: &DiskName) -> Result<Box<dyn FrozenDisk>>;

    /// Has the hypervisor itself write disks of this moment into images: what changed since the checkpoint that was asked
    /// for, or everything where none was. Where the moment consists of its images ([`Push::AtOnce`]), these are the targets, and their end
    /// is waited for. `_progress` is told of bytes done and due; it may end it. When this returns the images are closed.
    ///
    /// # Errors
    /// When the hypervisor cannot, the request did not say so, an image cannot be written, or what `progress` returned.
    fn push(&mut self, _targets: &[PushTarget], _progress: &mut dyn FnMut(&DiskName, u64, u64) -> Result<()>) -> Result<()> {
        Err(Failure::new(FailureClass::Usage, CannotPush::new("only a running VM's QEMU can")))
    }

    /// Looks whether all that was read belongs to the moment: the last thing to be asked before a backup of it is published.
    ///
    /// # Errors
    /// When it may not: somebody wrote meanwhile, and nothing kept them from it.
    fn check(&mut self) -> Result<()> {
        Ok(())
    }

    /// Gives the moment up and leaves the VM as it was; the checkpoint stays.
    ///
    /// # Errors
    /// When something of ours could not be removed.
    fn release(self: Box<Self>) -> Result<()>;
}

/// One disk at its frozen moment.
pub trait FrozenDisk: Send {
    /// Bytes the guest sees.
    fn size(&self) -> Size;

    /// What may have changed since the checkpoint that was asked for, at the bitmap's granularity.
    ///
    /// # Errors
    /// When no delta was asked for, or the server fails.
    fn dirty(&mut self) -> Result<Extents>;

    /// Which parts of `within` may hold something else than zeros.
    ///
    /// # Errors
    /// When the server fails.
    fn data(&mut self, within: &Extents) -> Result<Extents>;

    /// Reads the ranges, many at a time, and hands each over as it completes, in any order.
    /// Buffers should go back by [`FrozenDisk::recycler`].
    ///
    /// # Errors
    /// When any byte cannot be read: never skipped. Or what `sink` returned.
    fn read(&mut self, ranges: &mut dyn Iterator<Item = Extent>, sink: &mut dyn FnMut(Extent, Vec<u8>) -> Result<()>) -> Result<()>;

    /// Takes buffers back for reuse, from any thread.
    fn recycler(&self) -> Recycler;
}

/// Takes buffers back for reuse.
pub type Recycler = Arc<dyn Fn(Vec<u8>) + Send + Sync>;

// ---- store --------------------------------------------------------------------------------------------------------------

/// A place where backups live.
pub trait Store: Send + Sync {
    /// The store's lasting id.
    fn id(&self) -> StoreId;

    /// Chunk size that new disks get.
    fn chunk_size(&self) -> ChunkSize;

    /// Where a hypervisor can write this VM's images by itself ([`BackupWriter::push_target`]), if it can.
    fn push_place(&self, _vm: &VmId) -> Option<PushPlace> {
        None
    }

    /// All published backups, of one VM or of all, oldest first. Damaged ones are reported in the second list, in words.
    ///
    /// # Errors
    /// When the store cannot be listed.
    fn backups(&self, vm: Option<&VmId>) -> Result<(Vec<StoredBackup>, Vec<String>)>;

    /// Starts a backup; holds a lease against pruning until it is published or dropped.
    ///
    /// # Errors
    /// `Locked` when someone prunes.
    fn begin(&self, vm: &VmId, time: Timestamp) -> Result<Box<dyn BackupWriter + '_>>;

    /// Opens a published backup for reading.
    ///
    /// # Errors
    /// When it is not there or damaged.
    fn open(&self, id: &BackupId) -> Result<Box<dyn BackupReader + '_>>;

    /// Takes backups off the list for good, each at once and whole; whatever the others need of them stays or is merged into them.
    ///
    /// # Errors
    /// When one is not there or pinned (then none went), or cannot be removed; all that are still listed restore as before.
    fn delete(&self, ids: &[BackupId], monitor: &dyn Monitor) -> Result<()>;

    /// Says that a backup stays, or that it need not.
    ///
    /// # Errors
    /// When it is not there, or that cannot be written.
    fn pin(&self, id: &BackupId, pinned: bool) -> Result<()>;

    /// Frees the space of what no backup needs; may be called at any time, beside anything.
    ///
    /// # Errors
    /// When the store cannot be read or written, or somebody else is at it; nothing that a backup needs is ever gone.
    fn prune(&self, request: &PruneRequest, monitor: &dyn Monitor) -> Result<Pruned>;

    /// Makes a backup need no other one, without its VM. Where every backup is whole by itself there is nothing to do.
    ///
    /// # Errors
    /// When it is not there, somebody works on the VM's backups, or anything cannot be read or written; it restores as before.
    fn consolidate(&self, _id: &BackupId, _monitor: &dyn Monitor) -> Result<()> {
        Ok(())
    }

    /// Where two backups' contents of a disk may differ, or nothing where the store cannot tell without reading both.
    ///
    /// # Errors
    /// When a backup is not there, has no such disk, or its tables are damaged.
    fn difference(&self, _one: &BackupId, _other: &BackupId, _disk: &DiskName) -> Result<Option<Extents>> {
        Ok(None)
    }

    /// Checks backups, or all that are or should be there when `ids` is empty; `read_data` reads and hashes everything they need.
    ///
    /// # Errors
    /// When the store cannot be read at all; damage is not an error but a [`Damage`].
    fn verify(&self, ids: &[BackupId], read_data: bool, progress: &dyn Fn(u64, u64)) -> Result<Verification>;
}

/// How to prune.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PruneRequest {
    /// Only say what would be done.
    pub dry_run: bool,
    /// How much of the store may stay unused rather than be copied together, percent.
    pub unused_max_percent: f64,
    /// Most bytes to copy together in this run; none for no limit.
    pub repack_max: Option<u64>,
    /// Longer than the longest backup: how long what a dead writer may have needed is kept.
    pub delay: Duration,
}

/// What pruning did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Files removed.
    pub removed_files: u64,
    /// Bytes freed.
    pub removed_bytes: u64,
    /// Bytes that go by a later run.
    pub marked_bytes: u64,
    /// Bytes that were copied together.
    pub repacked_bytes: u64,
    /// Bytes that no backup needs and that stay for now.
    pub unused_bytes: u64,
    /// Bytes that backups need.
    pub used_bytes: u64,
    /// For whom it waits, in words.
    pub waiting: Vec<String>,
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Backups without damage.
    pub good: Vec<BackupId>,
    /// What is damaged.
    pub damages: Vec<Damage>,
    /// Bytes read and hashed.
    pub bytes_read: u64,
}

/// One damaged thing and the backups that it hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What it is: `pack 3f9a...`, `snapshot ...`, `index ...`.
    pub subject: String,
    /// What is wrong with it, in words.
    pub problem: String,
    /// Backups that cannot be restored whole because of it; empty when it costs none.
    pub backups: Vec<BackupId>,
}

/// A backup while it is being written. Dropped without publishing, it leaves nothing listed; what was stored is found again by the next run.
pub trait BackupWriter {
    /// Declares a disk's whole content: what will be put, what is zero, and all the rest from the base.
    ///
    /// # Errors
    /// When the base has no such disk, or something is neither put, zero nor in the base.
    fn disk(&mut self, content: &DiskContent) -> Result<Box<dyn DiskWriter + '_>>;

    /// Prepares an image of a disk, on the base's, that the hypervisor writes instead of us.
    ///
    /// # Errors
    /// When the store takes none, or the base has no such disk.
    fn push_target(&mut self, _disk: &DiskName, _size: Size, _base: Option<&BackupId>) -> Result<PushTarget> {
        Err(Failure::new(FailureClass::Usage, CannotPush::new("the store takes no images")))
    }

    /// Takes an image over that the hypervisor has written.
    ///
    /// # Errors
    /// When it cannot be made durable.
    fn pushed(&mut self, _target: &PushTarget) -> Result<DiskStored> {
        Ok(DiskStored::default())
    }

    /// Makes the backup exist: everything durable first, then the manifest, atomically.
    ///
    /// # Errors
    /// When anything cannot be stored; then the backup does not exist.
    fn publish(self: Box<Self>, manifest: &Manifest, files: &[SavedFile]) -> Result<BackupId>;
}

/// What a disk of a new backup consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskContent {
    /// Its name.
    pub name: DiskName,
    /// Bytes; the last chunk is short when this is no multiple of the chunk size.
    pub size: Size,
    /// Chunk size; the base's where there is a base.
    pub chunk_size: ChunkSize,
    /// Where everything comes from that is neither `put` nor `zero`.
    pub base: Option<BackupId>,
    /// Without a base: the backup whose content is most likely the same, for stores that store only what differs from it.
    pub compare: Option<BackupId>,
    /// Every chunk in here is put exactly once. Rounded to chunks, cut at the size.
    pub put: Extents,
    /// Chunks that are zero and are not put. Rounded to chunks, cut at the size, apart from `put`.
    pub zero: Extents,
}

/// One disk while it is being written.
pub trait DiskWriter {
    /// Stores one chunk, in any order; the buffer goes to `recycler` afterwards. May block while workers are busy.
    ///
    /// # Errors
    /// When this or an earlier chunk could not be stored; nothing more is written then.
    fn put(&mut self, chunk: ChunkIndex, data: Vec<u8>, recycler: &Recycler) -> Result<()>;

    /// Waits for all chunks and completes the disk's tables.
    ///
    /// # Errors
    /// When a chunk is missing or could not be stored.
    fn finish(self: Box<Self>) -> Result<DiskStored>;
}

/// What storing a disk cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskStored {
    /// Bytes that went into the store for this disk's chunks (compressed, encrypted).
    pub stored_bytes: u64,
    /// Chunks that were new to the store.
    pub chunks_new: u64,
    /// Chunks that the store had already, or that were zero.
    pub chunks_known: u64,
}

/// A published backup, readable.
pub trait BackupReader: Send + Sync {
    /// Its manifest.
    fn manifest(&self) -> &Manifest;

    /// Names of the small files that were saved beside the disks, the manifest among them. The store has checked that each is one
    /// ([`crate::names::FileName`]); a part of one is none yet.
    fn files(&self) -> Vec<String>;

    /// A small file that was saved beside the disks.
    ///
    /// # Errors
    /// When there is none of that name or it is damaged.
    fn file(&self, name: &str) -> Result<Vec<u8>>;

    /// Which parts of `within` hold something else than zeros in this backup, in whole chunks.
    ///
    /// # Errors
    /// When the disk's tables are damaged.
    fn data(&self, disk: &DiskName, within: &Extents) -> Result<Extents>;

    /// Whether a chunk of this backup consists of exactly these bytes, by its hash.
    ///
    /// # Errors
    /// When the disk's tables are damaged.
    fn is_same(&self, disk: &DiskName, chunk: ChunkIndex, bytes: &[u8]) -> Result<bool>;

    /// Reads a disk, or the given ranges of it rounded to chunks, several chunks at a time: every byte is verified by its hash and given to `sink` once, from several threads, in any order.
    ///
    /// # Errors
    /// When any chunk is missing or damaged, or what `sink` returned.
    fn read_disk(&self, disk: &DiskName, within: Option<&Extents>, sink: &(dyn Fn(Piece<'_>) -> Result<()> + Sync)) -> Result<()>;
}

/// A verified part of a disk's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes at an offset.
    Data {
        /// Where on the disk.
        offset: u64,
        /// What is there.
        bytes: &'a [u8],
    },
    /// Zeros over a range.
    Zero(Extent),
}

// ---- monitor ------------------------------------------------------------------------------------------------------------

/// Where progress and findings leave the library.
pub trait Monitor: Sync {
    /// A disk's work has `done` of `total` bytes behind it.
    fn progress(&self, subject: &str, done: u64, total: u64);
    /// The subject's work is over; its progress can be taken off the screen.
    fn finished(&self, subject: &str);
    /// Something is not as it should be, but the job goes on; ends in exit code 3.
    fn finding(&self, text: &str);
    /// Something worth saying that changes nothing.
    fn note(&self, text: &str);
    /// Whether the user asked to stop; long work asks this often.
    fn interrupted(&self) -> bool;
}

/// A monitor for whoever has nobody to tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn progress(&self, _: &str, _: u64, _: u64) {}
    fn finished(&self, _: &str) {}
    fn finding(&self, _: &str) {}
    fn note(&self, _: &str) {}
    fn interrupted(&self) -> bool {
        false
    }
}
