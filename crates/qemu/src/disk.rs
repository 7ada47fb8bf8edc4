//! One disk at its frozen moment, read over NBD.

use std::path::PathBuf;
use std::sync::Arc;

use keepmark_model::seam::{self, FrozenDisk, Recycler};
use keepmark_model::{DiskName, Extent, Extents, Size};
use keepmark_nbd::{Address, BufferPool, Client, Options, Request};

use crate::error::{Error, Result};
use crate::reading::read_ahead;
use crate::space::Validity;

const ALLOCATION: &str = "base:allocation";
const IS_HOLE: u64 = 1;
const READS_AS_ZERO: u64 = 1 << 1;
const IS_DIRTY: u64 = 1;
// Idle buffers kept: what is on its way from QEMU and, behind us, through hashing and compression.
const BUFFERS_KEPT: usize = 48;
// A single buffer is at most this long; longer ranges come in pieces.
const PIECE_BYTES_MAX: u64 = 16 << 20;
// Asking QEMU about a gap costs less than another question.
const GAP_BYTES_MAX: u64 = 64 << 20;

/// How to get at an exported disk.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) disk: DiskName,
    pub(crate) socket: PathBuf,
    pub(crate) export: String,
    pub(crate) dirty: Dirty,
    /// An export of the disk as it is now with all its images, where the moment's export knows of zeros in the active image only.
    pub(crate) now: Option<String>,
    /// Whether the moment still holds, where it may be given up in the guest's favour without a reading error.
    pub(crate) validity: Option<Validity>,
}

/// Where the delta comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dirty {
    /// None was asked for.
    Unknown,
    /// A meta context of the export.
    Context(String),
    /// All counts as changed.
    Everything,
}

/// An open disk: one client of its export.
pub(crate) struct NbdDisk {
    opening: Opening,
    client: Client,
    now: Option<Client>,
    pool: BufferPool,
}

/// Connects to a disk's export.
pub(crate) fn open(opening: &Opening) -> Result<NbdDisk> {
    let mut contexts = vec![ALLOCATION.to_owned()];
    if let Dirty::Context(context) = &opening.dirty {
        contexts.push(context.clone());
    }
    let connect = |export: &str, contexts: Vec<String>| {
        let options = Options { contexts, ..Options::new(export) };
        Client::connect(&Address::Unix(opening.socket.clone()), &options).map_err(|source| failed(opening, source))
    };
    let client = connect(&opening.export, contexts)?;
    let now = opening.now.as_ref().map(|export| connect(export, vec![ALLOCATION.to_owned()])).transpose()?;
    Ok(NbdDisk { opening: opening.clone(), client, now, pool: BufferPool::new(BUFFERS_KEPT) })
}

fn failed(opening: &Opening, source: keepmark_nbd::Error) -> Error {
    Error::Read { disk: opening.disk.to_string(), source }
}

impl NbdDisk {
    fn statuses(&mut self, context: &str, range: Extent, take: impl Fn(u64) -> bool) -> Result<Extents> {
        let mut found = Extents::new();
        let each = &mut |status: keepmark_nbd::Status| {
            if take(status.flags) {
                found.push(Extent::at(status.offset, status.length));
            }
            Ok(())
        };
        self.client.block_status_each(context, range.start, range.len(), each).map_err(|source| failed(&self.opening, source))?;
        self.opening.validity.as_ref().map_or(Ok(()), Validity::check)?;
        Ok(found)
    }

    // The moment's export calls a range a hole that does not read as zeros if the active image has nothing there: then it has not been
    // written since the moment, and what the images below hold there is what they held then. Those are asked first: had the guest
    // written in between, the moment's export would call it data by now.
    fn data_in(&mut self, range: Extent) -> Result<Extents> {
        let Some(now) = &mut self.now else { return self.statuses(ALLOCATION, range, |flags| flags & READS_AS_ZERO == 0) };
        let mut zero_now = Extents::new();
        let each = &mut |status: keepmark_nbd::Status| {
            if status.flags & READS_AS_ZERO != 0 {
                zero_now.push(Extent::at(status.offset, status.length));
            }
            Ok(())
        };
        now.block_status_each(ALLOCATION, range.start, range.len(), each).map_err(|source| failed(&self.opening, source))?;
        let (mut data, mut below) = (Extents::new(), Extents::new());
        let each = &mut |status: keepmark_nbd::Status| {
            let extent = Extent::at(status.offset, status.length);
            match status.flags & (IS_HOLE | READS_AS_ZERO) {
                0 => data.push(extent),
                IS_HOLE => below.push(extent),
                _ => {}
            }
            Ok(())
        };
        self.client.block_status_each(ALLOCATION, range.start, range.len(), each).map_err(|source| failed(&self.opening, source))?;
        Ok(data.union(&below.difference(&zero_now)))
    }

    fn data_within(&mut self, within: &Extents) -> Result<Extents> {
        let size = self.client.info().size;
        let mut found = Extents::new();
        for range in spans(&within.clip(Size(size))).iter() {
            self.data_in(range)?.iter().for_each(|extent| found.push(extent));
        }
        Ok(found.intersection(within))
    }
}

impl FrozenDisk for NbdDisk {
    fn size(&self) -> Size {
        Size(self.client.info().size)
    }

    fn dirty(&mut self) -> seam::Result<Extents> {
        let whole = Extent::new(0, self.client.info().size);
        match self.opening.dirty.clone() {
            Dirty::Unknown => Err(Error::NoDelta { disk: self.opening.disk.to_string() }.into()),
            Dirty::Everything => Ok(Extents::from_iter([whole])),
            Dirty::Context(context) => Ok(self.statuses(&context, whole, |flags| flags & IS_DIRTY != 0)?),
        }
    }

    fn data(&mut self, within: &Extents) -> seam::Result<Extents> {
        // Without the context (a server that knows no holes) anything may hold data.
        if self.client.info().contexts.iter().any(|context| context == ALLOCATION) {
            Ok(self.data_within(within)?)
        } else {
            Ok(within.clip(self.size()))
        }
    }

    fn read(
        &mut self,
        ranges: &mut dyn Iterator<Item = Extent>,
        sink: &mut dyn FnMut(Extent, Vec<u8>) -> seam::Result<()>,
    ) -> seam::Result<()> {
        let opening = &self.opening;
        let mut take = |request: Request, bytes: Vec<u8>| sink(Extent::at(request.offset, u64::from(request.length)), bytes);
        let failed = |source| failed(opening, source);
        read_ahead(&mut self.client, &self.pool, opening.validity.as_ref(), &mut ranges.flat_map(pieces), &mut take, &failed)
    }

    fn recycler(&self) -> Recycler {
        let pool = self.pool.clone();
        Arc::new(move |buffer| pool.put(buffer))
    }
}

// Neighbours with small gaps become one question: a scattered delta would otherwise cost a round trip per run.
fn spans(within: &Extents) -> Extents {
    let mut spans: Vec<Extent> = Vec::new();
    for extent in within.iter() {
        match spans.last_mut() {
            Some(last) if extent.start - last.end <= GAP_BYTES_MAX => last.end = extent.end,
            _ => spans.push(extent),
        }
    }
    spans.into_iter().collect()
}

fn pieces(range: Extent) -> impl Iterator<Item = Request> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let length = u32::try_from((range.end.saturating_sub(next)).min(PIECE_BYTES_MAX)).ok().filter(|length| *length > 0)?;
        let request = Request { offset: next, length };
        next += u64::from(length);
        Some(request)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_extents_are_asked_about_together() {
        let far = GAP_BYTES_MAX * 3;
        let within: Extents = [Extent::new(0, 10), Extent::new(4096, 5000), Extent::at(far, 10)].into_iter().collect();
        assert_eq!(spans(&within).iter().collect::<Vec<_>>(), [Extent::new(0, 5000), Extent::at(far, 10)]);
    }

    #[test]
    fn long_ranges_come_in_pieces() {
        let all: Vec<Request> = pieces(Extent::new(5, 2 * PIECE_BYTES_MAX + 10)).collect();
        assert_eq!(all.iter().map(|r| u64::from(r.length)).sum::<u64>(), 2 * PIECE_BYTES_MAX + 5);
        assert_eq!((all.len(), all[0].offset), (3, 5));
        assert_eq!(pieces(Extent::new(7, 7)).count(), 0);
    }
}
