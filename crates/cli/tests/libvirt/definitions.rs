//! Shut-off domains are read as their definitions say, whatever the images' headers say; what only a running QEMU reads is refused.

use std::path::Path;

use keepmark_testkit::image::{self, Format};

use crate::stage::{MIB, Stage};

fn disk(format: &str, file: &Path, inside_source: &str, after_source: &str) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'>{inside_source}</source>{after_source}\
         <target dev='vda' bus='virtio'/></disk>",
        file.display()
    )
}

#[test]
fn a_chain_is_the_definition_s_and_not_the_header_s() {
    let stage = Stage::new();
    let (said, decoy, over) = (stage.path("said.raw"), stage.path("decoy.raw"), stage.path("over.qcow2"));
    for (number, file) in [&said, &decoy].into_iter().enumerate() {
        image::create(file, Format::Raw, 4 * MIB);
        image::fill(file, Format::Raw, 3 + u8::try_from(number).unwrap(), MIB, MIB);
    }
    image::create_overlay(&over, &decoy, Format::Raw);
    let below = format!("<backingStore type='file'><format type='raw'/><source file='{}'/><backingStore/></backingStore>", said.display());
    let domain = stage.host.domain("vm").device(&disk("qcow2", &over, "", &below)).define();
    let done = stage.keepmark.backup("vm", &[]);
    let out = stage.path("out");
    stage.keepmark.ok(&["restore", done["backup"].as_str().unwrap(), "--to", out.to_str().unwrap()]);
    image::assert_same(&out.join("vda.raw"), Format::Raw, &said, Format::Raw);
    drop(domain);
    // Where the definition says nothing, libvirt starts with what the header says, and so it is read.
    let silent = stage.host.domain("silent").device(&disk("qcow2", &over, "", "")).define();
    let done = stage.keepmark.backup("silent", &[]);
    let out = stage.path("silent-out");
    stage.keepmark.ok(&["restore", done["backup"].as_str().unwrap(), "--to", out.to_str().unwrap()]);
    image::assert_same(&out.join("vda.raw"), Format::Raw, &decoy, Format::Raw);
    drop(silent);
}

#[test]
fn what_is_encrypted_or_a_slice_is_not_read_as_if_it_were_the_disk() {
    let stage = Stage::new();
    let raw = stage.path("whole.raw");
    image::create(&raw, Format::Raw, 4 * MIB);
    let before = image::sha256_of_file(&raw);
    let secret = "<encryption format='luks'><secret type='passphrase' uuid='6e1a8d4c-0000-4000-8000-00000000abcd'/></encryption>";
    let slice = "<slices><slice type='storage' offset='1048576' size='1048576'/></slices>";
    for (name, inside, words) in [("locked", secret, "it is encrypted (luks)"), ("sliced", slice, "it is a slice of a larger file")] {
        let _domain = stage.host.domain(name).device(&disk("raw", &raw, inside, "")).define();
        let refused = stage.keepmark.exits(&["backup", name], 1);
        assert!(refused.stderr.contains(words) && refused.stderr.contains("Hint: start the domain"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("shrink"), "{}", refused.stderr);
    }
    assert_eq!(image::sha256_of_file(&raw), before);
    assert!(stage.keepmark.ok(&["list", "--json"]).json().is_empty());
}
