//! Writing one disk: chunks come in any order, its trees are built in disk order as far as they have come.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use crossbeam_channel::{Receiver, Sender, unbounded};
use keepmark_model::seam::{self, DiskContent, DiskStored, Recycler};
use keepmark_model::{ChunkIndex, Extents};

use crate::error::{Error, Result};
use crate::repository::disk_table::{DiskTable, Fill, StoredDisk};
use crate::repository::id::ChunkId;
use crate::repository::layout::Layout;
use crate::repository::write::BackupWriter;
use crate::repository::write::pipeline::{Job, Reply, Stored};

/// Where a range of chunks comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Put,
    Fill(Fill),
}

/// All chunks of a disk in order, and where they come from.
type Plan = VecDeque<(Range<u64>, Source)>;

/// One disk while it is being written.
pub struct DiskWriter<'w> {
    writer: &'w BackupWriter<'w>,
    name: String,
    layout: Layout,
    /// What the table has not got yet.
    plan: Plan,
    table: DiskTable<'w>,
    /// Chunks that are stored but not next. Small as long as they are put in about the order of the disk.
    arrived: HashMap<u64, ChunkId>,
    /// Chunks that the workers have.
    in_work: u64,
    replies: (Sender<Reply>, Receiver<Reply>),
    stored: DiskStored,
}

impl<'w> DiskWriter<'w> {
    pub(super) fn new(writer: &'w BackupWriter<'w>, content: &DiskContent, layout: Layout, base: Option<StoredDisk>) -> Result<Self> {
        let name = content.name.to_string();
        let base_layout = base.as_ref().map(|base| base.layout);
        let plan = plan(content, layout, base_layout).map_err(|problem| Error::Content { disk: name.clone(), problem })?;
        let table = DiskTable::new(writer, layout, base);
        Ok(Self {
            writer,
            name,
            layout,
            plan,
            table,
            arrived: HashMap::new(),
            in_work: 0,
            replies: unbounded(),
            stored: DiskStored::default(),
        })
    }

    fn put_chunk(&mut self, chunk: u64, data: Vec<u8>, recycler: &Recycler) -> Result<()> {
        let expected = self.layout.bytes(&(chunk..chunk.saturating_add(1)));
        if !self.is_awaited(chunk) || data.len() as u64 != expected {
            let problem = format!("chunk {chunk} with {} bytes is not awaited, or came twice", data.len());
            return Err(Error::Content { disk: self.name.clone(), problem });
        }
        self.in_work += 1;
        self.writer.pipeline.submit(Job { chunk, data, recycler: Recycler::clone(recycler), reply: self.replies.0.clone() })?;
        while let Ok(reply) = self.replies.1.try_recv() {
            self.take(&reply)?;
        }
        self.advance()
    }

    fn is_awaited(&self, chunk: u64) -> bool {
        let place = self.plan.partition_point(|(range, _)| range.end <= chunk);
        let planned = self.plan.get(place).is_some_and(|(range, source)| *source == Source::Put && range.contains(&chunk));
        planned && chunk >= self.table.next() && !self.arrived.contains_key(&chunk)
    }

    fn take(&mut self, reply: &Reply) -> Result<()> {
        self.in_work -= 1;
        let Some((id, stored)) = reply.outcome else {
            self.writer.pipeline.shared.poison.check()?;
            return Err(Error::Poisoned);
        };
        match stored {
            Stored::New(bytes) => {
                self.stored.stored_bytes += bytes;
                self.stored.chunks_new += 1;
            }
            Stored::Known => self.stored.chunks_known += 1,
        }
        match self.arrived.insert(reply.chunk, id) {
            None => Ok(()),
            Some(_) => Err(Error::Content { disk: self.name.clone(), problem: format!("chunk {} came twice", reply.chunk) }),
        }
    }

    /// Gives the table what is next, as far as it has come.
    fn advance(&mut self) -> Result<()> {
        while let Some((range, source)) = self.plan.front().cloned() {
            match source {
                Source::Fill(fill) => self.table.fill(range.end, fill)?,
                Source::Put => match self.arrived.remove(&self.table.next()) {
                    Some(id) => self.table.push(id)?,
                    None => return Ok(()),
                },
            }
            if self.table.next() >= range.end {
                self.plan.pop_front();
            }
        }
        Ok(())
    }

    fn complete(mut self) -> Result<DiskStored> {
        while self.in_work > 0 {
            let reply = self.replies.1.recv().map_err(|_| Error::Poisoned)?;
            self.take(&reply)?;
            self.advance()?;
        }
        self.advance()?;
        if !self.plan.is_empty() {
            return Err(Error::Content { disk: self.name, problem: format!("chunk {} was never put", self.table.next()) });
        }
        let tree = self.table.finish()?;
        self.writer.add_disk(&self.name, tree);
        Ok(self.stored)
    }
}

impl seam::DiskWriter for DiskWriter<'_> {
    fn put(&mut self, chunk: ChunkIndex, data: Vec<u8>, recycler: &Recycler) -> seam::Result<()> {
        Ok(self.put_chunk(chunk.0, data, recycler)?)
    }

    fn finish(self: Box<Self>) -> seam::Result<DiskStored> {
        Ok(self.complete()?)
    }
}

/// Puts the declared ranges in order and fills the gaps from the base; says what does not fit.
fn plan(content: &DiskContent, layout: Layout, base: Option<Layout>) -> std::result::Result<Plan, String> {
    let mut declared = ranges(&content.put, layout, Source::Put)?;
    declared.extend(ranges(&content.zero, layout, Source::Fill(Fill::Zero))?);
    declared.sort_by_key(|(range, _)| range.start);
    let (mut plan, mut next) = (Plan::with_capacity(declared.len()), 0);
    for (range, source) in declared.into_iter().chain([(layout.chunks()..layout.chunks(), Source::Put)]) {
        if range.start < next {
            return Err(format!("chunk {} is both put and zero", range.start));
        }
        let gap = next..range.start;
        next = range.end;
        if !gap.is_empty() {
            if !base.is_some_and(|base| base.same_extent(&layout, &gap)) {
                return Err(format!("chunks {} to {} are neither put nor zero nor in a base", gap.start, gap.end));
            }
            plan.push_back((gap, Source::Fill(Fill::Base)));
        }
        if !range.is_empty() {
            plan.push_back((range, source));
        }
    }
    Ok(plan)
}

fn ranges(extents: &Extents, layout: Layout, source: Source) -> std::result::Result<Vec<(Range<u64>, Source)>, String> {
    extents
        .iter()
        .map(|extent| {
            let whole = extent.start % layout.chunk == 0
                && (extent.end % layout.chunk == 0 || extent.end == layout.size)
                && extent.end <= layout.size;
            let range = extent.start / layout.chunk..extent.end.div_ceil(layout.chunk);
            if whole {
                Ok((range, source))
            } else {
                Err(format!("bytes {} to {} are not whole chunks of the disk", extent.start, extent.end))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use keepmark_model::{ChunkSize, DiskName, Extent, Size};

    use super::*;

    fn content(put: &[(u64, u64)], zero: &[(u64, u64)]) -> DiskContent {
        let set = |pairs: &[(u64, u64)]| pairs.iter().map(|(start, end)| Extent::new(*start, *end)).collect();
        DiskContent {
            name: DiskName::new("vda").unwrap(),
            size: Size(10_000),
            chunk_size: ChunkSize::try_from(4096).unwrap(),
            base: None,
            compare: None,
            put: set(put),
            zero: set(zero),
        }
    }

    fn planned(put: &[(u64, u64)], zero: &[(u64, u64)], base: Option<u64>) -> std::result::Result<String, String> {
        let layout = |size| Layout::new(size, 4096).unwrap();
        let plan = plan(&content(put, zero), layout(10_000), base.map(layout))?;
        Ok(plan
            .iter()
            .map(|(range, source)| {
                format!(
                    "{}-{}:{} ",
                    range.start,
                    range.end,
                    match source {
                        Source::Put => "put",
                        Source::Fill(Fill::Zero) => "zero",
                        Source::Fill(Fill::Base) => "base",
                    }
                )
            })
            .collect())
    }

    #[test]
    fn every_chunk_has_exactly_one_source() {
        assert_eq!(planned(&[(0, 4096)], &[(4096, 10_000)], None).unwrap(), "0-1:put 1-3:zero ");
        assert_eq!(planned(&[(4096, 8192)], &[], Some(10_000)).unwrap(), "0-1:base 1-2:put 2-3:base ");
        assert_eq!(planned(&[(8192, 10_000)], &[], Some(9_000)).unwrap(), "0-2:base 2-3:put ");
        for (put, zero, base, problem) in [
            (&[(0, 4096)][..], &[][..], None, "neither"),
            (&[(0, 4096)], &[], Some(9_000), "neither"),
            (&[(0, 8192)], &[(4096, 10_000)], None, "both"),
            (&[(0, 5000)], &[], Some(10_000), "whole chunks"),
            (&[(0, 12_288)], &[], None, "whole chunks"),
        ] {
            let error = planned(put, zero, base).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
