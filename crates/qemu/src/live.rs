//! A running VM, by its QMP monitor.

mod halt;
mod writing;

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keepmark_model::facts::{DiskFacts, Power, VmFacts};
use keepmark_model::manifest::Consistency;
use keepmark_model::moment::{MomentStep, steps};
use keepmark_model::pushing::{CannotPush, Push, PushPlace};
use keepmark_model::seam::{self, Definition, Freeze, FrozenPoint, Hypervisor, Moment, PointRequest};
use keepmark_model::writing::{Rest, Unfinished, WriteRequest, Writing};
use keepmark_model::{CheckpointName, DiskName, VmIdentity};
use serde_json::{Value, json};

use crate::capabilities::Capabilities;
use crate::claim::{Claim, Claimed};
use crate::disks::{self, Disk, Survey, naming};
use crate::error::{Error, Result};
use crate::point::answer::must_answer;
use crate::point::moment::Stillness;
use crate::point::target::{self, Target};
use crate::point::undo::{Step, Undo};
use crate::point::{Fixed, Guards, Point, export, filters, jobs, push, scratch};
use crate::qmp::{Peer, Qmp};
use crate::space::SpaceWatch;
use crate::temporary::Temporary;
use crate::watchdog::{Watchdog, WatchdogCommand};
use crate::workspace::{VmLock, Workspace};
use crate::{agent, bitmaps, definition, hazards, identity, leftovers};

// A dead claim is removed by the next run too.
const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// How to reach a running VM.
#[derive(Debug, Clone)]
pub struct LiveOptions {
    /// Its QMP monitor's unix socket.
    pub socket: PathBuf,
    /// Its name, where QEMU's own is not to be used; QEMU's, else the socket's file stem, without.
    pub name: Option<String>,
    /// Its UUID, where QEMU's own is not to be used.
    pub uuid: Option<String>,
    /// Where scratch images go; QEMU's user must get through to it. Made when missing.
    pub scratch_dir: PathBuf,
    /// Where sockets and locks go; short, since a socket's path has 107 bytes. Made when missing.
    pub run_dir: PathBuf,
    /// How long QEMU may take for any command.
    pub command_timeout: Duration,
    /// What resumes and thaws the VM when this process dies; without, a later run has to.
    pub watchdog: Option<WatchdogCommand>,
    /// Use `blockdev-backup` jobs even where filters can be used.
    pub force_jobs: bool,
    /// Whether a VM is opened whose disks an earlier revert left half written: for the one who finishes it.
    pub half_reverted: bool,
}

impl LiveOptions {
    /// The defaults for a socket, with folders to use.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, scratch_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            name: None,
            uuid: None,
            scratch_dir: scratch_dir.into(),
            run_dir: run_dir.into(),
            command_timeout: Duration::from_secs(10),
            watchdog: None,
            force_jobs: false,
            half_reverted: false,
        }
    }
}

/// A running VM.
#[derive(Debug)]
pub struct Live {
    qmp: Qmp,
    peer: Peer,
    options: LiveOptions,
    identity: VmIdentity,
    capabilities: Capabilities,
    // What was last told of each disk: its images.
    told: Vec<(DiskName, Vec<String>)>,
    // Whether keepmark has shut its guest down, and is to start it again.
    halted: bool,
    // Held until dropped.
    locks: Vec<VmLock>,
    claim: Option<Claim>,
}

impl Live {
    /// Connects, and locks the VM against other keepmarks until dropped.
    ///
    /// # Errors
    /// When nobody answers there, another keepmark works on it, or this QEMU is too old.
    pub fn connect(options: LiveOptions) -> Result<Self> {
        let connect = |source| Error::Connect { peer: options.socket.display().to_string(), source };
        std::fs::metadata(&options.socket).map_err(connect)?;
        let lock = VmLock::take(&options.run_dir, &options.socket)?;
        let mut qmp = Qmp::connect(&options.socket, options.command_timeout)?;
        let peer = qmp.peer()?;
        let claimed = claim(&mut qmp, &options)?;
        let mut live = Self::on(qmp, peer, options)?;
        live.claim = claimed;
        live.locks = lock_images(&mut live.qmp, &live.peer, &live.options)?;
        live.locks.push(lock);
        Ok(live)
    }

    /// As [`Live::connect`] over a connection that the caller has made; the VM and its images are locked by the caller. `peer` is QEMU,
    /// without a process if that is unknown; `options.socket` is what the monitor is called, and what the watchdog is told of it.
    ///
    /// # Errors
    /// When nobody answers there, or this QEMU is too old.
    pub fn over(stream: UnixStream, peer: Peer, options: LiveOptions) -> Result<Self> {
        let qmp = Qmp::over(stream, options.socket.display().to_string(), options.command_timeout)?;
        Self::on(qmp, peer, options)
    }

    fn on(mut qmp: Qmp, peer: Peer, options: LiveOptions) -> Result<Self> {
        let capabilities = Capabilities::of(qmp.version());
        if !capabilities.block_export {
            let what = "export frozen disks (QEMU 5.2 or newer is needed)".into();
            return Err(Error::Unsupported { version: qmp.version().to_string(), what });
        }
        let identity = identify(&mut qmp, &options)?;
        let halted = take_up(&mut qmp, options.half_reverted)?;
        Ok(Self { qmp, peer, options, identity, capabilities, told: Vec::new(), halted, locks: Vec::new(), claim: None })
    }

    /// Removes what dead runs left in QEMU and in the folders; says in words what.
    ///
    /// # Errors
    /// When something of ours is there and cannot be removed.
    pub fn remove_leftovers(&mut self) -> Result<Vec<String>> {
        let mut said = leftovers::remove(&mut self.qmp)?;
        if !self.halted {
            said.extend(halt::recover(&mut self.qmp, &self.peer)?);
        }
        said.extend(Workspace::sweep(&self.options.scratch_dir)?);
        said.extend(Workspace::sweep(&self.options.run_dir)?);
        Ok(said)
    }

    /// Fixes one moment of several disks.
    ///
    /// # Errors
    /// As [`Hypervisor::begin`].
    pub fn freeze(&mut self, request: &PointRequest) -> Result<Point<'_>> {
        let mut undo = Undo::default();
        let mut guards = Guards { folders: vec![self.options.scratch_dir.clone()], ..Guards::default() };
        match self.point(request, &mut undo, &mut guards) {
            Ok(Made { fixed, openings, workspace, sources, names }) => {
                keep_checkpoint(&mut undo, request);
                let moment = moment(fixed, request, true);
                Ok(Point { qmp: &mut self.qmp, undo, moment, openings, guards, names, sources, _workspace: workspace })
            }
            Err(error) => {
                // The first failure is what counts; what cannot be undone is found by the next run.
                drop(guards.undo(&mut undo, &mut self.qmp));
                Err(error)
            }
        }
    }

    fn uses_filters(&self) -> bool {
        self.capabilities.filters && !self.options.force_jobs
    }

    pub(crate) fn search(&self) -> export::Search {
        if self.uses_filters() { export::Search::Node } else { export::Search::Chain }
    }

    // As `disks::look`, with images that QEMU names by its own working folder made absolute.
    fn survey(&mut self) -> Result<Survey> {
        let mut survey = disks::look(&mut self.qmp)?;
        absolute(&mut survey, &self.peer);
        identity::identify(&mut survey.disks, &identity::OpenFiles::of(self.peer.pid));
        Ok(survey)
    }

    fn point(&mut self, request: &PointRequest, undo: &mut Undo, guards: &mut Guards) -> Result<Made> {
        let survey = self.survey()?;
        let targets = target::targets(&survey.disks, &survey.nodes, request)?;
        self.check_told(&survey.disks, request)?;
        hazards::check(&mut self.qmp, &targets)?;
        let names = Temporary::new(&request.run);
        let workspace = Workspace::create(&self.options.run_dir, names.run())?;
        let socket = workspace.sockets(&self.peer)?.join("nbd");
        let (fixed, nodes) = self.fix(&targets, request, &names, undo, guards)?;
        check_unmoved(&survey.disks, &disks::look(&mut self.qmp)?.disks, &targets)?;
        let sources = if request.push != Push::No { push::prepare(&mut self.qmp, &targets, &nodes, &names)? } else { Vec::new() };
        export::start_server(&mut self.qmp, &socket, undo)?;
        if self.uses_filters() {
            export::add_present(&mut self.qmp, &targets, &names, undo)?;
        }
        let search = self.search();
        let manner = export::Manner { search, writable: false };
        let mut openings = export::add_exports(&mut self.qmp, &targets, &nodes, &names, manner, &socket, undo)?;
        if self.uses_filters() {
            export::tell_present(&mut openings, &targets, &names);
        }
        openings.iter_mut().for_each(|opening| opening.validity = guards.space.as_ref().map(SpaceWatch::validity));
        Ok(Made { fixed, openings, workspace, sources, names })
    }

    // Whoever exchanged an image since the facts were told may have brought one along that has bitmaps of the same name.
    fn check_told(&self, disks: &[Disk], request: &PointRequest) -> Result<()> {
        let changed = |disk: &&Disk| self.told.iter().any(|(name, images)| *name == disk.facts.name && *images != images_of(disk));
        let wanted = |disk: &&Disk| request.disks.iter().any(|wanted| wanted.since.is_some() && wanted.name == disk.facts.name);
        match disks.iter().filter(wanted).find(changed) {
            Some(disk) => Err(Error::Changed { disk: disk.facts.name.to_string(), change: "its images are others".into() }),
            None => Ok(()),
        }
    }

    // Everything that can be made before the moment is; the moment itself is as short as QEMU allows.
    fn fix(
        &mut self,
        targets: &[Target],
        request: &PointRequest,
        names: &Temporary,
        undo: &mut Undo,
        guards: &mut Guards,
    ) -> Result<(Fixed, Vec<String>)> {
        let scratch = Workspace::create(&self.options.scratch_dir, &format!("{}-scratch", names.run()))?;
        let images = scratch.passable()?;
        scratch::make(targets, names, images, &self.peer)?;
        let (use_filters, scratch_dir) = (self.uses_filters(), &self.options.scratch_dir);
        let mut nodes = Vec::new();
        if use_filters {
            filters::add_scratch(&mut self.qmp, targets, names, images, undo)?;
            filters::add_filters(&mut self.qmp, targets, names, undo)?;
        } else {
            nodes = jobs::add_overlays(&mut self.qmp, targets, names, images, undo)?;
        }
        let watchdog = self.options.watchdog.as_ref().map(|command| Watchdog::spawn(command, &self.options.socket)).transpose()?;
        let mark_node = targets.first().map(|target| target.active.clone()).unwrap_or_default();
        let mut stillness = Stillness::new(&mut self.qmp, watchdog, mark_node, names.run().to_owned());
        let checkpoint = request.checkpoint.as_ref();
        let fixed = stillness.quiesced(request.freeze, |still| {
            if use_filters {
                steps().iter().try_for_each(|step| match step {
                    MomentStep::NewBitmaps => {
                        transact(still.qmp, target::beginning(targets, checkpoint, names), targets, checkpoint, names, undo)
                    }
                    MomentStep::Filters => still.paused(|qmp| filters::insert(qmp, targets, names, undo)),
                    MomentStep::Merge => merge(still.qmp, targets, names),
                })
            } else {
                still.watchdog.as_mut().map_or(Ok(()), |watchdog| watchdog.copying(names.run()))?;
                let bitmaps = [target::beginning(targets, checkpoint, names), target::merges(targets, names)].concat();
                let actions = [bitmaps, jobs::actions(targets, names)].concat();
                transact(still.qmp, actions, targets, checkpoint, names, undo)?;
                let jobs = jobs::note(targets, names, undo);
                let aside = still.qmp.aside()?;
                guards.space = Some(SpaceWatch::start(scratch_dir, move || jobs::cancel(&aside, &jobs)));
                Ok(())
            }
        });
        guards.watchdog = stillness.watchdog.take().filter(|_| !use_filters || request.push != Push::No);
        fixed?;
        let fixed = stillness.fixed;
        // From now on QEMU may wait for it.
        must_answer(scratch_dir)?;
        if use_filters {
            nodes = filters::add_access(&mut self.qmp, targets, names, undo)?;
        }
        Ok((fixed, nodes))
    }

    fn look(&mut self) -> Result<VmFacts> {
        let Survey { disks, skipped, .. } = self.survey()?;
        self.told = disks.iter().map(|disk| (disk.facts.name.clone(), images_of(disk))).collect();
        let power = if leftovers::status(&mut self.qmp)? == "running" { Power::Running } else { Power::Paused };
        Ok(VmFacts {
            identity: self.identity.clone(),
            power,
            hypervisor: format!("qemu {}", self.qmp.version()),
            disks: disks.into_iter().map(|disk| disk.facts).collect(),
            skipped,
            agent: agent::find(&mut self.qmp)?.is_some(),
        })
    }
}

fn images_of(disk: &Disk) -> Vec<String> {
    disk.facts.layers.iter().map(|layer| layer.image.clone()).collect()
}

// A snapshot that came in between the look and the moment shows in the images that are there after it, and whoever paused or cleared a
// bitmap before it went into the delta in the bitmap.
fn check_unmoved(before: &[Disk], after: &[Disk], targets: &[Target]) -> Result<()> {
    for target in targets {
        let nodes = |disks: &[Disk]| disks::find(disks, target.name.as_str()).map(|disk| disk.nodes.clone());
        if nodes(before)? != nodes(after)? {
            return Err(Error::Changed { disk: target.name.to_string(), change: "its images changed while the moment was fixed".into() });
        }
        target.check_still_recorded(disks::find(before, target.name.as_str())?, disks::find(after, target.name.as_str())?)?;
    }
    Ok(())
}

// Whether a revert that is to be taken up has shut the guest down. Whoever does not come to finish it is sent away.
fn take_up(qmp: &mut Qmp, half_reverted: bool) -> Result<bool> {
    let survey = disks::look(qmp)?;
    match writing::marks(&survey).first() {
        None => Ok(false),
        Some((_, mark)) if !half_reverted => Err(writing::half_reverted(&survey.disks, mark)),
        Some(_) => {
            writing::put_back(qmp, &survey)?;
            Ok(halt::mark(&survey).is_some())
        }
    }
}

/// Whether a QEMU in this state has no guest that could mind its disks.
fn is_at_rest(status: &str) -> bool {
    matches!(status, "shutdown" | "prelaunch")
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.qmp.hurry(GOODBYE_WAIT);
            claim.give_up(&mut |command, arguments, open| self.qmp.hand(command, &arguments, open));
        }
    }
}

// Behind a relay QEMU cannot be passed a file; those who can claim the VM are respected there too.
fn claim(qmp: &mut Qmp, options: &LiveOptions) -> Result<Option<Claim>> {
    let subject = options.socket.display().to_string();
    let mut ask = |command: &str, arguments: Value, open: Option<BorrowedFd<'_>>| qmp.hand(command, &arguments, open);
    match Claim::take(&subject, &mut ask, |error| matches!(error, Error::Refused { .. }))? {
        Claimed::Ours(claim) => Ok(Some(claim)),
        Claimed::Unmarked => Ok(None),
    }
}

// A VM may have several monitors; its images are the same through all of them.
fn lock_images(qmp: &mut Qmp, peer: &Peer, options: &LiveOptions) -> Result<Vec<VmLock>> {
    let mut survey = disks::look(qmp)?;
    absolute(&mut survey, peer);
    let images = survey.disks.iter().map(|disk| Path::new(&disk.facts.image)).filter(|image| image.is_absolute() && image.exists());
    let images: BTreeSet<&Path> = images.collect();
    images.into_iter().map(|image| VmLock::take(&options.run_dir, image)).collect()
}

fn absolute(survey: &mut Survey, peer: &Peer) {
    let Ok(folder) = std::fs::read_link(format!("/proc/{}/cwd", peer.pid)) else { return };
    let layers = |disk: &mut Disk| {
        let DiskFacts { image, layers, .. } = &mut disk.facts;
        for image in std::iter::once(image).chain(layers.iter_mut().map(|layer| &mut layer.image)) {
            let path = folder.join(&*image);
            if path.exists() {
                *image = path.to_string_lossy().into_owned();
            }
        }
    };
    survey.disks.iter_mut().for_each(layers);
}

struct Made {
    fixed: Fixed,
    openings: Vec<crate::disk::Opening>,
    workspace: Workspace,
    sources: Vec<push::Source>,
    names: Temporary,
}

/// Runs the transaction and notes what it made.
pub(crate) fn transact(
    qmp: &mut Qmp,
    actions: Vec<Value>,
    targets: &[Target],
    checkpoint: Option<&CheckpointName>,
    names: &Temporary,
    undo: &mut Undo,
) -> Result<()> {
    if actions.is_empty() {
        return Ok(());
    }
    qmp.run("transaction", json!({ "actions": actions }))?;
    for target in targets {
        let remove = |name: &str| Step::RemoveBitmap { node: target.active.clone(), name: name.to_owned() };
        if let Some(checkpoint) = checkpoint {
            undo.push(remove(checkpoint.as_str()));
        }
        if matches!(target.delta, target::Delta::Bitmaps { .. }) {
            undo.push(remove(&names.delta()));
        }
    }
    Ok(())
}

/// Fills the deltas, in one transaction.
pub(crate) fn merge(qmp: &mut Qmp, targets: &[Target], names: &Temporary) -> Result<()> {
    let actions = target::merges(targets, names);
    if actions.is_empty() { Ok(()) } else { qmp.run("transaction", json!({ "actions": actions })) }
}

/// Once a point exists its checkpoint stays.
pub(crate) fn keep_checkpoint(undo: &mut Undo, request: &PointRequest) {
    if let Some(checkpoint) = &request.checkpoint {
        undo.forget(|step| matches!(step, Step::RemoveBitmap { name, .. } if name == checkpoint.as_str()));
    }
}

fn identify(qmp: &mut Qmp, options: &LiveOptions) -> Result<VmIdentity> {
    let text = |value: Value, key: &str| value[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let told = text(qmp.execute("query-name", Value::Null)?, "name");
    let name = options.name.clone().or(told).or_else(|| naming::stem(&options.socket.to_string_lossy())).unwrap_or_default();
    let uuid = match &options.uuid {
        Some(uuid) => Some(uuid.clone()),
        None => text(qmp.execute("query-uuid", Value::Null)?, "UUID"),
    };
    VmIdentity::new(&name, uuid.as_deref()).map_err(|error| Error::Usage { what: "identity", value: name, problem: error.to_string() })
}

fn moment(fixed: Fixed, request: &PointRequest, power_on: bool) -> Moment {
    let quiet = fixed.frozen.is_some() && request.freeze != Freeze::Never;
    let consistency = if quiet || !power_on { Consistency::Application } else { Consistency::Crash };
    Moment { pause: fixed.pause, frozen: fixed.frozen, consistency, findings: fixed.findings, notes: Vec::new() }
}

impl Hypervisor for Live {
    fn facts(&mut self) -> seam::Result<VmFacts> {
        Ok(self.look()?)
    }

    fn clean_up(&mut self) -> seam::Result<Vec<String>> {
        Ok(self.remove_leftovers()?)
    }

    fn begin(&mut self, request: &PointRequest) -> seam::Result<Box<dyn FrozenPoint + '_>> {
        Ok(Box::new(self.freeze(request)?))
    }

    fn can_push(&mut self, _: &PushPlace) -> std::result::Result<(), CannotPush> {
        let uid = rustix::process::geteuid().as_raw();
        let why = match (self.uses_filters(), self.peer.uid) {
            (false, _) => "this QEMU has no filters that would let the guest go on meanwhile (7.1 or newer has)".to_owned(),
            (true, theirs) if theirs != 0 && theirs != uid => {
                format!("QEMU runs as another user ({theirs}), who does not get into the store")
            }
            (true, _) => return Ok(()),
        };
        Err(CannotPush::new(why))
    }

    fn remove_checkpoints(&mut self, names: &[CheckpointName]) -> seam::Result<()> {
        let survey = disks::look(&mut self.qmp)?;
        leftovers::find(&survey).check_folders()?;
        Ok(bitmaps::remove(&mut self.qmp, &survey.nodes, names)?)
    }

    fn definition(&mut self) -> seam::Result<Definition> {
        Ok(vec![definition::of_live(&mut self.qmp, &self.peer, &self.identity)?].into())
    }

    fn rest(&mut self) -> seam::Result<Rest> {
        Ok(match leftovers::status(&mut self.qmp)?.as_str() {
            "running" => Rest::Running,
            state if is_at_rest(state) => Rest::Resting { by_us: self.halted },
            state => Rest::Held(format!("QEMU says that the VM is in state {state}")),
        })
    }

    fn unfinished(&mut self) -> seam::Result<Vec<Unfinished>> {
        Ok(self.half_written()?)
    }

    fn power_down(mut self: Box<Self>, within: Duration, interrupted: &dyn Fn() -> bool) -> seam::Result<Box<dyn Hypervisor>> {
        self.halt(within, interrupted)?;
        Ok(self)
    }

    fn begin_writing(&mut self, request: &WriteRequest) -> seam::Result<Box<dyn Writing + '_>> {
        Ok(Box::new(self.write(request)?))
    }

    fn start(mut self: Box<Self>) -> seam::Result<()> {
        Ok(self.go_on()?)
    }

    fn close(self: Box<Self>) -> seam::Result<()> {
        Ok(())
    }
}
