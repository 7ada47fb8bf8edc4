//! `<domaincheckpoint>`: written to start one, and to make one known whose bitmaps are there already.

use keepmark_model::CheckpointName;

use super::write::attribute;

const DESCRIPTION: &str = "made by keepmark";

/// A checkpoint to start on some of all disks.
pub(crate) fn begin(name: &CheckpointName, all: &[String], on: &[String]) -> String {
    format!("<domaincheckpoint>\n{}{}</domaincheckpoint>\n", head(name), disks(name, all, on))
}

/// A checkpoint to make known again. Its time is in its name; libvirt wants the domain's definition with it.
pub(crate) fn redefine(name: &CheckpointName, all: &[String], on: &[String], domain_xml: &str) -> String {
    let seconds = name.time().map_or(0, |time| time.as_second());
    let time = format!("  <creationTime>{seconds}</creationTime>\n");
    let domain = without_declaration(domain_xml);
    format!("<domaincheckpoint>\n{}{time}{}{domain}</domaincheckpoint>\n", head(name), disks(name, all, on))
}

fn head(name: &CheckpointName) -> String {
    format!("  <name>{name}</name>\n  <description>{DESCRIPTION}</description>\n")
}

fn disks(name: &CheckpointName, all: &[String], on: &[String]) -> String {
    let mut xml = String::from("  <disks>\n");
    for target in all {
        let disk = attribute("name", target);
        let line = if on.contains(target) {
            format!("    <disk{disk} checkpoint='bitmap'{}/>\n", attribute("bitmap", name.as_str()))
        } else {
            format!("    <disk{disk} checkpoint='no'/>\n")
        };
        xml.push_str(&line);
    }
    xml.push_str("  </disks>\n");
    xml
}

fn without_declaration(xml: &str) -> &str {
    let xml = xml.trim_start();
    if xml.starts_with("<?xml") { xml.split_once("?>").map_or(xml, |(_, rest)| rest) } else { xml }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_on_the_disks_that_can_have_one() {
        let name = CheckpointName::parse("km1-20261122T180000Z-3f9a1c0d7be2").unwrap();
        let all = ["vda", "vdb"].map(str::to_owned);
        insta::assert_snapshot!(begin(&name, &all, &all[..1]));
        let again = redefine(&name, &all, &all[1..], "<?xml version='1.0'?>\n<domain/>\n");
        insta::assert_snapshot!(again);
        assert!(roxmltree::Document::parse(&again).is_ok());
    }
}
