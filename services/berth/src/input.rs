//! What a command reads: a file, or standard input where it is named `-`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// Opens a file, or standard input for `-`, and says what messages call it.
///
/// # Errors
/// When it cannot be opened, or is a folder.
pub(crate) fn open(path: &Path) -> io::Result<(Box<dyn BufRead>, String)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin().lock()), "standard input".into()));
    }
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::other("it is a folder, not a file"));
    }
    Ok((Box::new(BufReader::new(file)), path.display().to_string()))
}
