//! How many files and connections a process may have open.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// More is of no use and makes some programs that inherit it slow.
const MOST: u64 = 1 << 19;

/// Raises the soft limit of open files to the hard one, as servers do: the usual 1024 would refuse the thousandth
/// client that waits.
pub(crate) fn raise_limit() {
    // Where it cannot be raised it stays as it is; who meets it is told by the error of that moment.
    let _ = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard.min(MOST).max(soft), hard));
}
