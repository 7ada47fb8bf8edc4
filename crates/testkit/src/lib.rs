//! Guests, servers, damage and truth for tests; never shipped.
//!
//! Reading order: [`QemuBuilder`] starts a QEMU (with or without a [`Guest`]), [`LibvirtHost`] a libvirtd with domains,
//! [`image`] makes and compares disks, [`Witness`] copies a frozen moment without our code, [`Keepmark`] runs the built program,
//! [`servers`] and [`QmpProxy`] are peers that behave or misbehave.
//!
//! Nothing here uses the crates under test, so that what it calls true does not depend on them. What fails here panics with
//! a message that names the subject: a fixture that cannot be made is a failed test.
//!
//! Environment: `KEEPMARK_TEST_QEMU` (another QEMU binary), `KEEPMARK_TEST_TMP` (where temporary folders go),
//! `KEEPMARK_TEST_TOOLS` (where `make deps` put the guest's kernel), `KEEPMARK_TEST_BIN` (another keepmark binary).

mod agent;
pub mod conformance;
pub mod damage;
mod fail;
mod guest;
pub mod image;
mod keepmark;
mod libvirt;
pub mod mount;
pub mod process;
mod proxy;
mod qemu;
mod qmp;
mod restic;
mod serial;
pub mod servers;
pub mod sim;
mod tmp;
mod witness;

pub use agent::Agent;
pub use fail::{OrFail, fail};
pub use guest::Guest;
pub use keepmark::{Keepmark, KeepmarkRun, RunningKeepmark};
pub use libvirt::{Domain, DomainBuilder, LibvirtHost, Strike};
pub use proxy::{QmpProxy, Verdict};
pub use qemu::{Attach, Disk, Machine, Qemu, QemuBuilder};
pub use qmp::Qmp;
pub use restic::Restic;
pub use serial::Serial;
pub use tmp::{fresh, tmp};
pub use witness::{PauseWitness, Witness};
