//! The process environment, read here and nowhere else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use berth_wire::HostId;

use crate::secret::Secret;

/// A variable as text; `None` if unset, empty or not UTF-8.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn var_os(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|text| !text.is_empty())
}

/// `BERTH_CONFIG`: the configuration file.
#[must_use]
pub fn config_file() -> Option<PathBuf> {
    var_os("BERTH_CONFIG").map(PathBuf::from)
}

/// `BERTH_DATA_DIR`: where `berth up` keeps what must survive it.
#[must_use]
pub fn data_dir_override() -> Option<PathBuf> {
    var_os("BERTH_DATA_DIR").map(PathBuf::from)
}

/// `BERTH_NATS_URL`: NATS servers, separated by commas.
#[must_use]
pub fn nats_urls() -> Option<Vec<String>> {
    let urls: Vec<String> = var("BERTH_NATS_URL")?
        .split(',')
        .map(|url| url.trim().to_owned())
        .filter(|url| !url.is_empty())
        .collect();
    (!urls.is_empty()).then_some(urls)
}

/// `BERTH_NATS_TOKEN`: token to be let in by NATS.
#[must_use]
pub fn nats_token() -> Option<Secret> {
    var("BERTH_NATS_TOKEN").map(Secret::new)
}

/// `BERTH_NATS_NKEY`: nkey seed to be let in by NATS.
#[must_use]
pub fn nats_nkey() -> Option<Secret> {
    var("BERTH_NATS_NKEY").map(Secret::new)
}

/// `BERTH_NATS_NKEY_FILE`: a file that holds the seed alone.
#[must_use]
pub fn nats_nkey_file() -> Option<PathBuf> {
    var_os("BERTH_NATS_NKEY_FILE").map(PathBuf::from)
}

/// `BERTH_NATS_CREDENTIALS`: credentials file to be let in by NATS.
#[must_use]
pub fn nats_credentials() -> Option<PathBuf> {
    var_os("BERTH_NATS_CREDENTIALS").map(PathBuf::from)
}

/// `BERTH_NATS_CA`: certificate of the authority that the NATS server is checked against.
#[must_use]
pub fn nats_ca() -> Option<PathBuf> {
    var_os("BERTH_NATS_CA").map(PathBuf::from)
}

/// `BERTH_LISTEN`: the gateway's address.
#[must_use]
pub fn listen() -> Option<String> {
    var("BERTH_LISTEN")
}

/// `BERTH_METRICS_LISTEN`: where a gateway serves metrics beside its endpoint.
#[must_use]
pub fn metrics_listen() -> Option<String> {
    var("BERTH_METRICS_LISTEN")
}

/// `BERTH_PUBLISHED`: where a gateway that runs in a container is reached.
#[must_use]
pub fn published() -> Option<String> {
    var("BERTH_PUBLISHED")
}

/// `BERTH_NATS_REPLICAS`: on how many NATS servers each stream and bucket is kept.
#[must_use]
pub fn nats_replicas() -> Option<String> {
    var("BERTH_NATS_REPLICAS")
}

/// `BERTH_DOCKER_NETWORK`: the Docker network that an agent in a container shares with its engines.
#[must_use]
pub fn docker_network() -> Option<String> {
    var("BERTH_DOCKER_NETWORK")
}

/// `BERTH_KEEP_ENGINES`: whether an agent that ends leaves its containers running (`1`, `true`).
#[must_use]
pub fn keep_engines() -> bool {
    var("BERTH_KEEP_ENGINES").is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"))
}

/// `BERTH_HOST`: this machine's name in the fleet.
#[must_use]
pub fn host_override() -> Option<String> {
    var("BERTH_HOST")
}

/// `RUST_LOG`: what to log.
#[must_use]
pub fn log_filter() -> Option<String> {
    var("RUST_LOG")
}

/// `BERTH_LOG_FORMAT`: `json` for one object a line.
#[must_use]
pub fn log_json() -> bool {
    var("BERTH_LOG_FORMAT").is_some_and(|format| format.eq_ignore_ascii_case("json"))
}

/// `NO_COLOR`: plain text only.
#[must_use]
pub fn no_color() -> bool {
    var_os("NO_COLOR").is_some()
}

/// Docker's own configuration, where `docker login` keeps what lets into registries.
#[must_use]
pub fn docker_config() -> Option<PathBuf> {
    let folder = var_os("DOCKER_CONFIG").map(PathBuf::from);
    folder.or_else(|| home_dir().map(|home| home.join(".docker"))).map(|folder| folder.join("config.json"))
}

/// The user's home.
#[must_use]
pub fn home_dir() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

/// Where what can be fetched again is kept: `$XDG_CACHE_HOME/berth`, else `~/.cache/berth`.
#[must_use]
pub fn cache_dir() -> PathBuf {
    xdg("XDG_CACHE_HOME", ".cache")
}

/// Where what must survive is kept: `$BERTH_DATA_DIR`, else `$XDG_DATA_HOME/berth`, else `~/.local/share/berth`.
#[must_use]
pub fn data_dir() -> PathBuf {
    data_dir_override().unwrap_or_else(|| xdg("XDG_DATA_HOME", ".local/share"))
}

fn xdg(name: &str, under_home: &str) -> PathBuf {
    // A relative value is to be ignored, says the specification.
    let base = var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    base.or_else(|| home_dir().map(|home| home.join(under_home)))
        .unwrap_or_else(std::env::temp_dir)
        .join("berth")
}

/// Finds a program: `name` itself if it holds a `/`, else the first executable of that name on `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        let path = PathBuf::from(name);
        return is_executable(&path).then_some(path);
    }
    let path = var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// `~` and `~/...` in terms of the user's home; anything else as it is.
#[must_use]
pub fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(path),
    }
}

/// A path as people write it, with `~` for the user's home: what [`expand_home`] reads back.
#[must_use]
pub fn show_path(path: &Path) -> String {
    let below_home = home_dir().and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned));
    match below_home {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}

/// The machine's name as it says itself; of a container that is its own.
#[must_use]
pub fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| var("HOSTNAME"));
    let name = name.or_else(|| {
        let output = std::process::Command::new("hostname").output().ok()?;
        String::from_utf8(output.stdout).ok()
    });
    name.unwrap_or_default().trim().to_owned()
}

/// The machine's name as a host name of the fleet: what is no `[A-Za-z0-9_-]` becomes `-`.
#[must_use]
pub fn host_name() -> HostId {
    HostId::from(host_slug(&machine()))
}

fn host_slug(name: &str) -> String {
    // The domain says nothing within a fleet.
    let short = name.trim().split('.').next().unwrap_or_default();
    let slug: String = short
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '-' })
        .collect();
    if slug.is_empty() { "host".into() } else { slug }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_machine_name_becomes_a_host_name() {
        assert_eq!(host_slug("gpu-1.example.org\n"), "gpu-1");
        assert_eq!(host_slug("größe 1"), "gr--e-1");
        assert_eq!(host_slug(""), "host");
        assert!(berth_wire::slug::is_token(host_name().as_str()));
    }

    #[test]
    fn a_program_on_the_path_is_found_and_a_missing_one_is_not() {
        assert!(find_program("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find_program("no-such-program-of-berth"), None);
        assert_eq!(find_program("/no/such/program"), None);
    }
}
