//! A powered-off VM: its images, opened by a qemu-storage-daemon of our own and spoken to as a running QEMU.

pub(crate) mod daemon;
mod guard;
pub(crate) mod nodes;
pub mod probe;
mod writing;

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_model::facts::{Power, VmFacts};
use keepmark_model::manifest::Consistency;
use keepmark_model::seam::{self, Definition, FrozenPoint, Hypervisor, Moment, PointRequest};
use keepmark_model::writing::{Rest, Unfinished, WriteRequest, Writing};
use keepmark_model::{CheckpointName, DiskName, VmIdentity};
use serde_json::{Value, json};

use crate::disks::naming::{Names, stem};
use crate::disks::reply::Node;
use crate::disks::{Disk, naming};
use crate::error::{Error, Result};
use crate::live::{keep_checkpoint, merge, transact};
use crate::point::undo::Undo;
use crate::point::{Guards, Point, export, target};
use crate::temporary::Temporary;
use crate::workspace::{VmLock, Workspace};
use crate::{bitmaps, definition};
use daemon::Daemon;
use guard::Place;
use probe::Chain;

/// Which images make up a powered-off VM.
#[derive(Debug, Clone)]
pub struct OfflineOptions {
    /// Images, each with the label that is its disk's name, or without: then its file's stem is.
    pub images: Vec<(Option<String>, PathBuf)>,
    /// Images whose format their owner says. Others are probed, and a guest can write any header into a raw image.
    pub formats: Vec<(PathBuf, String)>,
    /// The VM's name; the first disk's without.
    pub name: Option<String>,
    /// The VM's UUID, if known: with it, backups taken while it ran are the same sequence.
    pub uuid: Option<String>,
    /// Where sockets and locks go; short, since a socket's path has 107 bytes. Made when missing.
    pub run_dir: PathBuf,
    /// How long qemu-storage-daemon may take for any command.
    pub command_timeout: Duration,
    /// Whether images that an earlier revert left half written are opened: for the one who finishes it.
    pub half_reverted: bool,
}

impl OfflineOptions {
    /// The defaults for some images.
    #[must_use]
    pub fn new(images: Vec<(Option<String>, PathBuf)>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            images,
            formats: Vec::new(),
            name: None,
            uuid: None,
            run_dir: run_dir.into(),
            command_timeout: Duration::from_secs(30),
            half_reverted: false,
        }
    }
}

/// A powered-off VM.
///
/// Its images are opened for reading only until something is to be written to them (a checkpoint made or removed): opening
/// them for writing marks all their bitmaps as in use, so that dying then costs them all.
#[derive(Debug)]
pub struct Offline {
    images: Vec<Image>,
    identity: VmIdentity,
    options: OfflineOptions,
    // Before the locks, so that the images are closed before they are free.
    daemon: Option<Opened>,
    _locks: Vec<VmLock>,
}

#[derive(Debug)]
struct Image {
    name: DiskName,
    chain: Chain,
    // As its owner calls it.
    path: PathBuf,
    // As its owner says it.
    format: Option<String>,
    place: Place,
    // To which backup it is half reverted.
    half: Option<String>,
}

impl Image {
    // The name by which it is to be opened: its owner's own words, as long as it has its name.
    fn reachable(&self) -> &Path {
        if self.place.backup().is_some() { self.place.current() } else { &self.path }
    }
}

#[derive(Debug)]
struct Opened {
    daemon: Daemon,
    is_writable: bool,
}

impl Offline {
    /// Looks at the images and locks them against other keepmarks until dropped.
    ///
    /// # Errors
    /// When an image cannot be read, is in use by another process, or names clash.
    pub fn open(options: OfflineOptions) -> Result<Self> {
        let mut names = Names::default();
        let mut images: Vec<Image> = Vec::new();
        let mut locks = Vec::new();
        for (label, path) in &options.images {
            let path = std::path::absolute(path).map_err(crate::error::file("find", path))?;
            let place = Place::find(&path)?;
            let half = place.backup();
            if let Some(backup) = half.clone().filter(|_| !options.half_reverted) {
                return Err(Error::HalfReverted { subject: format!("image {}", path.display()), backup });
            }
            let reachable = if half.is_some() { place.current() } else { &path };
            locks.push(VmLock::take(&options.run_dir, reachable)?);
            let format = options.formats.iter().find(|(image, _)| *image == path).map(|(_, format)| format.clone());
            let chain = probe::chain(reachable, format.as_deref())?;
            let name = name(label.as_deref(), &path, &images, &mut names)?;
            images.push(Image { name, chain, path, format, place, half });
        }
        let identity = identify(&options, &images)?;
        Ok(Self { images, identity, options, daemon: None, _locks: locks })
    }

    // Opens what is not open yet, or opens it again for writing.
    fn daemon(&mut self, writable: bool) -> Result<&mut Daemon> {
        let mut opened = match self.daemon.take() {
            Some(opened) => opened,
            None => Opened { daemon: Daemon::start(&self.options.run_dir, self.options.command_timeout)?, is_writable: !writable },
        };
        let is_new = !has_nodes(&mut opened.daemon)?;
        if is_new || (writable && !opened.is_writable) {
            if !is_new {
                self.remove_nodes(&mut opened.daemon)?;
            }
            self.add_nodes(&mut opened.daemon, writable)?;
            opened.is_writable = writable;
        }
        Ok(&mut self.daemon.insert(opened).daemon)
    }

    fn add_nodes(&self, daemon: &mut Daemon, writable: bool) -> Result<()> {
        for (number, image) in self.images.iter().enumerate() {
            let active = std::path::Path::new(&image.chain.layers[0].filename);
            for definition in nodes::definitions(number, &image.chain.layers, writable) {
                daemon.qmp.run("blockdev-add", definition).map_err(|error| probe::explain(error, active))?;
            }
        }
        Ok(())
    }

    fn remove_nodes(&self, daemon: &mut Daemon) -> Result<()> {
        for (number, image) in self.images.iter().enumerate() {
            for layer in 0..image.chain.layers.len() {
                daemon.qmp.run("blockdev-del", json!({ "node-name": nodes::node_name(number, layer) }))?;
            }
        }
        Ok(())
    }

    fn disks(&mut self, writable: bool) -> Result<(Vec<Disk>, Vec<Node>)> {
        let nodes: Vec<Node> = self.daemon(writable)?.qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
        let disk = |(number, image): (usize, &Image)| {
            nodes::disk(number, &image.name, &image.chain.layers, &nodes).ok_or_else(|| Error::Image {
                image: image.chain.layers[0].filename.clone().into(),
                problem: "qemu-storage-daemon does not tell of it".into(),
            })
        };
        let disks = self.images.iter().enumerate().map(disk).collect::<Result<_>>()?;
        Ok((disks, nodes))
    }

    fn look(&mut self) -> Result<VmFacts> {
        let (disks, _) = self.disks(false)?;
        let version = self.daemon(false)?.qmp.version();
        Ok(VmFacts {
            identity: self.identity.clone(),
            power: Power::Off,
            hypervisor: format!("qemu-storage-daemon {version}"),
            disks: disks.into_iter().map(|disk| disk.facts).collect(),
            skipped: Vec::new(),
            agent: false,
        })
    }

    fn point(&mut self, request: &PointRequest) -> Result<Point<'_>> {
        let (disks, nodes) = self.disks(request.checkpoint.is_some())?;
        let targets = target::targets(&disks, &nodes, request)?;
        let names = Temporary::new(&request.run);
        let workspace = Workspace::create(&self.options.run_dir, names.run())?;
        let socket = workspace.path().join("nbd");
        let qmp = &mut self.daemon(false)?.qmp;
        let (pause, consistency) = (Duration::ZERO, Consistency::Application);
        let moment = Moment { pause, frozen: None, consistency, findings: Vec::new(), notes: Vec::new() };
        // From here on, dropping the point takes back whatever was done.
        let mut point = Point {
            qmp,
            undo: Undo::default(),
            moment,
            openings: Vec::new(),
            guards: Guards::default(),
            names: names.clone(),
            sources: Vec::new(),
            _workspace: workspace,
        };
        let checkpoint = request.checkpoint.as_ref();
        transact(point.qmp, target::beginning(&targets, checkpoint, &names), &targets, checkpoint, &names, &mut point.undo)?;
        merge(point.qmp, &targets, &names)?;
        export::start_server(point.qmp, &socket, &mut point.undo)?;
        let exported: Vec<String> = targets.iter().map(|target| target.active.clone()).collect();
        let manner = export::Manner { search: export::Search::Node, writable: false };
        point.openings = export::add_exports(point.qmp, &targets, &exported, &names, manner, &socket, &mut point.undo)?;
        keep_checkpoint(&mut point.undo, request);
        Ok(point)
    }
}

fn has_nodes(daemon: &mut Daemon) -> Result<bool> {
    let nodes: Vec<Value> = daemon.qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
    Ok(!nodes.is_empty())
}

fn name(label: Option<&str>, path: &std::path::Path, others: &[Image], names: &mut Names) -> Result<DiskName> {
    let usage = |value: &str, problem: &str| Error::Usage { what: "disk label", value: value.to_owned(), problem: problem.to_owned() };
    if let Some(label) = label {
        DiskName::new(label).map_err(|error| usage(label, &error.to_string()))?;
        if others.iter().any(|image| image.name.as_str() == label) {
            return Err(usage(label, "another disk is called so"));
        }
    }
    let file = stem(&naming::location(&path.to_string_lossy()));
    names.pick([label.map(str::to_owned), file]).ok_or_else(|| usage(&path.to_string_lossy(), "no name can be made of it"))
}

fn identify(options: &OfflineOptions, images: &[Image]) -> Result<VmIdentity> {
    let name = options.name.clone().or_else(|| images.first().map(|image| image.name.to_string())).unwrap_or_default();
    VmIdentity::new(&name, options.uuid.as_deref()).map_err(|error| Error::Usage {
        what: "identity",
        value: name,
        problem: error.to_string(),
    })
}

impl Hypervisor for Offline {
    fn facts(&mut self) -> seam::Result<VmFacts> {
        Ok(self.look()?)
    }

    fn clean_up(&mut self) -> seam::Result<Vec<String>> {
        Ok(Workspace::sweep(&self.options.run_dir)?)
    }

    fn begin(&mut self, request: &PointRequest) -> seam::Result<Box<dyn FrozenPoint + '_>> {
        Ok(Box::new(self.point(request)?))
    }

    fn remove_checkpoints(&mut self, names: &[CheckpointName]) -> seam::Result<()> {
        let (disks, _) = self.disks(false)?;
        if !names.iter().any(|name| disks.iter().any(|disk| !disk.carriers(name).is_empty())) {
            return Ok(());
        }
        let (_, nodes) = self.disks(true)?;
        Ok(bitmaps::remove(&mut self.daemon(true)?.qmp, &nodes, names)?)
    }

    fn definition(&mut self) -> seam::Result<Definition> {
        let images = self.images.iter().map(|image| json!({ "disk": image.name, "chain": image.chain.reply })).collect();
        Ok(vec![definition::of_images(&Value::Array(images), &self.identity)].into())
    }

    fn rest(&mut self) -> seam::Result<Rest> {
        Ok(Rest::Resting { by_us: false })
    }

    fn unfinished(&mut self) -> seam::Result<Vec<Unfinished>> {
        Ok(self.half_written())
    }

    fn power_down(self: Box<Self>, _: Duration, _: &dyn Fn() -> bool) -> seam::Result<Box<dyn Hypervisor>> {
        Ok(self)
    }

    fn begin_writing(&mut self, request: &WriteRequest) -> seam::Result<Box<dyn Writing + '_>> {
        Ok(Box::new(self.write(request)?))
    }

    fn start(self: Box<Self>) -> seam::Result<()> {
        self.close()
    }

    fn close(mut self: Box<Self>) -> seam::Result<()> {
        match self.daemon.take() {
            Some(opened) => Ok(opened.daemon.quit()?),
            None => Ok(()),
        }
    }
}
