//! Where a server listens, and what is wanted from it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// `host:port`; an IPv6 address in brackets.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(host_port) => write!(f, "tcp:{host_port}"),
        }
    }
}

/// What a client wants of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The export's name; empty for the default export.
    pub export: String,
    /// Meta contexts to negotiate. What the server does not have is left out silently:
    /// [`crate::ExportInfo::contexts`] tells what was granted.
    pub contexts: Vec<String>,
    /// Connections to open at most. More than one only where the server says that they see the same data.
    pub connections_max: usize,
    /// How long the server may be silent while an answer is due; `None` waits for ever.
    pub timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Options { export: String::new(), contexts: Vec::new(), connections_max: 1, timeout: Some(Duration::from_secs(60)) }
    }
}

impl Options {
    /// The defaults (no contexts, one connection, 60 s), for the export called `export`.
    pub fn new(export: impl Into<String>) -> Self {
        Options { export: export.into(), ..Options::default() }
    }
}
