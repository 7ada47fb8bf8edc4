//! The built program, run as a user runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::process::{Owned, output};
use crate::{LibvirtHost, OrFail, fail};

/// How the program is called: a store, a password, folders of its own.
#[derive(Clone, Debug)]
pub struct Keepmark {
    binary: PathBuf,
    folder: PathBuf,
    store: PathBuf,
    password: String,
    environment: Vec<(String, String)>,
    /// A command that runs the program, with the program's path as its last word; empty runs it directly.
    wrapper: Vec<OsString>,
}

/// What a finished call gave.
#[derive(Clone, Debug)]
pub struct KeepmarkRun {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Data.
    pub stdout: String,
    /// Progress and messages.
    pub stderr: String,
}

impl Keepmark {
    /// The program from `target/release` beside the running test, with everything of it in `folder`: its user's `home`, the
    /// store `store` (to be made yet), and what it keeps itself in `run`, `scratch` and `cache`. The password is `password`.
    #[must_use]
    #[track_caller]
    pub fn new(folder: &Path) -> Self {
        let password = "password".to_owned();
        let (environment, wrapper) = (Vec::new(), Vec::new());
        let new = Self { binary: binary(), folder: folder.to_owned(), store: folder.join("store"), password, environment, wrapper };
        new.configure("");
        new
    }

    /// Writes the user's configuration: the folders, and `more`.
    #[track_caller]
    pub fn configure(&self, more: &str) {
        let folder = self.home().join(".config/keepmark");
        std::fs::create_dir_all(&folder).or_fail(format_args!("making {}", folder.display()));
        let place = |name: &str| format!("{name}_dir = {:?}\n", self.folder.join(name));
        let text = ["run", "scratch", "cache"].map(place).concat() + more;
        std::fs::write(folder.join("keepmark.toml"), text).or_fail("writing the configuration");
    }

    /// Uses this store (`KEEPMARK_STORE`).
    #[must_use]
    pub fn store(self, store: &Path) -> Self {
        Self { store: store.to_owned(), ..self }
    }

    /// Uses this password.
    #[must_use]
    pub fn password(self, password: &str) -> Self {
        Self { password: password.to_owned(), ..self }
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs it on a libvirt host, where `/var/lib/libvirt` and so on are the host's own. Such a call must not be killed: what is killed
    /// would be the wrapper.
    #[must_use]
    pub fn within(self, host: &LibvirtHost) -> Self {
        let command = host.command(&self.binary.to_string_lossy());
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let wrapper: Vec<OsString> = words.map(OsString::from).collect();
        Self { wrapper, ..self }
    }

    /// The call as a command, without any variable or file of the user who runs the tests.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match self.wrapper.split_first() {
            None => Command::new(&self.binary),
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words);
                command
            }
        };
        command.env_clear().env("HOME", self.home()).env("KEEPMARK_PASSWORD", &self.password).env("KEEPMARK_STORE", &self.store);
        for name in ["PATH", "LANG", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs to the end, whatever the exit code.
    #[track_caller]
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> KeepmarkRun {
        let output = output(&mut self.command(arguments));
        KeepmarkRun {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs to the end; another exit code than 0 ends the test.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> KeepmarkRun {
        self.exits(arguments, 0)
    }

    /// Runs to the end; another exit code than `code` ends the test.
    #[track_caller]
    pub fn exits(&self, arguments: &[&str], code: i32) -> KeepmarkRun {
        let run = self.run(arguments);
        if run.code != Some(code) {
            fail(format_args!("keepmark {} ended with {:?}, not {code}\n{}{}", arguments.join(" "), run.code, run.stdout, run.stderr));
        }
        run
    }

    /// Backs up `vm` with further arguments and gives the object `finished`.
    #[track_caller]
    pub fn backup(&self, vm: &str, arguments: &[&str]) -> Value {
        let mut all = vec!["backup", vm, "--json"];
        all.extend(arguments);
        self.ok(&all).event("finished")
    }

    /// The checkpoints that the VM of this name, or the only one, must have in the end: for each disk that of its newest backup with one
    /// and of the newest with one that read all of the disk.
    #[track_caller]
    #[must_use]
    pub fn needed_checkpoints(&self, vm: Option<&str>) -> Vec<String> {
        let arguments: Vec<&str> = ["list", "--json"].into_iter().chain(vm).collect();
        let listed = self.ok(&arguments).json();
        let (mut newest, mut whole) = (BTreeMap::new(), BTreeMap::new());
        for backup in &listed {
            let left = backup["disks"].as_array().into_iter().flatten().filter(|disk| disk["checkpointed"] == true);
            for (disk, kind) in left.filter_map(|disk| disk["name"].as_str().zip(disk["kind"].as_str())) {
                newest.insert(disk, &backup["checkpoint"]);
                if ["full", "resync"].contains(&kind) {
                    whole.insert(disk, &backup["checkpoint"]);
                }
            }
        }
        let needed: BTreeSet<&str> = newest.into_values().chain(whole.into_values()).filter_map(Value::as_str).collect();
        needed.into_iter().map(str::to_owned).collect()
    }

    /// Starts it and lets it run; its output goes to files in the home folder.
    #[must_use]
    #[track_caller]
    pub fn spawn(&self, arguments: &[&str]) -> RunningKeepmark {
        let (stdout, stderr) = (self.log("stdout"), self.log("stderr"));
        let file = |path: &Path| std::fs::File::create(path).or_fail(format_args!("making {}", path.display()));
        let mut command = self.command(arguments);
        command.stdout(file(&stdout)).stderr(file(&stderr));
        RunningKeepmark { process: Owned::spawn(&mut command), stdout, stderr }
    }

    fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    fn log(&self, kind: &str) -> PathBuf {
        let file = tempfile::Builder::new().prefix("run-").suffix(kind).tempfile_in(self.home());
        let (_, path) = file.or_fail("making a log").keep().or_fail("keeping a log");
        path
    }
}

impl KeepmarkRun {
    /// The objects on stdout, one per line; a line that is none ends the test.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Vec<Value> {
        let read = |line| serde_json::from_str(line).or_fail(format_args!("reading keepmark's line {line}"));
        self.stdout.lines().map(read).collect()
    }

    /// The last object whose `event` is `name`.
    #[track_caller]
    #[must_use]
    pub fn event(&self, name: &str) -> Value {
        let found = self.json().into_iter().rfind(|object| object["event"] == name);
        found.or_fail(format_args!("keepmark printed no event {name}:\n{}{}", self.stdout, self.stderr))
    }
}

/// A call that has not been waited for; dropping it kills it.
#[derive(Debug)]
pub struct RunningKeepmark {
    /// The process, to kill or signal.
    pub process: Owned,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl RunningKeepmark {
    /// Waits for the end.
    #[track_caller]
    #[must_use]
    pub fn wait(mut self, timeout: Duration) -> KeepmarkRun {
        let code = self.process.wait(timeout).code();
        KeepmarkRun { code, stdout: read(&self.stdout), stderr: read(&self.stderr) }
    }

    /// What it has printed to stderr so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }
}

fn read(path: &Path) -> String {
    let bytes = std::fs::read(path).or_fail(format_args!("reading {}", path.display()));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A test runs from `target/release/deps`; the program lies one folder above.
#[track_caller]
fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("KEEPMARK_TEST_BIN") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().or_fail("asking for the running test's path");
    let found = test.ancestors().skip(1).take(2).map(|folder| folder.join("keepmark")).find(|path| path.is_file());
    found.or_fail(format_args!("no keepmark near {}: run `make build` first", test.display()))
}
