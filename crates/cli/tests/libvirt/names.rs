//! How a domain is named, and what is said when it cannot be reached.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use keepmark_testkit::LibvirtHost;

use crate::stage::Stage;

#[test]
fn name_uuid_and_prefix_name_the_same_domain() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    let uuid = domain.virsh("domuuid", &[]).trim().to_owned();
    for name in ["vm", "libvirt:vm", &uuid] {
        let plan = stage.keepmark.ok(&["plan", name, "--json"]).event("plan");
        assert_eq!(plan["kind"], "incremental", "{plan}");
    }
    assert_eq!(stage.keepmark.ok(&["list", "vm", "--json"]).json().len(), 1);
}

#[test]
fn a_host_is_named_by_its_uri() {
    let stage = Stage::new();
    stage.host.domain("vm").disk(stage.disk("vda")).start();
    let elsewhere = stage.keepmark.clone().env("LIBVIRT_DEFAULT_URI", "qemu+unix:///system?socket=/nonexistent");
    elsewhere.exits(&["plan", "vm"], 13);
    elsewhere.ok(&["plan", "vm", "--connect", &stage.host.uri()]);
}

#[test]
fn an_unknown_domain_and_a_dead_libvirtd_are_told_apart() {
    let stage = Stage::new();
    let unknown = stage.keepmark.run(&["plan", "nobody"]);
    assert!(unknown.code != Some(0) && unknown.stderr.contains("nobody"), "{}", unknown.stderr);
    stage.host.kill_libvirtd();
    let dead = stage.keepmark.exits(&["plan", "vm"], 13);
    assert!(dead.stderr.contains("libvirt") && dead.stderr.contains("Hint: "), "{}", dead.stderr);
}

#[test]
fn doctor_names_the_folder_that_qemus_user_cannot_get_through() {
    let stage = Stage::on(LibvirtHost::start_unprivileged);
    stage.host.domain("vm").disk(stage.disk("vda")).start();
    assert!(!stage.keepmark.ok(&["doctor", "vm"]).stdout.contains("cannot get through"));
    let closed = stage.path("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let config = stage.path("closed.toml");
    let places = ["scratch", "run", "cache"].map(|name| format!("{name}_dir = {:?}\n", closed.join(name)));
    std::fs::write(&config, places.concat()).unwrap();
    let told = stage.keepmark.exits(&["doctor", "vm", "--config", config.to_str().unwrap()], 3).stdout;
    assert!(told.contains(&format!("cannot get through {}", closed.display())) && told.contains("chmod o+x"), "{told}");
}
