//! Opening the store that the user means, and finding a backup in it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keepmark_model::failure::in_one_line;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::seam::{Monitor, Store};
use keepmark_model::select::{of_vm as of_vm_in, select as select_backup};
use keepmark_model::{ChunkSize, Failure, FailureClass, StoreId};
use keepmark_qemu::QemuImages;
use keepmark_store::{Environment, ImageOptions, ImageStore, Options, Repository};

use crate::context::Context;
use crate::password::{self, Purpose};
use crate::vm::VmPlace;

#[derive(Debug, thiserror::Error)]
enum PlaceError {
    #[error("no store was named")]
    None,
    #[error("{text:?} is no store: expected a folder, repo:FOLDER or images:FOLDER")]
    Form { text: String },
}

/// A store as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A repository in a folder.
    Repository(PathBuf),
    /// An image store in a folder.
    Images(PathBuf),
}

impl Place {
    /// Its folder.
    pub fn path(&self) -> &Path {
        let (Self::Repository(path) | Self::Images(path)) = self;
        path
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(path) => path.display().fmt(f),
            Self::Images(path) => write!(f, "images:{}", path.display()),
        }
    }
}

/// Where the store is: as given, else by `--store`, `KEEPMARK_STORE` or the configuration. A folder without a word before it is what it
/// says itself that it is, and a repository otherwise.
///
/// # Errors
/// When none of them names a folder.
pub fn place(context: &Context, given: Option<&str>) -> Result<Place, Failure> {
    let named = given.or(context.global.store.as_deref()).or(context.config.store.as_deref());
    let Some(text) = named.filter(|text| !text.is_empty()) else {
        return Err(Failure::new(FailureClass::Usage, PlaceError::None).with_hint("name it by --store STORE or KEEPMARK_STORE"));
    };
    match text.split_once(':') {
        Some(("repo", folder)) if !folder.is_empty() => Ok(Place::Repository(folder.into())),
        Some(("images", folder)) if !folder.is_empty() => Ok(Place::Images(folder.into())),
        Some((scheme, _)) if !scheme.contains('/') => Err(Failure::new(FailureClass::Usage, PlaceError::Form { text: text.to_owned() })),
        _ if ImageStore::is_at(Path::new(text)) => Ok(Place::Images(text.into())),
        _ => Ok(Place::Repository(text.into())),
    }
}

/// The store's password, from wherever the user keeps it.
///
/// # Errors
/// When there is none.
pub fn password(context: &Context, purpose: Purpose) -> Result<String, Failure> {
    let from_command_line = context.global.password_file.as_deref();
    let environment = std::env::var("KEEPMARK_PASSWORD").ok().filter(|password| !password.is_empty());
    let file = from_command_line.or(context.config.password_file.as_deref().filter(|_| environment.is_none()));
    password::find(file, environment, purpose)
}

/// Makes a new store; a repository asks for its password.
///
/// # Errors
/// When something is there already.
pub fn create(context: &Context, place: &Place) -> Result<StoreId, Failure> {
    match place {
        Place::Images(path) => Ok(ImageStore::init(path, image_options(context, false))?.id()),
        Place::Repository(path) => {
            let password = password(context, Purpose::Choose)?;
            Ok(Repository::init(path, &password, ChunkSize::DEFAULT, options(context))?.id())
        }
    }
}

/// Opens the store that the user means.
///
/// # Errors
/// When it is not there, or the password is another one.
pub fn open(context: &Context) -> Result<Box<dyn Store>, Failure> {
    match place(context, None)? {
        Place::Images(path) => Ok(Box::new(ImageStore::open(&path, image_options(context, false))?)),
        Place::Repository(path) => Ok(Box::new(open_repository(context, path)?)),
    }
}

/// The store that is named, if one is and it can be opened, for what it remembers of powered-off images.
pub fn remembering(context: &Context, vm: &VmPlace) -> Option<Box<dyn Store>> {
    let is_named = context.global.store.is_some() || context.config.store.is_some();
    let opened = (is_named && matches!(vm, VmPlace::Images(_))).then(|| open(context))?;
    opened.inspect_err(|failure| context.screen.note(&in_one_line(failure))).ok()
}

/// As [`open`], for backups: a copy of a store is told. `compress` says whether new images have compressed clusters. A repository's
/// chunks always are.
///
/// # Errors
/// As [`open`].
pub fn open_for_writing(context: &Context, compress: bool) -> Result<Box<dyn Store>, Failure> {
    match place(context, None)? {
        Place::Images(path) => {
            let store = ImageStore::open(&path, image_options(context, compress))?;
            tell_of_copy(context, &path, store.is_copied());
            Ok(Box::new(store))
        }
        Place::Repository(path) => {
            let repository = open_repository(context, path.clone())?;
            tell_of_copy(context, &path, repository.is_copied());
            Ok(Box::new(repository))
        }
    }
}

/// Two stores of one id take each other's checkpoints for their own: each backup into one costs the other a resync.
fn tell_of_copy(context: &Context, path: &Path, is_copied: bool) {
    if is_copied {
        context.screen.finding(&format!(
            "the store at {} is a copy of one that was used elsewhere, or was moved by copying; backups into both disturb each other: \
             keepmark adopt-copy makes it a store of its own",
            path.display()
        ));
    }
}

/// Gives the copy of a store an id of its own.
///
/// # Errors
/// When it is no copy, or cannot be written.
pub fn adopt(context: &Context, place: &Place) -> Result<StoreId, Failure> {
    match place {
        Place::Images(path) => Ok(ImageStore::open(path, image_options(context, false))?.adopt()?),
        Place::Repository(path) => Ok(Repository::open(path, &password(context, Purpose::Open)?, options(context))?.adopt()?),
    }
}

fn open_repository(context: &Context, path: PathBuf) -> Result<Repository, Failure> {
    if !path.exists() {
        let error = keepmark_store::Error::NoStore { path };
        return Err(error.into());
    }
    let repository = Repository::open(&path, &password(context, Purpose::Open)?, options(context))?;
    if let Some(problem) = repository.cache_problem() {
        context.screen.note(&format!("the cache folder cannot be used, so this takes longer and more memory: {problem}"));
    }
    Ok(repository)
}

fn image_options(context: &Context, compress: bool) -> ImageOptions {
    ImageOptions { tools: Arc::new(QemuImages::new(context.run_dir())), compress }
}

fn options(context: &Context) -> Options {
    let workers = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    Options { cache: context.cache_dir(), environment: environment(), workers }
}

fn environment() -> Environment {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Environment {
        hostname: host,
        username: std::env::var("USER").unwrap_or_else(|_| "root".to_owned()),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        pid: std::process::id(),
        now: Timestamp::now,
        is_alive,
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// The backup that a text means. Damaged ones are findings where the text may mean one of them: `VM@...` may, an id means itself.
///
/// # Errors
/// When it means none, or several.
pub fn select(context: &Context, store: &dyn Store, text: &str) -> Result<StoredBackup, Failure> {
    let (backups, damaged) = store.backups(None)?;
    for damage in &damaged {
        if text.contains('@') { context.screen.finding(damage) } else { context.screen.note(damage) }
    }
    find(&backups, text).cloned()
}

/// The backup of a list that a text means.
///
/// # Errors
/// When it means none, or several.
pub fn find<'a>(backups: &'a [StoredBackup], text: &str) -> Result<&'a StoredBackup, Failure> {
    let found = select_backup(backups, text, &TimeZone::system());
    found.map_err(|error| Failure::new(FailureClass::Usage, error).with_hint("see 'keepmark list'"))
}

/// The backups of the VM that a name or UUID means, oldest first.
///
/// # Errors
/// When it means none, or several.
pub fn of_vm<'a>(backups: &'a [StoredBackup], vm: &str) -> Result<Vec<&'a StoredBackup>, Failure> {
    of_vm_in(backups, vm).map_err(|error| Failure::new(FailureClass::Usage, error).with_hint("see 'keepmark list' for all"))
}
