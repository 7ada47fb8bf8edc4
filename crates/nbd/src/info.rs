//! What a server says about an export.

use crate::wire::export_flag;

/// The sizes of requests that a server takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of this; a power of two.
    pub minimum: u32,
    /// What the server likes best.
    pub preferred: u32,
    /// The longest read or write.
    pub maximum: u32,
}

impl BlockSizes {
    /// What the specification assumes of a server that says nothing.
    pub const DEFAULT: BlockSizes = BlockSizes { minimum: 1, preferred: 4096, maximum: 32 << 20 };
}

/// What a server says about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// In bytes; fits a signed 64-bit number.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Several connections see the same data.
    pub multi_conn: bool,
    /// The sizes of requests that the server takes.
    pub block_sizes: BlockSizes,
    /// Structured replies (holes, block status) were negotiated.
    pub structured: bool,
    /// 64-bit requests were negotiated.
    pub extended_headers: bool,
    /// The meta contexts granted, in the order of [`crate::Options::contexts`].
    pub contexts: Vec<String>,
    /// The export takes [`crate::Client::trim`].
    pub can_trim: bool,
    /// The export takes [`crate::Client::write_zeroes`].
    pub can_zero: bool,
    /// The export takes [`crate::Client::flush`].
    pub can_flush: bool,
    /// The export takes writes that are durable when they are answered.
    pub can_fua: bool,
    /// Block status can be asked for some of the contexts only.
    pub can_select_contexts: bool,
}

impl ExportInfo {
    /// Reads the transmission flags of a server whose replies are `structured` or `extended_headers`.
    pub(crate) fn from_flags(size: u64, flags: u16, structured: bool, extended_headers: bool) -> Self {
        let has = |flag: u16| flags & flag != 0;
        ExportInfo {
            size,
            read_only: has(export_flag::READ_ONLY),
            multi_conn: has(export_flag::MULTI_CONN),
            block_sizes: BlockSizes::DEFAULT,
            structured,
            extended_headers,
            contexts: Vec::new(),
            can_trim: has(export_flag::TRIM),
            can_zero: has(export_flag::WRITE_ZEROES),
            can_flush: has(export_flag::FLUSH),
            can_fua: has(export_flag::FUA),
            can_select_contexts: extended_headers && has(export_flag::STATUS_PAYLOAD),
        }
    }
}
