//! Linked clones: what is on the template is the template's, whoever builds on it.

use std::collections::BTreeSet;

use keepmark_testkit::Disk;
use keepmark_testkit::image::{self, Format};

use crate::stage::{MIB, Stage};

/// Names of keepmark's bitmaps in an image.
fn ours(file: &std::path::Path) -> BTreeSet<String> {
    image::bitmaps(file).into_iter().filter(|name| name.starts_with("km1-")).collect()
}

#[test]
fn a_templates_checkpoint_is_no_clones_and_both_sequences_go_on() {
    let stage = Stage::new();
    let template = stage.host.domain("template").disk(stage.small_disk("template", "vda")).define();
    stage.backup(&template, &[]);
    let shared = template.source("vda");
    let before = ours(&shared);
    assert_eq!(before.len(), 1);
    let clones = ["c1", "c2"].map(|name| {
        let file = stage.path(&format!("{name}.qcow2"));
        image::create_overlay(&file, &shared, Format::Qcow2);
        stage.host.domain(name).disk(Disk::qcow2("vda", &file)).start()
    });
    for kind in ["full", "incremental"] {
        for clone in &clones {
            let finished = stage.backup(clone, &[]);
            assert_eq!((finished["kind"].as_str(), finished["findings"].as_array().map_or(0, Vec::len)), (Some(kind), 0), "{finished}");
            assert_eq!(ours(&shared), before);
            // Its own alone: that of this backup, and of the one on which a differential builds.
            let known: BTreeSet<String> = clone.checkpoints().into_iter().collect();
            assert!(known.is_disjoint(&before) && (1..=2).contains(&known.len()), "{known:?}");
            clone.write("vda", 7, MIB, 65_536);
        }
    }
    let listed = stage.keepmark.ok(&["checkpoint", "list", "c1"]).stdout;
    assert!(before.iter().all(|name| !listed.contains(name)), "{listed}");
    stage.keepmark.ok(&["checkpoint", "delete", "c1"]);
    assert_eq!(ours(&shared), before);
    clones.iter().for_each(|clone| drop(clone.virsh("destroy", &[])));
    stage.keepmark.ok(&["checkpoint", "delete", "c2"]);
    assert_eq!(ours(&shared), before);
    let next = stage.backup(&template, &[]);
    assert_eq!(next["kind"], "incremental", "{next}");
}
