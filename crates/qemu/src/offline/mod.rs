//! A powered-off VM: its images, opened by a qemu-storage-daemon of our own and spoken to as a running QEMU.

pub(crate) mod complaint;
pub(crate) mod daemon;
mod guard;
mod nodes;
mod said;
mod still;
mod writing;

use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_model::facts::{Power, VmFacts};
use keepmark_model::manifest::{Consistency, StoredBackup};
use keepmark_model::opening::{Asked, Permit, Purpose, Storage, Words, permit};
use keepmark_model::seam::{self, Definition, FrozenPoint, Hypervisor, Moment, PointRequest};
use keepmark_model::writing::{Rest, Unfinished, WriteRequest, Writing};
use keepmark_model::{CheckpointName, DiskName, VmIdentity};
use serde_json::{Value, json};

use crate::disks::naming::{Names, stem};
use crate::disks::reply::Node;
use crate::disks::{Disk, naming};
use crate::error::{Error, Result};
use crate::live::{keep_checkpoint, merge, transact};
use crate::opening::look;
use crate::point::undo::Undo;
use crate::point::{Guards, Point, export, target};
use crate::temporary::Temporary;
use crate::workspace::{VmLock, Workspace};
use crate::{bitmaps, definition, identity};
use complaint::explain;
use daemon::Daemon;
use guard::Place;
pub use said::Said;
use still::{StillPoint, Stillness};

/// Which images make up a powered-off VM.
#[derive(Debug, Clone)]
pub struct OfflineOptions {
    /// Images, each with the label that is its disk's name, or without: then its file's stem is.
    pub images: Vec<(Option<String>, PathBuf)>,
    /// What is said of them, and by whom.
    pub said: Said,
    /// The VM's backups in the store that this is about, oldest first: they remember what its images are.
    pub history: Vec<StoredBackup>,
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
            said: Said::default(),
            history: Vec::new(),
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
    permit: Permit,
    // As its owner calls it.
    path: PathBuf,
    words: Words,
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
    purpose: Purpose,
    // Nodes that hold off writers.
    holds: Vec<String>,
    // Images from which they could not be held off.
    unheld: Vec<PathBuf>,
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
            let name = name(label.as_deref(), &path, &images, &mut names)?;
            let words = options.said.of(images.len(), &name);
            let permit = permitted(&name, &path, reachable, &words, &options.history)?;
            images.push(Image { name, permit, path, words, place, half });
        }
        options.said.check(images.iter().map(|image| &image.name))?;
        let identity = identify(&options, &images)?;
        let mut vm = Self { images, identity, options, daemon: None, _locks: locks };
        // Whether somebody has them in use is to be known now.
        vm.daemon(Purpose::Read)?;
        Ok(vm)
    }

    // Opens what is not open yet, or opens it again for more.
    fn daemon(&mut self, purpose: Purpose) -> Result<&mut Daemon> {
        let mut opened = match self.daemon.take() {
            Some(opened) => opened,
            None => Opened::new(Daemon::start(&self.options.run_dir, self.options.command_timeout)?),
        };
        let is_new = !has_nodes(&mut opened.daemon)?;
        if is_new || purpose > opened.purpose {
            if !is_new {
                self.remove_nodes(&mut opened)?;
            }
            self.add_nodes(&mut opened, purpose)?;
        }
        Ok(&mut self.daemon.insert(opened).daemon)
    }

    fn add_nodes(&self, opened: &mut Opened, purpose: Purpose) -> Result<()> {
        opened.purpose = purpose;
        for (number, image) in self.images.iter().enumerate() {
            for definition in nodes::definitions(number, &image.permit, purpose)? {
                opened.daemon.qmp.run("blockdev-add", definition).map_err(|error| explain(error, image.reachable()))?;
            }
            if purpose != Purpose::Write {
                opened.hold(number, &image.permit)?;
            }
        }
        Ok(())
    }

    fn remove_nodes(&self, opened: &mut Opened) -> Result<()> {
        let layers = |(number, image): (usize, &Image)| (0..image.permit.layers().len()).map(move |layer| nodes::node_name(number, layer));
        let layers: Vec<String> = self.images.iter().enumerate().flat_map(layers).collect();
        opened.unheld.clear();
        for node in opened.holds.drain(..).chain(layers) {
            opened.daemon.qmp.run("blockdev-del", json!({ "node-name": node }))?;
        }
        Ok(())
    }

    fn disks(&mut self, purpose: Purpose) -> Result<(Vec<Disk>, Vec<Node>)> {
        let nodes: Vec<Node> = self.daemon(purpose)?.qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
        let disk = |(number, image): (usize, &Image)| {
            nodes::disk(number, &image.name, &image.permit, &nodes)
                .ok_or_else(|| Error::Image { image: image.path.clone(), problem: "qemu-storage-daemon does not tell of it".into() })
        };
        let mut disks = self.images.iter().enumerate().map(disk).collect::<Result<Vec<_>>>()?;
        identity::identify(&mut disks, &identity::OpenFiles::UNKNOWN);
        Ok((disks, nodes))
    }

    fn look(&mut self) -> Result<VmFacts> {
        let (disks, _) = self.disks(Purpose::Read)?;
        let version = self.daemon(Purpose::Read)?.qmp.version();
        Ok(VmFacts {
            identity: self.identity.clone(),
            power: Power::Off,
            hypervisor: format!("qemu-storage-daemon {version}"),
            disks: disks.into_iter().map(|disk| disk.facts).collect(),
            skipped: Vec::new(),
            agent: false,
        })
    }

    fn point(&mut self, request: &PointRequest) -> Result<StillPoint<'_>> {
        let (disks, nodes) = self.disks(if request.checkpoint.is_some() { Purpose::Mark } else { Purpose::Read })?;
        let targets = target::targets(&disks, &nodes, request)?;
        let names = Temporary::new(&request.run);
        let workspace = Workspace::create(&self.options.run_dir, names.run())?;
        let socket = workspace.path().join("nbd");
        let still = self.stillness(request)?;
        let (notes, findings) = (self.notes(), self.unheld());
        let qmp = &mut self.daemon(Purpose::Read)?.qmp;
        let (pause, consistency) = (Duration::ZERO, Consistency::Application);
        let moment = Moment { pause, frozen: None, consistency, findings, notes };
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
        Ok(StillPoint { point, still })
    }

    fn stillness(&self, request: &PointRequest) -> Result<Stillness> {
        let is_wanted = |image: &&Image| request.disks.iter().any(|disk| disk.name == image.name);
        Stillness::of(self.images.iter().filter(is_wanted).map(|image| (&image.name, &image.permit)))
    }

    fn notes(&self) -> Vec<String> {
        let notes = |image: &Image| image.permit.notes().iter().map(|note| format!("disk {}: {note}", image.name)).collect::<Vec<_>>();
        self.images.iter().flat_map(notes).collect()
    }

    // What is a file shows by its times that it was written; a device has none.
    fn unheld(&self) -> Vec<String> {
        let unheld = self.daemon.iter().flat_map(|opened| &opened.unheld);
        unheld.map(|image| format!("nothing keeps {} from being written meanwhile: its VM must not be started", image.display())).collect()
    }
}

impl Opened {
    fn new(daemon: Daemon) -> Self {
        Self { daemon, purpose: Purpose::Read, holds: Vec::new(), unheld: Vec::new() }
    }

    // QEMU itself lets a raw image be written while another process reads it.
    fn hold(&mut self, number: usize, permit: &Permit) -> Result<()> {
        for (image, name, node) in nodes::holds(number, permit) {
            match self.daemon.qmp.run("blockdev-add", node).map_err(|error| explain(error, &image.path)) {
                Ok(()) => self.holds.push(name),
                // A QEMU that was built without this driver.
                Err(Error::Refused { .. }) if image.storage == Storage::Device => self.unheld.push(image.path.clone()),
                Err(Error::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn permitted(disk: &DiskName, named: &Path, at: &Path, words: &Words, history: &[StoredBackup]) -> Result<Permit> {
    permit(&Asked { disk, named, at, words, history }, look)
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
        let (disks, _) = self.disks(Purpose::Read)?;
        if !names.iter().any(|name| disks.iter().any(|disk| !disk.carriers(name).is_empty())) {
            return Ok(());
        }
        let (_, nodes) = self.disks(Purpose::Mark)?;
        Ok(bitmaps::remove(&mut self.daemon(Purpose::Mark)?.qmp, &nodes, names)?)
    }

    fn definition(&mut self) -> seam::Result<Definition> {
        let nodes: Vec<Value> = self.daemon(Purpose::Read)?.qmp.execute("query-named-block-nodes", json!({ "flat": true }))?;
        let image_of = |name: String| nodes.iter().find(|node| node["node-name"] == name.as_str()).map(|node| node["image"].clone());
        let chain = |(number, image): (usize, &Image)| {
            let layers = (0..image.permit.layers().len()).filter_map(|layer| image_of(nodes::node_name(number, layer)));
            json!({ "disk": image.name, "chain": layers.collect::<Vec<_>>() })
        };
        let images = self.images.iter().enumerate().map(chain).collect();
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
