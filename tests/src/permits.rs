//! Keys and permissions of a fleet, as `berth nats init` makes them.

use std::path::Path;

use crate::parts::berth;
use crate::role::finish;
use crate::run::SOON;

/// What the second host's name has at its end.
const SECOND: &str = "-second";

/// The folder of keys of one run.
pub(crate) struct Permits;

impl Permits {
    /// Makes keys for the roles, for the host `run` and for a second one, and gives what nats-server is to be told.
    ///
    /// # Panics
    /// When they cannot be made.
    pub(crate) fn make(folder: &Path, run: &str) -> String {
        let mut command = berth();
        command
            .args(["nats", "init", "--host", run, "--host", &format!("{run}{SECOND}"), "--dir"])
            .arg(folder.join("nats"));
        let made = finish(command, SOON);
        assert!(made.ok, "{}", made.output);
        let file = folder.join("nats/auth.conf");
        std::fs::read_to_string(file).expect("`berth nats init` writes the permissions")
    }

    /// The secret key of a role, an agent being the first host's; `None` where no keys are wanted.
    pub(crate) fn of(folder: &Path, role: &str) -> Option<String> {
        let keys = std::fs::read_dir(folder.join("nats/keys")).ok()?;
        let prefix = if role == "agent" { "agent-".to_owned() } else { format!("{role}.") };
        let files = keys.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let mut of_role = files
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
            .filter(|path| !path.to_string_lossy().ends_with(&format!("{SECOND}.nk")));
        let seed = std::fs::read_to_string(of_role.next()?).expect("a key can be read");
        Some(seed.trim().to_owned())
    }
}
