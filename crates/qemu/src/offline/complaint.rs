//! What QEMU's complaints about an image mean.

use std::path::Path;

use crate::error::Error;
use crate::holders;

/// QEMU's complaint about a lock, as the error that names who has it.
pub(crate) fn explain(error: Error, image: &Path) -> Error {
    let is_locked = if let Error::Program { message: words, .. } | Error::Refused { description: words, .. } = &error {
        words.contains("Failed to get") && words.contains(" lock")
    } else {
        false
    };
    if is_locked { Error::ImageInUse { image: image.to_owned(), holders: holders::of(image) } } else { error }
}
