//! A VM with UEFI and a TPM comes back whole under a new name: what it had in NVRAM and TPM is there again.

use std::path::PathBuf;
use std::time::Duration;

use keepmark_testkit::image::{self, Format};
use keepmark_testkit::{Disk, Guest, LibvirtHost, Serial};

use crate::stage::{MIB, Stage};

// The firmware has to be interpreted, twice.
const BOOT: Duration = Duration::from_secs(240);
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// Commands for the TPM, by the TPM 2.0 library specification, part 3. All are authorised by the owner's empty password.
mod tpm {
    const OWNER: &str = "40000001";
    const PASSWORD: &str = "00000009400000090000000000";
    const INDEX: &str = "01500001";

    fn command(code: &str, rest: &str) -> String {
        format!("8002{:08x}{code}{rest}", 10 + rest.len() / 2)
    }

    /// Makes an index of 8 bytes that the owner reads and writes.
    pub fn define() -> String {
        let public = format!("{INDEX}000b0206000600000008");
        command("0000012a", &format!("{OWNER}{PASSWORD}0000000e{public}"))
    }

    /// Writes it.
    pub fn write(data: &str) -> String {
        command("00000137", &format!("{OWNER}{INDEX}{PASSWORD}0008{data}0000"))
    }

    /// Reads it.
    pub fn read() -> String {
        command("0000014e", &format!("{OWNER}{INDEX}{PASSWORD}00080000"))
    }
}

fn ask(serial: &mut Serial, command: &str) -> String {
    serial.run(&format!("tpm {command}"), BOOT).trim().to_owned()
}

/// The test guest's parts, copied: libvirt gives them to QEMU's user, and the test deletes them.
fn guest(stage: &Stage) -> Guest {
    let shared = Guest::build();
    let copy = |from: &PathBuf, name: &str| {
        let to = stage.path(name);
        std::fs::copy(from, &to).unwrap();
        to
    };
    Guest { kernel: copy(&shared.kernel, "kernel"), initramfs: copy(&shared.initramfs, "initrd") }
}

#[test]
fn uefi_variables_and_tpm_state_come_back_under_a_new_name() {
    const SECRET: &str = "6b6565706d61726b";
    let stage = Stage::on(LibvirtHost::start_unprivileged);
    let keepmark = stage.keepmark.clone().within(&stage.host);
    let (vda, guest) = (stage.path("vda.qcow2"), guest(&stage));
    image::mkfs_ext4(&vda, Format::Qcow2, 64 * MIB, None);
    let firmware = format!("<loader readonly='yes' type='pflash'>{CODE}</loader><nvram template='{VARS}'/>");
    let builder = stage.host.domain("vm").guest(&guest).os(&firmware).mount(&["vda"]).disk(Disk::qcow2("vda", &vda));
    let domain = builder.device("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>").start();
    let uuid = domain.virsh("domuuid", &[]).trim().to_owned();
    let serial = &mut stage.host.serial("vm");
    serial.wait_for("KM-READY", BOOT);
    assert_eq!(serial.run("variable KmTest before", BOOT).trim(), "before");
    assert_eq!([tpm::define(), tpm::write(SECRET)].map(|command| ask(serial, &command)[12..20].to_owned()), ["00000000", "00000000"]);
    assert!(ask(serial, &tpm::read()).contains(SECRET));
    serial.run("write vda 1 64", BOOT);
    let sums = serial.run("sums vda", BOOT);
    keepmark.ok(&["backup", "vm"]);

    domain.destroy();
    domain.virsh("undefine", &["--nvram", "--tpm", "--checkpoints-metadata"]);
    [&vda, &guest.kernel, &guest.initramfs].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let gone = [format!("lib/swtpm/{uuid}"), "lib/qemu/nvram/vm_VARS.fd".to_owned()].map(|path| stage.host.dir().join(path));
    assert!(gone.iter().all(|path| !path.exists()), "{gone:?}");

    let trusted = ["--allow", "emulator,socket,host-file"];
    let run = keepmark.ok(&[&["restore", "vm@latest", "--define", "again", "--start", "--json"][..], &trusted].concat());
    assert_ne!(run.event("finished")["domain"]["uuid"].as_str(), Some(uuid.as_str()), "{}", run.stderr);
    let serial = &mut stage.host.serial("vm");
    serial.wait_for("KM-READY", BOOT);
    assert_eq!(serial.run("variable KmTest", BOOT).trim(), "before");
    assert!(ask(serial, &tpm::read()).contains(SECRET));
    assert_eq!(serial.run("sums vda", BOOT), sums);
}

#[test]
fn a_vm_that_is_replaced_keeps_its_identity_and_gets_the_backups_tpm_over_its_own() {
    let stage = Stage::on(LibvirtHost::start_unprivileged);
    let keepmark = stage.keepmark.clone().within(&stage.host);
    let builder = stage.host.domain("vm").disk(stage.disk("vda"));
    let domain = builder.device("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>").start();
    let uuid = domain.virsh("domuuid", &[]).trim().to_owned();
    keepmark.ok(&["backup", "vm"]);
    domain.destroy();
    // As the refusal of a name that is taken says it.
    let restore = ["restore", "vm@latest", "--define", "vm", "--json", "--allow", "emulator,socket,host-file"];
    let undefine = "virsh undefine vm --keep-nvram --keep-tpm --checkpoints-metadata";
    assert!(keepmark.exits(&restore, 1).stderr.contains(undefine));
    domain.virsh("undefine", &["--keep-nvram", "--keep-tpm", "--checkpoints-metadata"]);
    let state = stage.host.dir().join(format!("lib/swtpm/{uuid}/tpm2/tpm2-00.permall"));
    let saved = std::fs::read(&state).unwrap();
    std::fs::write(&state, "another state").unwrap();
    let refused = keepmark.exits(&restore, 1);
    assert!(refused.stderr.contains("tpm2-00.permall exists already") && refused.stderr.contains("--force"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&state).unwrap(), b"another state");
    let run = keepmark.ok(&[&restore[..], &["--force"]].concat());
    assert_eq!(run.event("finished")["domain"]["uuid"], *uuid);
    assert_eq!(std::fs::read(&state).unwrap(), saved);
    // libvirt gives the state to swtpm's user, whoever wrote it.
    stage.host.defined("vm").start();
    let owner = |path: &std::path::Path| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap());
    assert_ne!(owner(&state), 0);
}
