//! Defining a domain on a libvirtd of the test's own: what happened since the plan was made is not overlooked.
#![expect(clippy::unwrap_used, reason = "a failed assumption is a failed test")]

use keepmark_libvirt::define::{Allow, Destination, Order, Plan};
use keepmark_model::manifest::Manifest;
use keepmark_model::seam::{BackupReader, Piece, Result};
use keepmark_model::{ChunkIndex, DiskName, Extents};
use keepmark_testkit::{LibvirtHost, tmp};
use serde_json::json;

/// A backup of a domain without disks.
struct Diskless {
    manifest: Manifest,
    definition: String,
}

impl Diskless {
    fn of(definition: String) -> Self {
        let manifest = json!({
            "version": 1, "program": "test", "vm": {"name": "vm", "uuid": null}, "time": "2026-11-22T18:00:00Z", "kind": "full",
            "reason": "first", "checkpoint": null, "consistency": "crash", "pause_ms": 0, "freeze_ms": null, "duration_ms": 0,
            "power": "off", "hypervisor": "test", "disks": [], "skipped": [], "findings": [],
        });
        Self { manifest: serde_json::from_value(manifest).unwrap(), definition }
    }
}

impl BackupReader for Diskless {
    fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    fn files(&self) -> Vec<String> {
        vec!["domain.xml".into()]
    }

    fn file(&self, _: &str) -> Result<Vec<u8>> {
        Ok(self.definition.clone().into_bytes())
    }

    fn data(&self, _: &DiskName, _: &Extents) -> Result<Extents> {
        Ok(Extents::new())
    }

    fn is_same(&self, _: &DiskName, _: ChunkIndex, _: &[u8]) -> Result<bool> {
        Ok(false)
    }

    fn read_disk(&self, _: &DiskName, _: Option<&Extents>, _: &(dyn Fn(Piece<'_>) -> Result<()> + Sync)) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_restarted_libvirtd_is_found_again_and_a_domain_made_meanwhile_is_not_replaced() {
    let dir = tmp();
    let host = LibvirtHost::start(&dir.path().join("host"));
    host.domain("vm").uuid("3c0ad6a6-6a2e-4c5d-9f0e-1a2b3c4d5e6f").define();
    let backup = Diskless::of(host.virsh(&["dumpxml", "--inactive", "vm"]));
    host.virsh(&["undefine", "vm"]);
    let plan = |folder: &str| -> Plan {
        // The tests' domains have a console on a socket.
        let allowed = [Allow::Socket].into();
        let order = Order { name: "vm".into(), uri: Some(host.uri()), to: Some(dir.path().join(folder)), allowed, ..Order::default() };
        Destination::open(order).unwrap().plan(&backup, Vec::new(), &mut || 1).unwrap()
    };
    let (first, second) = (plan("first"), plan("second"));
    host.kill_libvirtd();
    host.restart_libvirtd();
    assert_eq!(first.define(&backup).unwrap().uuid, "3c0ad6a6-6a2e-4c5d-9f0e-1a2b3c4d5e6f");
    host.virsh(&["desc", "vm", "--config", "--new-desc", "somebody's"]);
    let refused = second.define(&backup).map(drop).unwrap_err();
    assert!(refused.hint().is_some() && std::error::Error::source(&refused).unwrap().to_string().contains("\"vm\" already"), "{refused}");
    assert!(host.virsh(&["desc", "vm"]).contains("somebody's"));
    assert!(dir.path().join("second/domain.xml").is_file());
}
