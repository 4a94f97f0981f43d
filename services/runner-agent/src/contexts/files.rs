//! Where contexts lie, and when they go.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use berth_config::Config;
use berth_wire::{Job, ModelSpec, slug};
use serde_json::json;

use crate::estimate::weights;
use crate::run::state_folder;

/// What a host keeps at most.
const FILES: usize = 64;
const BYTES: u64 = 4 << 30;
/// Nothing is kept for longer.
pub(super) const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Where those of all models are kept, each model's in a folder of its own.
pub(super) fn all(config: &Config) -> PathBuf {
    state_folder(config, "contexts")
}

/// Where those of a model are kept.
pub(super) fn folder(config: &Config, model: &ModelSpec) -> PathBuf {
    all(config).join(slug::encode(model.id.as_str()))
}

/// Makes it. Nobody else on this machine reads it: the folders above it are closed. Whoever an image runs as can write
/// the folder itself, which is all that a container sees of them.
pub(super) fn make(folder: &Path, in_container: bool) -> std::io::Result<()> {
    let closed = folder.parent().unwrap_or(folder);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(closed)?;
    // It may be there from before, open.
    std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o700))?;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mode = if in_container { 0o777 } else { 0o700 };
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode))
}

/// Names everything that what an engine has read depends on.
pub(super) fn stamp(model: &ModelSpec) -> String {
    let weights = weights(model).and_then(|path| path.metadata().ok());
    let written = weights.as_ref().and_then(|meta| meta.modified().ok());
    json!([model.id, model.engine, weights.map(|meta| meta.len()), written]).to_string()
}

/// The file of a session: by who it is and by that stamp.
pub(super) fn file_of(stamp: &str, job: &Job) -> Option<String> {
    let session = job.session.as_deref()?;
    let key = json!([stamp, job.key, session]);
    Some(format!("{}.slot", blake3::hash(key.to_string().as_bytes()).to_hex()))
}

pub(super) fn is_fresh(path: &Path, age: Duration) -> bool {
    let written = path.metadata().and_then(|meta| meta.modified()).ok();
    written.is_some_and(|at| SystemTime::now().duration_since(at).is_ok_and(|old| old <= age))
}

/// Removes what an agent of before has left, if nobody comes back to it.
pub(crate) fn clear(config: &Config) {
    purge(&all(config), None);
}

/// Removes what is too old, and the oldest of what is too much. How long one model keeps its own is known here.
pub(super) fn purge(all: &Path, one: Option<(&Path, Duration)>) {
    let within = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = within(all)
        .flat_map(|folder| within(&folder.path()))
        .filter_map(|entry| {
            let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some((meta.modified().ok()?, meta.len(), entry.path()))
        })
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    let mut bytes = 0u64;
    for (n, (_, len, path)) in files.into_iter().enumerate() {
        bytes = bytes.saturating_add(len);
        let own = one.filter(|(folder, _)| path.starts_with(folder));
        let age = own.map_or(LONGEST, |(_, age)| age);
        if n >= FILES || bytes > BYTES || !is_fresh(&path, age) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_kept_than_so_many_files() {
        let all = tempfile::tempdir().unwrap();
        let (one, other) = (all.path().join("one"), all.path().join("other"));
        for folder in [&one, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        for n in 0..FILES + 2 {
            std::fs::write(one.join(n.to_string()), "x").unwrap();
        }
        std::fs::write(other.join("last"), "x").unwrap();
        let count = |folder: &Path| std::fs::read_dir(folder).unwrap().count();
        purge(all.path(), None);
        assert_eq!(count(&one) + count(&other), FILES);
        purge(all.path(), Some((&one, Duration::ZERO)));
        assert_eq!((count(&one), count(&other)), (0, 1), "another model's are its own affair");
    }

    #[test]
    fn a_container_may_write_its_own_folder_and_nobody_else_gets_there() {
        let base = tempfile::tempdir().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        let (all, one) = (base.path().join("all"), base.path().join("all/one"));
        make(&one, true).unwrap();
        assert_eq!((mode(&all), mode(&one)), (0o700, 0o777));
        make(&one, false).unwrap();
        assert_eq!((mode(&all), mode(&one)), (0o700, 0o700), "a model may change its driver");
    }
}
