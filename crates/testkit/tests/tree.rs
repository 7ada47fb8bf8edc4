//! Holds the tree to its rules: directions between crates, purposes of files, what is absent, and documents that match the code.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keepmark_testkit::OrFail;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).or_fail(path.display())
}

fn sources_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.or_fail("listing sources").path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Which of our crates a crate may use outside its tests.
const DIRECTIONS: [(&str, &[&str]); 8] = [
    ("model", &[]),
    ("nbd", &[]),
    ("qemu", &["model", "nbd"]),
    ("libvirt", &["model", "qemu"]),
    ("store", &["model", "nbd"]),
    ("engine", &["model", "nbd", "qemu", "store"]),
    ("cli", &["model", "qemu", "libvirt", "store", "engine"]),
    ("testkit", &["model"]),
];

fn own_dependencies(krate: &str) -> BTreeSet<String> {
    let manifest = read(&root().join("crates").join(krate).join("Cargo.toml"));
    let shipped = manifest.split("[dev-dependencies]").next().unwrap_or_default();
    shipped
        .lines()
        .filter_map(|line| line.strip_prefix("keepmark-"))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_depend_on_each_other_only_in_the_designed_direction() {
    let crates: BTreeSet<String> =
        std::fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(
        crates,
        DIRECTIONS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        "a new crate needs its direction here and in ARCHITECTURE.md"
    );
    for (krate, allowed) in DIRECTIONS {
        let surplus: Vec<String> = own_dependencies(krate).into_iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(surplus.is_empty(), "crate {krate} may not use {surplus:?}");
    }
}

#[test]
fn every_source_file_opens_with_its_purpose() {
    let nameless: Vec<PathBuf> = sources_below(&root().join("crates"))
        .into_iter()
        .filter(|path| !read(path).lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > 20))
        .collect();
    assert!(nameless.is_empty(), "no purpose on top: {nameless:#?}");
}

#[test]
fn the_model_has_no_effects() {
    let forbidden = [
        "std::fs",
        "std::net",
        "std::process",
        "std::env",
        "std::thread",
        "SystemTime",
        "Instant::now",
        "Timestamp::now",
        "rand::",
        "println!",
    ];
    for path in sources_below(&root().join("crates/model/src")) {
        let text = read(&path);
        let found: Vec<&str> = forbidden.iter().filter(|word| text.contains(**word)).copied().collect();
        assert!(found.is_empty(), "{} uses {found:?}", path.display());
    }
}

#[test]
fn rustic_core_is_used_in_one_file() {
    let users: Vec<String> = sources_below(&root().join("crates"))
        .into_iter()
        .filter(|path| path.to_string_lossy().contains("/src/") && read(path).contains("rustic_core::"))
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(users, ["rustic.rs"]);
}

/// Rule 9: a name from outside is one only through its check, also where serde makes it.
#[test]
fn no_name_is_decoded_without_its_check() {
    let text = read(&root().join("crates/model/src/names.rs"));
    let shipped = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut checked = 0;
    for after in shipped.split("#[derive(").skip(1).filter(|after| after.lines().next().is_some_and(|line| line.contains("Deserialize"))) {
        let declared: String = after.lines().skip(1).take(2).collect();
        let declared = declared.trim_start();
        let is_raw = declared.starts_with("struct Written");
        assert!(is_raw || declared.starts_with("#[serde(try_from = "), "decoded as it comes: {declared}");
        checked += usize::from(!is_raw);
    }
    assert_eq!(checked, 2, "the names' macro, and who a VM is");
    assert!(!shipped.contains("serde(transparent)") && !shipped.contains("#[serde(from"), "that would be no check");
}

/// Rule 9: where names come from a store, only `names::child` makes a path of one; everything else that is joined stands in the program.
#[test]
fn only_child_makes_a_path_of_a_name_from_outside() {
    const OWN: [&str; 5] = ["\"", "place::", "MARKER)", "LOCK)", "usable("];
    // The ids in a shelf are those that have the form of one.
    const CHECKED: [(&str, &str); 1] = [("shelf.rs", "id.as_str())")];
    let folders = ["crates/store/src/images", "crates/engine/src/restore"].map(|folder| root().join(folder));
    for path in folders.iter().flat_map(|folder| sources_below(folder)).chain([root().join("crates/model/src/names.rs")]) {
        let text = read(&path);
        let shipped = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for joined in shipped.split(".join(").skip(1).filter(|joined| !joined.starts_with(')')) {
            let is_checked = CHECKED.iter().any(|(file, start)| path.ends_with(file) && joined.starts_with(start));
            let line = joined.lines().next().unwrap_or_default();
            assert!(is_checked || OWN.iter().any(|own| joined.starts_with(own)), "{} joins {line}", path.display());
        }
    }
}

#[test]
fn libraries_do_not_read_the_world() {
    for krate in ["model", "nbd", "qemu", "libvirt", "store", "engine"] {
        for path in sources_below(&root().join("crates").join(krate).join("src")) {
            let text = read(&path);
            let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
            for word in ["env::var", "env::temp_dir", "Timestamp::now", "println!", "process::exit"] {
                assert!(!shipped.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

/// Root works beside others: what is made, given away or removed there goes by handles, in one file.
#[test]
fn one_file_gives_away_and_removes_where_others_may_write() {
    let words = ["chown(", "remove_dir_all", "set_permissions", "PermissionsExt", "fchmod("];
    for krate in ["qemu", "libvirt", "engine", "cli"] {
        for path in sources_below(&root().join("crates").join(krate).join("src")) {
            let text = read(&path);
            let shipped = text.split("#[cfg(test)]").next().unwrap_or_default();
            let found: Vec<&str> = words.iter().filter(|word| shipped.contains(**word)).copied().collect();
            assert!(found.is_empty() || path.ends_with("qemu/src/folder.rs"), "{} has {found:?}", path.display());
        }
    }
}

#[test]
fn no_file_has_a_machines_path_or_a_registrys_host() {
    let hosts = ["deb.debian", "crates.io/", "pypi.org", "registry.npmjs"].map(str::to_owned);
    let work = format!("{}work{}", '/', '/');
    let mut texts = sources_below(&root().join("crates"));
    texts.extend(["Makefile", ".ci/run", "README.md", "ARCHITECTURE.md"].map(|name| root().join(name)));
    texts.retain(|path| !path.ends_with("tests/tree.rs"));
    for path in texts {
        let text = read(&path);
        assert!(!text.contains(&work), "{} names a machine's path", path.display());
        hosts.iter().for_each(|host| assert!(!text.contains(host), "{} names {host}", path.display()));
    }
}

#[test]
fn the_documented_manifest_is_the_written_one() {
    let golden = read(&root().join("crates/model/src/snapshots/keepmark_model__manifest__tests__manifest-v2.snap"));
    let document = read(&root().join("docs/format.md"));
    let keys = golden.lines().filter_map(|line| line.trim().strip_prefix('"')?.split_once("\":").map(|(key, _)| key.to_owned()));
    let undocumented: Vec<String> = keys.filter(|key| !document.contains(&format!("`{key}`"))).collect();
    assert!(undocumented.is_empty(), "docs/format.md does not describe {undocumented:?}");
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut documents = vec![root().join("README.md"), root().join("ARCHITECTURE.md"), root().join("CHANGELOG.md")];
    documents.extend(
        std::fs::read_dir(root().join("docs"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "md")),
    );
    for document in documents {
        for link in read(&document).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let lead = document.parent().unwrap().join(target);
            assert!(target.is_empty() || target.starts_with("https://") || lead.exists(), "{} links to {link}", document.display());
        }
    }
}
