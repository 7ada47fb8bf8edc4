//! Opening the store that the user means, and finding a backup in it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use keepmark_model::manifest::StoredBackup;
use keepmark_model::seam::{Monitor, Store};
use keepmark_model::select::select as select_backup;
use keepmark_model::{ChunkSize, Failure, FailureClass, StoreId};
use keepmark_store::{Environment, Options, Repository};

use crate::context::Context;
use crate::password::{self, Purpose};

#[derive(Debug, thiserror::Error)]
enum PlaceError {
    #[error("no store was named")]
    None,
    #[error("{text:?} is no store: expected a folder, or repo:FOLDER")]
    Form { text: String },
}

/// Where the store is: as given, else by `--store`, `KEEPMARK_STORE` or the configuration.
///
/// # Errors
/// When none of them names a folder.
pub fn path(context: &Context, given: Option<&str>) -> Result<PathBuf, Failure> {
    let named = given.or(context.global.store.as_deref()).or(context.config.store.as_deref());
    let Some(text) = named.filter(|text| !text.is_empty()) else {
        return Err(Failure::new(FailureClass::Usage, PlaceError::None).with_hint("name it by --store STORE or KEEPMARK_STORE"));
    };
    match text.split_once(':') {
        Some(("repo", folder)) if !folder.is_empty() => Ok(folder.into()),
        Some((scheme, _)) if !scheme.contains('/') => Err(Failure::new(FailureClass::Usage, PlaceError::Form { text: text.to_owned() })),
        _ => Ok(text.into()),
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

/// Makes a new store.
///
/// # Errors
/// When something is there already.
pub fn create(context: &Context, path: &Path, password: &str) -> Result<StoreId, Failure> {
    Ok(Repository::init(path, password, ChunkSize::DEFAULT, options(context))?.id())
}

/// Opens the store that the user means.
///
/// # Errors
/// When it is not there, or the password is another one.
pub fn open(context: &Context) -> Result<Repository, Failure> {
    let path = path(context, None)?;
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
pub fn select(context: &Context, store: &impl Store, text: &str) -> Result<StoredBackup, Failure> {
    let (backups, damaged) = store.backups(None)?;
    for damage in &damaged {
        if text.contains('@') { context.screen.finding(damage) } else { context.screen.note(damage) }
    }
    let found = select_backup(&backups, text, &TimeZone::system());
    found.cloned().map_err(|error| Failure::new(FailureClass::Usage, error).with_hint("see 'keepmark list'"))
}
