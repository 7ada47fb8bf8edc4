//! A VM of libvirt's brought back whole: the disks by the engine, everything else by the libvirt crate.

#[cfg(feature = "libvirt")]
pub use with_libvirt::run;
#[cfg(not(feature = "libvirt"))]
pub use without_libvirt::run;

#[cfg(feature = "libvirt")]
mod with_libvirt {
    use std::collections::BTreeMap;

    use keepmark_engine::restore::{Format, RestoreJob, restore};
    use keepmark_libvirt::define::{Destination, Order, RestoredDisk};
    use keepmark_model::Failure;
    use keepmark_model::seam::{BackupReader, Monitor};

    use crate::commands::restore::{RestoreArguments, Restored, RestoredDomain};
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
        backup: &dyn BackupReader,
    ) -> Result<Restored, Failure> {
        let destination = Destination::open(Order {
            name: name.to_owned(),
            uri: context.global.connect.clone(),
            to: arguments.to.clone(),
            networks,
            user: context::libvirt_folders(),
            force: arguments.force,
        })?;
        let job = RestoreJob {
            to: destination.folder().to_owned(),
            format: arguments.format.map(Format::from),
            disks: Vec::new(),
            force: arguments.force,
            run_dir: context.run_dir(),
        };
        let images = job.images(backup.manifest()).into_iter();
        let images = images.map(|(name, path, format)| RestoredDisk { name: name.to_string(), path, format: format.word() }).collect();
        let plan = destination.plan(backup, images, &mut || (context::world().random)())?;
        for remark in plan.remarks() {
            if remark.is_finding { context.screen.finding(&remark.text) } else { context.screen.note(&remark.text) }
        }
        plan.make_folder()?;
        let disks = restore(backup, &job, &context.screen)?;
        let defined = plan.define(backup)?;
        if arguments.start {
            defined.start()?;
        }
        let domain = RestoredDomain { name: defined.name, uuid: defined.uuid, started: arguments.start };
        Ok(Restored { disks, domain: Some(domain) })
    }
}

#[cfg(not(feature = "libvirt"))]
mod without_libvirt {
    use std::collections::BTreeMap;

    use keepmark_model::seam::BackupReader;
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
        _: &dyn BackupReader,
    ) -> Result<Restored, Failure> {
        let failure = Failure::new(FailureClass::Usage, WithoutLibvirt { name: name.to_owned() });
        Err(failure.with_hint("restore the disks with --to DIR"))
    }
}
