//! A running domain that a dead job of libvirt's holds: the moment is fixed around libvirt, with libvirt's checkpoint.

use keepmark_model::seam::{FrozenPoint, PointRequest};

use super::{Running, begins, job, means, moment_of};
use crate::api::Checkpoint;
use crate::detour::Around;
use crate::error::{Error, Result};
use crate::link::Link;
use crate::look::{facts, facts_of, look};
use crate::{checkpoints, detour, freeze, monitor};

impl Running {
    // What backups around libvirt left; and what the dead job itself left in QEMU, which nobody else ends.
    pub(super) fn clean_detour(&mut self) -> Result<Vec<String>> {
        let look = look(&mut self.link)?;
        let Some(live) = &mut self.detour else {
            if job(&mut self.link)? || !look.has_detour {
                return Ok(Vec::new());
            }
            return Ok(detour::open(&self.link, &look.xml, &self.options)?.remove_leftovers()?);
        };
        let mut said = live.remove_leftovers()?;
        said.extend(monitor::end_dead_backup(&mut self.link, &look.scratch_nodes())?);
        Ok(said)
    }

    // As `point`, with the moment fixed by QEMU itself. The checkpoint is libvirt's all the same: begun just before, it counts what is
    // written until the moment too, which is more than needed and never less.
    pub(super) fn around(&mut self, request: &PointRequest) -> Result<Around<'_>> {
        if !matches!(job(&mut self.link), Err(Error::Wedged { .. })) {
            return Err(self.busy());
        }
        let look = look(&mut self.link)?;
        let (xml, called, disks) = (look.xml, look.called, facts_of(look.disks));
        self.check(&xml, &disks, request)?;
        let starts = begins(&disks, &xml, request);
        let mut watchdog = self.watchdog()?;
        let Self { link, detour, options, .. } = self;
        let live = detour.as_mut().ok_or_else(|| Error::Wedged { domain: link.name().to_owned() })?;
        let means = means(link, &xml, request, &options.run_dir, watchdog.as_mut())?;
        let asked = detour::translated(request, &called);
        let domain = link.name().to_owned();
        let begin = |link: &mut Link| {
            starts.as_ref().map_or(Ok(()), |xml| link.once(|domain| Checkpoint::create(domain, xml)).map(drop))?;
            live.freeze(&asked).map_err(|source| Error::NoDetour { domain, source: Box::new(source) })
        };
        match freeze::quiesced(link, means, begin) {
            Ok((inner, quiet)) => {
                let mut moment = moment_of(quiet);
                moment.findings.extend(inner.moment().findings.iter().cloned());
                moment.notes.push(detour::note(link.name()));
                Ok(Around { inner: Box::new(inner), moment, called })
            }
            Err(error) => {
                // The first failure is what counts; a checkpoint that stays is named by no backup, and goes with the next one.
                let name = request.checkpoint.as_ref().filter(|_| !matches!(error, Error::Unreachable { .. }));
                drop(name.map(|name| checkpoints::delete(link, std::slice::from_ref(name), facts)));
                Err(error)
            }
        }
    }
}
