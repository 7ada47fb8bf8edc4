//! What an administrator does while a backup is being read: it works or is refused as without us, and the guest's domain is unharmed.

use keepmark_testkit::Keepmark;

use crate::stage::{MIB, SIZE, Stage};

#[test]
fn a_running_backup_is_seen_by_virsh() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    let truth = stage.witness(&domain);
    let midway = stage.midway(&domain);
    let job = domain.virsh("domjobinfo", &[]);
    assert!(job.contains("Backup"), "{job}");
    let tree = domain.virsh("checkpoint-list", &["--tree"]);
    assert_eq!(domain.checkpoints().len(), 2, "{tree}");
    for name in domain.checkpoints() {
        assert!(tree.contains(&name), "{tree}");
        domain.virsh("checkpoint-dumpxml", &[&name]);
    }
    // What is written meanwhile belongs to the next backup.
    domain.write("vda", 8, 4 * MIB, MIB);
    let finished = midway.go_on();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    stage.compare(&finished.event("finished"), &truth);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn what_libvirt_refuses_meanwhile_harms_nobody() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    let truth = stage.witness(&domain);
    let midway = stage.midway(&domain);
    let copy = stage.path("copy.qcow2");
    let grown = format!("{}B", SIZE + MIB);
    let refused: Vec<(&str, bool)> = [
        ("blockresize", vec!["vda", grown.as_str()]),
        ("snapshot-create-as", vec!["s1", "--disk-only", "--no-metadata"]),
        ("blockcommit", vec!["vda", "--active", "--pivot", "--wait"]),
        ("blockcopy", vec!["vda", copy.to_str().unwrap(), "--pivot", "--wait", "--transient-job"]),
        ("managedsave", vec![]),
    ]
    .into_iter()
    .map(|(command, arguments)| (command, domain.try_virsh(command, &arguments).is_err()))
    .collect();
    assert!(refused.iter().all(|(_, is_refused)| *is_refused), "{refused:?}");
    let finished = midway.go_on();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    stage.compare(&finished.event("finished"), &truth);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_backup_whose_job_is_aborted_fails_and_the_next_is_right() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    let midway = stage.midway(&domain);
    domain.virsh("domjobabort", &[]);
    let failed = midway.go_on();
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    stage.assert_clean(&domain);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_domain_that_ends_meanwhile_fails_the_backup_and_the_next_is_right() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    let midway = stage.midway(&domain);
    domain.destroy();
    let failed = midway.go_on();
    assert_ne!(failed.code, Some(0), "{}", failed.stderr);
    stage.judge(&domain, "incremental", &[]);
    domain.start();
    domain.write("vda", 8, 5 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn another_users_keepmark_does_not_take_a_living_backup_for_a_dead_ones() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    domain.write("vda", 7, 3 * MIB, MIB);
    let truth = stage.witness(&domain);
    let midway = stage.midway(&domain);
    // With other folders, it sees none of the first one's locks.
    let other = Keepmark::new(&stage.path("other")).env("LIBVIRT_DEFAULT_URI", &stage.host.uri()).store(&stage.path("store"));
    let refused = other.exits(&["backup", "vm"], 11);
    assert!(refused.stderr.contains("another keepmark (process ") && refused.stderr.contains("of user 0"), "{}", refused.stderr);
    let finished = midway.go_on();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    stage.compare(&finished.event("finished"), &truth);
    assert!(!domain.qmp("query-chardev", serde_json::json!({})).to_string().contains("km1tmp-lock-"));
    stage.judge(&domain, "incremental", &[]);
}
