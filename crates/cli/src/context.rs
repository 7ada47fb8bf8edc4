//! What subcommands share: configuration, folders, the screen, and the world's clock and randomness.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use keepmark_engine::Surroundings;
use keepmark_model::Failure;
use keepmark_model::seam::Freeze;

use crate::arguments::Global;
use crate::config::Config;
use crate::screen::Screen;
use crate::signals;

/// Longest time that a guest's file systems stay frozen unless configured otherwise.
const FREEZE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a store that is not at hand keeps its checkpoints unless configured otherwise: a monthly rhythm with some delay.
const HOLD_CHECKPOINTS_DAYS: u32 = 35;

/// What subcommands share.
pub struct Context {
    /// The global arguments.
    pub global: Global,
    /// The configuration.
    pub config: Config,
    /// Where progress and findings go.
    pub screen: Screen,
}

impl Context {
    /// Reads the configuration and takes over the signals.
    ///
    /// # Errors
    /// When the configuration is wrong.
    pub fn new(global: Global) -> Result<Self, Failure> {
        let config = Config::load(global.config.as_deref(), user_folder("XDG_CONFIG_HOME", ".config").as_deref())?;
        let screen = Screen::new(&global, signals::interrupted_flag()?);
        Ok(Self { global, config, screen })
    }

    /// Where disposable copies of stores' indexes are.
    pub fn cache_dir(&self) -> PathBuf {
        let user = || {
            user_folder("XDG_CACHE_HOME", ".cache").map_or_else(|| own_in(&std::env::temp_dir()).join("cache"), |dir| dir.join("keepmark"))
        };
        self.config.cache_dir.clone().unwrap_or_else(|| if is_root() { PathBuf::from("/var/cache/keepmark") } else { user() })
    }

    /// Where locks and sockets are.
    pub fn run_dir(&self) -> PathBuf {
        let user =
            || std::env::var_os("XDG_RUNTIME_DIR").map_or_else(|| own_in(&std::env::temp_dir()), |dir| PathBuf::from(dir).join("keepmark"));
        self.config.run_dir.clone().unwrap_or_else(|| if is_root() { PathBuf::from("/run/keepmark") } else { user() })
    }

    /// Where the old content of overwritten blocks goes.
    pub fn scratch_dir(&self) -> PathBuf {
        self.config.scratch_dir.clone().unwrap_or_else(|| own_in(Path::new("/var/tmp")))
    }

    /// Whether and how long guests may be frozen.
    pub fn freeze(&self) -> Freeze {
        let deadline = self.config.freeze_deadline_s.map_or(FREEZE_DEADLINE, Duration::from_secs);
        if deadline.is_zero() { Freeze::Never } else { Freeze::IfPossible { deadline } }
    }

    /// How long a store that is not at hand keeps its checkpoints; none is for ever.
    pub fn hold_checkpoints(&self) -> Option<Duration> {
        let days = self.config.hold_checkpoints_days.unwrap_or(HOLD_CHECKPOINTS_DAYS);
        (days > 0).then(|| Duration::from_hours(24 * u64::from(days)))
    }
}

/// Folders where a `qemu:///session` of this user keeps what belongs to its domains.
#[cfg(feature = "libvirt")]
pub fn libvirt_folders() -> keepmark_libvirt::UserFolders {
    let folder = |variable: &str, below_home: &str| user_folder(variable, below_home).unwrap_or_default();
    keepmark_libvirt::UserFolders { config: folder("XDG_CONFIG_HOME", ".config"), data: folder("XDG_DATA_HOME", ".local/share") }
}

// Where everybody may make folders, each user has one of his own name.
fn own_in(folder: &Path) -> PathBuf {
    folder.join(format!("keepmark-{}", rustix::process::geteuid().as_raw()))
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn user_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(variable).or_else(|| set("HOME").map(|home| home.join(below_home)))
}

/// The program's clock and randomness.
pub fn world() -> Surroundings<'static> {
    Surroundings { now: &Timestamp::now, elapsed: &elapsed, random: &rand::random::<u32> }
}

fn elapsed() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Program name and version, as manifests carry it.
pub fn program() -> String {
    format!("keepmark {}", env!("CARGO_PKG_VERSION"))
}
