//! A chain of images, open in QEMU's tools, and what is known of its content over NBD.

use std::path::PathBuf;

use keepmark_model::failure::in_one_line;
use keepmark_model::images::{Access, ImageTools, OpenImage};
use keepmark_model::{Extent, Extents, FailureClass};
use keepmark_nbd::{Address, BufferPool, Client, Options, Request, Status};

use crate::error::{Error, Result};
use crate::images::shelf::Layer;

const ALLOCATION: &str = "base:allocation";
const DEPTH: &str = "qemu:allocation-depth";
const PIECE_BYTES: u64 = 1 << 20;
const READS_AS_ZERO: u64 = 1 << 1;

/// An open chain.
pub struct Medium {
    image: Box<dyn OpenImage>,
    path: PathBuf,
}

impl Medium {
    /// Opens images of a chain, the first one on the others. When it is refused, published ones among them are damaged.
    pub fn open(tools: &dyn ImageTools, chain: Vec<PathBuf>, access: Access) -> Result<Self> {
        let opened = tools.open(&chain, access);
        let has_published = access == Access::Read || chain.len() > 1;
        let path = chain.into_iter().next().unwrap_or_default();
        let image = opened.map_err(|failure| {
            let is_damage = has_published && failure.class() == FailureClass::Failed;
            if is_damage { Error::damaged("image", path.display(), in_one_line(&failure)) } else { Error::Sink(failure) }
        })?;
        Ok(Self { image, path })
    }

    /// Opens a chain for reading.
    pub fn read(tools: &dyn ImageTools, chain: &[Layer]) -> Result<Self> {
        Self::open(tools, chain.iter().map(|layer| layer.path.clone()).collect(), Access::Read)
    }

    /// A connection of its own for each thread.
    pub fn client(&self) -> Result<Reader> {
        self.connect(&[ALLOCATION])
    }

    /// One that can also tell [in which image](Reader::in_top) content lies. QEMU answers everything that was agreed on each time it is
    /// asked for anything, and walks through the whole chain for it.
    pub fn client_with_depth(&self) -> Result<Reader> {
        self.connect(&[ALLOCATION, DEPTH])
    }

    fn connect(&self, contexts: &[&str]) -> Result<Reader> {
        let contexts = contexts.iter().map(|context| (*context).to_owned()).collect();
        // How long the store's file system may take is not ours to say.
        let options = Options { contexts, timeout: None, ..Options::new(self.image.export()) };
        let client = Client::connect(&Address::Unix(self.image.socket().to_owned()), &options);
        Ok(Reader { client: client.map_err(|source| failed("open", &self.path, source))?, path: self.path.clone() })
    }

    /// Closes it; all clients must be done.
    pub fn close(self) -> Result<()> {
        Ok(self.image.close()?)
    }
}

/// A connection to an open chain.
pub struct Reader {
    /// The connection itself.
    pub client: Client,
    path: PathBuf,
}

impl Reader {
    /// What of some ranges may hold something else than zeros.
    pub fn data(&mut self, within: &Extents) -> Result<Extents> {
        let mut data = Extents::new();
        for range in within.iter() {
            let found = self.statuses(ALLOCATION, range, |flags| flags & READS_AS_ZERO == 0)?;
            found.iter().for_each(|extent| data.push(extent));
        }
        Ok(data)
    }

    /// What of a range has its content in one of the uppermost `layers` images.
    pub fn in_top(&mut self, range: Extent, layers: u64) -> Result<Extents> {
        self.statuses(DEPTH, range, |depth| (1..=layers).contains(&depth))
    }

    fn statuses(&mut self, context: &str, range: Extent, take: impl Fn(u64) -> bool) -> Result<Extents> {
        let mut found = Extents::new();
        let range = Extent::new(range.start, range.end.min(self.client.info().size));
        let each = &mut |status: Status| {
            if take(status.flags) {
                found.push(Extent::at(status.offset, status.length));
            }
            Ok(())
        };
        let asked = self.client.block_status_each(context, range.start, range.len(), each);
        asked.map_err(|source| unreadable(&self.path, &source))?;
        Ok(found)
    }

    /// Fills a buffer; what lies beyond the image is zero.
    pub fn fill(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let inside = usize::try_from(self.client.info().size.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
        let (inside, beyond) = buffer.split_at_mut(inside);
        beyond.fill(0);
        self.client.read_exact_at(offset, inside).map_err(|source| unreadable(&self.path, &source))
    }

    /// Writes bytes.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.client.write_all_at(offset, bytes).map_err(|source| failed("write", &self.path, source))
    }

    /// Makes a range zero, explicitly where something lies below.
    pub fn zero(&mut self, range: Extent) -> Result<()> {
        self.client.write_zeroes(range.start, range.len()).map_err(|source| failed("write", &self.path, source))
    }

    /// Makes all that was written through any connection durable.
    pub fn flush(&mut self) -> Result<()> {
        self.client.flush().map_err(|source| failed("sync", &self.path, source))
    }

    /// Reads pieces, several at once, and hands each over as it completes.
    pub fn read_each(
        &mut self,
        wanted: &mut dyn Iterator<Item = Request>,
        in_flight: usize,
        pool: &BufferPool,
        sink: &mut dyn FnMut(Request, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let read = self.client.read_many(wanted, in_flight, pool, &mut |request, bytes| {
            sink(request, &bytes).map_err(Stop::Sink)?;
            pool.put(bytes);
            Ok(())
        });
        read.map_err(|stop| match stop {
            Stop::Source(source) => unreadable(&self.path, &source),
            Stop::Sink(error) => error,
        })
    }
}

/// Why reading ended early.
enum Stop {
    Source(keepmark_nbd::Error),
    Sink(Error),
}

impl From<keepmark_nbd::Error> for Stop {
    fn from(error: keepmark_nbd::Error) -> Self {
        Self::Source(error)
    }
}

/// Cuts a range into requests.
pub fn pieces(extent: Extent) -> impl Iterator<Item = Request> {
    let step = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
    (extent.start..extent.end).step_by(step).map(move |offset| {
        let length = u32::try_from((extent.end - offset).min(PIECE_BYTES)).unwrap_or_default();
        Request { offset, length }
    })
}

fn failed(action: &'static str, image: &std::path::Path, source: keepmark_nbd::Error) -> Error {
    Error::Image { action, image: image.to_owned(), source: Box::new(source) }
}

/// An image that QEMU cannot read is damaged, or its file system is.
fn unreadable(image: &std::path::Path, source: &keepmark_nbd::Error) -> Error {
    Error::damaged("image", image.display(), format!("it cannot be read: {source}"))
}
