//! The table of trust, row by row: what is said, what is remembered, what lies there, and what may then be opened.

use std::collections::BTreeMap;

use super::head::tests::qcow2_head;
use super::*;
use crate::trust::tests::backup;

const BOOT: &[u8] = b"\xeb\x63\x90";

/// Files and what they begin with; whatever is in `/dev` is a device.
struct Place(BTreeMap<PathBuf, Vec<u8>>);

impl Place {
    fn new(files: &[(&str, &[u8])]) -> Self {
        Self(files.iter().map(|(path, head)| (PathBuf::from(path), head.to_vec())).collect())
    }

    fn permit(&self, image: &str, words: &Words, history: &[StoredBackup]) -> (Result<Permit, Refusal>, Vec<PathBuf>) {
        let mut looked_at = Vec::new();
        let disk = DiskName::new("vda").unwrap();
        let asked = Asked { disk: &disk, named: Path::new(image), at: Path::new(image), words, history };
        let permit = permit(&asked, |path| {
            looked_at.push(path.to_owned());
            let head = self.0.get(path).ok_or_else(|| Refusal::Problem { image: path.to_owned(), problem: "missing".into() })?;
            let storage = if path.starts_with("/dev") { Storage::Device } else { Storage::File };
            Ok::<_, Refusal>(Look { storage, head: head::read(head) })
        });
        (permit, looked_at)
    }

    fn decided(&self, image: &str, words: &Words, history: &[StoredBackup]) -> String {
        let (permit, looked_at) = self.permit(image, words, history);
        let told = match permit {
            Ok(permit) => {
                permit.layers.iter().map(|layer| format!("{} {}", layer.format, layer.path.display())).collect::<Vec<_>>().join(" on ")
            }
            Err(refusal) => refusal.to_string(),
        };
        // Looking at what may not be opened would be opening it.
        let beyond = looked_at.iter().find(|path| path.ends_with("shadow"));
        assert!(beyond.is_none() || told.contains("on raw /etc/shadow"), "{beyond:?}: {told}");
        told
    }
}

fn said(format: &str) -> Words {
    Words::Operator { format: Some(format.parse().unwrap()), trust_chain: false }
}

fn remembered(format: &str, image: &str, below: &[&str]) -> Vec<StoredBackup> {
    let mut backup = backup("a", None);
    let disk = &mut backup.manifest.disks[0];
    (disk.format, disk.image, disk.backing) = (format.into(), image.into(), below.iter().map(|&path| path.to_owned()).collect());
    vec![backup]
}

#[test]
fn a_format_is_said_remembered_or_clear() {
    let evil = qcow2_head("/etc/shadow", "raw");
    let whole = qcow2_head("", "");
    let heads: [&[u8]; 9] = [
        &evil,
        b"KDMV",
        b"vhdxfile",
        b"QED\0",
        b"LUKS\xba\xbe",
        b"WithoutFreeSpace",
        b"conectix",
        b"version=1\nRW 1 FLAT \"/etc/shadow\" 0",
        BOOT,
    ];
    for (head, image) in
        heads.iter().flat_map(|head| ["/v/a.img", "/v/a", "/v/a.raw", "/dev/loop0", "/v/a.qcow2"].map(|image| (head, image)))
    {
        let place = Place::new(&[(image, head), ("/etc/shadow", b"root:")]);
        let looks = head::read(head).format;
        let raw = format!("raw {image}");
        // Said or remembered to be raw, it is raw.
        assert_eq!(place.decided(image, &said("raw"), &[]), raw);
        assert_eq!(place.decided(image, &Words::none(), &remembered("raw", image, &[])), raw);
        let definition = Words::Definition { format: ImageFormat::Raw, data_file: None, below: vec![], is_whole: false };
        assert_eq!(place.decided(image, &definition, &remembered("qcow2", image, &[])), raw);
        // Nobody says it.
        let told = place.decided(image, &Words::none(), &[]);
        let is_encrypted_by_guest = looks == Some(ImageFormat::Luks) && (image.starts_with("/dev") || image.ends_with("raw"));
        match looks {
            None if image.ends_with("qcow2") => assert!(told.contains("does not begin like one"), "{told}"),
            None => assert_eq!(told, raw),
            Some(_) if is_encrypted_by_guest => assert_eq!(told, raw),
            Some(ImageFormat::Qcow2) if image.ends_with("qcow2") => assert!(told.contains("lies on /etc/shadow, by nothing but"), "{told}"),
            Some(looks) => assert_eq!(told, format!("{image} looks like {looks}, which a guest could have written into a raw disk")),
        }
    }
    for image in ["/v/a.img", "/dev/loop0"] {
        let place = Place::new(&[(image, &whole)]);
        assert_eq!(place.decided(image, &said("qcow2"), &[]), format!("qcow2 {image}"));
        assert_eq!(place.decided(image, &Words::none(), &remembered("qcow2", image, &[])), format!("qcow2 {image}"));
    }
    assert_eq!(Place::new(&[("/v/a.QCOW2", &whole)]).decided("/v/a.QCOW2", &Words::none(), &[]), "qcow2 /v/a.QCOW2");
}

#[test]
fn what_was_elsewhere_is_only_remembered_as_raw() {
    let whole = qcow2_head("", "");
    let place = Place::new(&[("/v/b.img", &whole), ("/v/b.qcow2", &whole)]);
    let of = |image: &str, format: &str| place.decided(image, &Words::none(), &remembered(format, "/v/a.img", &[]));
    assert_eq!(of("/v/b.img", "raw"), "raw /v/b.img");
    assert!(of("/v/b.img", "qcow2").contains("looks like qcow2"));
    // Its owner has converted it and says so by its name.
    assert_eq!(of("/v/b.qcow2", "raw"), "qcow2 /v/b.qcow2");
}

#[test]
fn a_raw_disk_that_begins_like_another_is_noted() {
    let place = Place::new(&[("/v/a.img", &qcow2_head("", ""))]);
    let (permit, _) = place.permit("/v/a.img", &Words::none(), &remembered("raw", "/v/a.img", &[]));
    assert!(permit.unwrap().notes()[0].contains("begins like qcow2"));
    let (permit, _) = place.permit("/v/a.img", &said("raw"), &[]);
    assert!(permit.unwrap().notes().is_empty());
}

#[test]
fn a_chain_is_followed_only_where_its_owner_says_so() {
    let overlay = qcow2_head("../b/base.qcow2", "qcow2");
    let base = qcow2_head("/b/root", "raw");
    let place = Place::new(&[("/v/a.qcow2", &overlay), ("/v/../b/base.qcow2", &base), ("/b/root", &qcow2_head("/etc/shadow", "raw"))]);
    let whole = "qcow2 /v/a.qcow2 on qcow2 /v/../b/base.qcow2 on raw /b/root";
    let of = |words: &Words, history: &[StoredBackup]| place.decided("/v/a.qcow2", words, history);
    assert!(of(&Words::none(), &[]).contains("lies on /v/../b/base.qcow2, by nothing but"));
    assert!(of(&said("qcow2"), &[]).contains("by nothing but"));
    assert_eq!(of(&Words::Operator { format: None, trust_chain: true }, &[]), whole);
    assert_eq!(of(&Words::none(), &remembered("qcow2", "/v/a.qcow2", &["/v/../b/base.qcow2", "/b/root"])), whole);
    assert!(of(&Words::none(), &remembered("qcow2", "/v/a.qcow2", &["/v/../b/base.qcow2"])).contains("lies on /b/root"));
    // A new overlay over what was backed up.
    assert_eq!(of(&Words::none(), &remembered("qcow2", "/v/../b/base.qcow2", &["/b/root"])), whole);
    // As libvirt starts it.
    assert_eq!(of(&Words::Definition { format: ImageFormat::Qcow2, data_file: None, below: vec![], is_whole: false }, &[]), whole);
    assert_eq!(
        of(&Words::Definition { format: ImageFormat::Qcow2, data_file: None, below: vec![], is_whole: true }, &[]),
        "qcow2 /v/a.qcow2"
    );
}

#[test]
fn a_definition_beats_a_header() {
    let overlay = qcow2_head("/etc/shadow", "raw");
    let place = Place::new(&[("/v/a.qcow2", &overlay), ("/v/other", BOOT), ("/etc/shadow", b"root:")]);
    let below = |path: &str, format| vec![LayerWords { path: path.into(), format }];
    let words = |format, below, is_whole| Words::Definition { format, data_file: None, below, is_whole };
    let of = |words: &Words| place.decided("/v/a.qcow2", words, &[]);
    assert_eq!(of(&words(ImageFormat::Qcow2, below("/v/other", ImageFormat::Raw), true)), "qcow2 /v/a.qcow2 on raw /v/other");
    assert_eq!(of(&words(ImageFormat::Qcow2, below("/v/other", ImageFormat::Raw), false)), "qcow2 /v/a.qcow2 on raw /v/other");
    assert!(of(&words(ImageFormat::Qcow2, below("/v/other", ImageFormat::Qcow2), true)).contains("does not begin like one"));
    assert!(of(&words(ImageFormat::Raw, below("/v/other", ImageFormat::Raw), true)).contains("it is raw"));
}

#[test]
fn names_that_are_no_files_are_refused_whoever_trusts_them() {
    let trusting = Words::Operator { format: None, trust_chain: true };
    let started = Words::Definition { format: ImageFormat::Qcow2, data_file: None, below: vec![], is_whole: false };
    for words in [trusting, started] {
        let of = |name: &str, format: &str| {
            let head = qcow2_head(name, format);
            Place::new(&[("/v/a.qcow2", &head)]).decided("/v/a.qcow2", &words, &[])
        };
        for name in [
            "json:{\"driver\":\"raw\"}",
            "nbd://host/x",
            "nbd:unix:/s",
            "fat:rw:/etc",
            "fat:/etc",
            "file:/etc/shadow",
            "http://h/x",
            "ssh:x",
        ] {
            assert!(of(name, "raw").contains("which is no file"), "{name}");
        }
        assert!(of("/b/base", "").contains("does not say which format"));
        assert!(of("/b/base", "host_device").contains("is no format"));
        assert!(of("a.qcow2", "qcow2").contains("or on itself"));
        let mut data = qcow2_head("", "");
        data[79] = 4;
        data[112..123].copy_from_slice(b"DATA\0\0\0\x03nbd");
        data[119] = 4;
        data[123] = b':';
        assert!(Place::new(&[("/v/a.qcow2", &data)]).decided("/v/a.qcow2", &words, &[]).contains("which is no file"));
    }
}

#[test]
fn a_data_file_is_followed_only_where_its_owner_says_so() {
    let mut head = qcow2_head("", "");
    head[79] = 4;
    head[112..128].copy_from_slice(b"DATA\0\0\0\x08/v/a.raw");
    let place = Place::new(&[("/v/a.qcow2", &head), ("/v/a.raw", BOOT)]);
    let (refused, looked_at) = place.permit("/v/a.qcow2", &Words::none(), &remembered("qcow2", "/v/a.qcow2", &["/v/a.raw"]));
    assert!(matches!(refused, Err(Refusal::DataFile { .. })) && looked_at.len() == 1);
    let (permit, looked_at) = place.permit("/v/a.qcow2", &Words::Operator { format: None, trust_chain: true }, &[]);
    assert_eq!(permit.unwrap().layers()[0].data_file, Some(("/v/a.raw".into(), Storage::File)));
    assert_eq!(looked_at.len(), 2);
    let words = |path: &str| Words::Definition { format: ImageFormat::Qcow2, data_file: Some(path.into()), below: vec![], is_whole: true };
    let place = Place::new(&[("/v/a.qcow2", &head), ("/v/other", BOOT)]);
    let (permit, _) = place.permit("/v/a.qcow2", &words("/v/other"), &[]);
    assert_eq!(permit.unwrap().layers()[0].data_file, Some(("/v/other".into(), Storage::File)));
    let place = Place::new(&[("/v/a.qcow2", &qcow2_head("", "")), ("/v/other", BOOT)]);
    assert!(place.decided("/v/a.qcow2", &words("/v/other"), &[]).contains("its header has not"));
}

#[test]
fn what_is_encrypted_or_in_pieces_is_refused() {
    let mut encrypted = qcow2_head("", "");
    encrypted[35] = 2;
    let place =
        Place::new(&[("/v/a.qcow2", &encrypted), ("/v/a.luks", b"LUKS\xba\xbe"), ("/v/a.vmdk", b"version=1\nRW 1 FLAT \"/etc/shadow\" 0")]);
    assert!(place.decided("/v/a.qcow2", &Words::none(), &[]).contains("is encrypted"));
    assert!(place.decided("/v/a.luks", &Words::none(), &[]).contains("is encrypted"));
    assert!(place.decided("/v/a.vmdk", &Words::none(), &[]).contains("several files"));
}

#[test]
fn only_the_active_image_is_written_and_bitmaps_only_where_they_have_a_place() {
    let chain = Permit::of_store(&["/a".into(), "/b".into()]);
    let raw = Permit::of_new(Path::new("/a"), ImageFormat::Raw, Storage::File);
    let of = |permit: &Permit, layer| [Purpose::Read, Purpose::Mark, Purpose::Write].map(|purpose| permit.is_writable(layer, purpose));
    assert_eq!([of(&chain, 0), of(&chain, 1), of(&raw, 0)], [[false, true, true], [false; 3], [false, false, true]]);
}
