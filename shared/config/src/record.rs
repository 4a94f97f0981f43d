//! The file that a scheduler writes its decisions to.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// What such a file begins with.
const BEGINNING: &[u8] = b"{\"berth_log\"";

/// Why a scheduler must not append to what is there: it would be no log, or somebody's file would be spoilt. A file
/// that is not there yet, or that cannot be looked into from here, is no reason.
#[must_use]
pub fn not_a_record(path: &Path) -> Option<&'static str> {
    let kind = std::fs::metadata(path).ok()?;
    if kind.is_dir() {
        return Some("it is a folder");
    }
    // A pipe would be waited for.
    if !kind.is_file() {
        return Some("it is no regular file");
    }
    let mut start = Vec::new();
    File::open(path).ok()?.take(256).read_to_end(&mut start).ok()?;
    // A scheduler that was killed at its start may have left a part of the first line.
    let line = start.trim_ascii_start();
    let ours = line.starts_with(BEGINNING) || BEGINNING.starts_with(line);
    (!ours).then_some("it holds something that no scheduler wrote")
}
