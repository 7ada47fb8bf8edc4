//! `<domainbackup>`: written for a pull of some disks over a unix socket or a push into images, and read to see whose a running one is.

use std::path::Path;

use keepmark_model::CheckpointName;
use roxmltree::Document;

use super::write::attribute;

/// One disk of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackupDisk {
    /// Its target.
    pub(crate) target: String,
    /// What is exported of it; none leaves it out.
    pub(crate) export: Option<Export>,
}

/// One disk's export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Export {
    /// The export's name.
    pub(crate) name: String,
    /// Checkpoint of the delta and the name under which the export shows it.
    pub(crate) since: Option<(CheckpointName, String)>,
    /// Where the old content of overwritten blocks goes.
    pub(crate) scratch: String,
}

/// The description that begins a pull backup.
pub(crate) fn write(socket: &Path, disks: &[BackupDisk]) -> String {
    let socket = attribute("socket", &socket.to_string_lossy());
    let mut xml = format!("<domainbackup mode='pull'>\n  <server transport='unix'{socket}/>\n  <disks>\n");
    for disk in disks {
        let name = attribute("name", &disk.target);
        let Some(export) = &disk.export else {
            xml.push_str(&format!("    <disk{name} backup='no'/>\n"));
            continue;
        };
        let since = export.since.as_ref().map_or_else(
            || " backupmode='full'".to_owned(),
            |(checkpoint, bitmap)| {
                let [since, bitmap] = [attribute("incremental", checkpoint.as_str()), attribute("exportbitmap", bitmap)];
                format!(" backupmode='incremental'{since}{bitmap}")
            },
        );
        let shown = attribute("exportname", &export.name);
        let scratch = attribute("file", &export.scratch);
        xml.push_str(&format!("    <disk{name} backup='yes' type='file'{since}{shown}>\n      <scratch{scratch}/>\n    </disk>\n"));
    }
    xml.push_str("  </disks>\n</domainbackup>\n");
    xml
}

/// One disk of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PushedDisk {
    /// Its target.
    pub(crate) target: String,
    /// The image that is written, and the checkpoint since when; none leaves it out.
    pub(crate) image: Option<(String, Option<CheckpointName>)>,
}

/// The description that begins a push backup into qcow2 images.
pub(crate) fn write_push(disks: &[PushedDisk]) -> String {
    let mut xml = "<domainbackup mode='push'>\n  <disks>\n".to_owned();
    for disk in disks {
        let name = attribute("name", &disk.target);
        let Some((image, since)) = &disk.image else {
            xml.push_str(&format!("    <disk{name} backup='no'/>\n"));
            continue;
        };
        let mode = since.as_ref().map_or_else(
            || " backupmode='full'".to_owned(),
            |since| format!(" backupmode='incremental'{}", attribute("incremental", since.as_str())),
        );
        let file = attribute("file", image);
        xml.push_str(&format!(
            "    <disk{name} backup='yes' type='file'{mode}>\n      <driver type='qcow2'/>\n      <target{file}/>\n    </disk>\n"
        ));
    }
    xml.push_str("  </disks>\n</domainbackup>\n");
    xml
}

/// The targets of the disks that a running backup works on.
pub(crate) fn targets(xml: &str) -> Vec<String> {
    let Ok(document) = Document::parse(xml) else { return Vec::new() };
    let disks = document.descendants().filter(|node| node.has_tag_name("disk") && node.attribute("backup") == Some("yes"));
    disks.filter_map(|disk| disk.attribute("name").map(str::to_owned)).collect()
}

/// Whether a running backup is a push.
pub(crate) fn is_push(xml: &str) -> bool {
    Document::parse(xml).is_ok_and(|document| document.root_element().attribute("mode") == Some("push"))
}

/// By what a running backup is told from others: its server's socket, or the images that it writes.
pub(crate) fn places(xml: &str) -> Vec<String> {
    let Ok(document) = Document::parse(xml) else { return Vec::new() };
    let server = document.root_element().children().filter(|node| node.has_tag_name("server"));
    let socket = server.filter_map(|server| server.attribute("socket"));
    let targets = document.descendants().filter(|node| node.has_tag_name("target")).filter_map(|target| target.attribute("file"));
    socket.chain(targets).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_says_what_is_exported_and_since_when() {
        let since = CheckpointName::parse("km1-20261122T180000Z-3f9a1c0d7be2").unwrap();
        let disk = |target: &str, export: Option<Export>| BackupDisk { target: target.into(), export };
        let export = |since| Export { name: "e".into(), since, scratch: "/scratch/a'b".into() };
        let disks = [disk("vda", Some(export(Some((since, "km1tmp-r-delta".into()))))), disk("vdb", Some(export(None))), disk("vdc", None)];
        let xml = write(Path::new("/run/s"), &disks);
        assert_eq!((places(&xml), is_push(&xml)), (vec!["/run/s".to_owned()], false));
        assert_eq!(targets(&xml), ["vda", "vdb"]);
        insta::assert_snapshot!(xml);
    }

    #[test]
    fn a_push_says_what_is_written_and_since_when() {
        let since = CheckpointName::parse("km1-20261122T180000Z-3f9a1c0d7be2").unwrap();
        let disk = |target: &str, image| PushedDisk { target: target.into(), image };
        let image = |name: &str| format!("/store/.km1tmp-1/{name}");
        let disks = [disk("vda", Some((image("a'b"), Some(since)))), disk("vdb", Some((image("vdb"), None))), disk("vdc", None)];
        let xml = write_push(&disks);
        assert_eq!((places(&xml), is_push(&xml)), (vec![image("a'b"), image("vdb")], true));
        insta::assert_snapshot!(xml);
    }

    #[test]
    fn others_backups_are_elsewhere_or_nowhere() {
        for other in [
            "<domainbackup mode='push'/>",
            "<domainbackup><server transport='tcp' name='localhost' port='10809'/></domainbackup>",
            "rubbish",
        ] {
            assert_eq!(places(other), [""; 0], "{other}");
        }
    }
}
