//! Headers that a guest writes into its raw disks: none of them leads keepmark or its helpers to any other file, socket or wait.

use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use keepmark_testkit::Disk;
use keepmark_testkit::image::{self, Format};

use crate::lab::{Lab, MIB, assert_says, image_vm, text};

const SECRET: &[u8] = b"root:$6$very-secret:19000:0:99999:7:::";

/// What a header could name, and what shows that somebody believed it.
struct Bait {
    folder: PathBuf,
    listener: UnixListener,
}

impl Bait {
    fn new(lab: &Lab) -> Self {
        let folder = lab.path("bait");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("secret"), [SECRET, &vec![0; 1 << 20]].concat()).unwrap();
        std::fs::set_permissions(folder.join("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(Command::new("mkfifo").arg(folder.join("pipe")).status().unwrap().success());
        let listener = UnixListener::bind(folder.join("nbd")).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { folder, listener }
    }

    fn names(&self) -> Vec<String> {
        let folder = text(&self.folder);
        vec![
            format!("json:{{\"driver\":\"file\",\"filename\":\"{folder}/secret\"}}"),
            format!("nbd:unix:{folder}/nbd"),
            format!("fat:{folder}"),
            "bait/secret".into(),
            format!("{folder}/secret"),
            "/dev/zero".into(),
            format!("{folder}/pipe"),
        ]
    }

    /// What a guest could write at the beginning of its disk, under names that say nothing of a format or say raw.
    fn disks(&self, lab: &Lab) -> Vec<PathBuf> {
        let mut heads: Vec<Vec<u8>> = self.names().iter().map(|name| qcow2(name)).collect();
        let secret = self.folder.join("secret");
        let extents = format!("# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"{}\" 0\n", secret.display());
        heads.push(extents.into_bytes());
        heads.push(made(lab, "vmdk"));
        heads.push(made(lab, "vhdx"));
        heads.push(qed(text(&secret)));
        heads.push(made(lab, "parallels"));
        heads.push([b"LUKS\xba\xbe\0\x01".as_slice(), &[0; 600]].concat());
        let names = ["vdisk1.img", "vdisk", "vdisk.raw"];
        let disk = |(number, head): (usize, &Vec<u8>)| {
            // A guest may encrypt a whole disk that is called raw.
            let name = names[if head.starts_with(b"LUKS") { 0 } else { number % names.len() }];
            let file = lab.path(&format!("{number}-{name}"));
            image::create(&file, Format::Raw, MIB);
            image::fill(&file, Format::Raw, 7, MIB / 2, MIB / 4);
            std::fs::OpenOptions::new().write(true).open(&file).unwrap().write_all_at(&head[..head.len().min(256 << 10)], 0).unwrap();
            file
        };
        heads.iter().enumerate().map(disk).collect()
    }

    fn assert_untouched(&self) {
        assert_eq!(self.listener.accept().map(drop).unwrap_err().kind(), ErrorKind::WouldBlock, "somebody has connected");
        assert!(std::fs::read(self.folder.join("secret")).unwrap().starts_with(SECRET));
    }
}

/// A qcow2 header of a disk of 1 MiB that lies on another, as `qemu-img create -u -b NAME -F raw` writes it.
fn qcow2(backing: &str) -> Vec<u8> {
    let mut head = vec![0; 4 * 65_536];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(8, &512_u64.to_be_bytes());
    put(16, &u32::try_from(backing.len()).unwrap().to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &MIB.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * 65_536_u64).to_be_bytes());
    put(48, &65_536_u64.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(104, b"\xe2\x79\x2a\xca\0\0\0\x03raw");
    put(512, backing.as_bytes());
    put(65_536, &(2 * 65_536_u64).to_be_bytes());
    (0..4).for_each(|cluster| put(2 * 65_536 + cluster * 2, &1_u16.to_be_bytes()));
    head
}

fn qed(backing: &str) -> Vec<u8> {
    let mut head = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QED\0\0\0\x01\0\x04\0\0\0\x01\0\0\0\x05");
    put(48, &MIB.to_le_bytes());
    put(56, &64_u32.to_le_bytes());
    put(60, &u32::try_from(backing.len()).unwrap().to_le_bytes());
    put(64, backing.as_bytes());
    head
}

fn made(lab: &Lab, format: &str) -> Vec<u8> {
    let file = lab.path(&format!("made.{format}"));
    assert!(Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&file).arg("1M").status().unwrap().success());
    std::fs::read(&file).unwrap()
}

fn all(disks: &[PathBuf]) -> String {
    let named = |(number, file): (usize, &PathBuf)| format!("d{number}={}", file.display());
    format!("image:{}", disks.iter().enumerate().map(named).collect::<Vec<_>>().join(","))
}

#[test]
fn no_header_in_a_raw_disk_is_believed_when_its_vm_is_off() {
    let lab = Lab::new();
    let bait = Bait::new(&lab);
    let disks = bait.disks(&lab);
    let before: Vec<String> = disks.iter().map(|file| image::sha256_of_file(file)).collect();
    for file in &disks {
        let refused = lab.keepmark.exits(&["backup", &image_vm("vda", file), "--name", "x"], 2);
        assert_says(&refused, &["which a guest could have written into a raw disk", "Hint: say --format ", "or --format raw"]);
    }
    assert!(lab.list().is_empty());
    let vm = all(&disks);
    lab.keepmark.backup(&vm, &["--name", "web", "--format", "raw"]);
    // From now on it is known.
    let again = lab.keepmark.backup(&vm, &["--name", "web"]);
    let restored = lab.restore(crate::lab::id(&again), "out");
    for (number, file) in disks.iter().enumerate() {
        assert_eq!(image::sha256_of_file(file), before[number], "{}", file.display());
        image::assert_same(&restored.join(format!("d{number}.raw")), Format::Raw, file, Format::Raw);
    }
    bait.assert_untouched();
}

#[test]
fn no_header_in_a_raw_disk_is_believed_while_its_vm_runs() {
    let lab = Lab::new();
    let bait = Bait::new(&lab);
    let disks: Vec<PathBuf> = bait.disks(&lab).into_iter().step_by(4).collect();
    let named = |number: usize| format!("d{number}");
    let vm = disks.iter().enumerate().fold(lab.vm(), |vm, (number, file)| vm.disk(Disk::raw(&named(number), file)));
    let qemu = vm.start();
    lab.keepmark.backup(&qemu.vm(), &["--name", "web"]);
    qemu.quit();
    let off = lab.keepmark.backup(&all(&disks), &["--name", "web", "--uuid", crate::lab::UUID]);
    let restored = lab.restore(crate::lab::id(&off), "out");
    for (number, file) in disks.iter().enumerate() {
        image::assert_same(&restored.join(format!("d{number}.raw")), Format::Raw, file, Format::Raw);
    }
    bait.assert_untouched();
}

/// Every open, connection and program of keepmark and its helpers, as strace sees them.
fn traced(lab: &Lab, arguments: &[&str]) -> String {
    let log = lab.path("strace.log");
    let command = lab.keepmark.command(arguments);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-s", "4096", "-e", "trace=open,openat,openat2,connect,execve", "-o", text(&log)]);
    strace.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace.output().unwrap();
    std::fs::read_to_string(&log).unwrap()
}

#[test]
fn what_is_opened_is_the_disk_alone_and_for_reading() {
    let lab = Lab::new();
    let bait = Bait::new(&lab);
    let disks = bait.disks(&lab);
    // By its absolute name, and by its extents.
    for file in [&disks[4], &disks[7]] {
        let vm = image_vm("vda", file);
        for arguments in [
            &["backup", &vm, "--name", "x"][..],
            &["plan", &vm, "--name", "x"],
            &["checkpoint", "list", &vm],
            &["doctor", &vm],
            &["status", &vm],
            &["backup", &vm, "--name", "x", "--trust-chain"],
            &["backup", &vm, "--name", "x", "--format", "raw"],
            &["revert", &vm, "x@latest", "--name", "x", "--dry-run"],
        ] {
            let log = traced(&lab, arguments);
            let is_about = |line: &&str, path: &Path| line.contains(&format!("\"{}", path.display())) && !line.contains("execve(");
            let beyond: Vec<&str> = log.lines().filter(|line| is_about(line, &bait.folder)).collect();
            assert!(beyond.is_empty(), "{arguments:?}: {beyond:?}");
            let opened: Vec<&str> = log.lines().filter(|line| is_about(line, file)).collect();
            assert!(!opened.is_empty() && opened.iter().all(|line| line.contains("O_RDONLY")), "{arguments:?}: {opened:?}");
        }
    }
    bait.assert_untouched();
}

#[test]
fn a_device_is_raw_or_said_to_be_something_else() {
    let lab = Lab::new();
    let bait = Bait::new(&lab);
    let file = &bait.disks(&lab)[4];
    let device = crate::round_trip::LoopDevice::over(file);
    let vm = image_vm("vda", Path::new(&device.0));
    let refused = lab.keepmark.exits(&["backup", &vm, "--name", "web"], 2);
    assert_says(&refused, &["looks like qcow2", "--format raw"]);
    let done = lab.keepmark.backup(&vm, &["--name", "web", "--format", "vda=raw"]);
    image::assert_same(&lab.restore(crate::lab::id(&done), "out").join("vda.raw"), Format::Raw, file, Format::Raw);
    assert_says(&lab.keepmark.exits(&["backup", &vm, "--name", "web", "--format", "vdb=raw"], 2), &["no disk \"vdb\""]);
}

#[test]
fn a_chain_is_opened_once_its_owner_has_said_that_it_is_one() {
    let lab = Lab::new();
    let bait = Bait::new(&lab);
    let (base, over) = (lab.qcow2("base", MIB), lab.path("over.qcow2"));
    image::create_overlay(&over, &base, Format::Qcow2);
    let vm = image_vm("vda", &over);
    let refused = lab.keepmark.exits(&["backup", &vm, "--name", "web"], 2);
    assert_says(&refused, &["over.qcow2 lies on ", "base.qcow2, by nothing but its own header", "Hint: say --trust-chain"]);
    assert!(image::bitmaps(&over).is_empty(), "nothing is written before that is decided");
    lab.keepmark.backup(&vm, &["--name", "web", "--trust-chain"]);
    assert_eq!(lab.keepmark.backup(&vm, &["--name", "web"])["kind"], "incremental");
    // What is no file, or has no format, is opened for nobody.
    for name in bait.names().into_iter().filter(|name| !name.contains("secret") || name.starts_with("json")) {
        let file = lab.path("evil.qcow2");
        std::fs::write(&file, qcow2(&name)).unwrap();
        let refused = lab
            .keepmark
            .exits(&["backup", &image_vm("vda", &file), "--name", "evil", "--trust-chain"], if name.starts_with('/') { 1 } else { 2 });
        assert!(
            refused.stderr.contains("is no file") || refused.stderr.contains("neither a file nor a block device"),
            "{}",
            refused.stderr
        );
    }
    let mut unsaid = qcow2(text(&base));
    unsaid[104..108].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    std::fs::write(lab.path("evil.qcow2"), unsaid).unwrap();
    let refused = lab.keepmark.exits(&["backup", &image_vm("vda", &lab.path("evil.qcow2")), "--name", "evil", "--trust-chain"], 2);
    assert_says(&refused, &["does not say which format that has", "qemu-img rebase -u -f qcow2 -b"]);
    bait.assert_untouched();
}

#[test]
fn a_target_gets_the_format_that_its_name_says() {
    let lab = Lab::new();
    let disk = lab.qcow2("vda", MIB);
    image::fill(&disk, Format::Qcow2, 5, 0, MIB / 2);
    lab.keepmark.backup(&image_vm("vda", &disk), &["--name", "web"]);
    let target = lab.path("back.qcow2");
    std::fs::write(&target, "old").unwrap();
    let arguments = ["restore", "web@latest", "--to", text(&target), "--disk", "vda", "--force"];
    let refused = lab.keepmark.exits(&[&arguments[..], &["--format", "raw"]].concat(), 2);
    assert_says(&refused, &["back.qcow2", "is called qcow2"]);
    assert_eq!(std::fs::read(&target).unwrap(), b"old");
    lab.keepmark.ok(&arguments);
    image::assert_same(&target, Format::Qcow2, &disk, Format::Qcow2);
}
