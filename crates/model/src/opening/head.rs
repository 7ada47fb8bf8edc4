//! What the first bytes of an image look like: a claim, never a reason to believe it. Bounded, since a guest may have written them.

use super::ImageFormat;

/// How much of an image is read. QEMU writes names right after the header's extensions.
pub const HEAD_BYTES: usize = 64 << 10;

const NAME_BYTES_MAX: usize = 1023;
const FEATURE_DATA_FILE: u64 = 1 << 2;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What an image claims to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// The format whose mark it begins with.
    pub format: Option<ImageFormat>,
    /// What it says lies below it.
    pub backing: Option<Backing>,
    /// Where it says that its data are, if not in itself.
    pub data_file: Option<String>,
    /// Whether it says that its data are encrypted.
    pub encrypted: bool,
    /// Why it cannot be opened as what it claims to be.
    pub problem: Option<String>,
}

/// A reference to the image below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The name, as it stands there.
    pub name: String,
    /// The format that it is said to have.
    pub format: Option<String>,
}

/// Reads an image's first bytes.
#[must_use]
pub fn read(bytes: &[u8]) -> Head {
    let format = mark(bytes);
    let claim = Head { format, ..Head::default() };
    let Some(format) = format else { return claim };
    let read = match format {
        ImageFormat::Qcow2 => qcow2(bytes, claim.clone()),
        ImageFormat::Qcow => alone(bytes, claim.clone(), number64(bytes, 8).map(|offset| offset != 0)),
        ImageFormat::Qed => alone(bytes, claim.clone(), bytes.get(16).map(|features| features & 1 != 0)),
        ImageFormat::Vmdk => Some(vmdk(bytes, claim.clone())),
        ImageFormat::Luks => Some(Head { encrypted: true, ..claim.clone() }),
        ImageFormat::Raw | ImageFormat::Vdi | ImageFormat::Vhdx | ImageFormat::Vpc | ImageFormat::Parallels => Some(claim.clone()),
    };
    read.unwrap_or_else(|| Head { problem: Some("its header ends early".into()), ..claim })
}

fn mark(bytes: &[u8]) -> Option<ImageFormat> {
    let is_vdi = bytes.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]);
    let marks: [(&[u8], ImageFormat); 10] = [
        (b"QFI\xfb\0\0\0\x01", ImageFormat::Qcow),
        (b"QFI\xfb", ImageFormat::Qcow2),
        (b"QED\0", ImageFormat::Qed),
        (b"KDMV", ImageFormat::Vmdk),
        (b"COWD", ImageFormat::Vmdk),
        (b"vhdxfile", ImageFormat::Vhdx),
        (b"conectix", ImageFormat::Vpc),
        (b"WithoutFreeSpace", ImageFormat::Parallels),
        (b"WithouFreSpacExt", ImageFormat::Parallels),
        (b"LUKS\xba\xbe", ImageFormat::Luks),
    ];
    let marked = marks.iter().find(|(mark, _)| bytes.starts_with(mark)).map(|(_, format)| *format);
    marked.or_else(|| is_descriptor(bytes).then_some(ImageFormat::Vmdk)).or_else(|| is_vdi.then_some(ImageFormat::Vdi))
}

// QEMU takes a text for a VMDK when a `version` comes after comments and blank lines.
fn is_descriptor(bytes: &[u8]) -> bool {
    let start = bytes.get(..bytes.len().min(4096)).unwrap_or_default();
    let mut lines = start.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.find(|line| !line.is_empty() && !line.starts_with(b"#")).is_some_and(|line| line.starts_with(b"version="))
}

/// A format whose chains are not followed.
fn alone(_bytes: &[u8], claim: Head, is_on_another: Option<bool>) -> Option<Head> {
    let problem = is_on_another?.then(|| "it lies on another image, and only qcow2 images may".to_owned());
    Some(Head { problem, ..claim })
}

// Everything else (descriptors, extents, parents) is names of other files.
fn vmdk(bytes: &[u8], claim: Head) -> Head {
    let has = |text: &str| bytes.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()));
    let is_whole = bytes.starts_with(b"KDMV") && bytes.get(12..20).is_some_and(|capacity| capacity.iter().any(|byte| *byte != 0));
    let is_single = has("createType=\"monolithicSparse\"") || has("createType=\"streamOptimized\"");
    let problem = (!is_whole || !is_single || !has("parentCID=ffffffff")).then(|| "it is a VMDK that consists of several files".to_owned());
    Head { problem, ..claim }
}

fn qcow2(bytes: &[u8], claim: Head) -> Option<Head> {
    let is_old = number32(bytes, 4)? < 3;
    let features = if is_old { 0 } else { number64(bytes, 72)? };
    let extensions = if is_old { 72 } else { size(number32(bytes, 100)?) };
    let encrypted = number32(bytes, 32)? != 0;
    let backing = backing(bytes, extensions);
    let data_file = if features & FEATURE_DATA_FILE == 0 { Ok(None) } else { data_file(bytes, extensions).map(Some) };
    let problem = backing.as_ref().err().or(data_file.as_ref().err()).cloned();
    Some(Head { encrypted, backing: backing.ok().flatten(), data_file: data_file.ok().flatten(), problem, ..claim })
}

fn backing(bytes: &[u8], extensions: usize) -> Result<Option<Backing>, String> {
    let (offset, length) = (number64(bytes, 8).unwrap_or_default(), number32(bytes, 16).map_or(0, size));
    if offset == 0 || length == 0 {
        return Ok(None);
    }
    let name = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)?.get(..length)).filter(|_| length <= NAME_BYTES_MAX);
    let name = name.and_then(text).ok_or("the name of the image below it is not in its head")?;
    let format = extension(bytes, extensions, EXTENSION_BACKING_FORMAT)?.and_then(text);
    Ok(Some(Backing { name, format }))
}

fn data_file(bytes: &[u8], extensions: usize) -> Result<String, String> {
    let name = extension(bytes, extensions, EXTENSION_DATA_FILE)?.and_then(text);
    name.ok_or_else(|| "its data are in a file that it does not name".into())
}

/// The content of a header extension.
fn extension(bytes: &[u8], mut at: usize, wanted: u32) -> Result<Option<&[u8]>, String> {
    let short = || "its header ends early".to_owned();
    loop {
        let kind = number32(bytes, at).ok_or_else(short)?;
        if kind == 0 {
            return Ok(None);
        }
        let (start, length) = (at.saturating_add(8), number32(bytes, at.saturating_add(4)).map_or(usize::MAX, size));
        let content = bytes.get(start..).and_then(|rest| rest.get(..length)).ok_or_else(short)?;
        if kind == wanted {
            return Ok(Some(content));
        }
        at = start.saturating_add(length.next_multiple_of(8));
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.is_empty() && !text.contains('\0')).then(|| text.to_owned())
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

fn number64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header as `qemu-img create` writes it, in short.
    pub(crate) fn qcow2_head(backing: &str, format: &str) -> Vec<u8> {
        let mut head = vec![0; 4096];
        let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb\0\0\0\x03");
        put(100, &112_u32.to_be_bytes());
        if !backing.is_empty() {
            put(8, &512_u64.to_be_bytes());
            put(16, &u32::try_from(backing.len()).unwrap().to_be_bytes());
            put(512, backing.as_bytes());
        }
        if !format.is_empty() {
            put(112, &EXTENSION_BACKING_FORMAT.to_be_bytes());
            put(116, &u32::try_from(format.len()).unwrap().to_be_bytes());
            put(120, format.as_bytes());
        }
        head
    }

    #[test]
    fn each_format_is_known_by_its_mark() {
        let mut vdi = vec![0; 512];
        vdi[64..68].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        for (bytes, format) in [
            (&b"QFI\xfb\0\0\0\x01"[..], Some(ImageFormat::Qcow)),
            (b"QFI\xfb\0\0\0\x02", Some(ImageFormat::Qcow2)),
            (b"QED\0", Some(ImageFormat::Qed)),
            (b"KDMV", Some(ImageFormat::Vmdk)),
            (b"# Disk DescriptorFile\n\nversion=1\n", Some(ImageFormat::Vmdk)),
            (b"vhdxfile", Some(ImageFormat::Vhdx)),
            (b"conectix", Some(ImageFormat::Vpc)),
            (b"WithouFreSpacExt", Some(ImageFormat::Parallels)),
            (b"LUKS\xba\xbe", Some(ImageFormat::Luks)),
            (&vdi, Some(ImageFormat::Vdi)),
            (b"\xeb\x63\x90 boot", None),
            (b"#!/bin/sh\necho version=1", None),
            (b"", None),
        ] {
            assert_eq!(read(bytes).format, format, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_qcow2_header_names_what_it_wants() {
        let none = read(&qcow2_head("", ""));
        assert_eq!(none, Head { format: Some(ImageFormat::Qcow2), ..Head::default() });
        let backing = |name: &str, format: Option<&str>| Some(Backing { name: name.into(), format: format.map(str::to_owned) });
        assert_eq!(read(&qcow2_head("base", "raw")).backing, backing("base", Some("raw")));
        assert_eq!(read(&qcow2_head("base", "")).backing, backing("base", None));
        let mut data = qcow2_head("", "");
        data[79] = 4;
        assert!(read(&data).problem.is_some());
        data[112..125].copy_from_slice(b"DATA\0\0\0\x05/data");
        assert_eq!((read(&data).data_file.as_deref(), read(&data).problem), (Some("/data"), None));
        let mut encrypted = qcow2_head("", "");
        encrypted[35] = 2;
        assert!(read(&encrypted).encrypted);
    }

    #[test]
    fn what_would_lead_to_other_files_in_other_formats_is_a_problem() {
        let vmdk = |text: &str| [&b"KDMV\x01\0\0\0\x03\0\0\0\0\x10\0\0\0\0\0\0"[..], text.as_bytes()].concat();
        assert_eq!(read(&vmdk("parentCID=ffffffff\ncreateType=\"monolithicSparse\"\n")).problem, None);
        let mut qed = vec![0; 64];
        qed[..4].copy_from_slice(b"QED\0");
        assert_eq!(read(&qed).problem, None);
        qed[16] = 1;
        for bytes in [
            &b"version=1\nRW 8 FLAT \"/etc/shadow\" 0"[..],
            &vmdk("parentCID=12345678\ncreateType=\"monolithicSparse\"\n"),
            &vmdk("parentCID=ffffffff\ncreateType=\"monolithicFlat\"\n"),
            b"QFI\xfb\0\0\0\x01\0\0\0\0\0\0\x02\0",
            &qed,
        ] {
            assert!(read(bytes).problem.is_some(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..600), valid in any::<bool>()) {
            let mut head = if valid { qcow2_head("../a/vda.qcow2", "qcow2") } else { Vec::new() };
            head.extend(&bytes);
            for (place, byte) in bytes.iter().enumerate().step_by(7) {
                if let Some(target) = head.get_mut(place) {
                    *target = *byte;
                }
            }
            drop(read(&head));
        }
    }
}
