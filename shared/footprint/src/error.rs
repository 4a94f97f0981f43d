//! Why a file does not tell what it would take.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A model whose memory cannot be estimated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FootprintError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is of another format.
    #[error("{} is no {wanted} file", path.display())]
    Other {
        /// Which file.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// Its header contradicts itself or the file.
    #[error("{}: {what}; was it downloaded whole?", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with the field.
        what: String,
    },
}

impl FootprintError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                Self::Malformed { path, what: "the file ends within its header".into() }
            }
            _ => Self::Read { path, source },
        }
    }

    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_owned(), what: what.into() }
    }
}
