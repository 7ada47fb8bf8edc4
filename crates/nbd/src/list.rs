//! Which meta contexts an export has.

use crate::address::{Address, Options};
use crate::error::Result;
use crate::handshake;
use crate::link::Link;

/// Names of all meta contexts of an export (`NBD_OPT_LIST_META_CONTEXT`), in the server's order.
/// Empty where the server has none or knows no structured replies. Waits as long as [`Options::default`] says.
pub fn list_contexts(address: &Address, export: &str) -> Result<Vec<String>> {
    let mut link = Link::connect(address, Options::default().timeout)?;
    handshake::list_contexts(&mut link, export)
}
