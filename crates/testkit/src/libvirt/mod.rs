//! libvirt as a test needs it: a host of its own ([`LibvirtHost`]), domains ([`DomainBuilder`]) and what is done to them ([`Domain`]).
//!
//! A host is a libvirtd in namespaces of its own (mounts, processes, network): it sees no other libvirtd, however many there
//! are, and it ends with all its QEMUs when the host is dropped or the test dies. Its socket and all its files lie in the
//! test's folder, so that virsh and the program under test run outside as they would anywhere.

mod builder;
mod domain;
mod host;
mod namespace;
mod strike;

pub use builder::DomainBuilder;
pub use domain::Domain;
pub use host::LibvirtHost;
pub use strike::Strike;
