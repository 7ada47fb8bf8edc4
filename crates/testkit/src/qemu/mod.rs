//! QEMU processes: what to start ([`QemuBuilder`]) and the running one ([`Qemu`]).

mod builder;
mod disk;
mod handle;

pub use builder::{Machine, QemuBuilder};
pub use disk::{Attach, Disk};
pub use handle::Qemu;
