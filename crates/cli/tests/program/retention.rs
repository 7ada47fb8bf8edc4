//! Retention, deletion and pins as a user has them: what is said before, what goes, and that the rest restores.

use keepmark_testkit::image::{self, Format};
use serde_json::Value;

use crate::lab::{Lab, MIB, assert_says, id, image_vm};

/// A powered-off VM with backups of these kinds, each with something else in it. Gives the backups' ids.
fn backed_up(lab: &Lab, kinds: &[&str]) -> Vec<String> {
    let file = lab.qcow2("vda", 16 * MIB);
    let back_up = |(place, kind): (usize, &&str)| {
        image::fill(&file, Format::Qcow2, 7, place as u64 * MIB, MIB);
        let finished = lab.keepmark.backup(&image_vm("vda", &file), &["--name", "web", "--kind", kind]);
        assert_eq!(&finished["kind"], kind);
        id(&finished).to_owned()
    };
    kinds.iter().enumerate().map(back_up).collect()
}

fn ids(listed: &[Value]) -> Vec<&str> {
    listed.iter().map(|backup| backup["id"].as_str().unwrap()).collect()
}

const KINDS: [&str; 5] = ["full", "incremental", "incremental", "differential", "incremental"];

#[test]
fn a_dry_run_names_the_rule_of_each_and_the_real_one_does_just_that() {
    let lab = Lab::new();
    let made = backed_up(&lab, &KINDS);
    lab.keepmark.ok(&["pin", &made[1]]);
    let dry = lab.keepmark.ok(&["forget", "web", "--keep-last", "2", "--dry-run"]).stdout;
    let fate = |backup: &str| dry.lines().find(|line| line.starts_with(&backup[..8])).unwrap().to_owned();
    assert!(fate(&made[0]).contains("the next backup builds on it"), "{dry}");
    assert!(fate(&made[1]).contains("stays") && fate(&made[1]).contains("pinned"), "{dry}");
    assert!(fate(&made[2]).contains("goes"), "{dry}");
    assert!(fate(&made[3]).contains("last") && fate(&made[4]).contains("last, the next backup builds on it"), "{dry}");
    assert!(dry.contains("restic's rules") && dry.contains("1 backup would be deleted"), "{dry}");
    assert_eq!(lab.list().len(), 5);

    let run = lab.keepmark.ok(&["forget", "web", "--keep-last", "2", "--json"]);
    assert_eq!(run.event("forgotten")["deleted"], serde_json::json!([made[2]]));
    assert_eq!(ids(&lab.list()), [&made[0], &made[1], &made[3], &made[4]]);
    lab.restic().check();
    lab.keepmark.ok(&["verify", "--read-data"]);
    assert_eq!(lab.keepmark.ok(&["forget", "web", "--keep-last", "2", "--json"]).event("forgotten")["deleted"], serde_json::json!([]));
    lab.keepmark.configure("[retention]\nkeep_last = 1\n");
    lab.keepmark.ok(&["unpin", &made[1]]);
    lab.keepmark.ok(&["forget", "web"]);
    assert_eq!(ids(&lab.list()), [&made[0], &made[4]]);
}

#[test]
fn the_last_backup_of_a_vm_goes_only_if_that_is_said() {
    let lab = Lab::new();
    let made = backed_up(&lab, &["full"]);
    assert_says(&lab.keepmark.exits(&["delete", &made[0]], 2), &["would have no backup", "--yes-the-last"]);
    let kept = lab.keepmark.ok(&["forget", "web", "--keep-tag", "none"]).stdout;
    assert!(kept.contains("stays"), "{kept}");
    assert_says(&lab.keepmark.exits(&["forget", "web"], 2), &["no rule says which backups stay", "--keep-daily"]);
    assert_eq!(lab.list().len(), 1);
    lab.keepmark.ok(&["pin", &made[0]]);
    assert_says(&lab.keepmark.exits(&["delete", &made[0], "--yes-the-last"], 2), &["is pinned", "unpin"]);
    lab.keepmark.ok(&["unpin", &made[0]]);
    lab.keepmark.ok(&["delete", &made[0], "--yes-the-last"]);
    assert!(lab.list().is_empty());
}

#[test]
fn a_deletion_says_first_what_depends_on_it() {
    let lab = Lab::new();
    let made = backed_up(&lab, &KINDS);
    let dry = lab.keepmark.ok(&["delete", &made[0], &made[2], "--dry-run"]).stdout;
    assert!(dry.contains("nothing depends on it; the next backup would build on it and will read more"), "{dry}");
    assert_eq!(lab.list().len(), 5);
    lab.keepmark.ok(&["delete", &made[0], &made[2]]);
    assert_eq!(ids(&lab.list()), [&made[1], &made[3], &made[4]]);
    // Without the full a differential is what changed since the last backup.
    let vm = image_vm("vda", &lab.path("vda.qcow2"));
    let next = lab.keepmark.backup(&vm, &["--name", "web", "--kind", "differential"]);
    assert_eq!((&next["kind"], &next["wanted"]), (&"incremental".into(), &"differential".into()));
    lab.keepmark.ok(&["verify", "--read-data"]);
}

#[test]
fn the_sequence_is_drawn_and_tags_are_kept() {
    let lab = Lab::new();
    let made = backed_up(&lab, &KINDS);
    let file = lab.path("vda.qcow2");
    lab.keepmark.backup(&image_vm("vda", &file), &["--name", "web", "--kind", "incremental", "--tag", "release", "--tag", "signed"]);
    lab.keepmark.ok(&["pin", &made[0]]);
    let drawn = lab.keepmark.ok(&["list", "web"]).stdout;
    let first = drawn.lines().next().unwrap();
    assert!(first.starts_with("web in ") && first.ends_with(": F I I D I I"), "{drawn}");
    assert!(drawn.contains("pinned") && drawn.contains("release signed"), "{drawn}");
    let tree = lab.keepmark.ok(&["list", "web", "--dependencies"]).stdout;
    assert!(tree.lines().count() == 6 && !tree.contains('└'), "in a repository each is complete: {tree}");
    assert_eq!(
        lab.keepmark.ok(&["forget", "web", "--keep-tag", "release,signed", "--json"]).event("forgotten")["deleted"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
    for wrong in ["", "vm:x", "a,b"] {
        lab.keepmark.exits(&["backup", &image_vm("vda", &file), "--tag", wrong], 2);
    }
}
