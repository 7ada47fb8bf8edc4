//! The scenarios of the hypervisor seam on real QEMU and on powered-off images, compared with the simulation.

use std::path::Path;
use std::time::Instant;

use keepmark_model::opening::ImageFormat;
use keepmark_model::seam::Hypervisor;
use keepmark_qemu::{Live, LiveOptions, Offline, OfflineOptions, Said};
use keepmark_testkit::conformance::{Bench, Machines, Meets, Reach, SCENARIOS, Scenario, Simulated, conform};
use keepmark_testkit::{OrFail, fail};

fn driver(reach: Reach<'_>, folder: &Path) -> Box<dyn Hypervisor> {
    match reach {
        Reach::Monitor(socket) => {
            Box::new(Live::connect(LiveOptions::new(socket, folder.join("scratch"), folder.join("run"))).or_fail("connecting"))
        }
        Reach::Images(images) => {
            let format = |file: &Path| if file.to_string_lossy().contains(".qcow2") { ImageFormat::Qcow2 } else { ImageFormat::Raw };
            let formats = images.iter().map(|(name, file)| (Some(name.to_string()), format(file))).collect();
            let images = images.iter().map(|(name, file)| (Some(name.clone()), file.clone())).collect();
            // Scenarios lay images on others, and number their files.
            let said = Said::Operator { formats, trust_chain: true };
            Box::new(Offline::open(OfflineOptions { said, ..OfflineOptions::new(images, folder.join("run")) }).or_fail("opening images"))
        }
    }
}

/// QEMU before 7.1 fixes its moments by jobs; newer ones can be made to.
fn driver_with_jobs(reach: Reach<'_>, folder: &Path) -> Box<dyn Hypervisor> {
    let Reach::Monitor(socket) = reach else { fail("jobs are for running VMs") };
    let options = LiveOptions { force_jobs: true, ..LiveOptions::new(socket, folder.join("scratch"), folder.join("run")) };
    Box::new(Live::connect(options).or_fail("connecting"))
}

/// `KEEPMARK_TEST_SCENARIO` is a part of the name of the scenarios that are wanted.
#[track_caller]
#[expect(clippy::print_stdout, reason = "what was not played is said, with the reason")]
fn alike(mut reference: Simulated, mut bench: impl Bench, wanted: impl Fn(&Scenario) -> bool) {
    let started = Instant::now();
    let part = std::env::var("KEEPMARK_TEST_SCENARIO").unwrap_or_default();
    let report = conform(&mut reference, &mut bench, |scenario| wanted(scenario) && scenario.name.contains(&part));
    println!("{} as {}, {:.1?}: {report}", bench.name(), reference.name(), started.elapsed());
    assert!(report.wrong.is_empty(), "{} and {} differ", bench.name(), reference.name());
}

#[test]
fn qemu_is_as_simulated() {
    alike(Simulated::running(), Machines::new("QEMU", Meets::Running, driver), |_| true);
}

/// Only what is about moments: nothing else depends on how they are fixed.
#[test]
fn qemu_with_jobs_is_as_simulated() {
    let bench = Machines::new("QEMU, moments by jobs", Meets::Running, driver_with_jobs);
    alike(Simulated::running(), bench, |scenario| scenario.about == "point");
}

#[test]
fn powered_off_images_are_as_simulated() {
    alike(Simulated::off(), Machines::new("powered-off images", Meets::Off, driver), |_| true);
}

#[test]
fn the_document_names_scenarios_that_exist() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/qemu.md")).unwrap();
    let named = document.split("`C: ").skip(1).filter_map(|rest| rest.split('`').next());
    let unknown: Vec<&str> = named.filter(|name| !SCENARIOS.iter().any(|scenario| scenario.name == *name)).collect();
    assert!(unknown.is_empty(), "docs/qemu.md names {unknown:?}");
}
