//! The scenarios of the hypervisor seam on domains of a real libvirtd, compared with the simulation.

use std::path::Path;
use std::time::Instant;

use keepmark_libvirt::{Options, open};
use keepmark_model::seam::Hypervisor;
use keepmark_testkit::OrFail;
use keepmark_testkit::conformance::{Domains, OTHERWISE, Scenario, Simulated, alone, conform};

fn driver(uri: &str, domain: &str, folder: &Path) -> Box<dyn Hypervisor> {
    let options = Options::new(domain, folder.join("scratch"), folder.join("run"));
    open(Options { uri: Some(uri.to_owned()), ..options }).or_fail("opening the domain")
}

fn goes_otherwise(scenario: &Scenario) -> bool {
    OTHERWISE.iter().any(|otherwise| otherwise.scenario == scenario.name)
}

/// `KEEPMARK_TEST_SCENARIO` is a part of the name of the scenarios that are wanted.
fn is_wanted(scenario: &Scenario) -> bool {
    scenario.name.contains(&std::env::var("KEEPMARK_TEST_SCENARIO").unwrap_or_default())
}

#[test]
fn libvirt_is_as_simulated() {
    let started = Instant::now();
    let is_alike = |scenario: &Scenario| is_wanted(scenario) && !goes_otherwise(scenario);
    let report = conform(&mut Simulated::running(), &mut Domains::new(driver), is_alike);
    println!("libvirt, {:.1?}: {report}", started.elapsed());
    assert!(report.wrong.is_empty(), "libvirt and the simulation differ");
    // Nor is it on a QEMU without libvirt.
    assert!(report.not_here.iter().all(|(name, _)| *name == "a_copy_of_a_closed_image_is_as_it_was"), "{:?}", report.not_here);
}

/// What libvirt does otherwise is as expected, and really otherwise.
#[test]
fn what_libvirt_does_otherwise_is_as_expected() {
    let mut bench = Domains::new(driver);
    for otherwise in OTHERWISE.iter().filter(|otherwise| is_wanted(&otherwise.instead)) {
        println!("{}: {}", otherwise.scenario, otherwise.why);
        let report = conform(&mut Simulated::running(), &mut bench, |scenario| scenario.name == otherwise.scenario);
        assert!(!report.wrong.is_empty(), "{} goes as on the simulation", otherwise.scenario);
        let wrong = alone(&otherwise.instead, &mut bench);
        assert!(wrong.is_empty(), "{}: {wrong:#?}", otherwise.instead.name);
    }
}
