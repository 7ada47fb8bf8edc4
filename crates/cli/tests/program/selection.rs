//! How a BACKUP is named: by prefix, by VM and place in the sequence, by time; the order of lists; and which disks are meant.

use serde_json::Value;

use crate::lab::{Lab, assert_says, id, image_vm};

/// A backup of the disks that these arguments mean.
#[track_caller]
fn disks(lab: &Lab, vm: &str, arguments: &[&str]) -> Vec<String> {
    let finished = lab.keepmark.backup(vm, arguments);
    let name = |disk: &Value| disk["name"].as_str().unwrap().to_owned();
    finished["disks"].as_array().unwrap().iter().map(name).collect()
}

#[test]
fn disks_are_named_left_out_or_all_taken() {
    let lab = Lab::new();
    let files = ["a", "b", "c"].map(|name| format!("{name}={}", lab.qcow2(name, 1 << 20).display()));
    let vm = format!("image:{}", files.join(","));
    for (arguments, expected) in [
        (vec![], vec!["a", "b", "c"]),
        (vec!["--all-disks"], vec!["a", "b", "c"]),
        (vec!["--disk", "c", "--disk", "a"], vec!["a", "c"]),
        (vec!["--exclude-disk", "b", "--exclude-disk", "z"], vec!["a", "c"]),
    ] {
        assert_eq!(disks(&lab, &vm, &arguments), expected, "{arguments:?}");
    }
    assert_says(&lab.keepmark.exits(&["backup", &vm, "--disk", "z"], 2), &["has no disk z", "a, b, c"]);
    let none = ["backup", &vm, "--exclude-disk", "a", "--exclude-disk", "b", "--exclude-disk", "c"];
    assert_says(&lab.keepmark.exits(&none, 2), &["no disk that can be backed up", "a: it is excluded"]);
    lab.keepmark.exits(&["backup", &vm, "--disk", "a", "--exclude-disk", "b"], 2);
}

#[test]
fn a_backup_is_found_by_prefix_place_and_time() {
    let lab = Lab::new();
    let vm = image_vm("vda", &lab.qcow2("a", 1 << 20));
    let ids: Vec<String> = (0..3).map(|_| id(&lab.keepmark.backup(&vm, &["--name", "web"])).to_owned()).collect();
    let listed = lab.list();
    assert_eq!(listed.iter().map(|backup| backup["id"].as_str().unwrap()).collect::<Vec<_>>(), ids);
    let times: Vec<&str> = listed.iter().map(|backup| backup["time"].as_str().unwrap()).collect();
    let shown = |text: &str| lab.keepmark.ok(&["show", text, "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
    for (text, expected) in [
        (ids[0].clone(), 0),
        (ids[1][..8].to_owned(), 1),
        (ids[1][..8].to_uppercase(), 1),
        ("web@latest".to_owned(), 2),
        ("web@-0".to_owned(), 2),
        ("web@-1".to_owned(), 1),
        ("web@-2".to_owned(), 0),
        (format!("web@{}", times[0]), 0),
        (format!("web@{}", times[1]), 1),
        ("web@2999-01-01".to_owned(), 2),
    ] {
        assert_eq!(shown(&text), ids[expected], "{text}");
    }
    assert_says(&lab.keepmark.exits(&["show", "web@-3"], 2), &["no backup at or before"]);
    assert_says(&lab.keepmark.exits(&["show", "web@1999-01-01"], 2), &["no backup at or before"]);
    assert_says(&lab.keepmark.exits(&["show", "web@yesterday"], 2), &["neither 'latest'"]);
    assert_says(&lab.keepmark.exits(&["show", &ids[0][..3]], 2), &["no backup's id begins with"]);
}
