//! What a qcow2 image says of itself in its header: its size and what lies below it. Bounded, since anybody may have changed it.

use std::path::Path;

use crate::error::{Error, Result};
use crate::folders;
use crate::images::durable;

/// QEMU writes the backing name right after the extensions: within 2 KiB.
const HEAD_BYTES_MAX: usize = 4 << 10;
const MAGIC: &[u8] = b"QFI\xfb";
const VERSION: u32 = 3;
const HEADER_BYTES_MIN: usize = 104;
const NAME_BYTES_MAX: usize = 1023;
/// Images that were not closed in order, and such with a compression type or subclusters, are read rightly by QEMU.
const FEATURES_ALLOWED: u64 = 1 | 1 << 3 | 1 << 4;
const FEATURE_CORRUPT: u64 = 1 << 1;
const FEATURE_DATA_FILE: u64 = 1 << 2;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the disk.
    pub size: u64,
    /// The name of the image below, as it stands there.
    pub backing: Option<String>,
}

impl Header {
    /// Reads an image's header.
    pub fn read(image: &Path) -> Result<Self> {
        let head = read_head(image).map_err(|error| Error::io("read", image, error))?;
        parse(&head).map_err(|problem| Error::damaged("image", image.display(), problem))
    }
}

fn read_head(image: &Path) -> std::io::Result<Vec<u8>> {
    let file = folders::open_regular(image)?;
    let mut head = vec![0; HEAD_BYTES_MAX];
    let length = durable::read_up_to(&file, &mut head, 0)?;
    head.truncate(length);
    Ok(head)
}

fn parse(head: &[u8]) -> std::result::Result<Header, String> {
    if head.get(..4) != Some(MAGIC) || head.len() < HEADER_BYTES_MIN {
        return Err("it is no qcow2 image".into());
    }
    if number32(head, 4)? != VERSION {
        return Err("it is not of qcow2 version 3".into());
    }
    if number32(head, 32)? != 0 {
        return Err("it is encrypted".into());
    }
    let features = number64(head, 72)?;
    if features & FEATURE_CORRUPT != 0 {
        return Err("QEMU has marked it as corrupt".into());
    }
    if features & FEATURE_DATA_FILE != 0 {
        return Err("its data are in another file".into());
    }
    if features & !FEATURES_ALLOWED != 0 {
        return Err(format!("it needs features that are not known ({features:#x})"));
    }
    let backing = backing(head)?;
    if backing.is_some() && extension(head, EXTENSION_BACKING_FORMAT)? != Some(b"qcow2") {
        return Err("it does not say that the image below is qcow2".into());
    }
    Ok(Header { size: number64(head, 24)?, backing })
}

fn backing(head: &[u8]) -> std::result::Result<Option<String>, String> {
    let (start, length) = (offset(number64(head, 8)?), offset(u64::from(number32(head, 16)?)));
    if start == 0 || length == 0 {
        return Ok(None);
    }
    let name = head.get(start..).and_then(|rest| rest.get(..length)).filter(|_| length <= NAME_BYTES_MAX);
    let name = name.ok_or_else(|| "the name of the image below is not in its head".to_owned())?;
    String::from_utf8(name.to_vec()).map(Some).map_err(|_| "the name of the image below is no text".into())
}

/// The content of a header extension.
fn extension(head: &[u8], wanted: u32) -> std::result::Result<Option<&[u8]>, String> {
    let mut at = offset(u64::from(number32(head, 100)?));
    loop {
        let (kind, length) = (number32(head, at)?, offset(u64::from(number32(head, at.saturating_add(4))?)));
        let start = at.saturating_add(8);
        let content = head.get(start..).and_then(|rest| rest.get(..length)).ok_or_else(short)?;
        match kind {
            0 => return Ok(None),
            kind if kind == wanted => return Ok(Some(content)),
            _ => at = start.saturating_add(length.next_multiple_of(8)),
        }
    }
}

fn offset(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn short() -> String {
    "its header ends early".into()
}

fn number32(head: &[u8], at: usize) -> std::result::Result<u32, String> {
    head.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_be_bytes(*bytes)).ok_or_else(short)
}

fn number64(head: &[u8], at: usize) -> std::result::Result<u64, String> {
    head.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(short)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as `qemu-img create` writes it, in short.
    fn head(backing: &str) -> Vec<u8> {
        let mut head = vec![0; 4096];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(24, &(1_u64 << 30).to_be_bytes());
        put(100, &112_u32.to_be_bytes());
        if !backing.is_empty() {
            put(8, &512_u64.to_be_bytes());
            put(16, &u32::try_from(backing.len()).unwrap().to_be_bytes());
            put(112, &EXTENSION_BACKING_FORMAT.to_be_bytes());
            put(116, &5_u32.to_be_bytes());
            put(120, b"qcow2");
            put(512, backing.as_bytes());
        }
        head
    }

    fn changed(at: usize, bytes: &[u8]) -> std::result::Result<Header, String> {
        let mut head = head("../a/vda.qcow2");
        head[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&head)
    }

    #[test]
    fn size_and_backing_name_are_told() {
        assert_eq!(parse(&head("")), Ok(Header { size: 1 << 30, backing: None }));
        assert_eq!(parse(&head("../a/vda.qcow2")), Ok(Header { size: 1 << 30, backing: Some("../a/vda.qcow2".into()) }));
    }

    #[test]
    fn what_is_not_ours_is_refused_with_a_reason() {
        for (at, bytes, reason) in [
            (0, &b"QFI\0"[..], "no qcow2"),
            (4, &[0, 0, 0, 2], "version 3"),
            (32, &[0, 0, 0, 1], "encrypted"),
            (72, &[0, 0, 0, 0, 0, 0, 0, 2], "corrupt"),
            (72, &[0, 0, 0, 0, 0, 0, 0, 4], "another file"),
            (72, &[1, 0, 0, 0, 0, 0, 0, 0], "not known"),
            (8, &[0, 0, 0, 1], "not in its head"),
            (16, &[0xff, 0xff, 0xff, 0xff], "not in its head"),
            (120, b"raw\0\0", "qcow2"),
            (100, &[0xff, 0xff, 0xff, 0xff], "ends early"),
        ] {
            let refused = changed(at, bytes).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), valid in any::<bool>()) {
            let mut head = if valid { head("../a/vda.qcow2") } else { Vec::new() };
            head.extend(&bytes);
            for (place, byte) in bytes.iter().enumerate().step_by(7) {
                if let Some(target) = head.get_mut(place * 3) {
                    *target = *byte;
                }
            }
            drop(parse(&head));
        }
    }
}
