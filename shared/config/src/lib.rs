//! Configuration: the only room that reads configuration files and the environment.
//!
//! What may enter: the file's shape, its defaults and checks, engine templates, environment variables. What may
//! not: anything that acts on them. What leaves is complete and checked: a service never meets a missing field,
//! a half-valid value or a raw variable, and secrets print as `***`.

pub mod env;
mod gguf;
mod model;
mod placeholder;
mod problem;
mod raw;
mod record;
mod resolve;
mod secret;
mod settings;
mod template;
mod value;

pub use gguf::{LlamaServer, ModelFileError};
pub use placeholder::PLACEHOLDERS;
pub use problem::{ConfigError, Problem};
pub use record::not_a_record;
pub use resolve::EXAMPLE;
pub use secret::Secret;
pub use settings::{BusConfig, Config, GatewayConfig, HealthConfig, HostConfig, SchedulerConfig};
pub use value::{parse_duration, parse_listen};

/// Bytes as people read them, as in `16.0 GiB`.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

/// A duration as people read it, as in `30s`.
#[must_use]
pub fn show_duration(span: std::time::Duration) -> String {
    humantime::format_duration(span).to_string()
}
