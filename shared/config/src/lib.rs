//! Configuration: the only room that reads configuration files and the environment.
//!
//! What may enter: the file's shape, its defaults and checks, engine templates, environment variables. What may
//! not: anything that acts on them. What leaves is complete and checked: a service never meets a missing field,
//! a half-valid value or a raw variable, and secrets print as `***`.

pub mod env;
mod secret;
mod settings;

pub use secret::Secret;
pub use settings::{BusConfig, Config, GatewayConfig, HealthConfig, HostConfig, SchedulerConfig};

impl Config {
    /// All defaults and no models.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }
}
