//! Clients in Python and JavaScript, from `tests/clients`.

use std::path::{Path, PathBuf};
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
    let mut command = Command::new(path(Part::Python));
    command.arg("-u").arg(client(script)).args(args).env("PYTHONDONTWRITEBYTECODE", "1");
    said(script, command)
}

/// The same for a script of Node.
///
/// # Panics
/// When it fails; its output is the message.
#[must_use]
pub fn node(script: &str, args: &[&str]) -> String {
    let node = path(Part::Node);
    let mut command = Command::new(node.join("bin/node"));
    command.arg(client(script)).args(args).env("NODE_PATH", node.join("node_modules"));
    said(script, command)
}

fn client(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(script)
}

fn said(script: &str, command: Command) -> String {
    let done = finish(command, Duration::from_secs(180));
    assert!(done.ok, "{script} failed:\n{}", done.output);
    done.output
}
