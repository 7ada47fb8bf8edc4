//! Backup, restore and verify: the only crate that knows both a hypervisor and a store.
