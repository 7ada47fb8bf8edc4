//! A domain moves to another host with the same storage: nothing of keepmark's needs the old host's memory.

use keepmark_testkit::LibvirtHost;

use crate::stage::{MIB, Stage};

#[test]
fn a_domain_that_moved_to_another_host_goes_on() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    let other = LibvirtHost::start(&stage.path("other"));
    // libvirt cannot know that both hosts have the same files.
    let socket = format!("unix://{}", stage.path("migration").display());
    domain.virsh("migrate", &["--live", "--p2p", "--unsafe", "--undefinesource", "--persistent", &other.uri(), "--migrateuri", &socket]);
    let moved = other.moved(&domain);
    assert_eq!(moved.state(), "running");
    moved.write("vda", 8, 5 * MIB, MIB);
    let finished = stage.keepmark.clone().env("LIBVIRT_DEFAULT_URI", &other.uri()).backup("vm", &[]);
    assert_eq!(finished["kind"], "incremental", "{finished}");
    stage.compare(&finished, &stage.witness(&moved));
    stage.assert_clean(&moved);
}
