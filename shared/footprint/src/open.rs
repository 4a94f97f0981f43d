//! Opening a model's files.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::error::FootprintError;

/// A file and its length. What is no regular file is refused: a pipe would be waited for.
pub(crate) fn open(path: &Path) -> Result<(File, u64), FootprintError> {
    let opened = || {
        let found = std::fs::metadata(path)?;
        if !found.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        Ok((File::open(path)?, found.len()))
    };
    opened().map_err(FootprintError::read(path))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_refused_without_waiting_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("model.gguf");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), folder.path()] {
            let error = open(path).unwrap_err().to_string();
            assert!(error.contains("it is no regular file"), "{error}");
        }
    }
}
