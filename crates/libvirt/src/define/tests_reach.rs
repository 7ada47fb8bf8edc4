//! Everything in a definition that can name something of the host: kept, dropped, or refused until its word is allowed.

use std::collections::BTreeSet;

use super::allow::Allow;
use super::facts::{Facts, OtherBackup, RestoredDisk, Rewritten, Wish};
use super::problem::Problem;
use super::rewrite::rewrite;
use crate::error::{Error, Result};

const UUID: &str = "3c0ad6a6-6a2e-4c5d-9f0e-1a2b3c4d5e6f";
// As virt-install makes it of `--osinfo debian12 --boot uefi --network bridge=br0 --tpm emulator --graphics spice`.
const ORDINARY: &str = include_str!("../../tests/data/ordinary.xml");

fn domain(top: &str, os: &str, devices: &str) -> String {
    format!(
        "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>a</name><uuid>{UUID}</uuid>{top}\
         <os><type>hvm</type>{os}</os><devices>{devices}</devices></domain>"
    )
}

fn facts() -> Facts {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    Facts {
        links: set(&["br0", "eth0"]),
        networks: set(&["default"]),
        present: set(&[
            "/etc/shadow",
            "/tmp/evil",
            "/srv/x.img",
            "/dev/sda",
            "/usr/bin/qemu-system-x86_64",
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
        ]),
        emulators: set(&["/usr/bin/qemu-system-x86_64"]),
        ..Facts::default()
    }
}

fn vda() -> Vec<RestoredDisk> {
    vec![RestoredDisk { name: "vda".into(), path: "/images/a/vda.qcow2".into(), format: "qcow2" }]
}

fn wish(allowed: &[Allow]) -> Wish {
    Wish { name: "a".into(), folder: "/images/a".into(), disks: vda(), allowed: allowed.iter().copied().collect(), ..Wish::default() }
}

fn written(definition: &str, wish: &Wish) -> Result<Rewritten> {
    rewrite(definition, &facts(), wish, &mut || 7)
}

/// What became of it: the words that would allow it, or nothing.
fn refused(definition: &str, wish: &Wish) -> Vec<Allow> {
    match written(definition, wish) {
        Ok(_) => Vec::new(),
        Err(Error::Define(Problem::Reaches { reaches, .. })) => reaches.into_iter().map(|reach| reach.word).collect(),
        Err(other) => panic!("{other}"),
    }
}

fn told(written: &Rewritten) -> String {
    written.remarks.iter().map(|remark| format!("{}\n", remark.text)).collect()
}

const DISK: &str =
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/old/vda.qcow2'/><target dev='vda'/></disk>";

#[test]
fn an_ordinary_vm_needs_no_word() {
    let written = written(ORDINARY, &wish(&[])).unwrap();
    insta::assert_snapshot!(told(&written));
    for kept in ["<emulator>/usr/bin/qemu-system-x86_64</emulator>", "/dev/urandom", "bridge='br0'", "readonly='yes'", "spicevmc", "debian"]
    {
        assert!(written.xml.contains(kept), "{kept}: {}", written.xml);
    }
}

#[test]
fn whatever_reaches_to_the_host_is_refused_until_its_word_is_allowed() {
    use Allow::{HostDevice, HostFile, NetworkAddress, QemuArguments, Script, SharedFolder, SharedMemory, Socket, Unknown};
    let port = |kind: &str, source: &str| format!("<serial type='{kind}'><source {source}/><target port='0'/></serial>");
    let interface = |inner: &str| format!("<interface type='network'><source network='default'/>{inner}</interface>");
    let cases: Vec<(Allow, String, String, String)> = [
        // ---- the domain ----
        (QemuArguments, "<qemu:commandline><qemu:arg value='-chardev'/></qemu:commandline>", "", String::new()),
        (QemuArguments, "<qemu:override><qemu:device alias='x'/></qemu:override>", "", String::new()),
        (QemuArguments, "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/>", "", String::new()),
        (Unknown, "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-x'/></commandline>", "", String::new()),
        (Unknown, "<bootloader>evil</bootloader>", "", String::new()),
        (Unknown, "<devices/>", "", String::new()),
        (HostFile, "<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>", "", String::new()),
        (HostDevice, "<blkiotune><device><path>/dev/sda</path></device></blkiotune>", "", String::new()),
        (HostFile, "<resource><partition>/evil</partition></resource>", "", String::new()),
        (HostFile, "<launchSecurity type='tdx'><quoteGenerationService path='/run/qgs'/></launchSecurity>", "", String::new()),
        (HostFile, "", "<loader>/etc/shadow</loader>", String::new()),
        (HostFile, "", "<loader readonly='yes' type='pflash'>/usr/share/../../etc/shadow</loader><x>/etc/shadow</x>", String::new()),
        (HostFile, "", "<kernel>/etc/shadow</kernel>", String::new()),
        (HostFile, "", "<initrd>/etc/shadow</initrd>", String::new()),
        (HostFile, "", "<dtb>/etc/shadow</dtb>", String::new()),
        (HostFile, "", "<acpi><table type='slic'>/etc/shadow</table></acpi>", String::new()),
        (Unknown, "", "<kernel>/k</kernel><kernel>/etc/shadow</kernel>", String::new()),
        // ---- disks ----
        (HostFile, "", "", "<disk type='file' device='disk'><source file='/srv/x.img'/><target dev='vdb'/></disk>".into()),
        (HostFile, "", "", "<disk device='disk'><source file='/srv/x.img'/><target dev='vdb'/><readonly/></disk>".into()),
        (HostFile, "", "", "<disk type='file' device='disk'><source file='/srv/x.img'/><target dev='vdb'/><transient/></disk>".into()),
        (HostDevice, "", "", "<disk type='block' device='lun'><source dev='/dev/sda'/><target dev='sda'/></disk>".into()),
        (HostDevice, "", "", "<disk type='nvme'><source type='pci' managed='yes' namespace='1'/><target dev='vdb'/></disk>".into()),
        (NetworkAddress, "", "", "<disk type='network'><source protocol='nbd'><host name='h'/></source><target dev='vdb'/></disk>".into()),
        (Socket, "", "", "<disk type='vhostuser'><source type='unix' path='/run/x'/><target dev='vdb'/></disk>".into()),
        (Unknown, "", "", "<disk type='new'><source name='x'/><target dev='vdb'/></disk>".into()),
        // ---- streams ----
        (HostFile, "", "", port("file", "path='/etc/cron.d/x'")),
        (HostFile, "", "", port("pipe", "path='/tmp/pipe'")),
        (HostDevice, "", "", port("dev", "path='/dev/ttyS0'")),
        (Socket, "", "", port("unix", "mode='bind' path='/run/x'")),
        (Socket, "", "", port("unix", "mode='bind' path='/tmp/qemu/channel/x'")),
        (NetworkAddress, "", "", port("tcp", "mode='connect' host='h' service='1'")),
        (NetworkAddress, "", "", port("udp", "mode='connect' host='h' service='1'")),
        (Unknown, "", "", port("new", "x='y'")),
        (HostFile, "", "", "<console type='file'><source path='/x'/></console>".into()),
        (HostDevice, "", "", "<parallel type='dev'><source path='/dev/parport0'/></parallel>".into()),
        (Socket, "", "", "<channel type='unix'><source mode='connect' path='/run/x'/><target type='virtio' name='y'/></channel>".into()),
        (NetworkAddress, "", "", "<redirdev bus='usb' type='tcp'><source mode='connect' host='h' service='1'/></redirdev>".into()),
        (HostDevice, "", "", "<smartcard mode='host'/>".into()),
        (HostFile, "", "", "<smartcard mode='host-certificates'><certificate>c</certificate></smartcard>".into()),
        (Socket, "", "", "<smartcard mode='passthrough' type='unix'><source mode='bind' path='/run/x'/></smartcard>".into()),
        (HostDevice, "", "", "<rng model='virtio'><backend model='random'>/dev/sda</backend></rng>".into()),
        (Socket, "", "", "<rng><backend model='egd' type='unix'><source mode='connect' path='/run/x'/></backend></rng>".into()),
        // ---- networks ----
        (Script, "", "", interface("<script path='/tmp/evil'/>")),
        (Script, "", "", interface("<downscript path='/tmp/evil'/>")),
        (Script, "", "", "<interface type='ethernet'><script path='evil'/></interface>".into()),
        (HostDevice, "", "", interface("<backend tap='/dev/net/tun'/>")),
        (NetworkAddress, "", "", "<interface type='ethernet'><source><ip address='10.0.0.1'/></source></interface>".into()),
        (NetworkAddress, "", "", "<interface type='user'><portForward proto='tcp'/></interface>".into()),
        (HostFile, "", "", "<interface type='user'><backend type='passt' logFile='/etc/x'/></interface>".into()),
        (NetworkAddress, "", "", "<interface type='mcast'><source address='230.0.0.1' port='1'/></interface>".into()),
        (Socket, "", "", "<interface type='vhostuser'><source type='unix' path='/run/x' mode='server'/></interface>".into()),
        (HostDevice, "", "", "<interface type='hostdev'><source><address type='pci'/></source></interface>".into()),
        (HostDevice, "", "", "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>".into()),
        (HostDevice, "", "", "<interface type='direct'><source dev='eth0' mode='passthrough'/></interface>".into()),
        (HostDevice, "", "", "<interface type='ethernet'><target dev='tun0' managed='no'/></interface>".into()),
        (Unknown, "", "", "<interface type='new'/>".into()),
        // ---- other devices ----
        (SharedFolder, "", "", "<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem>".into()),
        (SharedFolder, "", "", "<filesystem><driver type='virtiofs'/><source socket='/run/x'/><target dir='x'/></filesystem>".into()),
        (HostDevice, "", "", "<hostdev mode='subsystem' type='pci'><source><address bus='1'/></source></hostdev>".into()),
        (HostDevice, "", "", "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>".into()),
        (Socket, "", "", "<tpm><backend type='external'><source type='unix' mode='connect' path='/run/x'/></backend></tpm>".into()),
        (HostDevice, "", "", "<input type='evdev'><source dev='/dev/input/event1'/></input>".into()),
        (SharedMemory, "", "", "<shmem name='x'><server path='/run/x'/></shmem>".into()),
        (HostFile, "", "", "<memory model='nvdimm'><source><path>/srv/x.img</path></source></memory>".into()),
        (HostFile, "", "", "<lease><lockspace>x</lockspace><key>y</key><target path='/srv/x.img'/></lease>".into()),
        (HostFile, "", "", "<pstore backend='acpi-erst'><path>/srv/x</path></pstore>".into()),
        (Socket, "", "", "<graphics type='vnc'><listen type='socket' socket='/run/x'/></graphics>".into()),
        (Socket, "", "", "<graphics type='vnc' socket='/run/x'/>".into()),
        (Socket, "", "", "<graphics type='dbus' address='unix:path=/run/x'/>".into()),
        (HostFile, "", "", "<graphics type='sdl' display=':0' xauth='/root/.Xauthority'/>".into()),
        (Unknown, "", "", "<new path='x'/>".into()),
        (Unknown, "", "", "<emulator>/usr/bin/qemu-system-x86_64</emulator><emulator>/tmp/evil</emulator>".into()),
        (HostFile, "", "", "<sound model='ich9'><new where='/etc/shadow'/></sound>".into()),
    ]
    .into_iter()
    .map(|(word, top, os, devices)| (word, top.to_owned(), os.to_owned(), devices))
    .collect();
    for (word, top, os, devices) in cases {
        let definition = domain(&top, &os, &format!("{DISK}{devices}"));
        let words = refused(&definition, &wish(&[]));
        assert!(!words.is_empty() && words.iter().all(|named| *named == word), "{word}: {words:?} of {definition}");
        let others: Vec<Allow> = Allow::ALL.into_iter().filter(|other| *other != word).collect();
        assert_eq!(refused(&definition, &wish(&others)), words, "{definition}");
        let allowed = written(&definition, &wish(&[word])).unwrap();
        assert!(told(&allowed).contains(&format!("as --allow {word} says")), "{definition}: {}", told(&allowed));
    }
}

#[test]
fn what_the_vm_runs_without_is_dropped_by_name_and_kept_by_its_word() {
    use Allow::{Emulator, HostDevice, HostFile, Label, Script};
    let shared = |binary: &str| format!("<filesystem type='mount'><source dir='/s'/><target dir='x'/>{binary}</filesystem>");
    let cases: &[(Allow, &str, &str, String)] = &[
        (Emulator, "/tmp/evil", "", "<emulator>/tmp/evil</emulator>".into()),
        (Label, "root:root", "<seclabel type='static' model='dac' relabel='yes'><label>root:root</label></seclabel>", String::new()),
        (Label, "dynamic", "<seclabel type='none' model='dac'/><seclabel type='dynamic' relabel='no' model='selinux'/>", String::new()),
        (Label, "x_t", "<seclabel type='dynamic' model='selinux'><baselabel>x_t</baselabel></seclabel>", String::new()),
        (
            Label,
            "relabelling",
            "",
            "<serial type='pty'><source path='/dev/pts/1'><seclabel model='dac' relabel='no'/></source><target port='0'/></serial>".into(),
        ),
        (HostFile, "/etc/x", "", "<serial type='pty'><log file='/etc/x'/><target port='0'/></serial>".into()),
        (HostFile, "/etc/x", "", "<audio id='1' type='file' path='/etc/x'/>".into()),
        (HostDevice, "alsa", "", "<audio id='1' type='alsa'><input dev='hw:0'/></audio>".into()),
        (HostDevice, "/dev/dri/renderD128", "", "<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>".into()),
        (HostFile, "/etc/shadow", "", "<disk type='file' device='cdrom'><source file='/etc/shadow'/><target dev='sdz'/></disk>".into()),
        (HostDevice, "/dev/sda", "", "<disk type='block' device='cdrom'><source dev='/dev/sda'/><target dev='sdz'/></disk>".into()),
        (HostFile, "/srv/x.img", "", "<disk type='file' device='floppy'><source file='/srv/x.img'/><target dev='fda'/></disk>".into()),
        (Script, "/tmp/evil", "", shared("<binary path='/tmp/evil'/>")),
    ];
    for (word, name, top, devices) in cases {
        let definition = domain(top, "", &format!("{DISK}{devices}"));
        let dropped = written(&definition, &wish(&[Allow::SharedFolder])).unwrap();
        assert!(told(&dropped).contains(&format!("--allow {word}")) && told(&dropped).contains(name), "{definition}: {}", told(&dropped));
        assert!(!dropped.xml.contains(name) || *name == "dynamic", "{}", dropped.xml);
        let kept = written(&definition, &wish(&[Allow::SharedFolder, *word])).unwrap();
        assert!(told(&kept).contains(&format!("as --allow {word} says")), "{}", told(&kept));
        assert!(kept.xml.contains(name) || *name == "relabelling", "{}", kept.xml);
    }
    let template = domain("", "<nvram template='/etc/shadow'>/n</nvram>", DISK);
    let dropped = written(&template, &wish(&[])).unwrap();
    assert!(told(&dropped).contains("template /etc/shadow") && !dropped.xml.contains("/etc/shadow"), "{}", dropped.xml);
}

#[test]
fn a_kernel_of_this_host_gives_way_to_that_of_the_backup() {
    let definition = domain("", "<kernel>/etc/shadow</kernel>", DISK);
    let saved = |allowed| Wish { saved: ["kernel".to_owned()].into(), ..wish(allowed) };
    let placed = written(&definition, &saved(&[])).unwrap();
    assert!(placed.xml.contains("<kernel>/images/a/kernel</kernel>") && told(&placed).contains("--allow host-file"), "{}", told(&placed));
    assert!(written(&definition, &saved(&[Allow::HostFile])).unwrap().xml.contains("<kernel>/etc/shadow</kernel>"));
}

#[test]
fn texts_that_only_look_like_paths_are_left_alone() {
    let top = "<title>/x</title><description>/y</description><metadata><a:b xmlns:a='urn:a' path='/etc/shadow'>/z</a:b></metadata>\
               <sysinfo type='smbios'><system><entry name='product'>/p</entry></system></sysinfo>\
               <launchSecurity type='sev'><session>/AAAB</session></launchSecurity><resource><partition>/machine/vms</partition></resource>";
    let devices = format!("{DISK}<graphics type='vnc' passwd='/secret'><listen type='address' address='0.0.0.0'/></graphics>");
    let written = written(&domain(top, "<cmdline>/init root=/dev/vda</cmdline>", &devices), &wish(&[])).unwrap();
    assert_eq!(told(&written), "the display can be reached from outside (at 0.0.0.0)\n");
}

#[test]
fn a_copy_never_writes_to_the_originals_disk() {
    let second = "<disk type='file' device='disk'><source file='/srv/x.img'/><target dev='vdb'/></disk>";
    let floppy = "<disk type='file' device='floppy'><source file='/srv/x.img'/><target dev='fda'/></disk>";
    let definition = domain("", "", &format!("{DISK}{second}{floppy}"));
    let of = |name: &str, disks: &[&str]| OtherBackup { name: name.into(), disks: disks.iter().map(|disk| (*disk).to_owned()).collect() };
    let backups = vec![of("b2", &["vdb"]), of("b1", &["vda", "vdb"]), of("b0", &["vda", "vdb"])];
    let copy = Wish { name: "copy".into(), backups, ..wish(&Allow::ALL) };
    let Err(Error::Define(problem)) = written(&definition, &copy) else { panic!("it was not refused") };
    assert_eq!(problem.to_string(), "a copy would write to the original's disk vdb at /srv/x.img, which is not in the backup");
    assert_eq!(problem.hint().unwrap(), "leave out what is not in the backup: --without-disk vdb; backup b1 has all of them");
    let without = Wish { without: ["vdb".to_owned()].into(), ..copy };
    let written_copy = written(&definition, &without).unwrap();
    assert!(!written_copy.xml.contains("/srv/x.img"), "{}", written_copy.xml);
    // The VM itself may have it back, if that is said.
    assert!(written(&definition, &wish(&[Allow::HostFile])).unwrap().xml.contains("/srv/x.img"));
    let nobody = Wish { without: ["vdx".to_owned()].into(), ..wish(&[]) };
    assert!(matches!(written(&definition, &nobody), Err(Error::Define(Problem::NoSuchDisk { .. }))));
}

#[test]
fn a_disk_that_was_restored_is_a_file_and_nothing_else() {
    let disk = "<disk type='block' device='disk' rawio='yes' sgio='unfiltered'><driver name='qemu' type='raw'/><source dev='/dev/sda'>\
                <reservations managed='no'><source type='unix' path='/run/x'/></reservations></source><source file='/etc/shadow'/>\
                <backingStore type='file'><source file='/etc/shadow'/></backingStore><target dev='vda'/></disk>";
    let written = written(&domain("", "", disk), &wish(&[])).unwrap();
    assert!(!["rawio", "sgio", "/etc/", "/dev/", "/run/", "block"].iter().any(|word| written.xml.contains(word)), "{}", written.xml);
}

#[test]
fn all_is_said_at_once_with_the_words() {
    let interface =
        "<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default'/><script path='/tmp/evil'/></interface>";
    let line = "<qemu:commandline><qemu:arg value='-object'/><qemu:arg value='x'/></qemu:commandline>";
    let Err(Error::Define(problem)) = written(&domain(line, "", &format!("{DISK}{interface}")), &wish(&[])) else { panic!() };
    assert_eq!(
        problem.to_string(),
        "the definition in the backup reaches to this host: script /tmp/evil of network interface 52:54:00:00:00:01 (script); \
         <qemu:commandline> with \"-object x\" (qemu-arguments)"
    );
    assert_eq!(
        problem.hint().unwrap(),
        "if you know what all of it does (`keepmark show BACKUP --file domain.xml`), allow it: --allow qemu-arguments,script"
    );
}

#[test]
fn a_saved_files_name_leads_nowhere_else() {
    let tpm = "<tpm><backend type='emulator' version='2.0'/></tpm>";
    let secret = "<disk type='file' device='cdrom'><source file='/x'><encryption><secret uuid='../../etc/x'/></encryption></source><target dev='sdz'/></disk>";
    let definition = domain("", "", &format!("{DISK}{tpm}{secret}"));
    let saved = ["swtpm./etc/x", "swtpm.../x", "swtpm...", "swtpm.", "swtpm.a/b", "swtpm.tpm2-00.permall", "secret-../../etc/x.xml"];
    let wish = Wish { saved: saved.map(str::to_owned).into(), ..wish(&[Allow::HostFile]) };
    let present = Facts { present: ["/x".to_owned()].into(), swtpm: "/swtpm".into(), ..facts() };
    let written = rewrite(&definition, &present, &wish, &mut || 7).unwrap();
    let places: Vec<String> = written.files.iter().map(|file| file.path.display().to_string()).collect();
    assert_eq!(places, [format!("/swtpm/{UUID}/tpm2/tpm2-00.permall")]);
    let file = definition.replace("version='2.0'/>", "version='2.0'><source type='file' path='/x'/></backend>");
    let written_file = rewrite(&file, &present, &wish, &mut || 7).unwrap();
    assert!(written_file.xml.contains("path='/images/a/tpm/tpm2-00.permall'"), "{}", written_file.xml);
    let folder = definition.replace(UUID, "../../../etc/cron.d");
    assert!(matches!(rewrite(&folder, &present, &wish, &mut || 7), Err(Error::Lacks { what: "uuid", .. })));
    assert_eq!(told(&written).matches("is left out: it would not be a file in").count(), saved.len() - 1, "{}", told(&written));
}
