//! What a powered-off image says of itself, by `qemu-img info`, which opens it for reading only. Parsing is pure.

use std::ffi::OsStr;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::{holders, program};

/// One image of a backing chain.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Layer {
    /// Where it is.
    pub filename: String,
    /// Its format, as probed (the active image) or as its overlay says (backing images).
    pub format: String,
}

/// An image and all below it, the active one first, and the reply that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// The images.
    pub layers: Vec<Layer>,
    /// `qemu-img info`'s own words.
    pub reply: Value,
}

/// Asks for an image and its backing chain. Changes nothing. Without `format` the active image's is probed.
///
/// # Errors
/// [`Error::ImageInUse`] when another process writes to it; otherwise when it cannot be opened or has parts that are no files.
pub fn chain(image: &Path, format: Option<&str>) -> Result<Chain> {
    let said: Vec<&OsStr> = format.into_iter().flat_map(|format| ["-f".as_ref(), format.as_ref()]).collect();
    let question = ["info".as_ref(), "--output=json".as_ref(), "--backing-chain".as_ref()];
    let reply =
        program::run("qemu-img", question.into_iter().chain(said).chain([image.as_os_str()])).map_err(|error| explain(error, image))?;
    let reply: Value = serde_json::from_slice(&reply).map_err(|source| Error::Reply { command: "qemu-img info".into(), source })?;
    read(image, reply)
}

fn read(image: &Path, reply: Value) -> Result<Chain> {
    let layers: Vec<Layer> =
        serde_json::from_value(reply.clone()).map_err(|source| Error::Reply { command: "qemu-img info".into(), source })?;
    let problem = |problem: String| Error::Image { image: image.to_owned(), problem };
    let Some(active) = layers.first() else { return Err(problem("qemu-img tells nothing of it".into())) };
    // A guest can write any header into a raw disk; what calls itself raw and is not, is not believed.
    if image.extension().is_some_and(|extension| extension == "raw") && active.format != "raw" {
        return Err(problem(format!("it is called raw, but has the header of a {} image, which a guest may have written", active.format)));
    }
    match layers.iter().find(|layer| layer.filename.contains("://") || layer.filename.starts_with("json:")) {
        Some(layer) => Err(problem(format!("its backing image {} is no file", layer.filename))),
        None => Ok(Chain { layers, reply }),
    }
}

/// QEMU's complaint about a lock, as the error that names who has it.
pub(crate) fn explain(error: Error, image: &Path) -> Error {
    let is_locked = if let Error::Program { message: words, .. } | Error::Refused { description: words, .. } = &error {
        words.contains("Failed to get") && words.contains(" lock")
    } else {
        false
    };
    if is_locked { Error::ImageInUse { image: image.to_owned(), holders: holders::of(image) } } else { error }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(image: &str, reply: Value) -> Result<Chain> {
        read(Path::new(image), reply)
    }

    #[test]
    fn layers_come_in_order_and_must_be_files() {
        let chain = of("/a.qcow2", json!([{ "filename": "/a.qcow2", "format": "qcow2" }, { "filename": "/b", "format": "raw" }])).unwrap();
        assert_eq!(chain.layers.iter().map(|layer| layer.format.as_str()).collect::<Vec<_>>(), ["qcow2", "raw"]);
        for far in ["nbd://host/x", "json:{}"] {
            let error =
                of("/a.qcow2", json!([{ "filename": "/a.qcow2", "format": "qcow2" }, { "filename": far, "format": "raw" }])).unwrap_err();
            assert!(error.to_string().contains("is no file"), "{error}");
        }
        assert!(of("/a", json!([])).is_err() && of("/a", json!({})).is_err());
    }

    #[test]
    fn a_header_in_a_file_called_raw_is_not_believed() {
        assert!(of("/a.raw", json!([{ "filename": "/a.raw", "format": "qcow2" }])).unwrap_err().to_string().contains("guest"));
        assert!(of("/a.raw", json!([{ "filename": "/a.raw", "format": "raw" }])).is_ok());
    }
}
