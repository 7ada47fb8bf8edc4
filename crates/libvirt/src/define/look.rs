//! What a definition refers to, looked for on this host.

use std::collections::BTreeSet;
use std::path::Path;

use super::facts::Facts;
use super::rewrite::secrets_of;
use super::tree::Element;
use crate::api::Connect;
use crate::error::Result;

const LINKS: &str = "/sys/class/net";

/// The facts that a definition's rewriting needs.
pub(super) fn facts(connect: &Connect, definition: &str, swtpm: &Path) -> Result<Facts> {
    let domain = Element::parse(definition)?;
    let mut facts = Facts { swtpm: swtpm.to_owned(), ..Facts::default() };
    for known in connect.domains()? {
        // One that was undefined since it was listed is none.
        if let (Ok(name), Ok(uuid)) = (known.name(), known.uuid()) {
            facts.names.insert(name);
            facts.uuids.insert(uuid.to_ascii_lowercase());
        }
    }
    facts.networks = connect.networks()?.into_iter().collect();
    facts.links = links();
    facts.emulators = emulators(connect)?;
    domain.visit(&mut |element| {
        facts.present.extend(element.values().filter(|value| value.starts_with('/') && Path::new(value).exists()).map(str::to_owned));
        if let (Some(pool), Some(volume)) = (element.get("pool"), element.get("volume"))
            && connect.volume_path(pool, volume).is_ok()
        {
            facts.volumes.insert((pool.to_owned(), volume.to_owned()));
        }
    });
    facts.secrets = secrets_of(&domain).into_iter().filter(|secret| connect.secret_xml(secret).is_ok()).collect();
    Ok(facts)
}

fn emulators(connect: &Connect) -> Result<BTreeSet<String>> {
    let capabilities = Element::parse(&connect.capabilities()?)?;
    let mut found = BTreeSet::new();
    capabilities.visit(&mut |element| {
        if element.name() == "emulator" {
            found.extend(element.text().map(str::to_owned));
        }
    });
    Ok(found)
}

fn links() -> BTreeSet<String> {
    let entries = std::fs::read_dir(LINKS).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
