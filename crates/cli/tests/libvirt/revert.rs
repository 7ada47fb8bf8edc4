//! Domains that go back in place: shut off, running, half reverted, and what is refused.

use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Guest, Serial};
use serde_json::Value;

use crate::stage::{MIB, Stage, TIMEOUT, of_disk, soon};

fn revert(stage: &Stage, domain: &str, backup: &Value, more: &[&str]) -> Value {
    let arguments = [&["revert", domain, backup["backup"].as_str().unwrap(), "--json"], more].concat();
    stage.keepmark.ok(&arguments).event("finished")
}

fn assert_says(run: &keepmark_testkit::KeepmarkRun, words: &[&str]) {
    assert!(words.iter().all(|word| run.stderr.contains(word)), "{words:?} are not said: {}", run.stderr);
}

#[test]
fn a_shut_off_domain_goes_back_and_its_sequence_goes_on() {
    let stage = Stage::new();
    let domain = stage.domain();
    let friday = stage.witness(&domain);
    let first = stage.judge(&domain, "full", &[]);
    domain.write("vda", 7, 3 * MIB, 2 * MIB);
    stage.judge(&domain, "incremental", &[]);
    domain.write("sda", 8, 5 * MIB, MIB);
    domain.destroy();
    let wednesday = stage.witness(&domain);
    let done = revert(&stage, "vm", &first, &[]);
    assert!(of_disk(&done, "vda")["written_bytes"].as_u64().unwrap() <= 2 * MIB, "{done}");
    stage.compare(&serde_json::json!({"backup": done["safety_backup"]}), &wednesday);
    let now = stage.witness(&domain);
    for name in ["vda", "sda"] {
        friday.assert_same(name, &now.image(name), Format::Raw);
    }
    let next = stage.judge(&domain, "incremental", &[]);
    assert_eq!(of_disk(&next, "vda")["stored_bytes"], 0, "{next}");
    domain.start();
    domain.write("vda", 9, 6 * MIB, MIB);
    stage.judge(&domain, "incremental", &[]);
}

#[test]
fn a_half_reverted_domain_does_not_start_until_it_is_finished() {
    let stage = Stage::new();
    let domain = stage.domain();
    let old = stage.witness(&domain);
    let first = stage.judge(&domain, "full", &[]);
    domain.destroy();
    image::fill_random(&domain.source("vda"), Format::Qcow2, 9, 0, 15 << 20);
    let mut running = stage.keepmark.spawn(&["revert", "vm", first["backup"].as_str().unwrap(), "--no-safety-backup"]);
    let renamed = format!("{}.keepmark-reverting-{}", domain.source("vda").display(), &first["backup"].as_str().unwrap()[..8]);
    soon("the guard", || std::path::Path::new(&renamed).exists());
    running.process.kill9();
    soon("the storage daemon's end", || image::is_free(std::path::Path::new(&renamed), Format::Qcow2));
    let refused = domain.try_virsh("start", &[]).unwrap_err();
    assert!(refused.contains(".qcow2'") && refused.contains("No such file"), "{refused}");
    assert_says(
        &stage.keepmark.exits(&["backup", "vm"], 1),
        &["is half reverted to backup", "Hint: 'keepmark revert VM BACKUP' finishes it"],
    );
    let done = revert(&stage, "vm", &first, &[]);
    assert_eq!(done["resumed"], true, "{done}");
    let now = stage.witness(&domain);
    for name in ["vda", "sda"] {
        old.assert_same(name, &now.image(name), Format::Raw);
    }
    domain.start();
    let next = stage.backup(&domain, &[]);
    assert_eq!(of_disk(&next, "vda")["stored_bytes"], 0, "{next}");
}

/// Read twice alike: under load the console doubles a character now and then.
fn sums_of(serial: &mut Serial) -> String {
    let mut last = serial.run("sums vda", TIMEOUT);
    loop {
        let next = serial.run("sums vda", TIMEOUT);
        if next == std::mem::replace(&mut last, next.clone()) {
            return next;
        }
    }
}

#[test]
fn a_running_domain_is_shut_down_reverted_and_started_again() {
    let stage = Stage::new();
    let file = stage.path("vda.qcow2");
    image::mkfs_ext4(&file, Format::Qcow2, 64 * MIB, None);
    let domain = stage.host.domain("vm").guest(&Guest::build()).agent().mount(&["vda"]).disk(Disk::qcow2("vda", &file)).start();
    let mut serial = domain.wait_ready();
    serial.run("write vda 3 100", TIMEOUT);
    let sums = sums_of(&mut serial);
    let first = stage.backup(&domain, &[]);
    serial.run("write vda 5 200; rm /mnt/vda/file-*; sync", TIMEOUT);

    let refused = stage.keepmark.exits(&["revert", "vm", first["backup"].as_str().unwrap()], 2);
    assert_says(&refused, &["the guest runs", "Hint: --shutdown"]);
    domain.virsh("suspend", &[]);
    let held = stage.keepmark.exits(&["revert", "vm", first["backup"].as_str().unwrap(), "--shutdown"], 2);
    assert_says(&held, &["the domain is paused"]);
    domain.virsh("resume", &[]);

    let running = stage.keepmark.spawn(&["revert", "vm", first["backup"].as_str().unwrap(), "--shutdown", "--json"]);
    soon("the shutdown", || running.stderr().contains("shutting the guest down"));
    std::thread::sleep(Duration::from_secs(3));
    // As a guest does that obeys; its agent cannot.
    serial.send("poweroff");
    let run = running.wait(TIMEOUT * 2);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(domain.state(), "running");
    let mut serial = domain.wait_ready();
    assert_eq!(sums_of(&mut serial), sums);
    let next = stage.backup(&domain, &[]);
    assert_eq!(next["kind"], "incremental", "{next}");
    assert_eq!(stage.keepmark.ok(&["list", "--json"]).json().len(), 3);
}

#[test]
fn what_would_be_lost_or_minded_is_refused() {
    let stage = Stage::new();
    let domain = stage.backed_up();
    let backup = stage.keepmark.ok(&["list", "--json"]).json()[0]["id"].as_str().unwrap().to_owned();
    // There is nothing in it that obeys.
    let deaf = stage.keepmark.exits(&["revert", "vm", &backup, "--shutdown", "--shutdown-timeout", "1"], 1);
    assert_says(&deaf, &["did not power down within 1 s and goes on running", "--shutdown-timeout"]);
    assert_eq!(domain.state(), "running");
    domain.virsh("managedsave", &[]);
    let saved = stage.keepmark.exits(&["revert", "vm", &backup], 2);
    assert_says(&saved, &["managed save"]);
}

#[test]
fn what_the_next_start_lacks_is_said_before_anything_stops() {
    let stage = Stage::new();
    // One file has many names.
    let named = stage.disk("vda");
    let twice = Disk { file: format!("/{}", named.file.display()).into(), ..named };
    let domain = stage.host.domain("vm").disk(twice).start();
    let second = stage.disk("vdb");
    domain.virsh("attach-disk", &[second.file.to_str().unwrap(), "vdb", "--driver", "qemu", "--subdriver", "qcow2", "--live"]);
    let backup = stage.backup(&domain, &[])["backup"].as_str().unwrap().to_owned();
    for way in ["--dry-run", "--shutdown"] {
        let refused = stage.keepmark.exits(&["revert", "vm", &backup, way], 1);
        assert_says(&refused, &["disk vdb of domain vm is attached to the running domain only", "--disk NAME"]);
        assert_eq!(domain.state(), "running");
    }
    let preview = stage.keepmark.ok(&["revert", "vm", &backup, "--disk", "vda", "--dry-run"]);
    assert_says(&preview, &["disk vdb is attached to the running domain only"]);
    // It has nothing in it that obeys: somebody pulls the plug.
    let running = stage.keepmark.spawn(&["revert", "vm", &backup, "--disk", "vda", "--shutdown", "--json"]);
    soon("the shutdown", || running.stderr().contains("shutting the guest down"));
    std::thread::sleep(Duration::from_secs(1));
    domain.destroy();
    let run = running.wait(TIMEOUT);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(domain.state(), "running");
}
