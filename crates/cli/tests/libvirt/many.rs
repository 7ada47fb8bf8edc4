//! Many domains in one command.

use keepmark_testkit::Domain;

use crate::stage::{MIB, Stage};

const COUNT: usize = 20;
/// Its image is lost.
const BAD: &str = "web07";

fn names() -> Vec<String> {
    (0..COUNT).map(|number| format!("web{number:02}")).collect()
}

/// Domains that idle, each with a disk of 2 MiB of its own data. The one that is bad is shut off.
fn domains(stage: &Stage) -> Vec<Domain<'_>> {
    let domain = |name: String| {
        let domain = stage.host.domain(&name).disk(stage.small_disk(&name, "vda"));
        if name == BAD { domain.define() } else { domain.start() }
    };
    names().into_iter().map(domain).collect()
}

#[test]
fn twenty_domains_in_one_command_and_a_bad_one_stops_no_other() {
    let stage = Stage::new();
    let domains = domains(&stage);
    let bad = domains.iter().find(|domain| domain.name() == BAD).unwrap();
    std::fs::remove_file(bad.source("vda")).unwrap();
    let other = stage.host.domain("db01").disk(stage.small_disk("db01", "vda")).start();

    for kind in ["full", "incremental"] {
        domains[19].write("vda", 7, 2 * MIB, MIB);
        let run = stage.keepmark.exits(&["backup", "web*", "--all-disks", "--jobs", "4"], 1);
        assert!(run.stderr.contains(&format!("{BAD}: Error: ")) && run.stderr.contains("1 of 20 VMs were not backed up"), "{}", run.stderr);
        let rows: Vec<&str> = run.stdout.lines().skip_while(|line| !line.starts_with("VM ")).skip(1).collect();
        assert_eq!(rows.len(), COUNT, "{}", run.stdout);
        assert!(rows.iter().all(|row| row.contains(if row.starts_with(BAD) { "failed: " } else { kind })), "{}", run.stdout);
    }
    let listed = stage.keepmark.ok(&["list", "--json"]).json();
    assert_eq!(listed.len(), 2 * (COUNT - 1));
    assert!(listed.iter().all(|backup| backup["vm"] != other.name()), "a domain that was not meant was backed up");

    for domain in [&domains[0], &domains[19]] {
        let newest = listed.iter().rfind(|backup| backup["vm"] == domain.name()).unwrap();
        stage.compare(newest, &stage.witness(domain));
    }
    for domain in domains.iter().filter(|domain| domain.name() != BAD) {
        assert_eq!(domain.state(), "running");
        assert_eq!(domain.checkpoints(), stage.keepmark.needed_checkpoints(Some(domain.name())), "{}", domain.name());
    }

    let status = stage.keepmark.exits(&["status", "--json"], 3).json();
    assert_eq!(status.len(), COUNT + 1);
    assert_eq!(status.iter().filter(|vm| vm["next"]["kind"] == "incremental").count(), COUNT - 1);
}

#[test]
fn a_finding_on_one_domain_is_exit_code_3_and_said_with_its_name() {
    let stage = Stage::new();
    stage.host.domain("web00").disk(stage.small_disk("web00", "vda")).start();
    // A managed save: its disks are as the guest left them in the middle of its work.
    stage.host.domain("web01").disk(stage.small_disk("web01", "vda")).start().virsh("managedsave", &[]);
    let run = stage.keepmark.exits(&["backup", "web*"], 3);
    assert!(run.stderr.contains("web01: ") && run.stderr.contains("managed save") && !run.stderr.contains("web00: "), "{}", run.stderr);
    assert_eq!(stage.keepmark.ok(&["list", "--json"]).json().len(), 2);
}
