//! A VM of libvirt's brought back whole: the disks by the engine, everything else by the libvirt crate.

#[cfg(feature = "libvirt")]
pub use with_libvirt::run;
#[cfg(not(feature = "libvirt"))]
pub use without_libvirt::run;

#[cfg(feature = "libvirt")]
mod with_libvirt {
    use std::collections::BTreeMap;

    use keepmark_engine::restore::{Format, RestoreJob, restore};
    use keepmark_libvirt::define::{Allow, Destination, Order, OtherBackup, RestoredDisk};
    use keepmark_model::manifest::StoredBackup;
    use keepmark_model::seam::{BackupReader, Monitor, Store};
    use keepmark_model::{DiskName, Failure};

    use crate::commands::restore::{AllowArgument, RestoreArguments, Restored, RestoredDomain};
    use crate::context::{self, Context};

    /// Restores a backup as the domain `name`.
    ///
    /// # Errors
    /// When it is refused beforehand, a disk cannot be restored, or libvirt does not take the domain.
    pub fn run(
        context: &Context,
        arguments: &RestoreArguments,
        name: &str,
        networks: BTreeMap<String, String>,
        store: &dyn Store,
        backup: &dyn BackupReader,
    ) -> Result<Restored, Failure> {
        let destination = Destination::open(Order {
            name: name.to_owned(),
            uri: context.global.connect.clone(),
            to: arguments.to.clone(),
            networks,
            user: context::libvirt_folders(),
            force: arguments.force,
            allowed: arguments.allow.iter().copied().map(Allow::from).collect(),
            without: arguments.without.iter().map(ToString::to_string).collect(),
            backups: others(store, backup)?,
        })?;
        let job = RestoreJob {
            to: destination.folder().to_owned(),
            format: arguments.format.map(Format::from),
            as_it_was: true,
            disks: wanted(backup, &arguments.without),
            force: arguments.force,
            run_dir: context.run_dir(),
        };
        let images = job.images(backup.manifest())?.into_iter().filter(|(name, ..)| !arguments.without.contains(name));
        let images = images.map(|(name, path, format)| RestoredDisk { name: name.to_string(), path, format: format.word() }).collect();
        let plan = destination.plan(backup, images, &mut || (context::world().random)())?;
        for remark in plan.remarks() {
            if remark.is_finding { context.screen.finding(&remark.text) } else { context.screen.note(&remark.text) }
        }
        plan.make_folder()?;
        // No name at all would mean all of them.
        let disks = if job.disks.is_empty() { Vec::new() } else { restore(backup, &job, &context.screen)? };
        let defined = plan.define(backup)?;
        if arguments.start {
            defined.start()?;
        }
        let domain = RestoredDomain { name: defined.name, uuid: defined.uuid, started: arguments.start };
        Ok(Restored { disks, domain: Some(domain) })
    }

    fn wanted(backup: &dyn BackupReader, without: &[DiskName]) -> Vec<DiskName> {
        backup.manifest().disks.iter().map(|disk| disk.name.clone()).filter(|name| !without.contains(name)).collect()
    }

    // For the hint where this backup lacks a disk; damaged ones are no help.
    fn others(store: &dyn Store, backup: &dyn BackupReader) -> Result<Vec<OtherBackup>, Failure> {
        let (backups, _) = store.backups(Some(&backup.manifest().vm.id()))?;
        let disks = |backup: &StoredBackup| backup.manifest.disks.iter().map(|disk| disk.name.to_string()).collect();
        Ok(backups.iter().rev().map(|backup| OtherBackup { name: backup.id.short().to_string(), disks: disks(backup) }).collect())
    }

    impl From<AllowArgument> for Allow {
        fn from(argument: AllowArgument) -> Self {
            match argument {
                AllowArgument::QemuArguments => Self::QemuArguments,
                AllowArgument::Script => Self::Script,
                AllowArgument::Emulator => Self::Emulator,
                AllowArgument::HostFile => Self::HostFile,
                AllowArgument::HostDevice => Self::HostDevice,
                AllowArgument::SharedFolder => Self::SharedFolder,
                AllowArgument::SharedMemory => Self::SharedMemory,
                AllowArgument::Socket => Self::Socket,
                AllowArgument::NetworkAddress => Self::NetworkAddress,
                AllowArgument::Label => Self::Label,
                AllowArgument::Unknown => Self::Unknown,
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use clap::ValueEnum;

        use super::*;

        #[test]
        fn what_a_hint_says_is_understood() {
            let words: Vec<String> =
                AllowArgument::value_variants().iter().filter_map(|word| Some(word.to_possible_value()?.get_name().to_owned())).collect();
            assert_eq!(words, Allow::ALL.map(|allow| allow.word().to_owned()));
            assert_eq!(AllowArgument::value_variants().iter().copied().map(Allow::from).collect::<Vec<_>>(), Allow::ALL);
        }
    }
}

#[cfg(not(feature = "libvirt"))]
mod without_libvirt {
    use std::collections::BTreeMap;

    use keepmark_model::seam::{BackupReader, Store};
    use keepmark_model::{Failure, FailureClass};

    use crate::commands::restore::{RestoreArguments, Restored};
    use crate::context::Context;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot define {name:?}: this keepmark was built without libvirt")]
    struct WithoutLibvirt {
        name: String,
    }

    /// Refuses, since this keepmark was built without libvirt.
    ///
    /// # Errors
    /// Always.
    pub fn run(
        _: &Context,
        _: &RestoreArguments,
        name: &str,
        _: BTreeMap<String, String>,
        _: &dyn Store,
        _: &dyn BackupReader,
    ) -> Result<Restored, Failure> {
        let failure = Failure::new(FailureClass::Usage, WithoutLibvirt { name: name.to_owned() });
        Err(failure.with_hint("restore the disks with --to DIR"))
    }
}
