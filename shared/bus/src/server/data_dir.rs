//! One `berth up` for each data directory.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{Read, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{ServerError, folder};

/// The claim on a data directory; given up when dropped, also by a crash.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    lock: File,
}

impl DataDir {
    /// Makes the directory if need be and claims it for this process.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be written.
    pub fn claim(path: &Path) -> Result<Self, ServerError> {
        let path = std::path::absolute(path).map_err(folder(path))?;
        std::fs::create_dir_all(&path).map_err(folder(&path))?;
        // A token lies in it.
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(folder(&path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(folder(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(ServerError::Held { dir: path, pid });
            }
            Err(TryLockError::Error(source)) => return Err(ServerError::Folder { path: lock_path, source }),
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(folder(&lock_path))?;
        Ok(Self { path, lock })
    }

    /// The directory, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // A child that is just being started still shares the lock, and would hold it a moment longer.
        let _ = self.lock.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_claimed_once_and_names_its_holder() {
        let dir = std::env::temp_dir().join(format!("berth-claim-{}", std::process::id()));
        let held = DataDir::claim(&dir).unwrap();
        let refused = DataDir::claim(&dir).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("--data-dir"), "{refused}");
        drop(held);
        DataDir::claim(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
