//! A real nats-server with JetStream for one test: its own port, its own store, gone when dropped.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tempfile::TempDir;
use thiserror::Error;

const START: Duration = Duration::from_secs(15);

/// Why there is no nats-server to test with.
#[derive(Debug, Error)]
pub enum NatsError {
    /// None was found.
    #[error(
        "no nats-server: neither BERTH_TEST_NATS_SERVER nor PATH names one; run `bash tests/run`, which gets it"
    )]
    Missing,
    /// The folder for its data cannot be used.
    #[error("cannot prepare a folder for nats-server: {0}")]
    Folder(#[source] std::io::Error),
    /// It cannot be run.
    #[error("cannot run {}: {source}", binary.display())]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It ran and did not get ready.
    #[error("nats-server did not get ready: {why}; its log ends with:\n{log}")]
    NotReady {
        /// What was missing.
        why: String,
        /// The end of its log.
        log: String,
    },
}

/// A running nats-server.
#[derive(Debug)]
pub struct TestNats {
    binary: PathBuf,
    extra: String,
    /// Settings of JetStream; without any it is off.
    jetstream: Option<String>,
    folder: TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

#[derive(Deserialize)]
struct PortsFile {
    nats: Vec<String>,
}

impl TestNats {
    /// Starts one on a free loopback port. Blocks until it answers, a fraction of a second.
    ///
    /// # Errors
    /// When there is no nats-server, or it does not get ready.
    pub fn start() -> Result<Self, NatsError> {
        Self::start_with("")
    }

    /// Starts one with more lines of nats-server configuration (`max_payload: 64KB`, `authorization {...}`).
    ///
    /// # Errors
    /// When there is no nats-server, or it does not get ready.
    pub fn start_with(extra: &str) -> Result<Self, NatsError> {
        Self::start_as(extra, Some(String::new()))
    }

    /// Starts one that keeps no streams.
    ///
    /// # Errors
    /// When there is no nats-server, or it does not get ready.
    pub fn start_without_jetstream() -> Result<Self, NatsError> {
        Self::start_as("", None)
    }

    /// Starts one that has so much room for streams (`1GB`).
    ///
    /// # Errors
    /// When there is no nats-server, or it does not get ready.
    pub fn start_with_room(room: &str) -> Result<Self, NatsError> {
        Self::start_as("", Some(format!("max_file_store: {room}")))
    }

    /// Starts one that listens on an address other than loopback's.
    ///
    /// # Errors
    /// When there is no nats-server, or it does not get ready.
    pub fn start_at(ip: IpAddr) -> Result<Self, NatsError> {
        Self::start_on(ip, "", Some(String::new()))
    }

    fn start_as(extra: &str, jetstream: Option<String>) -> Result<Self, NatsError> {
        Self::start_on(IpAddr::from([127, 0, 0, 1]), extra, jetstream)
    }

    fn start_on(ip: IpAddr, extra: &str, jetstream: Option<String>) -> Result<Self, NatsError> {
        let binary = find_binary().ok_or(NatsError::Missing)?;
        let folder = tempfile::Builder::new().prefix("berth-nats-").tempdir().map_err(NatsError::Folder)?;
        let address = SocketAddr::from((ip, 0));
        let mut nats = Self { binary, extra: extra.into(), jetstream, folder, address, child: None };
        nats.launch()?;
        Ok(nats)
    }

    /// `nats://127.0.0.1:PORT`; the same after a restart.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Where it listens, to put a proxy before it.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills it without warning, as `kill -9` does. Its store stays.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM: it writes down what it knows, and ends.
    ///
    /// # Errors
    /// When it cannot be told to.
    pub fn terminate(&mut self) -> std::io::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        std::process::Command::new("kill").arg(child.id().to_string()).status()?;
        child.wait().map(|_| ())
    }

    /// Starts it again on the same port and store; kills it first if it runs.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn restart(&mut self) -> Result<(), NatsError> {
        self.kill9();
        self.launch()
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.folder.path().join("log"), 4096)
    }

    fn launch(&mut self) -> Result<(), NatsError> {
        let folder = self.folder.path();
        let ports = folder.join("ports");
        let _ = std::fs::remove_dir_all(&ports);
        std::fs::create_dir_all(&ports).map_err(NatsError::Folder)?;
        // -1: the server takes a free port and writes it down, so that no two tests race for one.
        let port = match self.address.port() {
            0 => "-1".into(),
            port => port.to_string(),
        };
        let store = match &self.jetstream {
            Some(settings) => format!("jetstream {{ store_dir: {:?}\n{settings} }}", folder.join("store")),
            None => String::new(),
        };
        let config = format!(
            "listen: \"{}:{port}\"\nports_file_dir: {ports:?}\n{store}\n{}\n",
            self.address.ip(),
            self.extra
        );
        let path = folder.join("nats.conf");
        std::fs::write(&path, config).map_err(NatsError::Folder)?;
        let log =
            File::options().create(true).append(true).open(folder.join("log")).map_err(NatsError::Folder)?;
        let child = Command::new(&self.binary)
            .arg("-c")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(NatsError::Folder)?)
            .stderr(log)
            .spawn()
            .map_err(|source| NatsError::Spawn { binary: self.binary.clone(), source })?;
        self.child = Some(child);
        let deadline = Instant::now() + START;
        loop {
            let why = match self.look(&ports) {
                Ok(address) => {
                    self.address = address;
                    return Ok(());
                }
                Err(why) => why,
            };
            let exited = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = exited {
                return Err(self.not_ready(format!("it ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.not_ready(why));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn not_ready(&self, why: String) -> NatsError {
        NatsError::NotReady { why, log: self.log_tail() }
    }

    /// Its address, once it greets a client, with JetStream on if it is to have it.
    fn look(&self, ports: &Path) -> Result<SocketAddr, String> {
        let address = if self.address.port() == 0 {
            let file = std::fs::read_dir(ports)
                .map_err(|e| e.to_string())?
                .find_map(|entry| entry.ok().map(|entry| entry.path()))
                .ok_or("it has not written down its port")?;
            let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
            let known: PortsFile = serde_json::from_str(&text).map_err(|e| e.to_string())?;
            let url = known.nats.first().ok_or("its ports file names no client port")?;
            url.trim_start_matches("nats://")
                .trim_start_matches("tls://")
                .parse()
                .map_err(|e| format!("{url}: {e}"))?
        } else {
            self.address
        };
        let mut stream =
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).map_err(|e| e.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).map_err(|e| e.to_string())?;
        let mut greeting = [0_u8; 4096];
        let read = stream.read(&mut greeting).map_err(|e| e.to_string())?;
        let greeting = String::from_utf8_lossy(greeting.get(..read).unwrap_or_default());
        if self.jetstream.is_none() || greeting.contains("\"jetstream\":true") {
            Ok(address)
        } else {
            Err("it greets without JetStream".into())
        }
    }
}

impl Drop for TestNats {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// `BERTH_TEST_NATS_SERVER`, else `nats-server` on `PATH`.
#[expect(clippy::disallowed_methods, reason = "the test kit finds its parts by the environment")]
fn find_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("BERTH_TEST_NATS_SERVER") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("nats-server")).find(|file| file.is_file())
}

/// The last `bytes` of a file.
fn tail(path: &Path, bytes: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let from = text.len().saturating_sub(bytes);
    String::from_utf8_lossy(text.get(from..).unwrap_or_default()).into_owned()
}
