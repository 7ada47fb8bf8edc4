//! The configuration file: TOML, every key optional, unknown keys are errors.

use std::path::{Path, PathBuf};

use keepmark_model::{Failure, FailureClass};
use serde::Deserialize;

use crate::retention::RetentionConfig;

/// Where the system's configuration is.
const SYSTEM_FILE: &str = "/etc/keepmark/keepmark.toml";

/// What can be configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Store, as for `--store`.
    pub store: Option<String>,
    /// File with the store's password.
    pub password_file: Option<PathBuf>,
    /// Folder for the old content of blocks that the guest overwrites during a backup.
    pub scratch_dir: Option<PathBuf>,
    /// Folder for sockets and locks.
    pub run_dir: Option<PathBuf>,
    /// Folder for disposable copies of the store's index.
    pub cache_dir: Option<PathBuf>,
    /// How long a guest's file systems may stay frozen, seconds; 0 never freezes.
    pub freeze_deadline_s: Option<u64>,
    /// Days after which a checkpoint goes whose store is not the one in use; 0 keeps it for ever.
    pub hold_checkpoints_days: Option<u32>,
    /// Whether libvirt forgets keepmark's checkpoints after each backup (their bitmaps stay), for programs beside keepmark that
    /// work on no domain with a checkpoint of somebody else's.
    pub hide_libvirt_checkpoints: Option<bool>,
    /// Which kind of backup falls when.
    #[serde(default)]
    pub scheme: SchemeConfig,
    /// Which backups `keepmark forget` keeps.
    #[serde(default)]
    pub retention: RetentionConfig,
}

/// `[scheme]`: rhythms by name or as cron's five fields; `off` is never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchemeConfig {
    /// When everything is read.
    pub full: Option<String>,
    /// When what changed since the last full is captured.
    pub differential: Option<String>,
    /// On which days there are backups at all.
    pub incremental: Option<String>,
    /// Where the calendar is: `Europe/Berlin`; else the system's zone.
    pub time_zone: Option<String>,
}

impl SchemeConfig {
    fn over(self, below: Self) -> Self {
        Self {
            full: self.full.or(below.full),
            differential: self.differential.or(below.differential),
            incremental: self.incremental.or(below.incremental),
            time_zone: self.time_zone.or(below.time_zone),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ConfigError {
    #[error("cannot read the configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the configuration {} is wrong: {}", path.display(), problem.message())]
    Parse { path: PathBuf, problem: Box<toml::de::Error> },
}

impl Config {
    /// Reads the named file, or else the system's and then the user's, whose values win.
    ///
    /// # Errors
    /// When a named file is not there, or any file is wrong.
    pub fn load(named: Option<&Path>, user_folder: Option<&Path>) -> Result<Self, Failure> {
        if let Some(path) = named {
            return Self::read(path);
        }
        let user_file = user_folder.map(|folder| folder.join("keepmark/keepmark.toml"));
        let files = [Some(PathBuf::from(SYSTEM_FILE)), user_file];
        files.into_iter().flatten().filter(|path| path.exists()).try_fold(Self::default(), |below, path| Ok(Self::read(&path)?.over(below)))
    }

    fn read(path: &Path) -> Result<Self, Failure> {
        let usage = |error| Failure::new(FailureClass::Usage, error);
        let text = std::fs::read_to_string(path).map_err(|source| usage(ConfigError::Read { path: path.to_owned(), source }))?;
        toml::from_str(&text).map_err(|problem| usage(ConfigError::Parse { path: path.to_owned(), problem: Box::new(problem) }))
    }

    fn over(self, below: Self) -> Self {
        Self {
            store: self.store.or(below.store),
            password_file: self.password_file.or(below.password_file),
            scratch_dir: self.scratch_dir.or(below.scratch_dir),
            run_dir: self.run_dir.or(below.run_dir),
            cache_dir: self.cache_dir.or(below.cache_dir),
            freeze_deadline_s: self.freeze_deadline_s.or(below.freeze_deadline_s),
            hold_checkpoints_days: self.hold_checkpoints_days.or(below.hold_checkpoints_days),
            hide_libvirt_checkpoints: self.hide_libvirt_checkpoints.or(below.hide_libvirt_checkpoints),
            scheme: self.scheme.over(below.scheme),
            // A policy is one thing: the user's replaces the system's.
            retention: if self.retention == RetentionConfig::default() { below.retention } else { self.retention },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_errors_that_name_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, "stoer = \"/x\"\n").unwrap();
        let failure = Config::load(Some(&path), None).unwrap_err();
        assert_eq!(failure.class(), FailureClass::Usage);
        assert!(failure.to_string().contains("stoer"), "{failure}");
    }

    #[test]
    fn the_users_values_win() {
        let system = Config { store: Some("/a".into()), freeze_deadline_s: Some(3), ..Config::default() };
        let user = Config { store: Some("/b".into()), ..Config::default() };
        let merged = user.over(system);
        assert_eq!((merged.store.as_deref(), merged.freeze_deadline_s), (Some("/b"), Some(3)));
    }
}
