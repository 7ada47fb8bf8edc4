//! What libvirt and QEMU disagree about: found by a pure function of both, healed by libvirt's own calls.
//!
//! libvirt writes its record of a checkpoint after QEMU made the bitmaps, and removes it after QEMU removed them. Whoever dies in
//! between leaves bitmaps that libvirt does not know, or a record of bitmaps that are gone. The bitmap's name says which
//! checkpoint it belongs to, so both are healed without asking anybody. Only names of our form are touched, and only those of the image
//! that a disk writes to: an image below may be the template of another VM, whose checkpoints are none of this one's.

use std::collections::{BTreeMap, BTreeSet};

use keepmark_model::CheckpointName;
use keepmark_model::facts::DiskFacts;
use keepmark_model::trust::recorded;

use crate::api::{Checkpoint, Domain, Kind, Redefine, View};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::xml;

/// What has to be done so that libvirt and QEMU agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Repairs {
    /// Bitmaps that libvirt does not know.
    pub(crate) adopt: Vec<Orphan>,
    /// Records whose bitmaps are on no image that a disk writes to.
    pub(crate) forget: Vec<CheckpointName>,
}

/// Bitmaps of ours without libvirt's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) name: CheckpointName,
    /// Disks on which it has recorded everything since it began.
    pub(crate) whole: Vec<String>,
    /// Disks that have something of it, but not all.
    pub(crate) broken: Vec<String>,
}

/// Derives them. Pure.
pub(crate) fn repairs(disks: &[DiskFacts], known: &[String]) -> Repairs {
    let mut present = present(disks);
    let ours = known.iter().filter_map(|name| CheckpointName::parse(name).ok());
    let (alive, forget): (Vec<_>, Vec<_>) = ours.partition(|name| present.contains_key(name));
    alive.iter().for_each(|name| drop(present.remove(name)));
    Repairs { adopt: present.into_values().collect(), forget }
}

// Everything of ours that is the domain's own, oldest first.
fn present(disks: &[DiskFacts]) -> BTreeMap<CheckpointName, Orphan> {
    let mut found: BTreeMap<CheckpointName, Orphan> = BTreeMap::new();
    for disk in disks {
        let names = disk.own_bitmaps().filter_map(|bitmap| CheckpointName::parse(&bitmap.name).ok());
        let names: BTreeSet<CheckpointName> = names.collect();
        for name in names {
            let is_whole = recorded(disk, &name).is_ok();
            let orphan = found.entry(name.clone()).or_insert_with(|| Orphan { name, whole: Vec::new(), broken: Vec::new() });
            let list = if is_whole { &mut orphan.whole } else { &mut orphan.broken };
            list.push(disk.name.to_string());
        }
    }
    found
}

/// The names of all checkpoints that libvirt knows, everyone's.
pub(crate) fn known(link: &mut Link) -> Result<Vec<String>> {
    link.call(|domain| domain.checkpoints()?.iter().map(Checkpoint::name).collect())
}

/// Whether a name is neither libvirt's nor QEMU's yet: those are new for every attempt, so one that is not is somebody else's doing.
///
/// # Errors
/// When it is taken.
pub(crate) fn free(link: &mut Link, disks: &[DiskFacts], name: &CheckpointName) -> Result<()> {
    let is_there = disks.iter().flat_map(DiskFacts::bitmaps).any(|bitmap| bitmap.name == name.as_str());
    let is_taken = is_there || known(link)?.iter().any(|other| other == name.as_str());
    if !is_taken {
        return Ok(());
    }
    Err(Error::Taken { domain: link.name().to_owned(), checkpoint: name.to_string() })
}

/// Makes libvirt and QEMU agree about a running domain's checkpoints of ours; says in words what was done.
pub(crate) fn heal(link: &mut Link, disks: &[DiskFacts]) -> Result<Vec<String>> {
    let repairs = repairs(disks, &known(link)?);
    let mut said = forget_gone(link, &repairs)?;
    for orphan in &repairs.adopt {
        adopt(link, disks, orphan)?;
        said.push(format!("the disagreement about checkpoint {}: libvirt knows its bitmaps again", orphan.name));
    }
    Ok(said)
}

/// Makes libvirt forget checkpoints whose bitmaps are nowhere; says which.
pub(crate) fn forget_gone(link: &mut Link, repairs: &Repairs) -> Result<Vec<String>> {
    let said = |name: &CheckpointName| format!("libvirt's record of checkpoint {name}, whose bitmaps are gone or another VM's");
    repairs.forget.iter().map(|name| forget(link, name).map(|()| said(name))).collect()
}

/// Makes libvirt forget a checkpoint that it may know; bitmaps stay.
pub(crate) fn forget(link: &mut Link, name: &CheckpointName) -> Result<()> {
    let forgotten = link.call(|domain| find(domain, name)?.map_or(Ok(()), |checkpoint| checkpoint.forget()));
    tolerate_absent(link, name, forgotten)
}

/// Makes libvirt forget all of our checkpoints; bitmaps stay.
pub(crate) fn hide(link: &mut Link) -> Result<()> {
    let known = known(link)?;
    known.iter().filter_map(|name| CheckpointName::parse(name).ok()).try_for_each(|name| forget(link, &name))
}

// A checkpoint that went meanwhile is what was wanted.
fn tolerate_absent(link: &mut Link, name: &CheckpointName, result: Result<()>) -> Result<()> {
    match result {
        Err(error) if known(link)?.iter().any(|other| other == name.as_str()) => Err(error),
        _ => Ok(()),
    }
}

fn find(domain: &Domain, name: &CheckpointName) -> crate::api::Result<Option<Checkpoint>> {
    let mut checkpoints = domain.checkpoints()?.into_iter();
    Ok(checkpoints.find(|checkpoint| checkpoint.name().is_ok_and(|other| other == name.as_str())))
}

/// Makes what was begun on images of a shut-off domain known to libvirt, as far as it takes it: it cannot look at the bitmaps.
pub(crate) fn note(link: &mut Link, disks: &[DiskFacts]) -> Result<()> {
    for orphan in repairs(disks, &known(link)?).adopt {
        let on = [orphan.whole.as_slice(), &orphan.broken].concat();
        redefine(link, disks, &orphan.name, &on, Redefine::Unchecked)?;
    }
    Ok(())
}

// What is whole is adopted with libvirt's own check. What libvirt does not believe is made known unchecked: it can then be deleted
// by the ordinary call, and `trust` judges it by its bitmaps, not by libvirt's record.
fn adopt(link: &mut Link, disks: &[DiskFacts], orphan: &Orphan) -> Result<()> {
    if !orphan.whole.is_empty() && redefine(link, disks, &orphan.name, &orphan.whole, Redefine::Validated).is_ok() {
        return Ok(());
    }
    let on = [orphan.whole.as_slice(), &orphan.broken].concat();
    redefine(link, disks, &orphan.name, &on, Redefine::Unchecked)
}

fn redefine(link: &mut Link, disks: &[DiskFacts], name: &CheckpointName, on: &[String], how: Redefine) -> Result<()> {
    let all: Vec<String> = disks.iter().map(|disk| disk.name.to_string()).collect();
    link.call(|domain| {
        let text = xml::checkpoint::redefine(name, &all, on, &domain.xml(View::Current)?);
        Checkpoint::redefine(domain, &text, how).map(drop)
    })
}

/// Deletes checkpoints of a running domain with their bitmaps, wherever they are and whatever libvirt knows of them.
/// `look` tells the disks as they are.
pub(crate) fn delete(link: &mut Link, names: &[CheckpointName], look: impl Fn(&mut Link) -> Result<Vec<DiskFacts>>) -> Result<()> {
    for name in names {
        let deleted = link.attempt(|domain| find(domain, name)?.map_or(Ok(()), |checkpoint| checkpoint.delete()))?;
        match deleted {
            Ok(()) => {}
            Err(fault) if matches!(fault.kind, Kind::Timeout | Kind::Lost | Kind::Denied | Kind::Unanswered | Kind::Interrupted) => {
                return Err(fault.into());
            }
            // A bitmap that is gone on one disk keeps libvirt from removing the others: they are removed as orphans below.
            Err(_) => forget(link, name)?,
        }
    }
    let disks = look(link)?;
    let mut left = present(&disks);
    for orphan in names.iter().filter_map(|name| left.remove(name)) {
        let on = [orphan.whole.as_slice(), &orphan.broken].concat();
        redefine(link, &disks, &orphan.name, &on, Redefine::Unchecked)?;
        link.call(|domain| find(domain, &orphan.name)?.map_or(Ok(()), |checkpoint| checkpoint.delete()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use keepmark_model::facts::{BitmapFacts, LayerFacts, Persistence};
    use keepmark_model::{DiskName, Size};

    use super::*;

    const C1: &str = "km1-20261122T180000Z-000000000001";
    const C2: &str = "km1-20261122T190000Z-000000000002";
    const C3: &str = "km1-20261122T200000Z-000000000003";

    fn bitmap(name: &str, inconsistent: bool) -> BitmapFacts {
        let dirty = Size(0);
        BitmapFacts { name: name.into(), recording: !inconsistent, busy: false, inconsistent, persistent: true, granularity: 65_536, dirty }
    }

    fn disk(name: &str, layers: &[&[BitmapFacts]]) -> DiskFacts {
        DiskFacts {
            name: DiskName::new(name).unwrap(),
            size: Size(1 << 20),
            format: "qcow2".into(),
            cluster_size: None,
            image: "/i".into(),
            persistence: Persistence::Stored,
            layers: layers.iter().map(|bitmaps| LayerFacts { image: "/i".into(), id: None, bitmaps: bitmaps.to_vec() }).collect(),
        }
    }

    fn found(disks: &[DiskFacts], known: &[&str]) -> Repairs {
        repairs(disks, &known.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    fn name(text: &str) -> CheckpointName {
        CheckpointName::parse(text).unwrap()
    }

    #[test]
    fn agreement_and_what_is_others_needs_no_repair() {
        let disks = [disk("vda", &[&[bitmap(C1, false), bitmap("virtnbdbackup.0", false), bitmap("backup-vda", false)]])];
        assert_eq!(found(&disks, &[C1, "virtnbdbackup.0", "virtnbdbackup.1", "by-hand"]), Repairs::default());
        assert_eq!(found(&[], &["by-hand"]), Repairs::default());
    }

    #[test]
    fn a_record_without_any_bitmap_is_forgotten_and_one_with_some_is_kept() {
        let disks = [disk("vda", &[&[bitmap(C2, false)]]), disk("vdb", &[&[]])];
        assert_eq!(found(&disks, &[C1, C2]), Repairs { adopt: vec![], forget: vec![name(C1)] });
    }

    #[test]
    fn orphans_are_adopted_oldest_first_with_what_is_whole_of_them() {
        let top: &[BitmapFacts] = &[bitmap(C3, false), bitmap(C1, false)];
        let disks =
            [disk("vda", &[top]), disk("vdb", &[&[bitmap(C3, true)]]), disk("vdc", &[&[bitmap(C3, false)], &[], &[bitmap(C3, false)]])];
        let orphan = |text: &str, whole: &[&str], broken: &[&str]| Orphan {
            name: name(text),
            whole: whole.iter().map(|disk| (*disk).to_owned()).collect(),
            broken: broken.iter().map(|disk| (*disk).to_owned()).collect(),
        };
        let adopt = vec![orphan(C1, &["vda"], &[]), orphan(C3, &["vda"], &["vdb", "vdc"])];
        assert_eq!(found(&disks, &[]), Repairs { adopt, forget: vec![] });
    }

    #[test]
    fn checkpoints_of_a_template_are_not_those_of_its_clones() {
        let template: &[BitmapFacts] = &[bitmap(C1, false), bitmap(C2, true)];
        let clone = [disk("vda", &[&[bitmap(C3, false)], template]), disk("vdb", &[&[], template])];
        let own = Orphan { name: name(C3), whole: vec!["vda".into()], broken: vec![] };
        assert_eq!(found(&clone, &[]), Repairs { adopt: vec![own], forget: vec![] });
        // What an earlier version took for the clone's.
        assert_eq!(found(&clone, &[C1, C3]), Repairs { adopt: vec![], forget: vec![name(C1)] });
    }
}
