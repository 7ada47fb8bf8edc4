//! The image store's tools: `qemu-img`, and one qemu-storage-daemon that opens chains and serves them over NBD.
//!
//! Each node of a chain is named and given its file, its format and what lies below it: QEMU follows no name that an image has in its
//! header.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keepmark_model::Size;
use keepmark_model::images::{Access, ImageCheck, ImageTools, OpenImage};
use keepmark_model::opening::{Permit, Purpose};
use keepmark_model::seam;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result, text};
use crate::offline::complaint::explain;
use crate::offline::daemon::Daemon;
use crate::opening::{Manner, node};
use crate::point::undo::delete_export;
use crate::program;

// A chain of a year is opened image by image, from a disk that may be busy.
const COMMAND_WAIT: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX: u32 = 1000;

/// QEMU's tools for an image store. The daemon is started when it is needed first and lives as long as this.
#[derive(Debug)]
pub struct QemuImages {
    run_dir: PathBuf,
    daemon: Mutex<Option<Arc<Shared>>>,
}

/// A daemon that several open images share.
#[derive(Debug)]
struct Shared {
    daemon: Mutex<Daemon>,
    socket: PathBuf,
    opened: AtomicU64,
}

/// A chain in the daemon.
#[derive(Debug)]
struct Opened {
    shared: Arc<Shared>,
    export: String,
    nodes: Vec<String>,
    is_exported: bool,
}

impl QemuImages {
    /// Tools whose sockets go under `run_dir`.
    #[must_use]
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self { run_dir: run_dir.into(), daemon: Mutex::default() }
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        let mut current = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = &*current
            && shared.answers()
        {
            return Ok(Arc::clone(shared));
        }
        let shared = Arc::new(Shared::start(&self.run_dir)?);
        *current = Some(Arc::clone(&shared));
        Ok(shared)
    }
}

impl Shared {
    fn start(run_dir: &Path) -> Result<Self> {
        let mut daemon = Daemon::start(run_dir, COMMAND_WAIT)?;
        let socket = daemon.workspace.path().join("nbd");
        let address = json!({ "type": "unix", "data": { "path": text(&socket)? } });
        daemon.qmp.run("nbd-server-start", json!({ "addr": address, "max-connections": CONNECTIONS_MAX }))?;
        Ok(Self { daemon: Mutex::new(daemon), socket, opened: AtomicU64::new(0) })
    }

    fn answers(&self) -> bool {
        self.run("query-status", Value::Null).map_or_else(|error| !error.is_unreachable(), |()| true)
    }

    fn run(&self, command: &str, arguments: Value) -> Result<()> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner).qmp.run(command, arguments)
    }

    fn open(self: &Arc<Self>, chain: &[PathBuf], access: Access) -> Result<Opened> {
        let number = self.opened.fetch_add(1, Ordering::Relaxed);
        let mut opened = Opened { shared: Arc::clone(self), export: format!("image{number}"), nodes: Vec::new(), is_exported: false };
        let (permit, purpose) = (Permit::of_store(chain), if access == Access::Read { Purpose::Read } else { Purpose::Write });
        for (layer, image) in permit.layers().iter().enumerate().rev() {
            let name = format!("image{number}-{layer}");
            let below = opened.nodes.last().map(String::as_str);
            let manner = Manner { name: &name, below, read_only: !permit.is_writable(layer, purpose), discard: true };
            self.run("blockdev-add", node(image, manner)?).map_err(|error| explain(error, &image.path))?;
            opened.nodes.push(name);
        }
        if access == Access::WriteCompressed {
            let (name, below) = (format!("image{number}-z"), opened.nodes.last().cloned().unwrap_or_default());
            self.run("blockdev-add", json!({ "driver": "compress", "node-name": name, "file": below }))?;
            opened.nodes.push(name);
        }
        let (top, writable) = (opened.nodes.last().cloned().unwrap_or_default(), access != Access::Read);
        let export = json!({ "type": "nbd", "id": opened.export, "name": opened.export, "node-name": top, "writable": writable,
            "allocation-depth": true });
        self.run("block-export-add", export)?;
        opened.is_exported = true;
        Ok(opened)
    }
}

impl Opened {
    fn take_back(&mut self) -> Result<()> {
        if std::mem::take(&mut self.is_exported) {
            let mut daemon = self.shared.daemon.lock().unwrap_or_else(PoisonError::into_inner);
            delete_export(&mut daemon.qmp, &self.export)?;
        }
        while let Some(node) = self.nodes.pop() {
            self.shared.run("blockdev-del", json!({ "node-name": node }))?;
        }
        Ok(())
    }
}

impl OpenImage for Opened {
    fn socket(&self) -> &Path {
        &self.shared.socket
    }

    fn export(&self) -> &str {
        &self.export
    }

    fn close(mut self: Box<Self>) -> seam::Result<()> {
        Ok(self.take_back()?)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Whoever wants to know closes it; the daemon's end takes back the rest.
        drop(self.take_back());
    }
}

/// What `qemu-img check` tells; a number that is not there is zero.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Checked {
    #[serde(default)]
    corruptions: u64,
    #[serde(default)]
    leaks: u64,
    check_errors: u64,
    #[serde(default)]
    compressed_clusters: u64,
    #[serde(default)]
    image_end_offset: u64,
}

impl ImageTools for QemuImages {
    fn create(&self, image: &Path, size: Size, backing: Option<&str>) -> seam::Result<()> {
        let mut command = vec!["create", "-q", "-f", "qcow2"];
        if let Some(backing) = backing {
            command.extend(["-u", "-b", backing, "-F", "qcow2"]);
        }
        let size = size.0.to_string();
        command.extend([text(image)?, &size]);
        Ok(program::run("qemu-img", command, program::CREATE_WAIT).map(drop)?)
    }

    fn open(&self, chain: &[PathBuf], access: Access) -> seam::Result<Box<dyn OpenImage>> {
        Ok(Box::new(self.shared()?.open(chain, access)?))
    }

    fn check(&self, image: &Path) -> seam::Result<ImageCheck> {
        Ok(check(image)?)
    }
}

fn check(image: &Path) -> Result<ImageCheck> {
    let storage = json!({ "driver": "file", "filename": text(image)? });
    let whole = format!("json:{}", json!({ "driver": "qcow2", "backing": null, "file": storage }));
    let output = program::output("qemu-img", ["check", "--output=json", &whole], program::CHECK_WAIT)?;
    // It ends with a status of its own when something is wrong, and tells what.
    if let Ok(found) = serde_json::from_slice::<Checked>(&output.stdout) {
        return Ok(ImageCheck {
            corruptions: found.corruptions.saturating_add(found.check_errors),
            leaks: found.leaks,
            compressed: found.compressed_clusters > 0,
            end: found.image_end_offset,
        });
    }
    program::check("qemu-img check", Ok(output))?;
    Err(Error::Image { image: image.to_owned(), problem: "qemu-img check says nothing of it".into() })
}
