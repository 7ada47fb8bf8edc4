//! How disks are called: by device id, else drive name, else label or file stem; the same disk has the same name, running or off.

use std::collections::HashSet;
use std::path::Path;

use keepmark_model::DiskName;
use serde_json::Value;

const PERIPHERAL: &str = "/machine/peripheral/";

const VIRTIO: &str = "/virtio-backend";

/// Whether `query-block` names a virtio-blk device so.
#[must_use]
pub fn is_virtio(qdev: &str) -> bool {
    qdev.ends_with(VIRTIO)
}

/// The device's path for `qom-set`: `query-block` names virtio devices by their inner backend, and scsi ones by their bare id.
#[must_use]
pub fn qom_path(qdev: &str) -> String {
    let path = qdev.strip_suffix(VIRTIO).unwrap_or(qdev);
    if path.starts_with('/') { path.to_owned() } else { format!("{PERIPHERAL}{path}") }
}

/// The id that the user gave the device, if any.
#[must_use]
pub fn device_id(qdev: &str) -> Option<String> {
    qom_path(qdev).strip_prefix(PERIPHERAL).filter(|id| !id.is_empty() && !id.contains('/')).map(str::to_owned)
}

/// Where an image is, out of what QEMU calls its file: a path, a URL, or `json:` with options around them.
#[must_use]
pub fn location(file: &str) -> String {
    let plain = || file.to_owned();
    let Some(options) = file.strip_prefix("json:") else { return plain() };
    let Ok(value) = serde_json::from_str::<Value>(options) else { return plain() };
    innermost_file(&value).unwrap_or_else(plain)
}

fn innermost_file(options: &Value) -> Option<String> {
    let mut options = options;
    loop {
        match options.get("filename").and_then(Value::as_str) {
            Some(name) => return Some(name.to_owned()),
            None => options = options.get("file")?,
        }
    }
}

/// A file's name without folder and last extension.
#[must_use]
pub fn stem(location: &str) -> Option<String> {
    Some(Path::new(location).file_stem()?.to_string_lossy().into_owned())
}

/// Gives out names. A second disk of a name becomes `NAME-2`, a third `NAME-3`, in QEMU's order: two disks with one name can only be
/// told apart by their order, so giving them ids or labels is better.
#[derive(Debug, Default)]
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// The first of the candidates that is not empty, made fit for a file name and unique.
    pub fn pick(&mut self, candidates: impl IntoIterator<Item = Option<String>>) -> Option<DiskName> {
        let chosen = candidates.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or_else(|| "disk".into());
        let fit: String = chosen.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
        let unique = (1..=u32::MAX)
            .map(|count| if count == 1 { fit.clone() } else { format!("{fit}-{count}") })
            .find(|name| !self.taken.contains(name))?;
        let name = DiskName::new(&unique).ok()?;
        self.taken.insert(unique);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_called_by_its_device_id_where_it_has_one() {
        for (qdev, path, id) in [
            ("/machine/peripheral/vda/virtio-backend", "/machine/peripheral/vda", Some("vda")),
            ("/machine/peripheral-anon/device[0]/virtio-backend", "/machine/peripheral-anon/device[0]", None),
            ("/machine/unattached/device[22]", "/machine/unattached/device[22]", None),
            ("scsi0-0", "/machine/peripheral/scsi0-0", Some("scsi0-0")),
            ("/machine/peripheral/ide1", "/machine/peripheral/ide1", Some("ide1")),
        ] {
            assert_eq!(qom_path(qdev), path);
            assert_eq!(device_id(qdev).as_deref(), id);
        }
    }

    #[test]
    fn a_location_is_the_innermost_file() {
        assert_eq!(location("/a/b.qcow2"), "/a/b.qcow2");
        assert_eq!(location(r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a/c.img"}}"#), "/a/c.img");
        assert_eq!(location("json:{broken"), "json:{broken");
        assert_eq!(stem("/a/b.c.qcow2").as_deref(), Some("b.c"));
    }

    #[test]
    fn names_are_unique_and_fit_for_files() {
        let mut names = Names::default();
        let mut pick = |name: &str| names.pick([None, Some(String::new()), Some(name.to_owned())]).map(|name| name.to_string());
        assert_eq!(pick("a"), Some("a".into()));
        assert_eq!(pick("a"), Some("a-2".into()));
        assert_eq!(pick("a"), Some("a-3".into()));
        assert_eq!(pick("x/y"), Some("x_y".into()));
        assert_eq!(pick(""), Some("disk".into()));
        assert_eq!(pick(&"x".repeat(300)), None);
    }
}
