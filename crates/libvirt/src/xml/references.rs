//! What a domain's definition refers to by name: networks, storage pools, secrets, and the state of its TPM.

use std::collections::BTreeSet;

use roxmltree::{Document, Node};

use crate::error::{Error, Result};

/// Names in a definition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) networks: BTreeSet<String>,
    pub(crate) pools: BTreeSet<String>,
    /// By UUID or usage.
    pub(crate) secrets: BTreeSet<String>,
    /// An emulated TPM's.
    pub(crate) tpm: Option<TpmState>,
}

/// The state of an emulated TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TpmState {
    /// `1.2`, `2.0`.
    pub(crate) version: Option<String>,
    /// Where it is, if not in libvirt's own folder.
    pub(crate) source: Option<TpmSource>,
}

/// Where the state of a TPM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TpmSource {
    /// In a folder.
    Dir(String),
    /// In one file, or on a device.
    File(String),
}

impl References {
    /// Reads a definition.
    pub(crate) fn of(text: &str) -> Result<Self> {
        let document = Document::parse(text).map_err(|source| Error::Xml { subject: "the domain".into(), source: Box::new(source) })?;
        let mut found = Self::default();
        document.descendants().filter(Node::is_element).for_each(|node| found.add(node));
        Ok(found)
    }

    fn add(&mut self, node: Node<'_, '_>) {
        let is_in = |parent: &str| node.parent_element().is_some_and(|above| above.has_tag_name(parent));
        let named = |attribute: &str| node.attribute(attribute).map(str::to_owned);
        match node.tag_name().name() {
            "source" if is_in("interface") => self.networks.extend(named("network")),
            "source" if is_in("disk") || is_in("filesystem") => self.pools.extend(named("pool")),
            "secret" => self.secrets.extend(named("uuid").or_else(|| named("usage"))),
            "encryption" => self.secrets.extend(named("secret")),
            "backend" if is_in("tpm") && node.attribute("type") == Some("emulator") => self.tpm = Some(state(node)),
            _ => {}
        }
    }
}

fn state(backend: Node<'_, '_>) -> TpmState {
    let source = backend.children().find(|child| child.has_tag_name("source"));
    let source = source.and_then(|source| {
        let path = source.attribute("path")?.to_owned();
        Some(if source.attribute("type") == Some("dir") { TpmSource::Dir(path) } else { TpmSource::File(path) })
    });
    TpmState { version: backend.attribute("version").map(str::to_owned), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_referred_to_is_found_wherever_it_stands() {
        let text = "<domain><devices>\
            <interface type='network'><source network='default' portgroup='a'/></interface>\
            <interface type='bridge'><source bridge='br0'/></interface>\
            <disk type='volume'><source pool='p' volume='v'><encryption format='luks'><secret type='passphrase' uuid='u1'/></encryption></source></disk>\
            <disk type='network'><auth username='x'><secret type='ceph' usage='ceph key'/></auth><source protocol='rbd' name='a/b'/></disk>\
            <tpm model='tpm-crb'><backend type='emulator' version='2.0'><encryption secret='u2'/><source type='dir' path='/t'/></backend></tpm>\
            </devices></domain>";
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let tpm = TpmState { version: Some("2.0".into()), source: Some(TpmSource::Dir("/t".into())) };
        let expected =
            References { networks: set(&["default"]), pools: set(&["p"]), secrets: set(&["ceph key", "u1", "u2"]), tpm: Some(tpm) };
        assert_eq!(References::of(text).unwrap(), expected);
        assert_eq!(References::of("<domain><tpm><backend type='passthrough'/></tpm></domain>").unwrap(), References::default());
    }
}
