//! Disks of a running domain: what its definition calls them, joined with what QEMU says of their images and bitmaps. Pure.

use keepmark_model::DiskName;
use keepmark_model::facts::SkippedDisk;
use keepmark_qemu::disks::{Disk, Survey};

use crate::xml::{DiskXml, DomainXml};

/// Disks that are backed up, called by their targets, and the others with the reason.
pub(crate) fn join(domain: &DomainXml, survey: &Survey) -> (Vec<Disk>, Vec<SkippedDisk>) {
    let mut disks = Vec::new();
    let mut skipped = Vec::new();
    for xml in &domain.disks {
        let skip = |why: String| SkippedDisk { name: xml.target.clone(), why };
        match (xml.left_out(), find(xml, survey), DiskName::new(&xml.target)) {
            (Some(why), ..) => skipped.push(skip(why)),
            (None, Some(disk), Ok(name)) => {
                let mut disk = disk.clone();
                disk.facts.name = name;
                disks.push(disk);
            }
            (None, None, _) => skipped.push(skip(reason(xml, survey))),
            (None, Some(_), Err(error)) => skipped.push(skip(error.to_string())),
        }
    }
    (disks, skipped)
}

// By its device's id; devices that wrap another one (USB storage) by the node of their image.
fn find<'a>(xml: &DiskXml, survey: &'a Survey) -> Option<&'a Disk> {
    let by_alias = || survey.disks.iter().find(|disk| xml.alias.as_deref().is_some_and(|alias| is_device(&disk.qom_path, alias)));
    let by_node = || survey.disks.iter().find(|disk| xml.index.is_some_and(|index| is_image(disk.active(), index)));
    by_alias().or_else(by_node)
}

fn is_device(path: &str, alias: &str) -> bool {
    path.strip_prefix("/machine/peripheral/") == Some(alias)
}

// libvirt leaves the format's node out where a raw image needs none.
fn is_image(node: &str, index: u32) -> bool {
    node == format!("libvirt-{index}-format") || node == format!("libvirt-{index}-storage")
}

fn reason(xml: &DiskXml, survey: &Survey) -> String {
    let said = survey.skipped.iter().find(|skipped| xml.alias.as_deref() == Some(skipped.name.as_str()));
    said.map_or_else(|| "QEMU does not tell of it".to_owned(), |skipped| skipped.why.clone())
}

/// The first disk that runs in an iothread.
pub(crate) fn in_iothread<'a>(domain: &'a DomainXml, targets: &[&str]) -> Option<&'a DiskXml> {
    let threaded = |disk: &&DiskXml| {
        disk.iothread || disk.controller.as_ref().is_some_and(|controller| domain.iothread_controllers.contains(controller))
    };
    domain.disks.iter().filter(|disk| targets.contains(&disk.target.as_str())).find(threaded)
}

#[cfg(test)]
mod tests {
    use keepmark_model::Size;
    use keepmark_model::facts::{DiskFacts, Persistence};

    use super::*;

    fn seen(qom_path: &str, node: &str) -> Disk {
        let facts = DiskFacts {
            name: DiskName::new("x").unwrap(),
            size: Size(1),
            format: "qcow2".into(),
            cluster_size: None,
            image: "/i".into(),
            persistence: Persistence::Stored,
            layers: vec![],
        };
        Disk { facts, root: node.into(), qom_path: qom_path.into(), nodes: vec![node.into()], job: None }
    }

    fn domain() -> DomainXml {
        DomainXml::parse(include_str!("../tests/data/web01.xml")).unwrap()
    }

    #[test]
    fn disks_are_called_by_their_targets() {
        let disks = vec![seen("/machine/peripheral/virtio-disk0", "any"), seen("/machine/peripheral/usb/x", "libvirt-3-storage")];
        let (disks, skipped) = join(&domain(), &Survey { disks, ..Survey::default() });
        let names: Vec<_> = disks.iter().map(|disk| (disk.facts.name.as_str(), disk.active())).collect();
        assert_eq!(names, [("vda", "any"), ("sda", "libvirt-3-storage")]);
        let unseen: Vec<_> =
            skipped.iter().filter(|skipped| skipped.why.starts_with("QEMU does not")).map(|skipped| skipped.name.as_str()).collect();
        assert_eq!(unseen, ["vde", "vdg"]);
    }

    #[test]
    fn an_iothread_may_be_the_controllers() {
        assert_eq!(in_iothread(&domain(), &["vda"]), None);
        assert_eq!(in_iothread(&domain(), &["vda", "sda"]).map(|disk| disk.target.as_str()), Some("sda"));
    }
}
