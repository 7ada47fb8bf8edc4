//! A domain with a QEMU: backups with libvirt's checkpoints.

mod around;
mod push;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use keepmark_model::facts::{DiskFacts, Persistence, Power, VmFacts};
use keepmark_model::failure::in_one_line;
use keepmark_model::manifest::Consistency;
use keepmark_model::names::TEMPORARY_PREFIX;
use keepmark_model::pushing::{CannotPush, Push, PushPlace, Pushing};
use keepmark_model::seam::{self, Definition, FrozenPoint, Hypervisor, Moment, PointDisk, PointRequest};
use keepmark_model::trust::recorded;
use keepmark_model::writing::{Rest, Unfinished, WriteRequest, Writing};
use keepmark_model::{CheckpointName, DiskName, VmIdentity};
use keepmark_qemu::Live;
use keepmark_qemu::exported::{Dirty, Exported};
use keepmark_qemu::folder::HeldFolder;
use keepmark_qemu::make_images;
use keepmark_qemu::qmp::Peer;
use keepmark_qemu::space::SpaceWatch;
use keepmark_qemu::temporary::Temporary;
use keepmark_qemu::watchdog::Watchdog;
use keepmark_qemu::workspace::{VmLock, Workspace};

use crate::api::{Domain, DomainState, Version};
use crate::error::{Error, Result};
use crate::freeze::{self, Means, Quiet};
use crate::link::Link;
use crate::look::{Look, facts, facts_of, is_temporary, look};
use crate::monitor::DomainClaim;
use crate::point::{Point, end_backup, running};
use crate::shut_off::ShutOff;
use crate::xml::backup::{self, BackupDisk, Export};
use crate::xml::{DomainXml, checkpoint};
use crate::{Options, checkpoints, detour, disks, halting, monitor, saved, watchdog};

// How long a domain without a job's data has to look like that until the job counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(100);
// Until then QEMU aborts, and the guest with it, when an NBD client leaves an export whose disk is in an iothread.
const IOTHREADS_SAFE: Version = Version { major: 9, minor: 0, micro: 0 };
const SOCKET_SUFFIX: &str = ".nbd";
// A unix socket's path has 108 bytes, the last one zero.
const SOCKET_BYTES_MAX: usize = 107;

/// A running or paused domain.
#[derive(Debug)]
pub(crate) struct Running {
    link: Link,
    options: Options,
    identity: VmIdentity,
    // What was last told of each disk: its images.
    told: Vec<(DiskName, Vec<String>)>,
    locks: Vec<VmLock>,
    // None where QEMU cannot be passed one through this libvirt.
    claim: Option<DomainClaim>,
    // The way around libvirt where a dead job holds the domain.
    detour: Option<Live>,
    // The disks that the domain is to be shut down for; all, if nobody said.
    wanted: Vec<DiskName>,
    // Whether libvirt was told of checkpoints that it is to forget in the end.
    told_libvirt: bool,
}

impl Running {
    pub(crate) fn open(mut link: Link, options: Options) -> Result<Self> {
        // Whoever works on the domain has it in a state that tells nothing of it.
        let claim = DomainClaim::take(&link)?;
        let is_wedged = is_wedged(&mut link)?;
        let identity = identify(&link, &options)?;
        let Look { disks, xml, .. } = look(&mut link)?;
        let images: BTreeSet<&Path> = disks.iter().map(|disk| Path::new(&disk.facts.image)).filter(|image| image.exists()).collect();
        let locks = images.into_iter().map(|image| VmLock::take(&options.run_dir, image)).collect::<keepmark_qemu::Result<_>>()?;
        let detour = if is_wedged { Some(detour::open(&link, &xml, &options)?) } else { None };
        Ok(Self { link, options, identity, told: Vec::new(), locks, claim, detour, wanted: Vec::new(), told_libvirt: false })
    }

    fn look(&mut self) -> Result<VmFacts> {
        let Look { xml, disks, skipped, .. } = look(&mut self.link)?;
        let images = |disk: &DiskFacts| disk.layers.iter().map(|layer| layer.image.clone()).collect();
        self.told = disks.iter().map(|disk| (disk.facts.name.clone(), images(&disk.facts))).collect();
        let power = match self.link.call(Domain::state)? {
            DomainState::Running => Power::Running,
            DomainState::Paused => Power::Paused,
            DomainState::Off => Power::Off,
        };
        Ok(VmFacts {
            identity: self.identity.clone(),
            power,
            hypervisor: format!("libvirt {}, qemu {}", self.link.version()?, monitor::version(&mut self.link)?),
            disks: disks.into_iter().map(|disk| disk.facts).collect(),
            skipped,
            agent: xml.agent,
        })
    }

    fn clean(&mut self) -> Result<Vec<String>> {
        let mut said = Vec::new();
        self.check_dead()?;
        if end_backup(&mut self.link, is_temporary)? {
            said.push("backup job of libvirt's".into());
        }
        said.extend(self.clean_detour()?);
        said.extend(freeze::clean_up(&mut self.link, &self.options.run_dir)?);
        said.extend(Workspace::sweep(&self.options.scratch_dir)?);
        said.extend(Workspace::sweep(&self.options.run_dir)?);
        if let Some(folder) = private_folder(&mut self.link)? {
            HeldFolder::open(&folder).iter().for_each(sweep_sockets);
        }
        let look = look(&mut self.link)?;
        let forgotten = look.scratch_nodes();
        if !forgotten.is_empty() {
            monitor::remove_nodes(&mut self.link, &forgotten)?;
            said.push("scratch images in QEMU, which libvirt has forgotten".into());
        }
        let healed = checkpoints::heal(&mut self.link, &facts_of(look.disks))?;
        self.told_libvirt = true;
        if !self.options.hide_checkpoints {
            said.extend(healed);
        }
        Ok(said)
    }

    // With the VM claimed, nobody lives whose job it could be. Without, only jobs of this user's own folders are known to be dead, by its locks.
    fn check_dead(&mut self) -> Result<()> {
        let options = &self.options;
        let is_known = |place: &str| [&options.scratch_dir, &options.run_dir].iter().any(|folder| Path::new(place).starts_with(folder));
        if self.claim.is_none() && running(&mut self.link, &|place: &str| is_temporary(place) && !is_known(place))?.is_some() {
            return Err(Error::Busy { domain: self.link.name().to_owned(), what: "backup, perhaps of another user's keepmark" });
        }
        Ok(())
    }

    fn point(&mut self, request: &PointRequest) -> Result<Point<'_>> {
        if job(&mut self.link)? {
            return Err(self.busy());
        }
        let look = look(&mut self.link)?;
        let uneven = look.uneven(request);
        let (xml, disks) = (look.xml, facts_of(look.disks));
        self.check(&xml, &disks, request)?;
        let prepared = self.prepare(&xml, &disks, request)?;
        let parts = parts(&disks, request, &prepared, &uneven);
        let starts = begins(&disks, &xml, request);
        let mut watchdog = self.watching(prepared.names.run())?;
        let description = backup::write(&prepared.socket, &parts);
        let begin = |link: &mut Link| link.once(|domain| domain.backup_begin(&description, starts.as_deref()));
        let moment = match self.quiesced(request, &xml, watchdog.as_mut(), begin) {
            Ok(moment) => moment,
            Err(error) => {
                let error = self.undo(error, |socket| Path::new(socket) == prepared.socket, request);
                drop(std::fs::remove_file(&prepared.socket));
                return Err(error);
            }
        };
        let exports = exports(request, &prepared, &uneven);
        let ours = prepared.socket.clone();
        let space = self.watch_space(&self.options.scratch_dir, move |socket| Path::new(socket) == ours);
        let Prepared { socket, folders, .. } = prepared;
        Ok(Point { link: &mut self.link, moment, exports, socket, space, watchdog, _folders: folders, is_over: false })
    }

    fn busy(&self) -> Error {
        Error::Busy { domain: self.link.name().to_owned(), what: "job (another backup, a migration, a save)" }
    }

    // Begins a backup with the guest as quiet as is wanted and possible.
    fn quiesced(
        &mut self,
        request: &PointRequest,
        xml: &DomainXml,
        watchdog: Option<&mut Watchdog>,
        begin: impl FnOnce(&mut Link) -> Result<()>,
    ) -> Result<Moment> {
        let means = means(&mut self.link, xml, request, &self.options.run_dir, watchdog)?;
        let ((), quiet) = freeze::quiesced(&mut self.link, means, begin)?;
        Ok(moment_of(quiet))
    }

    fn watchdog(&self) -> Result<Option<Watchdog>> {
        let spawn = |command| Watchdog::spawn(command, Path::new(&watchdog::subject(self.link.uri())));
        Ok(self.options.watchdog.as_ref().map(spawn).transpose()?)
    }

    // Told before the backup begins, so that it never outlives us unwatched; `token` is in the backup's place and in no other's.
    fn watching(&self, token: &str) -> Result<Option<Watchdog>> {
        let mut watchdog = self.watchdog()?;
        let copied = watchdog::copied(self.link.uuid(), token);
        watchdog.as_mut().map_or(Ok(()), |watchdog| watchdog.copying(&copied))?;
        Ok(watchdog)
    }

    // Ends the backup whose place is ours before there is no room any more in the folder that it writes to.
    fn watch_space(&self, folder: &Path, is_ours: impl Fn(&str) -> bool + Send + 'static) -> SpaceWatch {
        let (uri, uuid) = (self.link.uri().to_owned(), self.link.uuid().to_owned());
        SpaceWatch::start(folder, move || {
            // A domain that cannot be reached any more cannot be helped either.
            drop(Link::open(Some(&uri), &uuid).and_then(|mut link| end_backup(&mut link, &is_ours)));
        })
    }

    // Between the plan and the point somebody may have removed a bitmap, or exchanged an image by one with bitmaps of the same name.
    // What happens after this look, libvirt sees: it checks the bitmaps itself before it uses them.
    fn check(&mut self, xml: &DomainXml, disks: &[DiskFacts], request: &PointRequest) -> Result<()> {
        for wanted in &request.disks {
            let disk = disk_of(disks, wanted).ok_or_else(|| Error::NoDisk { domain: xml.name.clone(), disk: wanted.name.to_string() })?;
            let Some(since) = &wanted.since else { continue };
            let changed = |doubt: String| Error::Changed { disk: wanted.name.to_string(), doubt };
            recorded(disk, since).map_err(|doubt| changed(doubt.to_string()))?;
            let is_other = |told: &[String]| !told.iter().eq(disk.layers.iter().map(|layer| &layer.image));
            if self.told.iter().any(|(name, images)| *name == wanted.name && is_other(images)) {
                return Err(changed("its images are others".into()));
            }
        }
        if let Some(name) = &request.checkpoint {
            // Otherwise undoing what libvirt refuses would remove what is there.
            checkpoints::free(&mut self.link, disks, name)?;
        }
        let targets: Vec<&str> = request.disks.iter().map(|disk| disk.name.as_str()).collect();
        let Some(threaded) = disks::in_iothread(xml, &targets) else { return Ok(()) };
        let version = monitor::version(&mut self.link)?;
        if version >= IOTHREADS_SAFE {
            Ok(())
        } else {
            Err(Error::Iothread { version: version.to_string(), disk: threaded.target.clone() })
        }
    }

    // The images and their folder stay this user's; only a folder for the socket is given to QEMU's.
    fn prepare(&mut self, xml: &DomainXml, disks: &[DiskFacts], request: &PointRequest) -> Result<Prepared> {
        let names = Temporary::new(&request.run);
        // Without a word of libvirt's, QEMU is this user's (qemu:///session).
        let (uid, gid) = xml.owner.unwrap_or_default();
        let peer = Peer { pid: 0, uid, gid };
        let scratch = Workspace::create(&self.options.scratch_dir, &format!("{}-scratch", names.run()))?;
        make_images(&scratch_images(disks, request), scratch.passable()?, &peer)?;
        let scratch_path = scratch.path().to_owned();
        let mut folders = vec![scratch];
        let private = if xml.confined { private_folder(&mut self.link)? } else { None };
        let private = private.map(|folder| folder.join(format!("{TEMPORARY_PREFIX}{}{SOCKET_SUFFIX}", names.run())));
        let socket = match private.filter(|path| path.as_os_str().len() <= SOCKET_BYTES_MAX) {
            Some(path) => path,
            None => {
                let workspace = Workspace::create(&self.options.run_dir, names.run())?;
                let path = workspace.sockets(&peer)?.join("nbd");
                folders.push(workspace);
                path
            }
        };
        Ok(Prepared { names, all: targets(xml), socket, scratch: scratch_path, folders })
    }

    // After a failed start nothing of it may stay; what happened before libvirt failed is found by asking.
    fn undo(&mut self, error: Error, is_ours: impl Fn(&str) -> bool, request: &PointRequest) -> Error {
        match is_wedged(&mut self.link) {
            Ok(true) => return Error::Wedged { domain: self.link.name().to_owned() },
            // Each call would wait for it again.
            Err(Error::Unreachable { .. } | Error::Unanswered { .. }) => return error,
            _ => {}
        }
        // The first failure is what counts; what cannot be undone is found by the next run.
        drop(end_backup(&mut self.link, is_ours));
        if let Some(name) = &request.checkpoint {
            drop(checkpoints::delete(&mut self.link, std::slice::from_ref(name), facts));
        }
        error
    }

    fn remove(&mut self, names: &[CheckpointName]) -> seam::Result<()> {
        if self.link.call(Domain::state)? != DomainState::Off {
            return Ok(checkpoints::delete(&mut self.link, names, facts)?);
        }
        // It ended meanwhile: its bitmaps are in its images now.
        self.locks.clear();
        self.claim = None;
        let link = self.link.again()?;
        ShutOff::open(link, self.options.clone())?.remove_and_close(names)
    }
}

// What a point needs before it is begun.
struct Prepared {
    names: Temporary,
    all: Vec<String>,
    socket: PathBuf,
    scratch: PathBuf,
    folders: Vec<Workspace>,
}

/// The name of a domain's backups.
pub(crate) fn identify(link: &Link, options: &Options) -> Result<VmIdentity> {
    let (name, uuid) = (options.name.as_deref().unwrap_or(link.name()), options.uuid.as_deref().unwrap_or(link.uuid()));
    VmIdentity::new(name, Some(uuid)).map_err(|source| Error::Identity { domain: link.name().to_owned(), source })
}

/// Whether a job runs.
///
/// # Errors
/// [`Error::Wedged`] where it is a dead one that libvirt cannot end.
fn job(link: &mut Link) -> Result<bool> {
    match link.attempt(Domain::has_job)? {
        Err(fault) if fault.message.contains("job data missing") => Err(Error::Wedged { domain: link.name().to_owned() }),
        other => Ok(other?),
    }
}

/// Whether a dead job holds the domain. A living libvirtd says the same as long as it makes the images of a backup that it begins, so
/// only what it goes on saying counts.
pub(crate) fn is_wedged(link: &mut Link) -> Result<bool> {
    let asked = Instant::now();
    loop {
        match job(link) {
            Err(Error::Wedged { .. }) if asked.elapsed() >= DEAD_AFTER => return Ok(true),
            Err(Error::Wedged { .. }) => std::thread::sleep(LOOK),
            other => return other.map(|_| false),
        }
    }
}

fn means<'a>(
    link: &mut Link,
    xml: &DomainXml,
    request: &PointRequest,
    run_dir: &'a Path,
    watchdog: Option<&'a mut Watchdog>,
) -> Result<Means<'a>> {
    let agent = (xml.agent && link.call(Domain::state)? == DomainState::Running, xml.agent_connected);
    Ok(Means { freeze: request.freeze, agent, run_dir, watchdog })
}

fn moment_of(Quiet { frozen, findings }: Quiet) -> Moment {
    let consistency = if frozen.is_some() { Consistency::Application } else { Consistency::Crash };
    Moment { pause: Duration::ZERO, frozen, consistency, findings, notes: Vec::new() }
}

fn targets(xml: &DomainXml) -> Vec<String> {
    xml.disks.iter().map(|disk| disk.target.clone()).collect()
}

// The description of the request's checkpoint, where any disk can have one.
fn begins(disks: &[DiskFacts], xml: &DomainXml, request: &PointRequest) -> Option<String> {
    let on = stored(disks, request);
    request.checkpoint.as_ref().filter(|_| !on.is_empty()).map(|name| checkpoint::begin(name, &targets(xml), &on))
}

fn disk_of<'a>(disks: &'a [DiskFacts], wanted: &PointDisk) -> Option<&'a DiskFacts> {
    disks.iter().find(|disk| disk.name == wanted.name)
}

// libvirt makes checkpoints only where the image can keep them.
fn stored(disks: &[DiskFacts], request: &PointRequest) -> Vec<String> {
    let can = |wanted: &&PointDisk| disk_of(disks, wanted).is_some_and(|disk| disk.persistence == Persistence::Stored);
    request.disks.iter().filter(can).map(|disk| disk.name.to_string()).collect()
}

fn parts(disks: &[DiskFacts], request: &PointRequest, prepared: &Prepared, uneven: &BTreeSet<DiskName>) -> Vec<BackupDisk> {
    let export = |number: usize, wanted: &PointDisk| Export {
        name: prepared.names.node("e", number),
        since: wanted.since.clone().filter(|_| !uneven.contains(&wanted.name)).map(|since| (since, prepared.names.delta())),
        scratch: prepared.scratch.join(scratch_name(number)).to_string_lossy().into_owned(),
    };
    let part = |target: &String| {
        let wanted = request.disks.iter().enumerate().find(|(_, wanted)| wanted.name.as_str() == target);
        let wanted = wanted.filter(|(_, wanted)| disk_of(disks, wanted).is_some());
        BackupDisk { target: target.clone(), export: wanted.map(|(number, wanted)| export(number, wanted)) }
    };
    prepared.all.iter().map(part).collect()
}

fn scratch_name(number: usize) -> String {
    format!("{number}.qcow2")
}

fn scratch_images(disks: &[DiskFacts], request: &PointRequest) -> Vec<(String, u64)> {
    let wanted = request.disks.iter().enumerate();
    wanted.filter_map(|(number, wanted)| Some((scratch_name(number), disk_of(disks, wanted)?.size.0))).collect()
}

fn exports(request: &PointRequest, prepared: &Prepared, uneven: &BTreeSet<DiskName>) -> Vec<Exported> {
    let context = || format!("qemu:dirty-bitmap:{}", prepared.names.delta());
    let export = |(number, wanted): (usize, &PointDisk)| Exported {
        disk: wanted.name.clone(),
        export: prepared.names.node("e", number),
        delta: match &wanted.since {
            None => Dirty::Unknown,
            Some(_) if uneven.contains(&wanted.name) => Dirty::Everything,
            Some(_) => Dirty::Context(context()),
        },
    };
    request.disks.iter().enumerate().map(export).collect()
}

// A confined QEMU may make sockets in the folder that libvirt gave it, whatever AppArmor and SELinux forbid elsewhere.
fn private_folder(link: &mut Link) -> Result<Option<PathBuf>> {
    let sockets = monitor::sockets(link)?;
    let monitor = sockets.into_iter().find(|(label, _)| label == "charmonitor");
    Ok(monitor.and_then(|(_, path)| Some(Path::new(&path).parent()?.to_owned())).filter(|folder| folder.is_absolute() && folder.is_dir()))
}

// No backup of ours runs when this is called, and another keepmark is kept off by its lock.
fn sweep_sockets(folder: &HeldFolder) {
    let ours = |name: &&String| name.starts_with(TEMPORARY_PREFIX) && name.ends_with(SOCKET_SUFFIX);
    folder.names().unwrap_or_default().iter().filter(ours).for_each(|name| drop(folder.remove(name)));
}

impl Hypervisor for Running {
    fn facts(&mut self) -> seam::Result<VmFacts> {
        Ok(self.look()?)
    }

    fn clean_up(&mut self) -> seam::Result<Vec<String>> {
        Ok(self.clean()?)
    }

    fn begin(&mut self, request: &PointRequest) -> seam::Result<Box<dyn FrozenPoint + '_>> {
        if self.detour.is_some() {
            return Ok(Box::new(self.around(request)?));
        }
        Ok(match &request.push {
            Push::AtOnce(targets) => Box::new(self.push_point(request, targets)?),
            Push::No | Push::Later => Box::new(self.point(request)?),
        })
    }

    fn pushing(&self) -> Pushing {
        Pushing::AsTheMoment
    }

    fn can_push(&mut self, place: &PushPlace) -> std::result::Result<(), CannotPush> {
        self.may_push(place).map_err(|error| CannotPush::new(in_one_line(&error)))?
    }

    fn remove_checkpoints(&mut self, names: &[CheckpointName]) -> seam::Result<()> {
        self.remove(names)
    }

    fn definition(&mut self) -> seam::Result<Definition> {
        Ok(saved::definition(&mut self.link, true, &self.options.user)?)
    }

    fn rest(&mut self) -> seam::Result<Rest> {
        Ok(match self.link.call(Domain::state)? {
            DomainState::Running => Rest::Running,
            DomainState::Paused => Rest::Held("the domain is paused".into()),
            DomainState::Off => Rest::Held("the domain ended meanwhile".into()),
        })
    }

    fn unfinished(&mut self) -> seam::Result<Vec<Unfinished>> {
        Ok(Vec::new())
    }

    fn before_power_down(&mut self, disks: &[DiskName]) -> seam::Result<Vec<String>> {
        self.wanted = disks.to_vec();
        let now = facts(&mut self.link)?;
        Ok(halting::check(&mut self.link, &now, disks)?)
    }

    fn power_down(self: Box<Self>, within: Duration, interrupted: &dyn Fn() -> bool) -> seam::Result<Box<dyn Hypervisor>> {
        let Self { link, options, locks, detour, wanted, .. } = *self;
        if detour.is_some() {
            // libvirt would not start it again.
            return Err(Error::Wedged { domain: link.name().to_owned() }.into());
        }
        // The one who works on its images next takes the same.
        drop(locks);
        Ok(Box::new(halting::shut_down(link, options, &wanted, within, interrupted)?))
    }

    fn begin_writing(&mut self, _: &WriteRequest) -> seam::Result<Box<dyn Writing + '_>> {
        Err(Error::Runs { domain: self.link.name().to_owned() }.into())
    }

    fn start(self: Box<Self>) -> seam::Result<()> {
        self.close()
    }

    fn close(mut self: Box<Self>) -> seam::Result<()> {
        if self.told_libvirt && self.options.hide_checkpoints {
            checkpoints::hide(&mut self.link)?;
        }
        Ok(())
    }
}
