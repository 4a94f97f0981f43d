//! What every command needs first: logs, the configuration, how to reach NATS, metrics.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_config::{Config, env};
use berth_telemetry::{LogFormat, init_logs, metric};

use crate::exit::Failure;

/// Sets logging up: by the option, else `RUST_LOG`, else `default`.
pub(crate) fn logs(option: Option<&str>, default: &str) -> Result<(), Failure> {
    let format = if env::log_json() { LogFormat::Json } else { LogFormat::Text };
    let filter = option.map(str::to_owned).or_else(env::log_filter).unwrap_or_else(|| default.into());
    Ok(init_logs(format, &filter)?)
}

/// Where a configuration came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file.
    File(PathBuf),
    /// The example that is built in.
    BuiltIn,
    /// No file: defaults only.
    Defaults,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::BuiltIn => f.write_str("built-in example (your own: --config FILE, or ./berth.toml)"),
            Self::Defaults => f.write_str("none, only the models given by --model"),
        }
    }
}

/// The file to use: the one named, `$BERTH_CONFIG`, `./berth.toml`.
pub(crate) fn config_file(named: Option<&Path>) -> Option<PathBuf> {
    let local = || Some(PathBuf::from("berth.toml")).filter(|path| path.is_file());
    named.map(Path::to_owned).or_else(env::config_file).or_else(local)
}

/// Loads the configuration and puts the environment and the options over it.
pub(crate) fn config(named: Option<&Path>, nats_urls: &[String]) -> Result<(Config, Source), Failure> {
    let (config, source) = match config_file(named) {
        Some(path) => (Config::load(&path)?, Source::File(path)),
        None => (Config::builtin(), Source::BuiltIn),
    };
    Ok((overridden(config, nats_urls)?, source))
}

/// Puts the environment and the options over a configuration.
pub(crate) fn overridden(mut config: Config, nats_urls: &[String]) -> Result<Config, Failure> {
    config.apply_environment().map_err(Failure::Option)?;
    if !nats_urls.is_empty() {
        config.bus.urls = nats_urls.to_vec();
    }
    Ok(config)
}

/// Lets everybody in, where `--open` says so.
pub(crate) fn open(config: &mut Config, open: bool) -> Result<(), Failure> {
    if open && !config.gateway.keys.is_empty() {
        return Err(Failure::Option(
            "--open lets everybody in, and the configuration has API keys: leave out the one or the others"
                .into(),
        ));
    }
    config.gateway.open |= open;
    Ok(())
}

/// Starts recording metrics on the current runtime; what is returned renders them.
pub(crate) fn metrics() -> Result<Arc<dyn Fn() -> String + Send + Sync>, Failure> {
    metric::install().map_err(|error| Failure::Metrics(error.to_string()))?;
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            metric::upkeep();
        }
    });
    Ok(Arc::new(|| metric::render().unwrap_or_default()))
}
