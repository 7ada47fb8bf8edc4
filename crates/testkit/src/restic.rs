//! Stock restic, as the judge of the repositories that keepmark writes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::OrFail;
use crate::process::{output, run};

/// A repository as restic sees it.
#[derive(Clone, Debug)]
pub struct Restic {
    repository: PathBuf,
    password: String,
}

impl Restic {
    /// A local repository and its password.
    #[must_use]
    pub fn new(repository: &Path, password: &str) -> Self {
        Self { repository: repository.to_owned(), password: password.to_owned() }
    }

    /// A restic command on this repository, without any cache.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("restic");
        command
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("RESTIC_PASSWORD", &self.password)
            .env_remove("RESTIC_PASSWORD_FILE")
            .arg("--no-cache")
            .args(arguments);
        command
    }

    /// Runs a command to the end; a failure ends the test.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    /// Runs a command to the end, whatever the exit code.
    #[track_caller]
    pub fn output(&self, arguments: &[&str]) -> Output {
        output(&mut self.command(arguments))
    }

    /// Makes a new, empty repository (format 2).
    #[track_caller]
    pub fn init(&self) {
        self.run(&["init", "--repository-version", "2"]);
    }

    /// Reads and checks everything; anything that restic complains of ends the test.
    #[track_caller]
    pub fn check(&self) {
        self.run(&["check", "--read-data"]);
    }

    /// The snapshots, oldest first.
    #[track_caller]
    #[must_use]
    pub fn snapshots(&self) -> Vec<Value> {
        let text = self.run(&["snapshots", "--json"]);
        serde_json::from_str(&text).or_fail("reading restic's snapshots")
    }

    /// The paths inside a snapshot.
    #[track_caller]
    #[must_use]
    pub fn list(&self, snapshot: &str) -> Vec<String> {
        self.run(&["ls", "-q", snapshot]).lines().filter(|line| line.starts_with('/')).map(str::to_owned).collect()
    }

    /// The bytes of one file.
    #[track_caller]
    #[must_use]
    pub fn dump(&self, snapshot: &str, path: &str) -> Vec<u8> {
        let output = self.output(&["dump", "-q", snapshot, path]);
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            crate::fail(format_args!("restic dump {snapshot} {path}: {text}"));
        }
        output.stdout
    }

    /// Restores a snapshot into folder `target`.
    #[track_caller]
    pub fn restore(&self, snapshot: &str, target: &Path) {
        let target = target.display().to_string();
        self.run(&["restore", "-q", snapshot, "--target", &target]);
    }

    /// Removes what no snapshot needs.
    #[track_caller]
    pub fn prune(&self) {
        self.run(&["prune"]);
    }
}
