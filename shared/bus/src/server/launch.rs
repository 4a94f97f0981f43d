//! One start of the server: its configuration, its port, whether it answers, and its end.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{NatsBinary, ServerError, folder, output, write_private};

const START_LIMIT: Duration = Duration::from_secs(20);
/// A container may have to be created first.
const START_LIMIT_DOCKER: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What is the same for every start of one server.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) binary: NatsBinary,
    pub(super) token: String,
    pub(super) home: PathBuf,
}

impl Run {
    fn config_file(&self) -> PathBuf {
        self.home.join("nats.conf")
    }

    pub(super) fn log_file(&self) -> PathBuf {
        self.home.join("nats.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.home.join("nats.pid")
    }

    /// One container per data directory; the name finds the one that an earlier run left.
    fn container(&self) -> String {
        // FNV-1a: only to tell data directories of one machine apart.
        let hash =
            self.home.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("berth-nats-{hash:016x}")
    }

    /// Stops the server that a killed `berth up` left on this data directory: two on one store would ruin it.
    pub(super) async fn clear_stale(&self) -> Result<(), ServerError> {
        if let NatsBinary::Docker { docker, .. } = &self.binary {
            let _ = output(Command::new(docker).args(["rm", "-f", &self.container()]), STOP_LIMIT * 3).await;
        }
        let Some(pid) =
            std::fs::read_to_string(self.pid_file()).ok().and_then(|text| text.trim().parse().ok())
        else {
            return Ok(());
        };
        for (signal, patience) in [(Signal::SIGTERM, STOP_LIMIT), (Signal::SIGKILL, Duration::from_secs(5))] {
            if !self.is_ours(pid).await {
                return Ok(());
            }
            warn!(pid, %signal, "stopping the nats-server that an earlier run left");
            let _ = kill(Pid::from_raw(pid), signal);
            let until = Instant::now() + patience;
            while Instant::now() < until && self.is_ours(pid).await {
                sleep(Duration::from_millis(50)).await;
            }
        }
        if self.is_ours(pid).await { Err(ServerError::Stale { pid }) } else { Ok(()) }
    }

    /// Whether process `pid` is a server started with our configuration file: ids are used again.
    async fn is_ours(&self, pid: i32) -> bool {
        let config = self.config_file();
        let command_line = match std::fs::read(format!("/proc/{pid}/cmdline")) {
            Ok(bytes) => bytes,
            Err(_) if Path::new("/proc/self").exists() => return false,
            // No /proc on this system.
            Err(_) => {
                let mut ps = Command::new("ps");
                ps.args(["-o", "command=", "-p", &pid.to_string()]);
                output(&mut ps, Duration::from_secs(5)).await.unwrap_or_default().into_bytes()
            }
        };
        String::from_utf8_lossy(&command_line).contains(&*config.to_string_lossy())
    }

    pub(super) fn choose_port(&self, wanted: Option<u16>) -> Result<u16, ServerError> {
        if let Some(port) = wanted {
            return if is_free(port) { Ok(port) } else { Err(ServerError::PortTaken { port }) };
        }
        let last =
            std::fs::read_to_string(self.home.join("port")).ok().and_then(|text| text.trim().parse().ok());
        if let Some(port) = last.filter(|port| is_free(*port)) {
            return Ok(port);
        }
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .map(|address| address.port())
            .map_err(folder(Path::new("127.0.0.1")))
    }

    /// Starts the server on `port` and waits until it answers as ours.
    /// It is waited for no longer, and stopped, when `stopping` is cancelled.
    pub(super) async fn launch(&self, port: u16, stopping: &CancellationToken) -> Result<Child, ServerError> {
        let name = format!("berth-{}", uuid::Uuid::now_v7().simple());
        write_private(&self.config_file(), &self.config(port, &name))?;
        let stderr_path = self.home.join("nats.stderr");
        let stderr = File::create(&stderr_path).map_err(folder(&stderr_path))?;
        let mut command = self.command(port)?;
        // A group of its own: Ctrl-C in the terminal must not stop it before its users have drained.
        command.process_group(0).kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|source| ServerError::Spawn { program, source })?;
        let limit = match self.binary {
            NatsBinary::Program { .. } => START_LIMIT,
            NatsBinary::Docker { .. } => START_LIMIT_DOCKER,
        };
        let until = Instant::now() + limit;
        let why = loop {
            if answers_as(port, &name).await {
                return Ok(child);
            }
            match child.try_wait() {
                Ok(Some(status)) => break format!("it ended with {status}"),
                Ok(None) if stopping.is_cancelled() => break "it is no longer wanted".into(),
                Ok(None) if Instant::now() >= until => {
                    break format!("it did not answer on port {port} within {} s", limit.as_secs());
                }
                Ok(None) => sleep(Duration::from_millis(20)).await,
                Err(error) => break error.to_string(),
            }
        };
        self.stop(child).await;
        let log = [tail(&self.log_file()), tail(&stderr_path)].concat();
        Err(ServerError::NotReady { why, log_file: self.log_file(), log })
    }

    fn command(&self, port: u16) -> Result<Command, ServerError> {
        match &self.binary {
            NatsBinary::Program { path, .. } => {
                let mut command = Command::new(path);
                command.arg("-c").arg(self.config_file());
                Ok(command)
            }
            NatsBinary::Docker { docker, image } => {
                // As the owner of the directory, so that its files can be removed again.
                let owner = self.home.metadata().map_err(folder(&self.home))?;
                let mut command = Command::new(docker);
                command.args(["run", "--rm", "--name", &self.container()]);
                command.args(["--user", &format!("{}:{}", owner.uid(), owner.gid())]);
                command.args(["--publish", &format!("127.0.0.1:{port}:4222")]);
                command.arg("--volume").arg(format!("{0}:{0}", self.home.display()));
                command.arg(image).arg("-c").arg(self.config_file());
                Ok(command)
            }
        }
    }

    fn config(&self, port: u16, name: &str) -> String {
        let listen = match self.binary {
            NatsBinary::Program { .. } => format!("127.0.0.1:{port}"),
            // Inside its container; Docker publishes it on loopback alone.
            NatsBinary::Docker { .. } => "0.0.0.0:4222".into(),
        };
        // A container's process id says nothing out here; its name finds it.
        let pid_file = match self.binary {
            NatsBinary::Program { .. } => format!("pid_file: {}\n", quoted(&self.pid_file())),
            NatsBinary::Docker { .. } => String::new(),
        };
        format!(
            "# Written by `berth up` at every start; changes are lost.\n\
             server_name: \"{name}\"\n\
             listen: \"{listen}\"\n\
             authorization {{ token: \"{token}\" }}\n\
             {pid_file}\
             log_file: {log}\n\
             logfile_size_limit: 4MB\n\
             logfile_max_num: 2\n\
             # The default sync_interval stands: a power failure may lose the last two minutes of queued jobs, whose\n\
             # clients it cuts off as well; a kill of any process loses nothing.\n\
             jetstream {{ store_dir: {store} }}\n",
            token = self.token,
            log = quoted(&self.log_file()),
            store = quoted(&self.home.join("jetstream")),
        )
    }

    /// Stops a child: gracefully, by force after a while.
    pub(super) async fn stop(&self, mut child: Child) {
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // `docker run` passes the signal on to its container.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            if timeout(STOP_LIMIT, child.wait()).await.is_err() {
                warn!(pid, "nats-server does not stop; killing it");
                let _ = child.kill().await;
                if let NatsBinary::Docker { docker, .. } = &self.binary {
                    let _ =
                        output(Command::new(docker).args(["rm", "-f", &self.container()]), STOP_LIMIT).await;
                }
            }
        }
        let _ = std::fs::remove_file(self.pid_file());
    }
}

pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Whether the server called `name` greets on `port` with JetStream enabled.
async fn answers_as(port: u16, name: &str) -> bool {
    let greet = async {
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await.ok()?;
        let info: serde_json::Value = serde_json::from_str(line.strip_prefix("INFO ")?).ok()?;
        let ours = info.get("server_name").and_then(serde_json::Value::as_str) == Some(name);
        let jetstream = info.get("jetstream").and_then(serde_json::Value::as_bool) == Some(true);
        Some(ours && jetstream)
    };
    timeout(Duration::from_secs(2), greet).await.ok().flatten().unwrap_or(false)
}

/// The last lines of a log, without anything that could be a secret: nats-server prints no tokens.
fn tail(path: &Path) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(8)).fold(String::new(), |all, line| all + "  " + line + "\n")
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}

pub(super) fn random_token() -> io::Result<String> {
    let mut bytes = [0_u8; 24];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::with_capacity(48), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> NatsBinary {
        NatsBinary::Program { path: "/usr/bin/nats-server".into(), version: "2.15.1".into() }
    }

    #[test]
    fn the_configuration_listens_on_loopback_and_survives_odd_paths() {
        let run = Run { binary: program(), token: "t".into(), home: "/tmp/a \"b\"".into() };
        let config = run.config(4333, "berth-x");
        assert!(config.contains("listen: \"127.0.0.1:4333\""), "{config}");
        assert!(config.contains(r#"store_dir: "/tmp/a \"b\"/jetstream""#), "{config}");
    }

    #[test]
    fn two_tokens_differ() {
        assert_ne!(random_token().unwrap(), random_token().unwrap());
        assert_eq!(random_token().unwrap().len(), 48);
    }
}
