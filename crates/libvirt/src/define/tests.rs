//! Real definitions, rewritten: what comes out, what is placed, what is said, and what is refused.

use std::collections::BTreeSet;

use super::allow::Allow;
use super::facts::{Facts, RestoredDisk, Rewritten, Wish};
use super::problem::Problem;
use super::rewrite::rewrite;
use crate::error::{Error, Result};

// As libvirt tells it of a running domain, with all that it makes up at a start.
const WEB: &str = include_str!("../../tests/data/web01.xml");
const WEB_UUID: &str = "3c0ad6a6-6a2e-4c5d-9f0e-1a2b3c4d5e6f";
// As it tells a definition.
const WIN: &str = include_str!("../../tests/data/win11.xml");

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

fn disk(name: &str, format: &'static str) -> RestoredDisk {
    RestoredDisk { name: name.into(), path: format!("/images/new/{name}.{format}").into(), format }
}

fn wish(name: &str, disks: Vec<RestoredDisk>) -> Wish {
    Wish { name: name.into(), folder: "/images/new".into(), disks, ..Wish::default() }
}

/// Random numbers that a snapshot can hold.
fn written(definition: &str, facts: &Facts, wish: &Wish) -> Result<Rewritten> {
    let mut count = 0;
    rewrite(definition, facts, wish, &mut || {
        count += 1;
        count
    })
}

/// What came out, as people read it.
fn told(written: &Rewritten) -> String {
    let files: String = written.files.iter().map(|file| format!("place {} at {}\n", file.saved, file.path.display())).collect();
    let word = |is_finding| if is_finding { "finding" } else { "note" };
    let remarks: String = written.remarks.iter().map(|remark| format!("{}: {}\n", word(remark.is_finding), remark.text)).collect();
    format!("{files}{remarks}{}", written.xml)
}

fn win_wish(name: &str) -> Wish {
    let saved = set(["domain.xml", "nvram", "loader", "swtpm.tpm2-00.permall", "secret-7c1e4f80-4b1b-4f8c-9f57-0c8d1e2f3a45.xml"]);
    let left_out = [("vda", "it is transient"), ("vdc", "libvirt cannot track raw disks on the network (rbd)")];
    let left_out = left_out.map(|(name, why)| (name.to_owned(), why.to_owned())).into();
    Wish { saved, left_out, ..wish(name, vec![disk("sda", "raw"), disk("sdb", "raw"), disk("vdz", "raw")]) }
}

fn trusting(wish: Wish, without: &[&str]) -> Wish {
    Wish { allowed: Allow::ALL.into(), without: without.iter().map(|name| (*name).to_owned()).collect(), ..wish }
}

fn mapped(wish: Wish, networks: &[(&str, &str)]) -> Wish {
    Wish { networks: networks.iter().map(|(old, new)| ((*old).to_owned(), (*new).to_owned())).collect(), ..wish }
}

#[test]
fn a_domain_that_comes_home_stays_the_same() {
    let present = set(["/usr/share/OVMF/OVMF_CODE_4M.fd", "/shared.qcow2"]);
    let facts = Facts { present, names: set(["db01"]), ..Facts::default() };
    let wish = Wish { saved: set(["nvram"]), ..wish("web01", vec![disk("vda", "qcow2"), disk("sda", "raw"), disk("vdg", "qcow2")]) };
    insta::assert_snapshot!(told(&written(WEB, &facts, &trusting(wish, &[])).unwrap()));
}

#[test]
fn a_copy_on_another_host_is_a_domain_of_its_own() {
    let facts = Facts {
        networks: set(["lan"]),
        links: set(["br-ovs", "br7", "lo"]),
        present: set(["/usr/share/virtio-win/virtio-win.iso", "/srv/reference.img"]),
        secrets: set(["9d4a2f6b-1f0e-4b9c-8a11-2c5d7e8f9a01"]),
        swtpm: "/var/lib/libvirt/swtpm".into(),
        ..Facts::default()
    };
    let wish = mapped(win_wish("copy"), &[("default", "lan"), ("eth0", "br7")]);
    let Err(Error::Define(refused)) = written(WIN, &facts, &wish) else { panic!("it was not refused") };
    insta::assert_snapshot!("what_it_would_reach_to", format!("{refused}\nHint: {}", refused.hint().unwrap()));
    insta::assert_snapshot!(told(&written(WIN, &facts, &trusting(wish, &["vdc"])).unwrap()));
}

#[test]
fn identity_is_kept_only_where_nobody_has_it() {
    let facts = |names: BTreeSet<String>, uuids: BTreeSet<String>| Facts { names, uuids, ..Facts::default() };
    for (name, uuids, stays) in [("web01", set([]), true), ("web02", set([]), false), ("web01", set([WEB_UUID]), false)] {
        let wish = trusting(wish(name, vec![]), &["vdd", "vde", "vdf"]);
        let written = written(WEB, &facts(set(["x"]), uuids), &wish).unwrap();
        assert_eq!(written.uuid == WEB_UUID, stays, "{name}");
        assert!(written.xml.contains(&format!("<uuid>{}</uuid>", written.uuid)) && written.xml.contains(&format!("<name>{name}</name>")));
    }
    let taken = written(WEB, &facts(set(["web01"]), set([])), &wish("web01", vec![]));
    assert!(matches!(taken, Err(Error::Define(Problem::NameTaken { .. }))), "{taken:?}");
}

#[test]
fn all_networks_that_are_missing_are_named_at_once() {
    let refused = |facts: &Facts, networks: &[(&str, &str)]| match written(WIN, facts, &mapped(win_wish("win11"), networks)) {
        Err(Error::Define(problem)) => (problem.to_string(), problem.hint().unwrap_or_default()),
        other => (format!("{other:?}"), String::new()),
    };
    let facts = Facts { networks: set(["lan"]), links: set(["eth0"]), ..Facts::default() };
    let (said, hint) = refused(&facts, &[]);
    assert_eq!(said, "this host has no bridge br-ovs and no network default, which the VM is connected to");
    assert!(hint.contains("--network br-ovs=NEW (this host has: eth0, lan)"), "{hint}");
    let (said, _) = refused(&facts, &[("default", "lan"), ("br-ovs", "lna")]);
    assert_eq!(said, "this host has neither a network nor a bridge \"lna\"");
    let (said, hint) = refused(&facts, &[("default", "lan"), ("br-ovs", "lan"), ("dfault", "lan")]);
    assert_eq!(
        (said.as_str(), hint.as_str()),
        ("the VM is not connected to a network or bridge \"dfault\"", "it is connected to: br-ovs, default, eth0")
    );
}

#[test]
fn where_nvram_and_tpm_go_depends_on_how_the_definition_says_it() {
    let domain = |inside: &str| format!("<domain><name>a</name><uuid>{WEB_UUID}</uuid>{inside}</domain>");
    let tpm =
        |source: &str| domain(&format!("<os/><devices><tpm><backend type='emulator' version='2.0'>{source}</backend></tpm></devices>"));
    let facts = Facts { swtpm: "/swtpm".into(), ..Facts::default() };
    let wish = Wish { saved: set(["nvram", "swtpm.tpm2-00.permall"]), ..wish("a", vec![]) };
    let places = |definition: &str, wish: &Wish| {
        let written = written(definition, &facts, wish).unwrap();
        let files: Vec<String> = written.files.iter().map(|file| file.path.display().to_string()).collect();
        (files.join(" "), written.xml, written.remarks.iter().filter(|remark| remark.is_finding).count())
    };
    for (definition, place, expected) in [
        (domain("<os><nvram>/n/old_VARS.fd</nvram></os>"), "/images/new/a_VARS.fd", "<nvram>/images/new/a_VARS.fd</nvram>"),
        (
            domain("<os><nvram type='file' format='qcow2'><source file='/n.qcow2'/></nvram></os>"),
            "/images/new/a_VARS.qcow2",
            "<nvram format='qcow2'>/images/new/a_VARS.qcow2</nvram>",
        ),
        (tpm(""), &format!("/swtpm/{WEB_UUID}/tpm2/tpm2-00.permall"), "<backend type='emulator' version='2.0'/>"),
        (tpm("<source type='dir' path='/t'/>"), "/images/new/tpm/tpm2-00.permall", "<source type='dir' path='/images/new/tpm'/>"),
        (
            tpm("<source type='file' path='/t/s'/>"),
            "/images/new/tpm/tpm2-00.permall",
            "<source type='file' path='/images/new/tpm/tpm2-00.permall'/>",
        ),
    ] {
        let (files, xml, findings) = places(&definition, &wish);
        assert!(files == place && xml.contains(expected) && findings == 0, "{files}\n{xml}");
        let (files, _, findings) = places(&definition, &Wish { saved: set([]), ..wish.clone() });
        assert_eq!((files.as_str(), findings), ("", 1));
    }
    let (_, xml, _) = places(&domain("<os><nvram template='/usr/share/t'>/n</nvram></os>"), &Wish { saved: set([]), ..wish.clone() });
    assert!(xml.contains("<nvram template='/usr/share/t'/>"), "{xml}");
}

#[test]
fn what_the_host_lacks_to_boot_comes_from_the_backup_or_is_said() {
    let definition = format!(
        "<domain><name>a</name><uuid>{WEB_UUID}</uuid><os firmware='efi'><firmware><feature/></firmware><loader>/f</loader><kernel>/k</kernel>\
         <initrd>/i</initrd></os><devices><emulator>/q</emulator></devices></domain>"
    );
    let wish = Wish { saved: set(["loader", "kernel"]), ..wish("a", vec![]) };
    let bare = told(&written(&definition, &Facts::default(), &wish).unwrap());
    insta::assert_snapshot!(bare);
    let all = Facts { present: set(["/f", "/k", "/i", "/q"]), emulators: set(["/q"]), ..Facts::default() };
    let kept = written(&definition, &all, &Wish { allowed: [Allow::HostFile].into(), ..wish }).unwrap();
    assert!(kept.files.is_empty() && kept.remarks.iter().all(|remark| remark.text.ends_with("stays, as --allow host-file says")));
    assert!(kept.xml.contains("firmware='efi'"), "{}", told(&kept));
}
