//! The file's shape as written, before defaults and checks; every value knows its place.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_wire::{Class, Driver, EngineKind, Scope};
use serde::Deserialize;
use toml::Spanned;
use toml::value::Datetime;

use crate::context::Keep;
use crate::external::ExternalKind;
use crate::health::RawHealth;
use crate::secret::Secret;
use crate::sleep::Depth;
use crate::value::{OneOrMany, Size, Span, Ttl, Words};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    pub(crate) bus: RawBus,
    pub(crate) gateway: RawGateway,
    pub(crate) host: RawHost,
    pub(crate) scheduler: RawScheduler,
    pub(crate) health: RawHealth,
    pub(crate) models: Vec<RawModel>,
    pub(crate) external: Vec<RawExternal>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBus {
    pub(crate) urls: Option<Spanned<OneOrMany>>,
    pub(crate) root: Option<Spanned<String>>,
    pub(crate) token: Option<Secret>,
    pub(crate) token_file: Option<Spanned<PathBuf>>,
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) nkey: Option<Secret>,
    pub(crate) nkey_file: Option<Spanned<PathBuf>>,
    pub(crate) replicas: Option<Spanned<u32>>,
    pub(crate) ca: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawGateway {
    pub(crate) listen: Option<Spanned<OneOrMany>>,
    pub(crate) published: Option<Spanned<String>>,
    pub(crate) workers: Option<Spanned<usize>>,
    pub(crate) body_limit: Option<Spanned<Size>>,
    pub(crate) body_timeout: Option<Spanned<Span>>,
    pub(crate) inline_limit: Option<Spanned<Size>>,
    pub(crate) window: Option<Spanned<Size>>,
    pub(crate) grace: Option<Span>,
    pub(crate) heartbeat: Option<Spanned<Span>>,
    pub(crate) wait_limit: Option<Span>,
    pub(crate) stream_wait_limit: Option<Span>,
    pub(crate) retry_grace: Option<Span>,
    pub(crate) open: Option<Spanned<bool>>,
    pub(crate) keys: Vec<RawKey>,
    pub(crate) metrics_listen: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawKey {
    pub(crate) name: Spanned<String>,
    pub(crate) hash: Spanned<String>,
    pub(crate) scope: Option<Spanned<Scope>>,
    pub(crate) class: Option<Spanned<Class>>,
    pub(crate) concurrency: Option<Spanned<u32>>,
    pub(crate) requests_per_minute: Option<Spanned<u32>>,
    pub(crate) tokens_per_minute: Option<Spanned<u32>>,
    pub(crate) models: Option<Spanned<Words>>,
    pub(crate) expires: Option<Spanned<Datetime>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHost {
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) labels: Words,
    pub(crate) memory: Option<Spanned<Size>>,
    pub(crate) drivers: Option<Spanned<Vec<Driver>>>,
    pub(crate) docker_host: Option<Spanned<String>>,
    pub(crate) docker_network: Option<String>,
    pub(crate) registries: Vec<RawRegistry>,
    pub(crate) state_dir: Option<String>,
    pub(crate) sleep_memory: Option<Spanned<Size>>,
    pub(crate) sleep_spare: Option<Spanned<Size>>,
    pub(crate) stop_grace: Option<Span>,
    pub(crate) keep_engines: bool,
    pub(crate) metrics_listen: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRegistry {
    pub(crate) address: Spanned<String>,
    pub(crate) user: Spanned<String>,
    pub(crate) password_env: Option<Spanned<String>>,
    pub(crate) password_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawScheduler {
    pub(crate) idle_ttl: Option<Ttl>,
    pub(crate) asleep_ttl: Option<Ttl>,
    pub(crate) max_wait: Option<Span>,
    pub(crate) host_timeout: Option<Spanned<Span>>,
    pub(crate) queue_limit: Option<Spanned<u64>>,
    pub(crate) model_queue_limit: Option<Spanned<u64>>,
    pub(crate) key_queue_limit: Option<Spanned<u64>>,
    pub(crate) lease_ceiling: Option<Spanned<Span>>,
    pub(crate) leases_per_session: Option<Spanned<u64>>,
    pub(crate) leases_per_key: Option<Spanned<u64>>,
    pub(crate) record: Option<Spanned<String>>,
    pub(crate) metrics_listen: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawExternal {
    pub(crate) name: Option<Spanned<String>>,
    pub(crate) url: Spanned<String>,
    pub(crate) kind: Option<Spanned<ExternalKind>>,
    pub(crate) key_env: Option<Spanned<String>>,
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) concurrency: Option<Spanned<u32>>,
    pub(crate) models: Option<Spanned<Words>>,
    #[serde(default)]
    pub(crate) rename: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub(crate) aliases: BTreeMap<Spanned<String>, String>,
    pub(crate) prefix: Option<Spanned<String>>,
    pub(crate) routes: Option<Spanned<Words>>,
    pub(crate) start_timeout: Option<Spanned<Span>>,
    #[serde(default)]
    pub(crate) labels: Words,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawModel {
    pub(crate) id: Spanned<String>,
    #[serde(default)]
    pub(crate) aliases: Words,
    pub(crate) engine: Spanned<EngineKind>,
    pub(crate) driver: Option<Spanned<Driver>>,
    pub(crate) image: Option<Spanned<String>>,
    pub(crate) command: Option<Spanned<Words>>,
    #[serde(default)]
    pub(crate) args: Words,
    #[serde(default)]
    pub(crate) env: Words,
    #[serde(default)]
    pub(crate) volumes: Words,
    pub(crate) memory: Option<Spanned<Size>>,
    pub(crate) accelerators: Option<Spanned<u32>>,
    pub(crate) concurrency: Option<Spanned<u32>>,
    pub(crate) context: Option<Spanned<u32>>,
    pub(crate) idle_ttl: Option<Ttl>,
    pub(crate) asleep_ttl: Option<Ttl>,
    pub(crate) sleep: Option<Spanned<Depth>>,
    pub(crate) sleep_memory: Option<Spanned<Size>>,
    #[serde(default)]
    pub(crate) pin: bool,
    pub(crate) replicas: Option<Spanned<u32>>,
    pub(crate) health_path: Option<Spanned<String>>,
    pub(crate) start_timeout: Option<Spanned<Span>>,
    pub(crate) first_token_timeout: Option<Spanned<Span>>,
    pub(crate) token_timeout: Option<Spanned<Span>>,
    pub(crate) stop_grace: Option<Span>,
    pub(crate) port: Option<Spanned<u16>>,
    pub(crate) served_name: Option<Spanned<String>>,
    pub(crate) shm_size: Option<Spanned<Size>>,
    pub(crate) ipc: Option<Spanned<String>>,
    #[serde(default)]
    pub(crate) ulimits: Words,
    pub(crate) cpuset: Option<Spanned<String>>,
    pub(crate) read_only: Option<Spanned<bool>>,
    pub(crate) pids_limit: Option<Spanned<u32>>,
    pub(crate) ram: Option<Spanned<Size>>,
    pub(crate) routes: Option<Spanned<Words>>,
    #[serde(default)]
    pub(crate) labels: Words,
    pub(crate) max_adapters: Option<Spanned<u32>>,
    pub(crate) keep_context: Option<Spanned<Keep>>,
    #[serde(default)]
    pub(crate) adapters: Vec<RawAdapter>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawAdapter {
    pub(crate) id: Spanned<String>,
    #[serde(default)]
    pub(crate) aliases: Words,
    pub(crate) path: Spanned<String>,
}

impl RawModel {
    /// Every name that it gives, each with the id that it is of: its own, and those of its adapters.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&Spanned<String>, &Spanned<String>)> {
        let own = std::iter::once(&self.id).chain(&self.aliases.0).map(|name| (name, &self.id));
        own.chain(self.adapters.iter().flat_map(|adapter| {
            std::iter::once(&adapter.id).chain(&adapter.aliases.0).map(|name| (name, &adapter.id))
        }))
    }
}
