//! The only place that reads configuration files and the environment.
