//! What a shut-off domain's definition says of its images, as words by which they may be opened; or why only a running QEMU reads them.

use std::path::PathBuf;

use keepmark_model::opening::{ImageFormat, LayerWords, Words};

use crate::error::{Error, Result};
use crate::link::Link;
use crate::xml::{DiskXml, ImageXml, Source};

/// The words of a disk's definition.
///
/// # Errors
/// [`Error::Unreadable`] where the image's bytes are not the disk's.
pub(crate) fn words(link: &Link, disk: &DiskXml) -> Result<Words> {
    of(disk).map_err(|why| Error::Unreadable { domain: link.name().to_owned(), disk: disk.target.clone(), why })
}

fn of(disk: &DiskXml) -> std::result::Result<Words, String> {
    readable(&disk.image)?;
    let data_file = disk.image.data_store.as_ref().map(path).transpose()?;
    let below = disk.chain.images.iter().map(layer).collect::<std::result::Result<_, _>>()?;
    Ok(Words::Definition { format: format(&disk.format)?, data_file, below, is_whole: disk.chain.is_whole })
}

fn layer(image: &ImageXml) -> std::result::Result<LayerWords, String> {
    readable(image)?;
    let word = image.format.as_ref().ok_or("its definition does not say the format of an image below it")?;
    if image.data_store.is_some() {
        return Err("an image below it has its data in another file".into());
    }
    Ok(LayerWords { path: path(&image.source)?, format: format(word)? })
}

fn readable(image: &ImageXml) -> std::result::Result<(), String> {
    if let Some(kind) = &image.encryption {
        return Err(format!("it is encrypted ({kind})"));
    }
    if image.is_slice { Err("it is a slice of a larger file".into()) } else { Ok(()) }
}

fn path(source: &Source) -> std::result::Result<PathBuf, String> {
    match source {
        Source::File(path) | Source::Block(path) => Ok(path.into()),
        Source::Empty | Source::Volume { .. } | Source::Network(_) | Source::Other(_) => {
            Err("what belongs to it is neither a file nor a block device".into())
        }
    }
}

fn format(word: &str) -> std::result::Result<ImageFormat, String> {
    word.parse().map_err(|_| format!("keepmark does not know its format {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xml::DomainXml;

    fn said(kind: &str, inside: &str) -> std::result::Result<Words, String> {
        let disk = format!("<disk type='file'><driver type='{kind}'/>{inside}<target dev='vda'/></disk>");
        let xml = format!("<domain><name>a</name><uuid>b</uuid><devices>{disk}</devices></domain>");
        of(&DomainXml::parse(&xml).unwrap().disks[0])
    }

    #[test]
    fn a_definition_says_what_the_disk_is_or_the_disk_is_not_read() {
        let plain = |format| Words::Definition { format, data_file: None, below: vec![], is_whole: false };
        assert_eq!(said("raw", "<source file='/a'/>"), Ok(plain(ImageFormat::Raw)));
        assert_eq!(said("qcow2", "<source file='/a'/>"), Ok(plain(ImageFormat::Qcow2)));
        let chain = "<source file='/a'/><backingStore type='file'><format type='raw'/><source file='/b'/><backingStore/></backingStore>";
        let below = vec![LayerWords { path: "/b".into(), format: ImageFormat::Raw }];
        assert_eq!(said("qcow2", chain), Ok(Words::Definition { format: ImageFormat::Qcow2, data_file: None, below, is_whole: true }));
        for (kind, inside) in [
            ("raw", "<source file='/a'><encryption format='luks'/></source>"),
            ("raw", "<source file='/a'><slices><slice type='storage' offset='1' size='2'/></slices></source>"),
            ("qcow2", "<source file='/a'/><backingStore type='file'><source file='/b'/></backingStore>"),
            ("qcow2", "<source file='/a'/><backingStore type='network'><format type='raw'/><source protocol='nbd'/></backingStore>"),
            (
                "qcow2",
                "<source file='/a'/><backingStore type='file'><format type='raw'/><source file='/b'><encryption/></source></backingStore>",
            ),
            ("host_device", "<source file='/a'/>"),
        ] {
            assert!(said(kind, inside).is_err(), "{kind} {inside}");
        }
    }
}
