//! `<domainbackup>`: written for a pull of some disks over a unix socket, and read to see whose a running one is.

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

/// The targets of the disks that a running backup works on.
pub(crate) fn targets(xml: &str) -> Vec<String> {
    let Ok(document) = Document::parse(xml) else { return Vec::new() };
    let disks = document.descendants().filter(|node| node.has_tag_name("disk") && node.attribute("backup") == Some("yes"));
    disks.filter_map(|disk| disk.attribute("name").map(str::to_owned)).collect()
}

/// The socket of a running backup's server, if it has one.
pub(crate) fn socket(xml: &str) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let server = document.root_element().children().find(|node| node.has_tag_name("server"))?;
    server.attribute("socket").map(str::to_owned)
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
        assert_eq!(socket(&xml).as_deref(), Some("/run/s"));
        assert_eq!(targets(&xml), ["vda", "vdb"]);
        insta::assert_snapshot!(xml);
    }

    #[test]
    fn others_backups_have_other_sockets_or_none() {
        assert_eq!(socket("<domainbackup mode='push'/>"), None);
        assert_eq!(socket("<domainbackup><server transport='tcp' name='localhost' port='10809'/></domainbackup>"), None);
        assert_eq!(socket("rubbish"), None);
    }
}
