//! The image store on real QEMU tools: what is written reads back, here and by qemu-img alone, and damage is found.

#[path = "../common/mod.rs"]
mod common;
mod deletion;
mod names;
mod round_trip;
mod shelf;
mod trouble;
