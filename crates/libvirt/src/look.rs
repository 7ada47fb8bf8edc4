//! A running domain as it is at one time: what libvirt says of it joined with what QEMU says.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use keepmark_model::DiskName;
use keepmark_model::facts::{DiskFacts, SkippedDisk};
use keepmark_model::names::TEMPORARY_PREFIX;
use keepmark_model::seam::{PointDisk, PointRequest};
use keepmark_qemu::disks::reply::Node;
use keepmark_qemu::disks::{Disk, Survey};
use keepmark_qemu::identity;
use keepmark_qemu::temporary::{is_delta, is_ours};

use crate::api::View;
use crate::error::Result;
use crate::link::Link;
use crate::xml::DomainXml;
use crate::{disks, monitor};

/// The domain as it is at one time.
pub(crate) struct Look {
    pub(crate) xml: DomainXml,
    pub(crate) disks: Vec<Disk>,
    pub(crate) skipped: Vec<SkippedDisk>,
    /// How the disks would be called without libvirt.
    pub(crate) called: BTreeMap<DiskName, DiskName>,
    /// Whether a backup around libvirt has left something: libvirt's own have no nodes of ours, and our bitmaps on scratch images only.
    pub(crate) has_detour: bool,
    // Bytes of the image in each of QEMU's nodes.
    sizes: HashMap<String, u64>,
    // Nodes of scratch images of ours, with their drivers.
    scratch: Vec<(String, String)>,
}

impl Look {
    /// Nodes of scratch images of ours, those of formats first: libvirt forgets them if it is killed while a backup begins or ends.
    pub(crate) fn scratch_nodes(&self) -> Vec<&str> {
        let (files, formats): (Vec<_>, Vec<_>) = self.scratch.iter().partition(|(_, driver)| driver == "file");
        formats.into_iter().chain(files).map(|(node, _)| node.as_str()).collect()
    }

    /// A bitmap that libvirt puts on a disk while it pushes: where one is, it does so no more.
    pub(crate) fn left_by_libvirt(&self) -> Option<String> {
        let named = |disk: &Disk| format!("backup-{}", disk.facts.name);
        self.disks.iter().find(|disk| disk.facts.own_bitmaps().any(|bitmap| bitmap.name == named(disk))).map(named)
    }

    /// Disks whose images below have another size: QEMU cannot unite their bitmaps, so everything counts as changed.
    pub(crate) fn uneven(&self, request: &PointRequest) -> BTreeSet<DiskName> {
        let is_uneven = |wanted: &&PointDisk| {
            let disk = self.disks.iter().find(|disk| disk.facts.name == wanted.name);
            let carriers = disk.zip(wanted.since.as_ref()).map(|(disk, since)| (disk.facts.size.0, disk.carriers(since)));
            carriers.is_some_and(|(size, nodes)| nodes.iter().any(|(node, _)| self.sizes.get(*node).is_some_and(|other| *other != size)))
        };
        request.disks.iter().filter(is_uneven).map(|wanted| wanted.name.clone()).collect()
    }
}

/// Looks at a running domain.
pub(crate) fn look(link: &mut Link) -> Result<Look> {
    let xml = DomainXml::parse(&link.call(|domain| domain.xml(View::Current))?)?;
    let survey = monitor::look(link)?;
    let (mut disks, skipped) = disks::join(&xml, &survey);
    identity::identify(&mut disks, &identity::OpenFiles::UNKNOWN);
    let called = disks.iter().filter_map(|disk| Some((disk.facts.name.clone(), without_libvirt(disk, &survey)?))).collect();
    let is_scratch = |node: &&Node| is_temporary(&node.file);
    let has_delta = |node: &Node| node.dirty_bitmaps.iter().filter_map(|bitmap| bitmap.name.as_deref()).any(is_delta);
    let has_detour = survey.nodes.iter().any(|node| is_ours(&node.node_name) || (has_delta(node) && !is_scratch(&node)));
    let scratch = survey.nodes.iter().filter(is_scratch).map(|node| (node.node_name.clone(), node.drv.clone())).collect();
    let sizes = survey.nodes.into_iter().map(|node| (node.node_name, node.image.virtual_size)).collect();
    Ok(Look { xml, disks, skipped, called, has_detour, sizes, scratch })
}

fn without_libvirt(disk: &Disk, survey: &Survey) -> Option<DiskName> {
    let same = |other: &&Disk| (&other.qom_path, &other.nodes) == (&disk.qom_path, &disk.nodes);
    survey.disks.iter().find(same).map(|same| same.facts.name.clone())
}

/// Whether a path leads through something temporary of ours: a folder of scratch images, or of a backup that is not published yet.
pub(crate) fn is_temporary(path: &str) -> bool {
    path.split(['/', '"']).any(|part| part.trim_start_matches('.').starts_with(TEMPORARY_PREFIX))
}

/// Its disks alone.
pub(crate) fn facts(link: &mut Link) -> Result<Vec<DiskFacts>> {
    look(link).map(|look| facts_of(look.disks))
}

pub(crate) fn facts_of(disks: Vec<Disk>) -> Vec<DiskFacts> {
    disks.into_iter().map(|disk| disk.facts).collect()
}
