//! Why an image is not opened, and the words by which its owner can say that it may be.

use std::path::PathBuf;

use super::ImageFormat;
use crate::failure::{Failure, FailureClass};

/// Why an image is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody but its content says what it is.
    #[error("{} looks like {seen}, which a guest could have written into a raw disk", image.display())]
    Unclear {
        /// Which.
        image: PathBuf,
        /// What it looks like.
        seen: ImageFormat,
    },
    /// It is not what somebody says that it is.
    #[error("{} is {said} by {by}, but does not begin like one", image.display())]
    Unlike {
        /// Which.
        image: PathBuf,
        /// What it is said to be.
        said: ImageFormat,
        /// Who says so, in words.
        by: String,
    },
    /// A format that keepmark does not know.
    #[error("{word:?} is no format that keepmark opens; these are: {}", ImageFormat::words())]
    Format {
        /// As it came.
        word: String,
    },
    /// Only its header says that something lies below it.
    #[error("{} lies on {}, by nothing but its own header", image.display(), below.display())]
    Chain {
        /// Which.
        image: PathBuf,
        /// What its header names.
        below: PathBuf,
    },
    /// Only its header says that its data are elsewhere.
    #[error("{} has its data in {}, by nothing but its own header", image.display(), data.display())]
    DataFile {
        /// Which.
        image: PathBuf,
        /// What its header names.
        data: PathBuf,
    },
    /// What lies below it has no format.
    #[error("{} lies on {below}, and does not say which format that has", image.display())]
    NoFormat {
        /// Which.
        image: PathBuf,
        /// What its header names.
        below: String,
    },
    /// It names something that is no file.
    #[error("{} names {name:?}, which is no file", image.display())]
    NoFile {
        /// Which.
        image: PathBuf,
        /// What its header names.
        name: String,
    },
    /// It is encrypted.
    #[error("{} is encrypted", image.display())]
    Encrypted {
        /// Which.
        image: PathBuf,
    },
    /// A chain that ends nowhere.
    #[error("{} lies on too many images, or on itself", image.display())]
    Endless {
        /// Which.
        image: PathBuf,
    },
    /// It cannot be opened.
    #[error("{} cannot be opened: {problem}", image.display())]
    Problem {
        /// Which.
        image: PathBuf,
        /// Why, in words.
        problem: String,
    },
}

impl Refusal {
    /// The sentence or command that helps.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unclear { seen, .. } => format!("say --format {seen} or --format raw"),
            Self::Unlike { .. } => "say by --format what it is".into(),
            Self::Chain { .. } | Self::DataFile { .. } => {
                "say --trust-chain if that is so; the backups name these images then, and it need not be said again".into()
            }
            Self::NoFormat { image, below } => {
                format!("write the format into it: qemu-img rebase -u -f qcow2 -b {below} -F FORMAT {}", image.display())
            }
            Self::Encrypted { .. } => "only a QEMU that has the key reads it: back the VM up while it runs".into(),
            Self::Format { .. } | Self::NoFile { .. } | Self::Endless { .. } | Self::Problem { .. } => return None,
        })
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let hint = refusal.hint();
        let failure = Self::new(FailureClass::Usage, refusal);
        match hint {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}
