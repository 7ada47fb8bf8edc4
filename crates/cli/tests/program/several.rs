//! Several VMs in one command.

use keepmark_testkit::image::{self, Format};

use crate::lab::{Lab, MIB, text};

/// Images of so many powered-off VMs, each with some data of its own.
fn images(lab: &Lab, count: u64) -> Vec<String> {
    let make = |number| {
        let file = lab.qcow2(&format!("web{number:02}"), 16 * MIB);
        image::fill(&file, Format::Qcow2, u8::try_from(number).unwrap() + 1, number * MIB / 2, MIB);
        format!("image:vda={}", file.display())
    };
    (0..count).map(make).collect()
}

#[test]
fn twenty_vms_in_one_command_and_a_bad_one_stops_no_other() {
    let lab = Lab::new();
    let mut vms = images(&lab, 19);
    let missing = format!("image:vda={}", lab.path("web19.qcow2").display());
    vms.insert(7, missing.clone());
    let arguments: Vec<&str> = ["backup", "--jobs", "4"].into_iter().chain(vms.iter().map(String::as_str)).collect();
    let run = lab.keepmark.exits(&arguments, 1);
    assert_eq!(lab.list().len(), 19);
    assert!(run.stderr.contains(&format!("{missing}: Error: ")) && run.stderr.contains("1 of 20 VMs were not backed up"), "{}", run.stderr);
    let table: Vec<&str> = run.stdout.lines().skip_while(|line| !line.starts_with("VM ")).skip(1).collect();
    assert_eq!(table.len(), 20, "{}", run.stdout);
    assert_eq!(table.iter().filter(|line| line.contains("failed: ")).count(), 1);
    assert_eq!(table.iter().filter(|line| line.contains(" full ")).count(), 19);

    let restored = lab.path("out");
    lab.keepmark.ok(&["restore", "web11@latest", "--to", text(&restored)]);
    image::assert_same(&lab.path("web11.qcow2"), Format::Qcow2, &restored.join("vda.raw"), Format::Raw);
    lab.restic().check();
}

#[test]
fn several_vms_tell_their_results_as_they_come() {
    let lab = Lab::new();
    let vms = images(&lab, 3);
    let arguments = ["backup", "--json", &vms[0], "image:/nowhere/a.qcow2", &vms[1], &vms[2]];
    let events = lab.keepmark.exits(&arguments, 1).json();
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((of("finished"), of("failed")), (3, 1), "{events:?}");
}

#[test]
fn one_name_cannot_be_that_of_several_vms() {
    let lab = Lab::new();
    let vms = images(&lab, 2);
    let run = lab.keepmark.exits(&["backup", &vms[0], &vms[1], "--name", "web"], 2);
    assert!(run.stderr.contains("--name and --uuid name one VM, and 2 were given"), "{}", run.stderr);
}
