//! Simulation: a VM, its host and its stores behind the two seams, with QEMU's observed rules, faults at every effect, and the truth.
//!
//! Read [`image`] (QEMU's rules of bitmaps), [`event`] (what happens), [`others`] (what people and programs do at any instant),
//! [`world`] (effects and faults), [`hypervisor`] and [`store`] (the seams), [`fixing`] (the steps to a frozen moment), [`history`]
//! (what one seed makes) and [`play`] (how a run is judged). One seed makes one history.

mod device;
pub mod event;
pub mod fixing;
pub mod history;
pub mod hypervisor;
pub mod image;
mod kinds;
pub mod machine;
mod minimise;
pub mod others;
pub mod play;
mod rng;
pub mod store;
pub mod world;
mod writing;

pub use history::{Kinds, STEPS, Step, history};
pub use minimise::minimise;
pub use play::{Backup, Outcome, Program, Revert, Senses, play};
pub use world::{BREAKS, Break, Stats};
