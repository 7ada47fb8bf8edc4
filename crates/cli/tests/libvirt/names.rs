//! How a domain is named, and what is said when it cannot be reached.

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
