//! What a running domain has at its next start, compared with what it has now: whoever shuts it down for its disks has to know before.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use keepmark_model::DiskName;
use keepmark_model::facts::DiskFacts;

use crate::api::View;
use crate::error::{Error, Result};
use crate::link::Link;
use crate::xml::{DomainXml, Source};

/// Disks of the next start: target and where the image is, if it is a path.
type Next = Vec<(String, Option<String>)>;

/// Looks whether these disks (all, if none are named) are the same at the next start; says in words what becomes of the others.
///
/// # Errors
/// When one of them is not.
pub(crate) fn compare(link: &mut Link, now: &[DiskFacts], wanted: &[DiskName]) -> Result<Vec<String>> {
    let next = next(link)?;
    let (mut said, mut refused) = (Vec::new(), None);
    for disk in now {
        let Some(what) = otherwise(disk, &next, is_same) else { continue };
        if wanted.is_empty() || wanted.contains(&disk.name) {
            refused.get_or_insert((disk.name.to_string(), what));
        } else {
            said.push(format!("disk {} {what}", disk.name));
        }
    }
    let domain = link.name().to_owned();
    refused.map_or(Ok(said), |(disk, what)| Err(Error::OtherImages { domain, disk, what }))
}

fn next(link: &mut Link) -> Result<Next> {
    let xml = DomainXml::parse(&link.call(|domain| domain.xml(View::Next))?)?;
    let place = |source: &Source| match source {
        Source::File(path) | Source::Block(path) => Some(path.clone()),
        Source::Volume { pool, volume } => link.volume_path(pool, volume).ok(),
        Source::Network(_) | Source::Empty | Source::Other(_) => None,
    };
    Ok(xml.disks.iter().map(|disk| (disk.target.clone(), place(&disk.source))).collect())
}

// In words that follow the disk's name.
fn otherwise(disk: &DiskFacts, next: &Next, is_same: impl Fn(&str, &str) -> bool) -> Option<String> {
    match next.iter().find(|(target, _)| target == disk.name.as_str()) {
        None => Some("is attached to the running domain only: the next start goes without it".into()),
        Some((_, None)) => Some("is on no file or device of this host at the next start".into()),
        Some((_, Some(path))) if is_same(path, &disk.image) => None,
        Some((_, Some(path))) => Some(format!("is {} now, and {path} at the next start", disk.image)),
    }
}

// One file has many names: `/a//b`, links. What QEMU opened it tells as it was told.
fn is_same(one: &str, other: &str) -> bool {
    let file = |path: &str| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    Path::new(one) == Path::new(other) || file(one).is_some_and(|found| file(other) == Some(found))
}

#[cfg(test)]
mod tests {
    use keepmark_model::Size;
    use keepmark_model::facts::Persistence;

    use super::*;

    fn disk(image: &str) -> DiskFacts {
        DiskFacts {
            name: DiskName::new("vda").unwrap(),
            size: Size(1),
            format: "qcow2".into(),
            cluster_size: None,
            image: image.into(),
            persistence: Persistence::Stored,
            layers: vec![],
        }
    }

    #[test]
    fn a_disk_is_the_same_by_its_file_whatever_its_path() {
        let next: Next = vec![("vda".into(), Some("/img//./d2.qcow2".into()))];
        assert_eq!(otherwise(&disk("/img/d2.qcow2"), &next, is_same), None);
        let said = otherwise(&disk("/img/d3.qcow2"), &next, is_same).unwrap();
        assert_eq!(said, "is /img/d3.qcow2 now, and /img//./d2.qcow2 at the next start");
        assert!(otherwise(&disk("/x"), &vec![("vda".into(), None)], is_same).unwrap().contains("no file"));
        assert!(otherwise(&disk("/x"), &vec![("vdb".into(), Some("/x".into()))], is_same).unwrap().contains("running domain only"));
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(is_same(file.to_str().unwrap(), link.to_str().unwrap()));
    }
}
