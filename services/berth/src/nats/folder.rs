//! The folder of a fleet's keys: `fleet.toml` says whose they are, `keys/` holds their secret halves until they are taken
//! to where they belong, and `auth.conf` is written from both the list and the table of permissions.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use berth_bus::permit::{Identity, KeyOf, authorization};
use berth_bus::server::write_private;
use berth_wire::Subjects;
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use crate::exit::Failure;

const LIST: &str = "fleet.toml";

/// Who has which key.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fleet {
    root: String,
    listen: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<PathBuf>,
    /// Names in the server's certificate; none: no TLS.
    #[serde(default)]
    pub(super) tls: Vec<String>,
    /// Public halves, the newest of each last.
    #[serde(default)]
    pub(super) keys: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    of: String,
    public: String,
}

impl Entry {
    fn identity(&self) -> Option<Identity> {
        let role = Identity::ROLES.into_iter().find(|role| role.name() == self.of);
        role.or_else(|| Identity::agent(self.of.strip_prefix("agent-")?))
    }
}

impl Fleet {
    pub(super) fn new(
        root: String,
        listen: SocketAddr,
        store: Option<PathBuf>,
        tls: Vec<String>,
    ) -> Result<Self, Failure> {
        let fleet = Self { root, listen, store, tls, keys: Vec::new() };
        fleet.subjects().map(|_| fleet)
    }

    fn subjects(&self) -> Result<Subjects, Failure> {
        Subjects::new(&self.root).ok_or_else(|| {
            Failure::Option(format!(
                "`{}` is no root of subjects: use words of letters, digits, `-` and `_` with dots between",
                self.root
            ))
        })
    }

    pub(super) fn count(&self, identity: &Identity) -> usize {
        let name = identity.name();
        self.keys.iter().filter(|key| key.of == name).count()
    }

    pub(super) fn has(&self, identity: &Identity) -> bool {
        self.count(identity) > 0
    }

    pub(super) fn remove(&mut self, identity: &Identity) {
        let name = identity.name();
        self.keys.retain(|key| key.of != name);
    }

    pub(super) fn keep_newest(&mut self, identity: &Identity) {
        let name = identity.name();
        let mut older = self.count(identity).saturating_sub(1);
        self.keys.retain(|key| {
            let goes = key.of == name && older > 0;
            older -= usize::from(goes);
            !goes
        });
    }

    /// Names of hosts, for people.
    pub(super) fn hosts(&self) -> String {
        let mut hosts: Vec<&str> = self.keys.iter().filter_map(|key| key.of.strip_prefix("agent-")).collect();
        hosts.dedup();
        if hosts.is_empty() { "none".into() } else { hosts.join(", ") }
    }

    /// Where agents find the server.
    pub(super) fn url(&self) -> String {
        match self.tls.first() {
            Some(name) => format!("tls://{name}:{}", self.listen.port()),
            None => format!("nats://{}", self.listen),
        }
    }
}

/// The folder.
pub(super) struct Folder(PathBuf);

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    move |source| Failure::File { path: path.to_owned(), source }
}

impl Folder {
    /// A new one, or with `force` one whose keys are to be replaced.
    pub(super) fn create(dir: &Path, force: bool) -> Result<Self, Failure> {
        if dir.join(LIST).exists() && !force {
            return Err(Failure::Input(format!(
                "{} holds the keys of a fleet already: `berth nats add-host` adds one, `berth nats rotate` renews one, \
                 `berth nats update` writes its configuration anew; --force replaces them all",
                dir.display()
            )));
        }
        let keys = dir.join("keys");
        if keys.exists() {
            std::fs::remove_dir_all(&keys).map_err(failed(&keys))?;
        }
        std::fs::create_dir_all(&keys).map_err(failed(&keys))?;
        private(&keys)?;
        Ok(Self(dir.canonicalize().map_err(failed(dir))?))
    }

    /// One that is there, with what it says.
    pub(super) fn open(dir: &Path) -> Result<(Self, Fleet), Failure> {
        let path = dir.join(LIST);
        let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Failure::Input(format!(
                "{} holds no keys of a fleet: name it by --dir, or make them with `berth nats init`",
                dir.display()
            )),
            _ => failed(&path)(error),
        })?;
        let fleet: Fleet =
            toml::from_str(&text).map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
        if let Some(entry) = fleet.keys.iter().find(|entry| entry.identity().is_none()) {
            return Err(Failure::Input(format!("{}: nobody is called `{}`", path.display(), entry.of)));
        }
        Ok((Self(dir.canonicalize().map_err(failed(dir))?), fleet))
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(super) fn auth(&self) -> PathBuf {
        self.path("auth.conf")
    }

    /// Where the secret half of a key is.
    pub(super) fn key(&self, identity: &Identity) -> PathBuf {
        self.path(&format!("keys/{}.nk", identity.name()))
    }

    fn old(&self, identity: &Identity) -> PathBuf {
        self.path(&format!("keys/{}.old.nk", identity.name()))
    }

    /// Makes a key and gives the file of its secret half.
    pub(super) fn add_key(&self, fleet: &mut Fleet, identity: &Identity) -> Result<PathBuf, Failure> {
        let pair = KeyPair::new_user();
        let seed = pair.seed().map_err(|error| Failure::Input(format!("cannot make a key: {error}")))?;
        let path = self.key(identity);
        if let Some(folder) = path.parent() {
            // A person may have moved all keys away.
            std::fs::create_dir_all(folder).map_err(failed(folder))?;
            private(folder)?;
        }
        write_private(&path, &format!("{seed}\n"))?;
        fleet.keys.push(Entry { of: identity.name(), public: pair.public_key() });
        Ok(path)
    }

    /// Makes room for a new key of the same name.
    pub(super) fn set_aside(&self, identity: &Identity) -> Result<(), Failure> {
        let (path, old) = (self.key(identity), self.old(identity));
        match std::fs::rename(&path, old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&path)(error)),
            // It may have been taken to its host.
            _ => Ok(()),
        }
    }

    pub(super) fn forget_old(&self, identity: &Identity) -> Result<(), Failure> {
        remove(&self.old(identity))
    }

    pub(super) fn forget_keys(&self, identity: &Identity) -> Result<(), Failure> {
        remove(&self.key(identity)).and_then(|()| self.forget_old(identity))
    }

    /// Writes the list, and what nats-server reads of it.
    pub(super) fn save(&self, fleet: &Fleet) -> Result<(), Failure> {
        let text = toml::to_string(fleet).map_err(|error| Failure::Input(error.to_string()))?;
        let text =
            format!("# Whose keys open. Written by `berth nats`; the secret halves are not in it.\n{text}");
        write(&self.path(LIST), &text)?;
        let keys: Vec<KeyOf> = fleet
            .keys
            .iter()
            .filter_map(|entry| Some(KeyOf { identity: entry.identity()?, public: entry.public.clone() }))
            .collect();
        let text = format!(
            "# Written by `berth nats` (version {}) at every change of keys; changes are lost.\n{}",
            env!("CARGO_PKG_VERSION"),
            authorization(&keys, &fleet.subjects()?)
        );
        write(&self.auth(), &text)
    }

    /// Writes the server's own configuration, which is the person's from then on.
    pub(super) fn write_server(&self, fleet: &Fleet) -> Result<(), Failure> {
        let quoted = |path: &Path| serde_json::Value::from(path.display().to_string()).to_string();
        let store = fleet.store.clone().unwrap_or_else(|| self.path("store"));
        let mut text = format!(
            "# Written once by `berth nats init`: yours to change.\n\
             listen: \"{}\"\n\
             jetstream {{\n  store_dir: {}\n  \
             # A power failure may lose the last two minutes of queued jobs; `always` loses none and costs a write to disk\n  \
             # for each.\n  \
             # sync_interval: always\n}}\n",
            fleet.listen,
            quoted(&store)
        );
        if !fleet.tls.is_empty() {
            let (cert, key) = (self.path("tls/server.pem"), self.path("tls/server.key"));
            // Writing to a String cannot fail.
            let _ =
                writeln!(text, "tls {{\n  cert_file: {}\n  key_file: {}\n}}", quoted(&cert), quoted(&key));
        }
        text.push_str("# Who may do what.\ninclude \"auth.conf\"\n");
        write(&self.path("nats-server.conf"), &text)
    }
}

fn private(folder: &Path) -> Result<(), Failure> {
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(failed(folder))
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    // Whole or not at all: the server may be reading.
    let part = path.with_extension("part");
    std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path)).map_err(failed(path))
}

fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}
