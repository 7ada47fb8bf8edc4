//! What a definition says of a disk's image beyond its place: what lies below it, where its data are, and how it is wrapped. Pure.

use roxmltree::Node;

use super::domain::{Source, attribute, child, source_of};

// As deep as definitions are read.
const DEPTH_MAX: usize = 256;

/// A disk's image, or one below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageXml {
    /// Where it is.
    pub source: Source,
    /// Its format, where it is said.
    pub format: Option<String>,
    /// How it is encrypted, if it is.
    pub encryption: Option<String>,
    /// Whether it is a part of its file.
    pub is_slice: bool,
    /// Where its data are, if that is said.
    pub data_store: Option<Source>,
}

/// The images below a disk's, as far as they are said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainXml {
    /// From the top down.
    pub images: Vec<ImageXml>,
    /// Whether it is said that there are no others.
    pub is_whole: bool,
}

/// The image of a `<disk>` or a `<backingStore>`.
pub(super) fn image(node: Node<'_, '_>) -> ImageXml {
    let source = child(node, "source");
    let within = |name: &'static str| source.and_then(|source| child(source, name)).or_else(|| child(node, name));
    let kind = |node: Node<'_, '_>| node.attribute("type").unwrap_or("file").to_owned();
    let encryption = within("encryption").map(|node| node.attribute("format").unwrap_or("unknown").to_owned());
    let format = attribute(child(node, "format"), "type").or_else(|| attribute(child(node, "driver"), "type"));
    let data_store = within("dataStore").map(|store| source_of(&kind(store), child(store, "source")));
    ImageXml { source: source_of(&kind(node), source), format, encryption, is_slice: within("slices").is_some(), data_store }
}

/// What is said to lie below a `<disk>`. An empty `<backingStore/>` says: nothing.
pub(super) fn chain(disk: Node<'_, '_>) -> ChainXml {
    let mut chain = ChainXml::default();
    let mut below = child(disk, "backingStore");
    while let Some(store) = below.filter(|_| chain.images.len() < DEPTH_MAX) {
        if child(store, "source").is_none() {
            return ChainXml { is_whole: true, ..chain };
        }
        chain.images.push(image(store));
        below = child(store, "backingStore");
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::DomainXml;

    fn disk(inside: &str) -> (ImageXml, ChainXml) {
        let xml = format!(
            "<domain><name>a</name><uuid>b</uuid><devices><disk type='file'><driver type='qcow2'/>{inside}<target dev='vda'/></disk></devices></domain>"
        );
        let disk = DomainXml::parse(&xml).unwrap().disks.remove(0);
        (disk.image, disk.chain)
    }

    #[test]
    fn a_chain_is_whole_where_its_end_is_said() {
        let base = |inside: &str| format!("<backingStore type='file'><format type='raw'/><source file='/b'/>{inside}</backingStore>");
        let of = |inside: &str| {
            let chain = disk(&format!("<source file='/a'/>{inside}")).1;
            (chain.images.iter().map(|image| (image.source.clone(), image.format.clone())).collect::<Vec<_>>(), chain.is_whole)
        };
        let below = vec![(Source::File("/b".into()), Some("raw".into()))];
        assert_eq!(of(""), (vec![], false));
        assert_eq!(of("<backingStore/>"), (vec![], true));
        assert_eq!(of(&base("")), (below.clone(), false));
        assert_eq!(of(&base("<backingStore/>")), (below, true));
    }

    #[test]
    fn what_wraps_an_image_is_seen_wherever_it_stands() {
        let luks = "<encryption format='luks'><secret type='passphrase' uuid='c'/></encryption>";
        for inside in [format!("<source file='/a'>{luks}</source>"), format!("<source file='/a'/>{luks}")] {
            assert_eq!(disk(&inside).0.encryption.as_deref(), Some("luks"));
        }
        let slices = "<source file='/a'><slices><slice type='storage' offset='1' size='2'/></slices></source>";
        assert!(disk(slices).0.is_slice && !disk("<source file='/a'/>").0.is_slice);
        let data = "<source file='/a'><dataStore type='file'><format type='raw'/><source file='/d'/></dataStore></source>";
        assert_eq!(disk(data).0.data_store, Some(Source::File("/d".into())));
    }
}
