//! Configuration: the only room that reads configuration files and the environment.
//!
//! What may enter: the file's shape, its defaults and checks, engine templates, environment variables. What may
//! not: anything that acts on them. What leaves is complete and checked: a service never meets a missing field,
//! a half-valid value or a raw variable, and secrets print as `***`.

mod adapter;
mod container;
mod context;
pub mod env;
mod external;
mod gguf;
mod health;
mod keys;
mod model;
mod placeholder;
mod policy;
mod problem;
mod raw;
mod record;
mod reference;
mod registry;
mod resolve;
mod scheduler;
mod schema;
mod secret;
mod settings;
mod sleep;
mod spanned;
mod telemetry;
mod template;
mod value;

pub use external::{ExternalConfig, ExternalKind, KeySource, is_same_server, parse_url as parse_server_url};
pub use gguf::{LlamaServer, ModelFileError};
pub use health::{AlertConfig, HealthConfig, WebhookConfig};
pub use placeholder::PLACEHOLDERS;
pub use problem::{ConfigError, Problem};
pub use record::not_a_record;
pub use reference::page as reference_page;
pub use registry::RegistryConfig;
pub use resolve::EXAMPLE;
pub use schema::schema;
pub use secret::Secret;
pub use settings::{BusConfig, Config, GatewayConfig, HostConfig, SchedulerConfig, is_loopback};
pub use telemetry::TelemetryConfig;
pub use value::{parse_duration, parse_listen};

/// Bytes as people read them, as in `16.0 GiB`.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// A point in time as the configuration writes it: RFC 3339, in UTC, as in `2027-01-31T00:00:00.000Z`.
#[must_use]
pub fn show_time(at: berth_wire::Timestamp) -> String {
    // Later ones have no such form.
    let most = std::time::Duration::from_secs(253_402_300_799);
    let since = std::time::Duration::from_millis(at.0).min(most);
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + since).to_string()
}

/// A duration as people read it, as in `30s`.
#[must_use]
pub fn show_duration(span: std::time::Duration) -> String {
    humantime::format_duration(span).to_string()
}
