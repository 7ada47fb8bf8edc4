//! A store that was copied is told from one that was moved, and gets an id of its own; what is in it stays as it is.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{EVENING, Place, backup, full, noise, put_all, restore};
use keepmark_model::seam::Store as _;
use keepmark_qemu::QemuImages;
use keepmark_store::{Error, ImageOptions, ImageStore};

fn run(program: &str, arguments: &[&str], from: &Path, to: &Path) {
    assert!(Command::new(program).args(arguments).arg(from).arg(to).status().unwrap().success());
}

/// A place whose repository was brought there in some way.
fn brought(original: &Place, program: &str, arguments: &[&str]) -> Place {
    let place = Place { folder: tempfile::tempdir_in(original.folder.path().parent().unwrap()).unwrap() };
    run(program, arguments, &original.repository(), &place.repository());
    place
}

#[test]
fn a_copied_repository_is_known_for_one_and_gets_an_id_of_its_own() {
    let place = Place::new();
    let disk = noise(1, 100_000);
    let first = full(&place.init(), &disk);
    let copies = [brought(&place, "cp", &["-a"]), brought(&place, "cp", &["-al"]), brought(&place, "cp", &["-r"])];
    let id = place.open().id();
    for copy in copies {
        assert!(copy.open().is_copied() && copy.open().id() == id && !place.open().is_copied());
        let own = copy.open().adopt().unwrap();
        assert!(own != id && copy.open().id() == own && !copy.open().is_copied());
        assert!(matches!(copy.open().adopt(), Err(Error::NoCopy { .. })));
        let next = backup(&copy.open(), EVENING, &disk, None, &put_all(&disk)).unwrap();
        for backup in [&first, &next] {
            assert_eq!(restore(&copy.open(), backup, "vda", disk.len()).unwrap(), disk);
        }
        copy.check_with_restic();
        let again = brought(&copy, "cp", &["-a"]);
        assert!(again.open().is_copied() && again.open().id() == own);
    }
    assert!(matches!(place.open().adopt(), Err(Error::NoCopy { .. })) && place.open().id() == id);
    let moved = brought(&place, "mv", &[]);
    assert!(!moved.open().is_copied() && moved.open().id() == id);
    moved.check_with_restic();
}

#[test]
fn a_repository_of_before_is_marked_by_its_next_backup() {
    let place = Place::new();
    let disk = noise(1, 100_000);
    full(&place.init(), &disk);
    let (marks, id) = (place.repository().join("keepmark/place"), place.open().id());
    fs::remove_dir_all(&marks).unwrap();
    let copy = brought(&place, "cp", &["-a"]);
    assert!(!copy.open().is_copied() && !marks.exists());
    backup(&place.open(), EVENING, &disk, None, &put_all(&disk)).unwrap();
    assert_eq!((fs::read_dir(&marks).unwrap().count(), place.open().id(), place.open().is_copied()), (1, id, false));
    assert!(brought(&place, "cp", &["-a"]).open().is_copied());
}

#[test]
fn a_copied_image_store_is_known_for_one_and_gets_an_id_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let open = |name: &str| {
        let options = ImageOptions { tools: Arc::new(QemuImages::new(at("run"))), compress: false };
        if at(name).exists() { ImageStore::open(&at(name), options) } else { ImageStore::init(&at(name), options) }.unwrap()
    };
    let id = open("store").id();
    run("cp", &["-a"], &at("store"), &at("copy"));
    assert!(open("copy").is_copied() && open("copy").id() == id && !open("store").is_copied());
    let own = open("copy").adopt().unwrap();
    assert!(own != id && open("copy").id() == own && !open("copy").is_copied() && open("copy").adopt().is_err());
    run("mv", &[], &at("store"), &at("moved"));
    assert!(!open("moved").is_copied() && open("moved").id() == id);
    // As programs wrote it that did not look.
    let marker = at("moved").join("keepmark-images.json");
    fs::write(&marker, format!(r#"{{"version":1,"id":"{id}"}}"#)).unwrap();
    assert!(!open("moved").is_copied());
    drop(open("moved").begin(&common::vm().id(), "2026-12-01T00:00:00Z".parse().unwrap()).unwrap());
    run("cp", &["-a"], &at("moved"), &at("again"));
    assert!(open("again").is_copied() && !open("moved").is_copied() && open("moved").id() == id);
}
