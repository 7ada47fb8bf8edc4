//! The scratch gets full while a domain is backed up: QEMU would fail the guest's writes, so the backup is given up before.

use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::mount::{Mount, Small, Stopped};
use keepmark_testkit::{Disk, LibvirtHost};

use crate::stage::{MIB, Stage};

/// Hardly more than what has to stay free.
const SCRATCH: &str = "258m";
/// More than keepmark takes in while it cannot store.
const DATA: u64 = 160 * MIB;

#[test]
fn a_store_that_stalls_until_the_scratch_is_full_breaks_the_backup_and_not_the_guest() {
    stalls(false);
}

#[test]
fn the_same_where_a_dead_job_holds_the_domain() {
    stalls(true);
}

fn stalls(is_held: bool) {
    let mut scratch = None;
    // The host sees what was mounted when it began.
    let mut stage = Stage::on(|folder| {
        scratch = Some(Small::new(&folder.with_file_name("scratch"), SCRATCH));
        LibvirtHost::start(folder)
    });
    let store = stage.path("stalling");
    let _mount = Mount::new(stage.path("stalling.img"), store.clone());
    stage.keepmark = stage.keepmark.clone().store(&store);
    stage.keepmark.ok(&["init"]);
    let file = stage.path("vda.qcow2");
    image::create(&file, Format::Qcow2, 2 * DATA);
    image::fill_random(&file, Format::Qcow2, 1, 0, usize::try_from(DATA).unwrap());
    let domain = stage.host.domain("vm").disk(Disk::qcow2("vda", &file)).start();

    if is_held {
        domain.wedge();
    }

    let midway = if is_held { stage.midway_held(&domain) } else { stage.midway(&domain) };
    let stopped = Stopped::new(&store);
    midway.wake();
    std::thread::sleep(Duration::from_secs(1));
    // Each of these fails the test if the guest would see an error.
    (0..16).for_each(|number| domain.write("vda", 7, number * 8 * MIB, 8 * MIB));
    drop(stopped);
    let run = midway.go_on();
    assert!(run.code == Some(1) && run.stderr.contains("scratch") && run.stderr.contains("Hint: "), "{run:?}");
    assert_eq!(domain.state(), "running");

    scratch.as_ref().unwrap().make_room();
    let finished = stage.backup(&domain, &[]);
    stage.compare(&finished, &stage.witness(&domain));
    stage.assert_nothing_left(&domain);
}
