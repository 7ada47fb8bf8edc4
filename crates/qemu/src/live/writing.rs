//! Disks of a QEMU whose guest has powered down, open for writing: their devices get an empty stand-in meanwhile.
//!
//! QEMU lets nobody write beside a device, and a guest that is started too early is to find no half written disk. So each device
//! gets a node without content, and its own node is exported. A read-only export holds that node, since one of `-drive` would go
//! when its device leaves it. A mark per disk (a disabled bitmap in memory, which dies with QEMU as all of this does) says which
//! backup, which device and which node; it goes last.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keepmark_model::DiskName;
use keepmark_model::seam::{self, FrozenDisk};
use keepmark_model::writing::{DiskChanges, Unfinished, WriteRequest, Writing};
use serde_json::json;

use super::{Live, merge, transact};
use crate::changes::NbdChanges;
use crate::disk::{Opening, open};
use crate::disks::{self, Disk, Survey};
use crate::error::{Error, Result};
use crate::hazards;
use crate::leftovers::status;
use crate::point::attach::exchange;
use crate::point::target::{self, Target};
use crate::point::undo::{Step, Undo, delete_export};
use crate::point::{export, opening_of};
use crate::qmp::Qmp;
use crate::temporary::{REVERTING, Temporary, is_ours};
use crate::workspace::Workspace;

const HOLDER: &str = "h";
const STAND_IN: &str = "n";

/// What a disk's mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// The first characters of the backup's id.
    backup: String,
    /// The node that its device uses.
    root: String,
    /// The device.
    qom_path: String,
}

impl Mark {
    fn name(&self) -> String {
        format!("{REVERTING}{}:{}:{}", self.backup, self.root, self.qom_path)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(REVERTING)?.splitn(3, ':').map(str::to_owned);
        Some(Self { backup: parts.next()?, root: parts.next()?, qom_path: parts.next()? })
    }
}

/// The marks that there are, and their nodes.
pub(super) fn marks(survey: &Survey) -> Vec<(String, Mark)> {
    let of = |node: &disks::reply::Node| {
        let marks = node.dirty_bitmaps.iter().filter_map(|bitmap| Mark::parse(bitmap.name.as_deref()?));
        marks.map(|mark| (node.node_name.clone(), mark)).collect::<Vec<_>>()
    };
    survey.nodes.iter().flat_map(of).collect()
}

/// Gives the devices of a dead run's half written disks their nodes back, so that they can be found; the marks stay.
pub(super) fn put_back(qmp: &mut Qmp, survey: &Survey) -> Result<()> {
    let exports = export::list(qmp)?;
    for writer in exports.iter().filter(|export| is_ours(&export.id) && !export.id.contains(&format!("-{HOLDER}"))) {
        delete_export(qmp, &writer.id)?;
    }
    for (_, mark) in marks(survey) {
        let Some(stand_in) = survey.root_of(&mark.qom_path).filter(|root| is_ours(root)) else { continue };
        // What is held may be an overlay of the disk's by now.
        let held = exports.iter().find(|export| Some(&export.id) == holder_of(stand_in).as_ref());
        exchange(qmp, &mark.qom_path, stand_in, held.map_or(&mark.root, |export| &export.node))?;
    }
    Ok(())
}

/// The export that keeps the disk whose device uses this stand-in.
fn holder_of(stand_in: &str) -> Option<String> {
    let (run, number) = stand_in.rsplit_once('-')?;
    Some(format!("{run}-{HOLDER}{}", number.strip_prefix(STAND_IN)?))
}

/// Disks that are being written.
pub(super) struct LiveWriting<'a> {
    live: &'a mut Live,
    undo: Undo,
    openings: Vec<Opening>,
    marks: Vec<(String, Mark)>,
    touched: Arc<AtomicBool>,
    was_half: bool,
    is_over: bool,
    // Holds the socket's folder until the end.
    _workspace: Workspace,
}

impl Live {
    pub(super) fn half_written(&mut self) -> Result<Vec<Unfinished>> {
        let survey = disks::look(&mut self.qmp)?;
        let half =
            marks(&survey).into_iter().filter_map(|(_, mark)| Some((disk_of(&survey.disks, &mark)?.facts.name.clone(), mark.backup)));
        Ok(half.map(|(disk, backup)| Unfinished { disk, backup }).collect())
    }

    pub(super) fn write(&mut self, request: &WriteRequest) -> Result<LiveWriting<'_>> {
        let state = status(&mut self.qmp)?;
        if !super::is_at_rest(&state) {
            return Err(Error::NotAtRest { why: format!("QEMU says that the VM is in state {state}") });
        }
        let survey = self.survey()?;
        let wanted = request.point();
        let targets = target::targets(&survey.disks, &survey.nodes, &wanted)?;
        self.check_told(&survey.disks, &wanted)?;
        hazards::check(&mut self.qmp, &targets)?;
        let names = Temporary::new(&request.run);
        let workspace = Workspace::create(&self.options.run_dir, names.run())?;
        let socket = workspace.sockets(&self.peer)?.join("nbd");
        let search = self.search();
        let was_half = !marks(&survey).is_empty();
        // From here on, dropping it takes back whatever was done.
        let mut writing = LiveWriting {
            live: self,
            undo: Undo::default(),
            openings: Vec::new(),
            marks: new_marks(&targets, request),
            touched: Arc::default(),
            was_half,
            is_over: false,
            _workspace: workspace,
        };
        let (qmp, undo) = (&mut writing.live.qmp, &mut writing.undo);
        transact(qmp, target::beginning(&targets, None, &names), &targets, None, &names, undo)?;
        // Before the server, which bears no name: only what is there beside it says that it is ours.
        add_stand_ins(qmp, &targets, &names, undo)?;
        export::start_server(qmp, &socket, undo)?;
        replace_marks(qmp, &marks(&survey), &writing.marks)?;
        set_aside(qmp, &targets, &names, undo)?;
        // Now that no guest can write to them, however early somebody starts it.
        merge(qmp, &targets, &names)?;
        let roots: Vec<String> = targets.iter().map(|target| target.root.clone()).collect();
        let manner = export::Manner { search, writable: true };
        writing.openings = export::add_exports(qmp, &targets, &roots, &names, manner, &socket, undo)?;
        Ok(writing)
    }
}

fn new_marks(targets: &[Target], request: &WriteRequest) -> Vec<(String, Mark)> {
    let mark =
        |target: &Target| Mark { backup: request.backup.short().to_owned(), root: target.root.clone(), qom_path: target.qom_path.clone() };
    targets.iter().map(|target| (target.active.clone(), mark(target))).collect()
}

// In one transaction: a disk never is half written without saying so.
fn replace_marks(qmp: &mut Qmp, old: &[(String, Mark)], new: &[(String, Mark)]) -> Result<()> {
    let remove =
        |(node, mark): &(String, Mark)| json!({ "type": "block-dirty-bitmap-remove", "data": { "node": node, "name": mark.name() } });
    let add = |(node, mark): &(String, Mark)| {
        let data = json!({ "node": node, "name": mark.name(), "persistent": false, "disabled": true });
        json!({ "type": "block-dirty-bitmap-add", "data": data })
    };
    let gone = old.iter().filter(|mark| !new.contains(mark)).map(remove);
    let actions: Vec<_> = gone.chain(new.iter().filter(|mark| !old.contains(mark)).map(add)).collect();
    if actions.is_empty() { Ok(()) } else { qmp.run("transaction", json!({ "actions": actions })) }
}

fn add_stand_ins(qmp: &mut Qmp, targets: &[Target], names: &Temporary, undo: &mut Undo) -> Result<()> {
    for target in targets {
        let stand_in = names.node(STAND_IN, target.number);
        qmp.run("blockdev-add", json!({ "driver": "null-co", "node-name": stand_in, "size": target.size, "read-zeroes": true }))?;
        undo.push(Step::DeleteNode(stand_in));
    }
    Ok(())
}

fn set_aside(qmp: &mut Qmp, targets: &[Target], names: &Temporary, undo: &mut Undo) -> Result<()> {
    for target in targets {
        let (holder, stand_in) = (names.node(HOLDER, target.number), names.node(STAND_IN, target.number));
        qmp.run("block-export-add", json!({ "type": "nbd", "id": holder, "node-name": target.root, "name": holder, "writable": false }))?;
        undo.push(Step::DeleteExport(holder.clone()));
        undo.push(Step::PutBack { device: target.qom_path.clone(), stand_in: stand_in.clone(), holder });
        if !exchange(qmp, &target.qom_path, &target.root, &stand_in)? {
            return Err(Error::Changed { disk: target.name.to_string(), change: "its device uses another node now".into() });
        }
    }
    Ok(())
}

impl LiveWriting<'_> {
    fn end(&mut self) -> Result<()> {
        self.is_over = true;
        self.undo.run(&mut self.live.qmp)?;
        replace_marks(&mut self.live.qmp, &self.marks, &[])
    }
}

impl Writing for LiveWriting<'_> {
    fn disk(&mut self, name: &DiskName) -> seam::Result<Box<dyn FrozenDisk>> {
        Ok(Box::new(open(opening_of(&self.openings, name)?)?))
    }

    fn changes(&mut self, name: &DiskName) -> seam::Result<Box<dyn DiskChanges>> {
        Ok(Box::new(NbdChanges::open(opening_of(&self.openings, name)?, &self.touched)?))
    }

    fn unguarded(&self) -> Vec<String> {
        vec!["until it is finished, nothing but its disks' locks keeps another QEMU from starting on them if this one ends".to_owned()]
    }

    fn finish(mut self: Box<Self>) -> seam::Result<Vec<String>> {
        self.end()?;
        Ok(Vec::new())
    }
}

impl Drop for LiveWriting<'_> {
    fn drop(&mut self) {
        // Half written, all stays as it is: the guest down, its devices without content, until the next revert puts them back.
        if !self.is_over && !self.touched.load(Ordering::SeqCst) && !self.was_half {
            drop(self.end());
        }
    }
}

fn disk_of<'d>(disks: &'d [Disk], mark: &Mark) -> Option<&'d Disk> {
    disks.iter().find(|disk| disk.qom_path == mark.qom_path)
}

/// What of a VM is half reverted, and to which backup.
pub(super) fn half_reverted(disks: &[Disk], mark: &Mark) -> Error {
    let disk = disk_of(disks, mark).map_or_else(|| mark.qom_path.clone(), |disk| disk.facts.name.to_string());
    Error::HalfReverted { subject: format!("disk {disk}"), backup: mark.backup.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_backup_node_and_device() {
        let mark = Mark { backup: "3f9a1c0d".into(), root: "#block123".into(), qom_path: "/machine/peripheral-anon/device[0]".into() };
        assert_eq!(Mark::parse(&mark.name()), Some(mark));
        assert_eq!(Mark::parse("km1tmp-paused-x:y:z"), None);
        assert_eq!(holder_of("km1tmp-n1n2-n12").as_deref(), Some("km1tmp-n1n2-h12"));
        assert_eq!(holder_of("km1tmp-n1n2-c12"), None);
    }
}
