//! Powered-off images: read and checkpointed through qemu-storage-daemon, durable once closed, untouched by a look.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::*;
use keepmark_model::facts::{Persistence, Power};
use keepmark_model::manifest::Consistency;
use keepmark_model::opening::ImageFormat;
use keepmark_model::seam::Hypervisor;
use keepmark_model::{FailureClass, Size};
use keepmark_qemu::image::{ImageWriter, create};
use keepmark_qemu::{Offline, OfflineOptions};
use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, QemuBuilder};

#[test]
fn checkpoints_are_durable_after_close_and_record_what_comes() {
    let place = Place::new();
    let file = place.image("root", Format::Qcow2, 64 * MIB);
    image::fill(&file, Format::Qcow2, 1, 0, MIB);
    let mut vm = place.offline(&[&file]);
    let mut point = vm.begin(&request(&[("root", None)], Some(1))).unwrap();
    assert_eq!(point.moment().consistency, Consistency::Application);
    let mut disk = open(&mut point, "root");
    assert_eq!(disk.data(&extents(&[(0, 64 * MIB)])).unwrap(), extents(&[(0, MIB)]));
    assert!(is_filled(&read_all(disk.as_mut()), 0, MIB, 1));
    point.release().unwrap();
    Box::new(vm).close().unwrap();
    assert_eq!(image::bitmaps(&file), [checkpoint(1).to_string()]);

    image::fill(&file, Format::Qcow2, 2, 8 * MIB, MIB);
    let mut vm = place.offline(&[&file]);
    let facts = vm.facts().unwrap();
    let bitmap = &facts.disks[0].layers[0].bitmaps[0];
    assert_eq!((facts.power, bitmap.dirty.0, bitmap.recording, bitmap.inconsistent), (Power::Off, MIB, true, false));
    let mut point = vm.begin(&request(&[("root", Some(1))], Some(2))).unwrap();
    assert_eq!(open(&mut point, "root").dirty().unwrap(), extents(&[(8 * MIB, MIB)]));
    point.release().unwrap();
    vm.remove_checkpoints(&[checkpoint(1)]).unwrap();
    Box::new(vm).close().unwrap();
    assert_eq!(image::bitmaps(&file), [checkpoint(2).to_string()]);
    assert_eq!(place.left(), Vec::<String>::new());
}

#[test]
fn a_running_vm_goes_on_with_the_checkpoints_of_its_powered_off_images() {
    let place = Place::new();
    let file = place.image("vda", Format::Qcow2, 16 * MIB);
    let mut vm = place.offline(&[&file]);
    take_checkpoint(&mut vm, &["vda"], 1);
    Box::new(vm).close().unwrap();
    let mut qemu = QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &file)).start();
    qemu.write("vda", 5, MIB, MIB);
    let mut live = place.live(&qemu);
    take_checkpoint(&mut live, &["vda"], 2);
    drop(live);
    qemu.quit();
    let mut vm = place.offline(&[&file]);
    let mut point = vm.begin(&request(&[("vda", Some(1))], None)).unwrap();
    assert_eq!(open(&mut point, "vda").dirty().unwrap(), extents(&[(MIB, MIB)]));
}

#[test]
fn a_look_and_a_read_without_checkpoint_change_no_byte() {
    let place = Place::new();
    let base = place.image("base", Format::Raw, 8 * MIB);
    let file = place.path("over.qcow2");
    image::create_overlay(&file, &base, Format::Raw);
    let mut vm = place.offline_chain(&file);
    take_checkpoint(&mut vm, &["over"], 1);
    Box::new(vm).close().unwrap();
    image::fill(&file, Format::Qcow2, 7, MIB, MIB);
    let before = image::sha256_of_file(&file);
    let mut vm = place.offline_chain(&file);
    assert_eq!(vm.facts().unwrap().disks[0].layers.len(), 2);
    let mut point = vm.begin(&request(&[("over", Some(1))], None)).unwrap();
    let mut disk = open(&mut point, "over");
    assert_eq!(disk.dirty().unwrap(), extents(&[(MIB, MIB)]));
    assert!(is_filled(&read_all(disk.as_mut()), MIB, MIB, 7));
    point.release().unwrap();
    vm.remove_checkpoints(&[checkpoint(9)]).unwrap();
    Box::new(vm).close().unwrap();
    assert_eq!(image::sha256_of_file(&file), before);
}

#[test]
fn an_image_in_use_names_the_process() {
    let place = Place::new();
    let file = place.image("vda", Format::Qcow2, MIB);
    let qemu = QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &file)).start();
    let error = Offline::open(OfflineOptions::new(vec![(None, file)], place.path("run"))).unwrap_err();
    let words = error.to_string();
    assert!(words.contains(&format!("process {}", qemu.id())) && words.contains("qemu-system"), "{words}");
    assert_eq!(keepmark_model::Failure::from(error).class(), FailureClass::Locked);
}

#[test]
fn a_raw_image_and_a_running_vm_keep_each_other_off() {
    let place = Place::new();
    let file = place.image("vda", Format::Raw, MIB);
    let before = std::fs::metadata(&file).unwrap().modified().unwrap();
    let mut vm = place.offline(&[&file]);
    let point = vm.begin(&request(&[("vda", None)], Some(1))).unwrap();
    let drive = format!("file={},format=raw,if=virtio", file.display());
    let arguments = ["-accel", "tcg", "-display", "none", "-nodefaults", "-S", "-drive", &drive];
    let refused = Command::new("timeout").args(["60", "qemu-system-x86_64"]).args(arguments).output().unwrap();
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("Failed to get \"write\" lock"), "{refused}");
    point.release().unwrap();
    Box::new(vm).close().unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), before, "it was only read");
    let qemu = QemuBuilder::new(place.dir.path()).disk(Disk::raw("vda", &file)).start();
    let error = Offline::open(OfflineOptions::new(vec![(None, file)], place.path("run"))).unwrap_err();
    assert!(error.to_string().contains(&format!("process {}", qemu.id())), "{error}");
}

#[test]
fn a_raw_image_that_was_written_all_the_same_is_no_moment() {
    let place = Place::new();
    let file = place.image("vda", Format::Raw, MIB);
    let mut vm = place.offline(&[&file]);
    let mut point = vm.begin(&request(&[("vda", None)], None)).unwrap();
    point.check().unwrap();
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().write_all_at(b"x", 5).unwrap();
    assert!(point.check().unwrap_err().to_string().contains("was written"));
}

#[test]
fn images_without_lasting_bitmaps_work_and_say_so() {
    let place = Place::new();
    let raw = place.image("disk1", Format::Raw, MIB);
    let old = place.path("disk2.qcow2");
    image::create_with(&old, Format::Qcow2, MIB, "compat=0.10");
    let mut vm = place.offline(&[&raw, &old]);
    let facts = vm.facts().unwrap();
    assert!(facts.disks.iter().all(|disk| matches!(disk.persistence, Persistence::MemoryOnly { .. })));
    take_checkpoint(&mut vm, &["disk1", "disk2"], 1);
    Box::new(vm).close().unwrap();
    assert!(image::bitmaps(&old).is_empty());
}

#[test]
fn bitmaps_of_a_killed_qemu_are_seen_as_inconsistent_and_can_be_removed() {
    let place = Place::new();
    let file = place.image("vda", Format::Qcow2, MIB);
    let mut vm = place.offline(&[&file]);
    take_checkpoint(&mut vm, &["vda"], 1);
    Box::new(vm).close().unwrap();
    QemuBuilder::new(place.dir.path()).disk(Disk::qcow2("vda", &file)).start().kill9();
    let mut vm = place.offline(&[&file]);
    assert!(vm.facts().unwrap().disks[0].layers[0].bitmaps[0].inconsistent);
    vm.remove_checkpoints(&[checkpoint(1)]).unwrap();
    Box::new(vm).close().unwrap();
    assert!(image::bitmaps(&file).is_empty());
}

#[test]
fn names_come_from_labels_and_stems() {
    let place = Place::new();
    let (a, b) = (place.image("a", Format::Raw, MIB), place.image("b", Format::Raw, MIB));
    let labelled = |one: &str, other: Option<&str>| {
        let images = vec![(Some(one.to_owned()), a.clone()), (other.map(str::to_owned), b.clone())];
        Offline::open(OfflineOptions { name: Some("web".into()), ..OfflineOptions::new(images, place.path("run")) })
    };
    let facts = labelled("vda", None).unwrap().facts().unwrap();
    assert_eq!(facts.disks.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["vda", "b"]);
    assert_eq!(facts.identity.name, "web");
    assert!(labelled("x", Some("x")).unwrap_err().to_string().contains("another disk"));
    assert!(labelled("../x", None).unwrap_err().to_string().contains("cannot be used"));
}

#[test]
fn missing_and_rubbish_images_are_errors() {
    let place = Place::new();
    let open = |path: &Path| Offline::open(OfflineOptions::new(vec![(None, path.to_owned())], place.path("run"))).map(drop);
    assert!(open(&place.path("nowhere")).unwrap_err().to_string().contains("nowhere"));
    let broken = place.path("broken.qcow2");
    std::fs::write(&broken, b"QFI\xfb\0\0\0\x03 and then rubbish that goes on for a while to fill a header or two........................")
        .unwrap();
    assert!(open(&broken).is_err());
    let disguised = place.path("disk.raw");
    image::create(&disguised, Format::Qcow2, MIB);
    assert!(open(&disguised).unwrap_err().to_string().contains("guest"));
}

#[test]
fn images_are_written_by_several_hands_and_durable_when_finished() {
    let place = Place::new();
    for (format, made) in [(Format::Qcow2, ImageFormat::Qcow2), (Format::Raw, ImageFormat::Raw)] {
        let file = place.path(&format!("new.{made}"));
        let opened = std::fs::File::create_new(&file).unwrap();
        create(&opened, made, Size(8 * MIB)).unwrap();
        let writer = ImageWriter::open(&file, made, &place.path("run")).unwrap();
        std::thread::scope(|scope| {
            for number in 0..4_u8 {
                let mut hand = writer.handle().unwrap();
                scope.spawn(move || hand.write(u64::from(number) * MIB, &vec![number + 1; 1 << 20]).unwrap());
            }
        });
        let mut hand = writer.handle().unwrap();
        assert_eq!(hand.size(), Size(8 * MIB));
        hand.zero(keepmark_model::Extent::at(MIB, MIB)).unwrap();
        hand.write_many(&mut [(5 * MIB, vec![9; 4096]), (6 * MIB, vec![8; 4096])].into_iter(), 2).unwrap();
        drop(hand);
        writer.finish(&|| false).unwrap();
        let check = |offset: u64, length: u64, byte: u8| image::io(&file, format, &[&format!("read -P {byte} {offset} {length}")]);
        check(0, MIB, 1);
        check(MIB, MIB, 0);
        check(2 * MIB, MIB, 3);
        check(5 * MIB, 4096, 9);
        check(6 * MIB, 4096, 8);
        assert!(ImageWriter::open(&place.path("nowhere"), made, &place.path("run")).is_err());
    }
}

/// Started again by the test below: opens an image for writing and waits to be killed.
#[test]
fn holder_of_an_image() {
    let Ok(file) = std::env::var("KEEPMARK_TEST_HOLD_IMAGE") else { return };
    let folder = Path::new(&file).parent().unwrap().join("run");
    let mut vm = Offline::open(OfflineOptions::new(vec![(None, file.into())], folder)).unwrap();
    take_checkpoint(&mut vm, &["vda"], 1);
    println!("held");
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn a_killed_keepmark_does_not_leave_its_images_locked() {
    let place = Place::new();
    let file = place.image("vda", Format::Qcow2, MIB);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_of_an_image", "--nocapture"])
        .env("KEEPMARK_TEST_HOLD_IMAGE", &file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    assert!(std::io::BufRead::lines(output).any(|line| line.unwrap().contains("held")));
    child.kill().unwrap();
    child.wait().unwrap();
    let again = || Offline::open(OfflineOptions::new(vec![(None, file.clone())], place.path("run")));
    let opened = (0..200).find_map(|_| {
        std::thread::sleep(std::time::Duration::from_millis(25));
        again().ok()
    });
    let mut vm = opened.unwrap();
    // The daemon was ended in order, so even the bitmap is there.
    assert!(!vm.facts().unwrap().disks[0].layers[0].bitmaps[0].inconsistent);
    vm.clean_up().unwrap();
    Box::new(vm).close().unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}
