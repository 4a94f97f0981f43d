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

/// Sends this process's logs to standard error; `filter` is in `RUST_LOG`'s syntax. A level alone, below `debug`, leaves
/// out what any client can make the HTTP server say; who wants it names it, as in `info,actix_http=error`.
///
/// # Errors
/// When the filter is not valid, or logging has been set up before.
pub fn init_logs(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let env = EnvFilter::try_new(without_rubbish(filter))
        .map_err(|source| LogError::Filter { filter: filter.into(), source })?;
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

/// The HTTP server tells of each request that it cannot read as an error, which is the client's and fills the log.
fn without_rubbish(filter: &str) -> String {
    let level = filter.trim();
    let plain = ["error", "warn", "info"].iter().any(|plain| level.eq_ignore_ascii_case(plain));
    if plain { format!("{level},actix_http=off") } else { filter.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_fill_the_log_unless_it_was_asked_for() {
        for (given, used) in [
            ("info", "info,actix_http=off"),
            (" WARN ", "WARN,actix_http=off"),
            ("debug", "debug"),
            ("info,actix_http=error", "info,actix_http=error"),
            ("info,berth_scheduler=debug", "info,berth_scheduler=debug"),
        ] {
            assert_eq!(without_rubbish(given), used);
            assert!(EnvFilter::try_new(used).is_ok());
        }
    }
}
