//! How each VM is protected, at a glance.

use serde_json::Value;

use crate::lab::{Lab, image_vm};

#[test]
fn each_vm_is_told_with_its_last_backup_and_the_next() {
    let lab = Lab::new();
    let [web, db, new] = ["web", "db", "new"].map(|name| image_vm("vda", &lab.qcow2(name, 1 << 20)));
    lab.keepmark.backup(&web, &[]);
    lab.keepmark.backup(&db, &["--no-checkpoint"]);
    lab.keepmark.backup(&web, &[]);

    let told = lab.keepmark.ok(&["status", "--json", &web, &db, &new]).json();
    let of = |vm: &Value| (vm["vm"].clone(), vm["backups"].clone(), vm["last"]["kind"].clone(), vm["next"]["kind"].clone());
    let row = |vm: &str, backups: u64, last: Option<&str>, next: &str| (vm.into(), backups.into(), last.into(), next.into());
    assert_eq!(
        told.iter().map(of).collect::<Vec<_>>(),
        [row("web", 2, Some("incremental"), "incremental"), row("db", 1, Some("full"), "resync"), row("new", 0, None, "full")]
    );
    let human = lab.keepmark.ok(&["status", &web]).stdout;
    assert!(human.starts_with("VM ") && human.contains("changes since"), "{human}");
}

#[test]
fn without_names_it_tells_of_all_that_the_store_knows() {
    let lab = Lab::new();
    let [web, db] = ["web", "db"].map(|name| image_vm("vda", &lab.qcow2(name, 1 << 20)));
    lab.keepmark.backup(&web, &["--name", "old"]);
    lab.keepmark.backup(&db, &[]);
    lab.keepmark.backup(&web, &["--name", "old"]);
    let told = lab.keepmark.ok(&["status", "--json"]).json();
    let of = |vm: &Value| (vm["vm"].as_str().unwrap().to_owned(), vm["backups"].as_u64().unwrap(), vm["next"].is_null());
    assert_eq!(told.iter().map(of).collect::<Vec<_>>(), [("old".into(), 2, true), ("db".into(), 1, true)]);
}

#[test]
fn a_vm_that_cannot_be_asked_is_a_finding_and_stops_no_other() {
    let lab = Lab::new();
    let web = image_vm("vda", &lab.qcow2("web", 1 << 20));
    let missing = image_vm("vda", &lab.path("missing.qcow2"));
    let told = lab.keepmark.exits(&["status", "--json", &missing, &web], 3);
    let told: Vec<bool> = told.json().iter().map(|vm| vm["error"].is_string()).collect();
    assert_eq!(told, [true, false]);
}
