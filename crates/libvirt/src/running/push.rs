//! Push mode: libvirt's job copies the moment into a store's images, which are made here.
//!
//! QEMU lets the guest's writes wait until the old content is in the image. So it is done only where the image is as near as a scratch
//! image would be, with room left; what fills it up is watched as the scratch is.

use std::path::Path;

use keepmark_model::images::ImageTools;
use keepmark_model::pushing::{CannotPush, PushPlace, PushTarget};
use keepmark_model::seam::PointRequest;
use keepmark_qemu::QemuImages;
use keepmark_qemu::space::{SPACE_BYTES_MIN, has_space};

use super::{Running, begins, job, targets};
use crate::api::Domain;
use crate::error::{Error, Result};
use crate::handed::Handed;
use crate::hindrances::{closed, own, user_of};
use crate::link::Link;
use crate::look::{facts_of, look};
use crate::pushed::{PushPoint, Seen, lies_in};
use crate::xml::DomainXml;
use crate::xml::backup::{self, PushedDisk};

impl Running {
    // Why not, in words, is no failure.
    pub(super) fn may_push(&mut self, place: &PushPlace) -> Result<std::result::Result<(), CannotPush>> {
        if self.detour.is_some() {
            return Ok(Err(CannotPush::new("a dead job of libvirt's holds the domain")));
        }
        let look = look(&mut self.link)?;
        let owner = user_of(&look.xml);
        let refuse = |why: String| Ok(Err(CannotPush::new(why)));
        let there = place.folder.ancestors().find(|folder| folder.exists()).unwrap_or(&place.folder);
        if own().0 != 0 && own().0 != owner.0 {
            return refuse(format!("QEMU runs as another user ({}), and only root can give it images", owner.0));
        }
        if let Some(closed) = closed(&place.folder, owner) {
            return refuse(format!("QEMU runs as user {}, who cannot get through {}", owner.0, closed.display()));
        }
        if place.compress {
            return refuse("libvirt's backups are not compressed".into());
        }
        if place.is_remote {
            return refuse("the store is on another machine, or behind a program, for which the guest would have to wait".into());
        }
        if !has_space(there) {
            return refuse(format!(
                "the store has less than {} MiB of free space, and a guest must not wait for more",
                SPACE_BYTES_MIN >> 20
            ));
        }
        if let Some(left) = look.left_by_libvirt() {
            return refuse(format!("a dead libvirtd has left its bitmap {left} in QEMU, which goes when the domain is started anew"));
        }
        if self.link.call(Domain::is_stopped_by_error)? {
            return refuse("the domain stands still after a failed write".into());
        }
        Ok(Ok(()))
    }

    pub(super) fn push_point(&mut self, request: &PointRequest, targets: &[PushTarget]) -> Result<PushPoint<'_>> {
        if job(&mut self.link)? {
            return Err(self.busy());
        }
        let look = look(&mut self.link)?;
        if let Some(disk) = look.uneven(request).first() {
            return Err(CannotPush::new(format!("the images of disk {disk} have unlike sizes, so QEMU cannot unite their bitmaps")).into());
        }
        let (xml, disks) = (look.xml, facts_of(look.disks));
        self.check(&xml, &disks, request)?;
        let folder = targets.first().and_then(|target| target.image.parent()).unwrap_or(Path::new("/")).to_owned();
        let handed = self.make_images(&folder, targets)?;
        let parts = parts(&xml, request, targets);
        let starts = begins(&disks, &xml, request);
        let token = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut watchdog = self.watching(&token)?;
        // libvirt tells only how the last job ended: from now on that is ours.
        self.link.call(Domain::take_ended_job)?;
        let begin = |link: &mut Link| link.once(|domain| domain.backup_begin(&backup::write_push(&parts), starts.as_deref()));
        let begun = self.quiesced(request, &xml, watchdog.as_mut(), begin);
        let moment = match begun {
            Ok(moment) => moment,
            Err(error) => return Err(self.undo(error, lies_in(&folder), request)),
        };
        let seen = Seen::now();
        let space = self.watch_space(&folder, lies_in(&folder));
        let targets = targets.iter().map(|target| target.disk.clone()).collect();
        Ok(PushPoint { link: &mut self.link, moment, targets, folder, space, watchdog, seen, is_over: false, _handed: handed })
    }

    fn make_images(&self, folder: &Path, targets: &[PushTarget]) -> Result<Handed> {
        let tools = QemuImages::new(&self.options.run_dir);
        for target in targets {
            tools.create(&target.image, target.size, target.backing.as_deref()).map_err(Error::Image)?;
        }
        Handed::open(folder, targets.iter().map(|target| target.image.clone()).collect())
    }
}

fn parts(xml: &DomainXml, request: &PointRequest, images: &[PushTarget]) -> Vec<PushedDisk> {
    let image = |target: &String| {
        let pushed = images.iter().find(|pushed| pushed.disk.as_str() == target)?;
        let wanted = request.disks.iter().find(|wanted| wanted.name == pushed.disk)?;
        Some((pushed.image.to_string_lossy().into_owned(), wanted.since.clone()))
    };
    targets(xml).into_iter().map(|target| PushedDisk { image: image(&target), target }).collect()
}
