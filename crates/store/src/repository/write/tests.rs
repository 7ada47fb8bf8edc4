//! Backups that somebody with the key has written by hand: a bad name in one of them costs that one, and nothing else.

use keepmark_model::seam::Store as _;

use super::*;
use crate::repository::lock::Environment;
use crate::repository::{Options, Repository};

fn repository(place: &std::path::Path) -> Repository {
    let environment = Environment {
        hostname: "h".into(),
        username: "u".into(),
        uid: 0,
        gid: 0,
        pid: std::process::id(),
        now: || "2026-11-22T19:00:00Z".parse().unwrap(),
        is_alive: |_| true,
    };
    let options = Options { cache: place.join("cache"), environment, workers: 1 };
    Repository::init(&place.join("repository"), "p", keepmark_model::ChunkSize::DEFAULT, options).unwrap()
}

/// A manifest of a VM and of disks so called, as text.
fn manifest(vm: &str, disks: &[&str]) -> String {
    let disk = |name: &&str| {
        serde_json::json!({"name": name, "size": 0, "kind": "full", "reason": "", "format": "raw", "cluster_size": null, "image": "",
            "chunk_size": 262_144, "checkpointed": false, "base": null, "dirty_bytes": 0, "read_bytes": 0, "stored_bytes": 0,
            "audited_bytes": 0})
    };
    serde_json::json!({"version": 1, "program": "", "vm": {"name": vm, "uuid": null}, "time": "2026-11-22T18:00:00Z", "kind": "full",
        "reason": "", "checkpoint": null, "consistency": "crash", "pause_ms": 0, "freeze_ms": null, "duration_ms": 0, "power": "off",
        "hypervisor": "", "disks": disks.iter().map(disk).collect::<Vec<_>>(), "skipped": [], "findings": []})
    .to_string()
}

/// Publishes a backup with this manifest, and files so called beside it.
fn publish(repository: &Repository, manifest: &str, files: &[&str]) -> BackupId {
    let time = "2026-11-22T18:00:00Z".parse().unwrap();
    let writer = repository.begin_backup(&VmId::new("web").unwrap(), time).unwrap();
    let file = |name: &str, content: &[u8]| {
        let piece = writer.pipeline.store(&mut writer.tools.lock().unwrap().0, BlobKind::Data, content).unwrap().0;
        Node::file(name, content.len() as u64, vec![piece])
    };
    let mut nodes = vec![file(MANIFEST, manifest.as_bytes())];
    nodes.extend(files.iter().map(|name| file(name, b"#!/bin/sh")));
    let vm = writer.store(&nodes).unwrap();
    let tree = writer.store(&[Node::dir("web", vm)]).unwrap();
    let snapshot = Snapshot {
        time,
        tree,
        paths: vec!["/web".into()],
        hostname: "h".into(),
        username: "u".into(),
        // The same content is told apart by the time at which it was made.
        tags: vec![TAG.to_owned(), format!("{:?}", std::time::Instant::now())],
        program_version: String::new(),
    };
    let BackupWriter { pipeline, lease, .. } = writer;
    pipeline.finish().unwrap();
    drop(lease);
    let id = sealed_file::write(&*repository.core.backend, &repository.core.key, FileKind::Snapshot, &snapshot).unwrap();
    BackupId::new(id.hex())
}

#[test]
fn a_bad_name_makes_its_own_backup_damaged_and_no_other() {
    let place = tempfile::tempdir().unwrap();
    let repository = repository(place.path());
    let good = publish(&repository, &manifest("web", &["vda", ".x", "odd \u{fc}"]), &["domain.xml", "swtpm.tpm2-00.permall"]);
    let bad = [
        publish(&repository, &manifest("web", &["../../x"]), &[]),
        publish(&repository, &manifest("web", &["/etc/x"]), &[]),
        publish(&repository, &manifest("web", &["vda", "vda"]), &[]),
        publish(&repository, &manifest("../web", &["vda"]), &[]),
        publish(&repository, &manifest("web", &["vda"]), &["swtpm./etc/cron.d/x"]),
        publish(&repository, &manifest("web", &["vda"]), &["../nvram"]),
        publish(&repository, &manifest("web", &["vda"]), &[".."]),
        publish(&repository, &manifest("web", &["vda"]), &["a\u{1b}[2Jb"]),
    ];
    let (listed, problems) = repository.backups(None).unwrap();
    assert_eq!(listed.iter().map(|backup| &backup.id).collect::<Vec<_>>(), [&good]);
    for id in &bad {
        assert!(problems.iter().any(|problem| problem.contains(id.as_str()) && problem.contains("damaged")), "{problems:?}");
        assert!(repository.open(id).err().is_some_and(|failure| failure.to_string().contains("damaged")));
    }
    let reader = repository.open(&good).unwrap();
    assert_eq!(reader.files(), ["domain.xml", "manifest.json", "swtpm.tpm2-00.permall"]);
    let found = repository.verify(&[], false, &|_, _| {}).unwrap();
    // Its disks have no folders; that is another matter.
    let hit: Vec<&BackupId> =
        found.damages.iter().filter(|damage| !damage.problem.contains("has no disk")).flat_map(|damage| &damage.backups).collect();
    assert!(bad.iter().all(|id| hit.contains(&id)) && !hit.contains(&&good), "{:?}", found.damages);
}

#[test]
fn nothing_is_saved_under_a_bad_name() {
    let place = tempfile::tempdir().unwrap();
    let repository = repository(place.path());
    for name in ["../x", "/x", "..", "", "a\nb"] {
        let writer = repository.begin_backup(&VmId::new("web").unwrap(), "2026-11-22T18:00:00Z".parse().unwrap()).unwrap();
        let manifest = serde_json::from_str(&manifest("web", &[])).unwrap();
        let refused = writer.store_all(&manifest, &[SavedFile { name: name.into(), content: vec![1] }]);
        assert!(matches!(refused, Err(Error::Refused { .. })), "{name:?}");
    }
    assert_eq!(repository.backups(None).unwrap().0, []);
}
