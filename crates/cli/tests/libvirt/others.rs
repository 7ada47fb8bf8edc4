//! Checkpoints and bitmaps of others on the same domain: they go on, and so do we.

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::process::{output, run};
use keepmark_testkit::{Disk, Domain};

use crate::stage::{MIB, Marks, Stage};

/// Makes a checkpoint as an administrator would.
fn checkpoint(domain: &Domain<'_>, name: &str) {
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

/// Whether Debian's virtnbdbackup made a backup of this level.
fn virtnbdbackup(stage: &Stage, level: &str) -> bool {
    let scratch = stage.path("their-scratch");
    std::fs::create_dir_all(&scratch).unwrap();
    let mut command = stage.host.command("virtnbdbackup");
    command.args(["--noprogress", "--domain", "vm", "--level", level, "--output"]).arg(stage.path("theirs"));
    output(command.arg("--scratchdir").arg(scratch)).status.success()
}

#[test]
fn virtnbdbackup_goes_on_with_a_chain_of_its_own_where_ours_is_hidden() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    assert!(!virtnbdbackup(&stage, "full"), "it bears our checkpoints now: hiding them is no longer needed");
    stage.keepmark.configure("hide_libvirt_checkpoints = true\n");
    stage.judge_hidden(&domain, "incremental");
    for (round, level) in (0..3).zip(["full", "inc", "inc"]) {
        domain.write("vda", 7 + round, (2 + u64::from(round)) * MIB, MIB);
        assert!(virtnbdbackup(&stage, level), "{level}");
        domain.write("sda", 7 + round, (2 + u64::from(round)) * MIB, MIB);
        stage.judge_hidden(&domain, "incremental");
    }
    assert!(virtnbdbackup(&stage, "inc"));
    let (theirs, restored) = (stage.path("theirs"), stage.path("restored"));
    run(stage.host.command("virtnbdrestore").arg("--input").arg(theirs).arg("--output").arg(&restored));
    stage.witness(&domain).assert_restored(&restored, Format::Qcow2);

    // Off, on again, and shown again where nobody minds: the sequence just goes on.
    domain.destroy();
    stage.judge_hidden(&domain, "incremental");
    domain.start();
    stage.judge_hidden(&domain, "incremental");
    stage.keepmark.configure("");
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_checkpoint_of_its_own_is_one_of_libvirts_and_a_disk_without_is_said() {
    let stage = Stage::new();
    let raw = stage.path("vdb.raw");
    image::create(&raw, Format::Raw, 4 * MIB);
    let domain = stage.host.domain("vm").disk(stage.disk("vda")).disk(Disk::raw("vdb", &raw)).start();
    let run = stage.keepmark.exits(&["checkpoint", "create", "vm", "--json"], 3);
    assert_eq!(domain.checkpoints(), [run.event("created")["checkpoint"].as_str().unwrap()]);
    assert!(run.stderr.contains("disk vdb can have no checkpoint"), "{}", run.stderr);
    stage.keepmark.ok(&["checkpoint", "delete", "vm"]);
    assert_eq!(domain.checkpoints(), [] as [&str; 0]);
    domain.destroy();
    domain.virsh("detach-disk", &["vda", "--config"]);
    domain.start();
    let refused = stage.keepmark.exits(&["checkpoint", "create", "vm"], 2);
    assert!(refused.stderr.contains("no disk of the VM can have a checkpoint") && refused.stderr.contains("Hint: "), "{}", refused.stderr);
}
