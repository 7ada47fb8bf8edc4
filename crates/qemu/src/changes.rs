//! Changing a disk in place through its writable export, many changes on their way at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keepmark_model::seam;
use keepmark_model::writing::{Change, DiskChanges};
use keepmark_model::{Extent, Extents};
use keepmark_nbd::{Address, Client, Options};

use crate::disk::Opening;
use crate::error::{Error, Result};

const IN_FLIGHT: usize = 16;
// Zeros wait until the data before them have been written, since each of them is a question and an answer.
const ZEROS_WAITING_MAX: usize = 4096;

/// One connection to a disk that is being changed.
pub(crate) struct NbdChanges {
    client: Client,
    disk: String,
    touched: Arc<AtomicBool>,
}

impl NbdChanges {
    /// Connects. `touched` becomes true before the first change.
    pub(crate) fn open(opening: &Opening, touched: &Arc<AtomicBool>) -> Result<Self> {
        let disk = opening.disk.to_string();
        let client = Client::connect(&Address::Unix(opening.socket.clone()), &Options::new(&opening.export));
        let client = client.map_err(|source| Error::DiskWrite { disk: disk.clone(), source })?;
        Ok(Self { client, disk, touched: Arc::clone(touched) })
    }

    // Writes data until none is left or enough zeros have gathered; whether none is left.
    fn round(&mut self, changes: &mut dyn Iterator<Item = Change>) -> keepmark_nbd::Result<bool> {
        let (mut zeros, mut is_over) = (Vec::<Extent>::new(), false);
        let touched = &self.touched;
        let mut data = std::iter::from_fn(|| {
            while zeros.len() < ZEROS_WAITING_MAX {
                let change = changes.next();
                touched.fetch_or(change.is_some(), Ordering::SeqCst);
                match change {
                    Some(Change::Data { offset, bytes }) => return Some(Ok::<_, keepmark_nbd::Error>((offset, bytes))),
                    Some(Change::Zero(extent)) => zeros.push(extent),
                    None => {
                        is_over = true;
                        return None;
                    }
                }
            }
            None
        });
        self.client.write_many(&mut data, IN_FLIGHT)?;
        zeros.into_iter().collect::<Extents>().iter().try_for_each(|extent| self.client.write_zeroes(extent.start, extent.len()))?;
        Ok(is_over)
    }

    fn failed(&self) -> impl FnOnce(keepmark_nbd::Error) -> Error {
        let disk = self.disk.clone();
        |source| Error::DiskWrite { disk, source }
    }
}

impl DiskChanges for NbdChanges {
    fn apply(&mut self, changes: &mut dyn Iterator<Item = Change>) -> seam::Result<()> {
        while !self.round(changes).map_err(self.failed())? {}
        Ok(())
    }

    fn flush(&mut self, interrupted: &dyn Fn() -> bool) -> seam::Result<()> {
        Ok(self.client.flush_unless(interrupted).map_err(self.failed())?)
    }
}
