//! The keepmark command.

fn main() {}
