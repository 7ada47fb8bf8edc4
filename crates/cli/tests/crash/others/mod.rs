//! Somebody else acts at an effect of keepmark's: no guest dies, stands still, sees an error or another disk, and every listed backup is right.
//!
//! [`acts`] has what people and other programs do to a bare QEMU, [`domain`] what they do by virsh. Each strike has a VM of its own. keepmark stands
//! still while the other acts, and then goes on: it may publish or fail, and the backup after it must be right.

mod acts;
mod backup;
mod domain;
mod judge;
