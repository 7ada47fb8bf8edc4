//! Powered-off images open for writing: exported with their bitmaps recording, and renamed until all is written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keepmark_model::DiskName;
use keepmark_model::opening::Purpose;
use keepmark_model::seam::{self, FrozenDisk};
use keepmark_model::writing::{DiskChanges, Unfinished, WriteRequest, Writing};

use super::{Offline, permitted};
use crate::changes::NbdChanges;
use crate::disk::{Opening, open};
use crate::error::Result;
use crate::live::{merge, transact};
use crate::point::undo::Undo;
use crate::point::{export, opening_of, target};
use crate::temporary::Temporary;
use crate::workspace::Workspace;

/// Images that are being written.
pub(super) struct OfflineWriting<'a> {
    offline: &'a mut Offline,
    undo: Undo,
    openings: Vec<Opening>,
    unguarded: BTreeMap<DiskName, String>,
    touched: Arc<AtomicBool>,
    was_half: bool,
    is_over: bool,
    // Holds the socket's folder until the end.
    _workspace: Workspace,
}

impl Offline {
    pub(super) fn half_written(&self) -> Vec<Unfinished> {
        let half = self.images.iter().filter_map(|image| Some((image, image.half.clone()?)));
        half.map(|(image, backup)| Unfinished { disk: image.name.clone(), backup }).collect()
    }

    pub(super) fn write(&mut self, request: &WriteRequest) -> Result<OfflineWriting<'_>> {
        let (disks, nodes) = self.disks(Purpose::Write)?;
        let wanted = request.point();
        let targets = target::targets(&disks, &nodes, &wanted)?;
        let names = Temporary::new(&request.run);
        let workspace = Workspace::create(&self.options.run_dir, names.run())?;
        let socket = workspace.path().join("nbd");
        let was_half = !self.half_written().is_empty();
        // From here on, dropping it takes back whatever was done.
        let mut writing = OfflineWriting {
            offline: self,
            undo: Undo::default(),
            openings: Vec::new(),
            unguarded: BTreeMap::new(),
            touched: Arc::default(),
            was_half,
            is_over: false,
            _workspace: workspace,
        };
        let qmp = &mut writing.offline.daemon(Purpose::Write)?.qmp;
        let undo = &mut writing.undo;
        transact(qmp, target::beginning(&targets, None, &names), &targets, None, &names, undo)?;
        merge(qmp, &targets, &names)?;
        export::start_server(qmp, &socket, undo)?;
        let active: Vec<String> = targets.iter().map(|target| target.active.clone()).collect();
        let manner = export::Manner { search: export::Search::Node, writable: true };
        writing.openings = export::add_exports(qmp, &targets, &active, &names, manner, &socket, undo)?;
        // Last: whatever can be refused has been by now.
        writing.guard(request)?;
        Ok(writing)
    }
}

impl OfflineWriting<'_> {
    fn guard(&mut self, request: &WriteRequest) -> Result<()> {
        let is_wanted = |image: &&mut super::Image| request.disks.iter().any(|disk| disk.name == image.name);
        for image in self.offline.images.iter_mut().filter(is_wanted) {
            image.half = Some(request.backup.short().to_owned());
            if let Some(why) = image.place.guard(request.backup.short())? {
                self.unguarded.insert(image.name.clone(), why);
            }
        }
        Ok(())
    }

    // Closes the images, whatever becomes of it, and then gives names back where that is right.
    fn end(&mut self, is_whole: bool) -> Result<Vec<String>> {
        self.is_over = true;
        let mut said = Vec::new();
        let undone = self.offline.daemon(Purpose::Write).and_then(|daemon| self.undo.run(&mut daemon.qmp));
        let closed = undone.and_then(|()| self.offline.daemon.take().map_or(Ok(()), |opened| opened.daemon.quit()));
        // All was flushed before: what can be lost now are bitmaps.
        said.extend(closed.err().map(|error| format!("the images did not close well, so their bitmaps may be lost: {error}")));
        self.offline.daemon = None;
        let history = &self.offline.options.history;
        for image in self.offline.images.iter_mut().filter(|image| image.half.is_some()) {
            if is_whole {
                image.place.unguard()?;
                image.half = None;
            }
            // It has another name now; not to be found under it would be seen when it is looked at next.
            image.permit = permitted(&image.name, &image.path, image.reachable(), &image.words, history)?;
        }
        Ok(said)
    }
}

impl Writing for OfflineWriting<'_> {
    fn disk(&mut self, name: &DiskName) -> seam::Result<Box<dyn FrozenDisk>> {
        Ok(Box::new(open(opening_of(&self.openings, name)?)?))
    }

    fn changes(&mut self, name: &DiskName) -> seam::Result<Box<dyn DiskChanges>> {
        Ok(Box::new(NbdChanges::open(opening_of(&self.openings, name)?, &self.touched)?))
    }

    fn unguarded(&self) -> Vec<String> {
        self.unguarded.iter().map(|(disk, why)| format!("disk {disk} can be started while it is half written: {why}")).collect()
    }

    fn finish(mut self: Box<Self>) -> seam::Result<Vec<String>> {
        Ok(self.end(true)?)
    }
}

impl Drop for OfflineWriting<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // What was half written before stays so; nobody can be told here what else goes wrong.
            let is_untouched = !self.touched.load(Ordering::SeqCst) && !self.was_half;
            drop(self.end(is_untouched));
        }
    }
}
