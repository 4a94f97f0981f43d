//! A nats-server of one's own for `berth up`: found or fetched, run on loopback with a token, kept running, stopped.

mod data_dir;
mod find;
mod launch;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use data_dir::DataDir;
pub use find::{NatsBinary, Search, find};

use launch::{Run, is_free, random_token};

/// Why there is no nats-server to talk to.
#[derive(Debug, Error)]
pub enum ServerError {
    /// No way of getting one worked.
    #[error(
        "no nats-server 2.11 or newer could be found or fetched:\n{tried}\
         install one (https://docs.nats.io/running-a-nats-service/introduction/installation) so that it is on PATH, \
         or name a running one with --nats-url"
    )]
    Missing {
        /// One line for each way.
        tried: String,
    },
    /// Another process holds the data directory.
    #[error(
        "the data directory {} is in use by another berth{}; stop that one, or choose another with --data-dir",
        dir.display(), holder(*pid)
    )]
    Held {
        /// The directory.
        dir: PathBuf,
        /// Who, if known.
        pid: Option<u32>,
    },
    /// The data directory cannot be used.
    #[error("cannot use {}: {source}; choose another place with --data-dir", path.display())]
    Folder {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It cannot be run.
    #[error("cannot run {program}: {source}")]
    Spawn {
        /// What was run.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The port that was asked for is taken.
    #[error("port {port} for nats-server is in use by another program; free it or choose another")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// A server of an earlier run is still there.
    #[error(
        "a nats-server left by an earlier run (process {pid}) does not stop; stop it by hand: kill -9 {pid}"
    )]
    Stale {
        /// Its process id.
        pid: i32,
    },
    /// It ran and did not get ready.
    #[error("nats-server did not get ready: {why}; the end of {}:\n{log}", log_file.display())]
    NotReady {
        /// What was missing.
        why: String,
        /// Where its log is.
        log_file: PathBuf,
        /// The end of it.
        log: String,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn folder(path: &Path) -> impl Fn(io::Error) -> ServerError {
    let path = path.to_owned();
    move |source| ServerError::Folder { path: path.clone(), source }
}

/// A nats-server that this process runs: on loopback, with JetStream and a token of its own. It is started again
/// on the same port if it dies.
#[derive(Debug)]
pub struct NatsServer {
    url: String,
    token: String,
    token_file: PathBuf,
    stopping: CancellationToken,
    keeper: JoinHandle<()>,
}

impl NatsServer {
    /// Starts it and waits until it takes connections. Without `port` it takes the port of the last run in this
    /// data directory if that is free, else any.
    ///
    /// # Errors
    /// When it cannot be run or does not get ready.
    pub async fn start(binary: NatsBinary, dir: &DataDir, port: Option<u16>) -> Result<Self, ServerError> {
        let home = dir.path().join("nats");
        std::fs::create_dir_all(home.join("jetstream")).map_err(folder(&home))?;
        let run = Run { binary, token: random_token().map_err(folder(Path::new("/dev/urandom")))?, home };
        run.clear_stale().await?;
        let token_file = run.home.join("token");
        write_private(&token_file, &run.token)?;
        let stopping = CancellationToken::new();
        let mut attempts = 3;
        let (child, port) = loop {
            let chosen = run.choose_port(port)?;
            match run.launch(chosen, &stopping).await {
                Ok(child) => break (child, chosen),
                // Between the choice and the start another program may have taken the port.
                Err(ServerError::NotReady { .. }) if port.is_none() && attempts > 1 && !is_free(chosen) => {
                    attempts -= 1;
                }
                Err(error) => return Err(error),
            }
        };
        let port_file = run.home.join("port");
        std::fs::write(&port_file, port.to_string()).map_err(folder(&port_file))?;
        let (url, token) = (format!("nats://127.0.0.1:{port}"), run.token.clone());
        let keeper = tokio::spawn(keep(run, child, port, stopping.clone()));
        Ok(Self { url, token, token_file, stopping, keeper })
    }

    /// Where it listens, as in `nats://127.0.0.1:4222`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The token that lets one in.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The file that holds the token, readable by its owner alone.
    #[must_use]
    pub fn token_file(&self) -> &Path {
        &self.token_file
    }

    /// Stops it: gracefully, by force after ten seconds.
    pub async fn stop(self) {
        self.stopping.cancel();
        if let Err(error) = self.keeper.await {
            error!(%error, "the keeper of nats-server broke down");
        }
    }
}

/// Watches the server, and starts it again on the same port when it dies.
async fn keep(run: Run, mut child: Child, port: u16, stopping: CancellationToken) {
    loop {
        let status = tokio::select! {
            () = stopping.cancelled() => return run.stop(child).await,
            status = child.wait() => status,
        };
        let status = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        warn!(status, log = %run.log_file().display(), "nats-server died; starting it again");
        let mut pause = Duration::from_millis(100);
        child = loop {
            match run.launch(port, &stopping).await {
                Ok(child) => break child,
                Err(_) if stopping.is_cancelled() => return,
                Err(error) => error!(%error, "nats-server does not start; trying again"),
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(pause) => pause = (pause * 2).min(Duration::from_secs(10)),
            }
        };
        info!(port, "nats-server is back");
    }
}

async fn output(command: &mut Command, limit: Duration) -> Result<String, String> {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output())
        .await
        .map_err(|_| format!("no answer within {} s", limit.as_secs()))?
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let last = complaint.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(format!("{} ({})", last.trim(), output.status))
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), ServerError> {
    let part = path.with_extension("part");
    let _ = std::fs::remove_file(&part);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(folder(path))
}
