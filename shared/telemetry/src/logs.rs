//! Logs go to standard error, so that standard output stays for results.

use std::io::IsTerminal;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter has a mistake.
    #[error("the log filter `{filter}` is not valid; write it as in `info,berth_scheduler=debug`")]
    Filter {
        /// What was given.
        filter: String,
        /// What the parser said.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Another subscriber is in place.
    #[error("logging was already set up in this process")]
    Already,
}

/// Sends this process's logs to standard error; `filter` is in `RUST_LOG`'s syntax.
///
/// # Errors
/// When the filter is not valid, or logging has been set up before.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let env =
        EnvFilter::try_new(filter).map_err(|source| LogError::Filter { filter: filter.into(), source })?;
    let registry = tracing_subscriber::registry().with(env);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(true);
    match format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    }
    .map_err(|_| LogError::Already)
}
