//! Checkpoints and bitmaps of others on the same domain: they go on, and so do we.

use crate::stage::{MIB, Marks, Stage};

/// Makes a checkpoint as an administrator would.
fn checkpoint(domain: &keepmark_testkit::Domain<'_>, name: &str) {
    domain.virsh("checkpoint-create-as", &[name]);
}

#[test]
fn checkpoints_of_others_between_ours_survive() {
    let stage = Stage::new();
    let domain = stage.domain();
    checkpoint(&domain, "hand-made-1");
    stage.judge(&domain, "full", &["first backup"]);
    domain.write("vda", 7, 3 * MIB, MIB);
    checkpoint(&domain, "hand-made-2");
    stage.judge(&domain, "incremental", &[]);
    domain.write("vda", 8, 5 * MIB, MIB);
    // Theirs may go at any time, ours do not need them.
    domain.virsh("checkpoint-delete", &["hand-made-1"]);
    stage.judge(&domain, "incremental", &[]);
    assert_eq!(Marks::of_others(&domain).in_libvirt.into_iter().collect::<Vec<_>>(), ["hand-made-2"]);
}

#[test]
fn a_backup_job_of_somebody_else_is_not_ended() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    let (socket, xml) = (stage.path("their-nbd"), stage.path("their-backup.xml"));
    let text = format!("<domainbackup mode='pull'><server transport='unix' socket='{}'/></domainbackup>", socket.display());
    std::fs::write(&xml, text).unwrap();
    domain.virsh("backup-begin", &[xml.to_str().unwrap()]);
    let refused = stage.keepmark.run(&["backup", "vm"]);
    assert!(refused.code.is_some_and(|code| code != 0) && refused.stderr.contains("job"), "{}", refused.stderr);
    assert_eq!(domain.backup_socket(), Some(socket));
    domain.virsh("domjobabort", &[]);
    domain.write("vda", 7, 3 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}
