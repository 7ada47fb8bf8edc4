//! Builds a disk's trees from its chunks in order, taking whole folders and groups from the base or from the zeros where it can.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::repository::id::{ChunkId, Id, TreeId};
use crate::repository::layout::{DIR_CHUNKS, GROUP_CHUNKS, GROUP_DIRS, Layout, dir_name, group_name};
use crate::repository::tree::{Node, segments};

/// What the builder needs of the repository.
pub trait Trees {
    /// The nodes of a tree.
    ///
    /// # Errors
    /// When it is missing or damaged.
    fn load(&self, id: &TreeId) -> Result<Vec<Node>>;

    /// Stores a tree unless it is there.
    ///
    /// # Errors
    /// When it cannot be stored.
    fn store(&self, nodes: &[Node]) -> Result<TreeId>;

    /// Stores a chunk of so many zeros unless it is there.
    ///
    /// # Errors
    /// When it cannot be stored.
    fn zeros(&self, bytes: u64) -> Result<ChunkId>;
}

/// The trees of a disk that is stored already, loaded as far as they are looked at.
#[derive(Debug)]
pub struct StoredDisk {
    /// Its layout.
    pub layout: Layout,
    groups: Vec<TreeId>,
    group: Option<(u64, Vec<TreeId>)>,
    dir: Option<(u64, Vec<ChunkId>)>,
}

impl StoredDisk {
    /// The disk under this tree.
    ///
    /// # Errors
    /// When the tree is missing, damaged, or no disk of this layout.
    pub fn open(trees: &dyn Trees, root: &TreeId, layout: Layout) -> Result<Self> {
        let groups = folders(root, &trees.load(root)?, layout.groups(), group_name)?;
        Ok(Self { layout, groups, group: None, dir: None })
    }

    /// The tree of a group.
    #[must_use]
    pub fn group(&self, group: u64) -> Option<TreeId> {
        usize::try_from(group).ok().and_then(|group| self.groups.get(group)).copied()
    }

    /// The tree of a folder.
    ///
    /// # Errors
    /// When its group is missing or damaged.
    pub fn dir(&mut self, trees: &dyn Trees, dir: u64) -> Result<Option<TreeId>> {
        let group = dir / GROUP_DIRS;
        let Some(root) = self.group(group) else { return Ok(None) };
        if self.group.as_ref().is_none_or(|(loaded, _)| *loaded != group) {
            let count = self.layout.dirs().saturating_sub(group * GROUP_DIRS).min(GROUP_DIRS);
            self.group = Some((group, folders(&root, &trees.load(&root)?, count, dir_name)?));
        }
        let place = usize::try_from(dir % GROUP_DIRS).unwrap_or(usize::MAX);
        Ok(self.group.as_ref().and_then(|(_, dirs)| dirs.get(place)).copied())
    }

    /// The chunks of a folder.
    ///
    /// # Errors
    /// When it is missing or damaged.
    pub fn chunks(&mut self, trees: &dyn Trees, dir: u64) -> Result<&[ChunkId]> {
        if self.dir.as_ref().is_none_or(|(loaded, _)| *loaded != dir) {
            let range = self.layout.dir_range(dir);
            let chunks = match self.dir(trees, dir)? {
                Some(id) => dir_chunks(&id, &trees.load(&id)?, range.end - range.start)?,
                None => Vec::new(),
            };
            self.dir = Some((dir, chunks));
        }
        Ok(self.dir.as_ref().map(|(_, chunks)| chunks.as_slice()).unwrap_or_default())
    }
}

/// The subtrees of a tree that must have exactly `count` of them, named in order.
///
/// # Errors
/// [`Error::Damaged`] when it has not.
pub fn folders(id: &TreeId, nodes: &[Node], count: u64, name: fn(u64) -> String) -> Result<Vec<TreeId>> {
    let found: Vec<TreeId> =
        (0..count).zip(nodes).filter(|(number, node)| node.name == name(*number)).filter_map(|(_, node)| node.subtree).collect();
    let complete = found.len() as u64 == count && nodes.len() == found.len();
    if complete { Ok(found) } else { Err(Error::damaged("tree", id, format!("it should have {count} folders of a disk"))) }
}

/// The chunks of a disk's folder, which must have exactly `count`.
///
/// # Errors
/// [`Error::Damaged`] when it has not.
pub fn dir_chunks(id: &TreeId, nodes: &[Node], count: u64) -> Result<Vec<ChunkId>> {
    let expected = segments(&nodes.iter().flat_map(|node| node.content.iter().copied()).collect::<Vec<_>>(), 1, count);
    let shaped = nodes.iter().map(|node| (&node.name, &node.content)).eq(expected.iter().map(|node| (&node.name, &node.content)));
    let chunks: Vec<ChunkId> = nodes.iter().flat_map(|node| node.content.iter().copied()).collect();
    let complete = shaped && chunks.len() as u64 == count;
    if complete { Ok(chunks) } else { Err(Error::damaged("tree", id, format!("it should have {count} chunks of a disk"))) }
}

/// Where chunks come from that are not given one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// They are zero.
    Zero,
    /// They are as in the base.
    Base,
}

/// A disk's trees while they are built: chunks are appended in disk order, memory is one folder and one group.
pub struct DiskTable<'a> {
    trees: &'a dyn Trees,
    layout: Layout,
    base: Option<StoredDisk>,
    next: u64,
    chunks: Vec<ChunkId>,
    dirs: Vec<Node>,
    groups: Vec<Node>,
    zero: ZeroTrees,
}

#[derive(Default)]
struct ZeroTrees {
    chunk: Option<ChunkId>,
    dir: Option<TreeId>,
    group: Option<TreeId>,
}

impl<'a> DiskTable<'a> {
    /// An empty one.
    #[must_use]
    pub fn new(trees: &'a dyn Trees, layout: Layout, base: Option<StoredDisk>) -> Self {
        Self { trees, layout, base, next: 0, chunks: Vec::new(), dirs: Vec::new(), groups: Vec::new(), zero: ZeroTrees::default() }
    }

    /// The chunk that comes next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Appends one chunk.
    ///
    /// # Errors
    /// When a tree that it completes cannot be stored.
    pub fn push(&mut self, chunk: ChunkId) -> Result<()> {
        self.chunks.push(chunk);
        self.next += 1;
        self.close_full()
    }

    /// Appends chunks up to `end` from elsewhere.
    ///
    /// # Errors
    /// When the base has them not, or something cannot be loaded or stored.
    pub fn fill(&mut self, end: u64, fill: Fill) -> Result<()> {
        while self.next < end {
            if self.take_group(end, fill)? || self.take_dir(end, fill)? {
                continue;
            }
            let dir = self.next / DIR_CHUNKS;
            let stop = end.min(self.layout.dir_range(dir).end);
            self.append(dir, self.next..stop, fill)?;
            self.next = stop;
            self.close_full()?;
        }
        Ok(())
    }

    /// The disk's tree.
    ///
    /// # Errors
    /// When chunks are missing, or the tree cannot be stored.
    pub fn finish(self) -> Result<TreeId> {
        if self.next != self.layout.chunks() {
            return Err(Error::internal("complete a disk's table", format!("{} of {} chunks are there", self.next, self.layout.chunks())));
        }
        self.trees.store(&self.groups)
    }

    fn take_group(&mut self, end: u64, fill: Fill) -> Result<bool> {
        let group = self.next / GROUP_CHUNKS;
        let range = self.layout.group_range(group);
        if self.next != range.start || end < range.end {
            return Ok(false);
        }
        let tree = match fill {
            Fill::Base => {
                // A base that went on behind the disk's end has more in that group.
                let is_same = |base: &&StoredDisk| base.layout.group_range(group) == range && base.layout.same_extent(&self.layout, &range);
                self.base.as_ref().filter(is_same).and_then(|base| base.group(group))
            }
            Fill::Zero => {
                if self.is_full(&range, GROUP_CHUNKS) {
                    Some(self.zero_group()?)
                } else {
                    None
                }
            }
        };
        if let Some(tree) = tree {
            self.groups.push(Node::dir(group_name(group), tree));
            self.next = range.end;
        }
        Ok(tree.is_some())
    }

    fn take_dir(&mut self, end: u64, fill: Fill) -> Result<bool> {
        let dir = self.next / DIR_CHUNKS;
        let range = self.layout.dir_range(dir);
        if self.next != range.start || end < range.end {
            return Ok(false);
        }
        let (trees, layout) = (self.trees, self.layout);
        let tree = match (fill, &mut self.base) {
            (Fill::Base, Some(base)) if base.layout.dir_range(dir) == range && base.layout.same_extent(&layout, &range) => {
                base.dir(trees, dir)?
            }
            (Fill::Base, _) => None,
            (Fill::Zero, _) => {
                if self.is_full(&range, DIR_CHUNKS) {
                    Some(self.zero_dir()?)
                } else {
                    None
                }
            }
        };
        if let Some(tree) = tree {
            self.next = range.end;
            self.add_dir(dir, tree)?;
        }
        Ok(tree.is_some())
    }

    fn append(&mut self, dir: u64, range: Range<u64>, fill: Fill) -> Result<()> {
        let missing = || Error::internal("take chunks from the base", format!("it has not all of {range:?}"));
        match fill {
            Fill::Zero => {
                for chunk in range {
                    let id = self.zero_chunk(chunk)?;
                    self.chunks.push(id);
                }
            }
            Fill::Base => {
                let base = self.base.as_mut().filter(|base| base.layout.same_extent(&self.layout, &range)).ok_or_else(missing)?;
                let start = usize::try_from(range.start - dir * DIR_CHUNKS).unwrap_or(usize::MAX);
                let end = usize::try_from(range.end - dir * DIR_CHUNKS).unwrap_or(usize::MAX);
                let chunks = base.chunks(self.trees, dir)?.get(start..end).ok_or_else(missing)?;
                self.chunks.extend_from_slice(chunks);
            }
        }
        Ok(())
    }

    /// Stores the folder in hand if it is complete.
    fn close_full(&mut self) -> Result<()> {
        let Some(dir) = self.next.checked_sub(1).map(|last| last / DIR_CHUNKS) else { return Ok(()) };
        let range = self.layout.dir_range(dir);
        if self.next < range.end || self.chunks.is_empty() {
            return Ok(());
        }
        let nodes = segments(&self.chunks, self.layout.chunk, self.layout.bytes(&range));
        let tree = self.trees.store(&nodes)?;
        self.chunks.clear();
        self.add_dir(dir, tree)
    }

    fn add_dir(&mut self, dir: u64, tree: TreeId) -> Result<()> {
        self.dirs.push(Node::dir(dir_name(dir), tree));
        let group = dir / GROUP_DIRS;
        if self.next == self.layout.group_range(group).end {
            let tree = self.trees.store(&self.dirs)?;
            self.dirs.clear();
            self.groups.push(Node::dir(group_name(group), tree));
        }
        Ok(())
    }

    /// Whether a range is as long as any, down to its last byte, so that its zeros are the same as of any other.
    fn is_full(&self, range: &Range<u64>, chunks: u64) -> bool {
        self.layout.bytes(range) == chunks * self.layout.chunk
    }

    fn zero_chunk(&mut self, chunk: u64) -> Result<ChunkId> {
        let bytes = self.layout.bytes(&(chunk..chunk + 1));
        if bytes < self.layout.chunk {
            return self.trees.zeros(bytes);
        }
        match self.zero.chunk {
            Some(id) => Ok(id),
            None => Ok(*self.zero.chunk.insert(self.trees.zeros(bytes)?)),
        }
    }

    fn zero_dir(&mut self) -> Result<TreeId> {
        if let Some(id) = self.zero.dir {
            return Ok(id);
        }
        let chunk = self.zero_chunk(0)?;
        let id = self.trees.store(&zero_dir_nodes(chunk, self.layout.chunk))?;
        Ok(*self.zero.dir.insert(id))
    }

    fn zero_group(&mut self) -> Result<TreeId> {
        if let Some(id) = self.zero.group {
            return Ok(id);
        }
        let dir = self.zero_dir()?;
        let id = self.trees.store(&zero_group_nodes(dir))?;
        Ok(*self.zero.group.insert(id))
    }
}

fn zero_dir_nodes(chunk: ChunkId, chunk_size: u64) -> Vec<Node> {
    let count = usize::try_from(DIR_CHUNKS).unwrap_or(usize::MAX);
    segments(&vec![chunk; count], chunk_size, DIR_CHUNKS * chunk_size)
}

fn zero_group_nodes(dir: TreeId) -> Vec<Node> {
    (0..GROUP_DIRS).map(|number| Node::dir(dir_name(number), dir)).collect()
}

/// Stores, unless they are there, the zeros that a disk has whose longest known range of them is so many chunks.
///
/// # Errors
/// When they cannot be stored.
pub fn store_zeros(trees: &dyn Trees, layout: Layout, longest: u64) -> Result<()> {
    if longest == 0 {
        return Ok(());
    }
    let chunk = trees.zeros(layout.chunk)?;
    if !layout.size.is_multiple_of(layout.chunk) {
        trees.zeros(layout.size % layout.chunk)?;
    }
    if longest >= DIR_CHUNKS {
        let dir = trees.store(&zero_dir_nodes(chunk, layout.chunk))?;
        if longest >= GROUP_CHUNKS {
            trees.store(&zero_group_nodes(dir))?;
        }
    }
    Ok(())
}

/// What full zero chunks, folders and groups are called: a reader knows them without looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroNames {
    /// A chunk.
    pub chunk: ChunkId,
    /// A folder.
    pub dir: TreeId,
    /// A group.
    pub group: TreeId,
}

impl ZeroNames {
    /// For disks of this chunk size, bytes.
    ///
    /// # Errors
    /// When JSON cannot be written.
    pub fn new(chunk_size: u64) -> Result<Self> {
        let chunk = Id::of(&vec![0; usize::try_from(chunk_size).unwrap_or(0)]);
        let (dir, _) = super::tree::encode(&zero_dir_nodes(chunk, chunk_size))?;
        let (group, _) = super::tree::encode(&zero_group_nodes(dir))?;
        Ok(Self { chunk, dir, group })
    }
}

#[cfg(test)]
mod tests;
