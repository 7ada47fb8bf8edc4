//! Opening the VM that the user means.

use std::path::PathBuf;

use keepmark_model::seam::{Hypervisor, Store};
use keepmark_model::{Failure, FailureClass, VmIdentity};
use keepmark_qemu::{Live, LiveOptions, Offline, OfflineOptions, Said, WatchdogCommand};

use crate::context::Context;
use crate::vm::{IdentityArguments, ImageArguments, VmArguments, VmPlace};

/// What a user says of a VM besides its place, and the store that remembers it.
#[derive(Clone, Copy)]
pub struct About<'a> {
    /// Whose backups its are.
    pub identity: &'a IdentityArguments,
    /// What its images are.
    pub images: &'a ImageArguments,
    /// The store, where one is open.
    pub store: Option<&'a dyn Store>,
    /// Whether it is opened even if an earlier revert left it half written.
    pub half_reverted: bool,
}

impl<'a> About<'a> {
    /// What a subcommand's arguments say.
    pub fn of(arguments: &'a VmArguments, store: Option<&'a dyn Store>) -> Self {
        Self { identity: &arguments.identity, images: &arguments.images, store, half_reverted: false }
    }
}

/// Opens the VM of a subcommand's arguments.
///
/// # Errors
/// When it does not answer, or another process has it.
pub fn open(context: &Context, arguments: &VmArguments, store: Option<&dyn Store>) -> Result<Box<dyn Hypervisor>, Failure> {
    open_as(context, &arguments.vm, About::of(arguments, store))
}

/// Opens a VM by its place.
///
/// # Errors
/// As [`open`].
pub fn open_as(context: &Context, place: &VmPlace, about: About<'_>) -> Result<Box<dyn Hypervisor>, Failure> {
    let IdentityArguments { name, uuid } = about.identity.clone();
    let half_reverted = about.half_reverted;
    if !matches!(place, VmPlace::Images(_)) && (about.images.trust_chain || !about.images.formats.is_empty()) {
        let hint = "a domain's definition and a running QEMU say it themselves";
        return Err(Failure::new(FailureClass::Usage, OfImages { place: place.to_string() }).with_hint(hint));
    }
    match place {
        VmPlace::Qmp(socket) => {
            let defaults = LiveOptions::new(socket, context.scratch_dir(), context.run_dir());
            let options = LiveOptions { name, uuid, watchdog: Some(watchdog()?), half_reverted, ..defaults };
            Ok(Box::new(Live::connect(options)?))
        }
        VmPlace::Images(images) => open_images(context, images, about),
        VmPlace::Libvirt(domain) => open_domain(context, domain, IdentityArguments { name, uuid }, half_reverted),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("--format and --trust-chain are for powered-off images, and {place} is none")]
struct OfImages {
    place: String,
}

fn open_images(context: &Context, images: &[(Option<String>, PathBuf)], about: About<'_>) -> Result<Box<dyn Hypervisor>, Failure> {
    let IdentityArguments { name, uuid } = about.identity.clone();
    let name = name.or_else(|| stem_of_first(images));
    let identity = VmIdentity::new(name.as_deref().unwrap_or_default(), uuid.as_deref());
    let history = match (about.store, &identity) {
        (Some(store), Ok(identity)) => store.backups(Some(&identity.id()))?.0,
        (None, _) | (_, Err(_)) => Vec::new(),
    };
    let formats = about.images.formats.iter().map(|word| (word.disk.clone(), word.format)).collect();
    let said = Said::Operator { formats, trust_chain: about.images.trust_chain };
    let defaults = OfflineOptions::new(images.to_vec(), context.run_dir());
    let options = OfflineOptions { name, uuid, said, history, half_reverted: about.half_reverted, ..defaults };
    Ok(Box::new(Offline::open(options)?))
}

/// Replaces patterns (`web*`) by the domains of libvirt's whose names fit; what names one VM stays as it is.
///
/// # Errors
/// When libvirt cannot be asked, or a pattern fits no domain.
pub fn expand(context: &Context, places: &[VmPlace]) -> Result<Vec<VmPlace>, Failure> {
    let mut expanded = Vec::new();
    for place in places {
        match place {
            VmPlace::Libvirt(pattern) if pattern.contains(['*', '?', '[']) => expanded.extend(fitting(context, pattern)?),
            VmPlace::Libvirt(_) | VmPlace::Qmp(_) | VmPlace::Images(_) => expanded.push(place.clone()),
        }
    }
    Ok(expanded)
}

fn fitting(context: &Context, pattern: &str) -> Result<Vec<VmPlace>, Failure> {
    #[derive(Debug, thiserror::Error)]
    #[error("no domain of libvirt's has a name like {pattern:?}")]
    struct FitsNone {
        pattern: String,
    }
    let usage = |error: globset::Error| Failure::new(FailureClass::Usage, error);
    let glob = globset::Glob::new(pattern).map_err(usage)?.compile_matcher();
    let names = domains(context)?.into_iter().filter(|name| name == pattern || glob.is_match(name));
    let places: Vec<VmPlace> = names.map(VmPlace::Libvirt).collect();
    let none = || Failure::new(FailureClass::Usage, FitsNone { pattern: pattern.to_owned() }).with_hint("see 'virsh list --all'");
    if places.is_empty() { Err(none()) } else { Ok(places) }
}

/// The names of libvirt's domains.
///
/// # Errors
/// When it cannot be asked.
#[cfg(feature = "libvirt")]
pub fn domains(context: &Context) -> Result<Vec<String>, Failure> {
    let listed = keepmark_libvirt::list(context.global.connect.as_deref())?;
    Ok(listed.into_iter().map(|domain| domain.name).collect())
}

/// The names of libvirt's domains: none, since this keepmark was built without it.
///
/// # Errors
/// Never.
#[cfg(not(feature = "libvirt"))]
pub fn domains(_: &Context) -> Result<Vec<String>, Failure> {
    Ok(Vec::new())
}

/// What is in the way of a VM's backups: what has it, what it is, what would help.
///
/// # Errors
/// When libvirt cannot be asked.
#[cfg(feature = "libvirt")]
pub fn hindrances(context: &Context, place: &VmPlace) -> Result<Vec<[String; 3]>, Failure> {
    let VmPlace::Libvirt(domain) = place else { return Ok(Vec::new()) };
    let found = keepmark_libvirt::hindrances(&domain_options(context, domain))?;
    Ok(found.into_iter().map(|found| [found.subject.to_owned(), found.text, found.help]).collect())
}

/// What is in the way of a VM's backups: nothing that can be told without libvirt.
///
/// # Errors
/// Never.
#[cfg(not(feature = "libvirt"))]
pub fn hindrances(_: &Context, _: &VmPlace) -> Result<Vec<[String; 3]>, Failure> {
    Ok(Vec::new())
}

#[cfg(feature = "libvirt")]
fn domain_options(context: &Context, domain: &str) -> keepmark_libvirt::Options {
    let uri = context.global.connect.clone();
    let interrupted = Some(context.screen.interrupt());
    keepmark_libvirt::Options { uri, interrupted, ..keepmark_libvirt::Options::new(domain, context.scratch_dir(), context.run_dir()) }
}

#[cfg(feature = "libvirt")]
fn open_domain(context: &Context, domain: &str, identity: IdentityArguments, half_reverted: bool) -> Result<Box<dyn Hypervisor>, Failure> {
    let IdentityArguments { name, uuid } = identity;
    let defaults = domain_options(context, domain);
    let watchdog = Some(watchdog()?);
    let hide_checkpoints = context.config.hide_libvirt_checkpoints.unwrap_or(false);
    let user = crate::context::libvirt_folders();
    Ok(keepmark_libvirt::open(keepmark_libvirt::Options { watchdog, name, uuid, hide_checkpoints, user, half_reverted, ..defaults })?)
}

#[cfg(not(feature = "libvirt"))]
fn open_domain(_: &Context, domain: &str, _: IdentityArguments, _: bool) -> Result<Box<dyn Hypervisor>, Failure> {
    #[derive(Debug, thiserror::Error)]
    #[error("{domain:?} is a domain of libvirt's, and this keepmark was built without libvirt")]
    struct WithoutLibvirt {
        domain: String,
    }
    let hint = "name the VM by its monitor (`qmp:SOCKET`) or its images (`image:FILE`)";
    Err(Failure::new(FailureClass::Usage, WithoutLibvirt { domain: domain.to_owned() }).with_hint(hint))
}

fn stem_of_first(images: &[(Option<String>, PathBuf)]) -> Option<String> {
    images.first()?.1.file_stem()?.to_str().map(str::to_owned)
}

fn watchdog() -> Result<WatchdogCommand, Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::new(FailureClass::Failed, error))?;
    Ok(WatchdogCommand { program, arguments: vec!["internal-watchdog".into()] })
}
