//! Clients in Python, from `tests/clients`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::parts::{Part, path};
use crate::role::finish;

/// Runs a script of `tests/clients` with these arguments and returns what it printed. Blocks: use it on a thread.
///
/// # Panics
/// When it fails; its output is the message.
#[must_use]
pub fn python(script: &str, args: &[&str]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script);
    let mut command = Command::new(path(Part::Python));
    command.arg("-u").arg(&file).args(args).env("PYTHONDONTWRITEBYTECODE", "1");
    let done = finish(command, Duration::from_secs(120));
    assert!(done.ok, "{script} failed:\n{}", done.output);
    done.output
}
