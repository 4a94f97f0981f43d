//! The file's shape as written, before defaults and checks; every value knows its place. What is said of each field here
//! is what `docs/configuration.md` and the JSON Schema say.

mod external;
mod model;

use std::path::PathBuf;

use berth_wire::{Class, Driver, Scope};
use schemars::JsonSchema;
use serde::Deserialize;
use toml::value::Datetime;

pub(crate) use self::external::RawExternal;
pub(crate) use self::model::{RawAdapter, RawModel};
use crate::health::RawHealth;
use crate::model::MOST_MEMORY;
use crate::resolve::{INLINE, REPLICAS};
use crate::scheduler::{HOST_TIMEOUT, LEASE};
use crate::schema;
use crate::secret::Secret;
use crate::settings::{BusConfig, GatewayConfig, HostConfig, SchedulerConfig};
use crate::spanned::Spanned;
use crate::telemetry::RawTelemetry;
use crate::value::{OneOrMany, Size, Span, Ttl, Words};

/// A configuration of Berth.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "berth.toml")]
pub(crate) struct RawConfig {
    pub(crate) bus: RawBus,
    pub(crate) gateway: RawGateway,
    pub(crate) host: RawHost,
    pub(crate) scheduler: RawScheduler,
    pub(crate) health: RawHealth,
    pub(crate) telemetry: RawTelemetry,
    pub(crate) models: Vec<RawModel>,
    pub(crate) external: Vec<RawExternal>,
}

/// Where NATS is, and how to be let in. Every command but `berth up` without `--nats-url` connects here.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawBus {
    /// NATS servers of the fleet, tried in turn. In the variable they are separated by commas.
    #[schemars(extend("default" = BusConfig::default().urls, "x-env" = "BERTH_NATS_URL"))]
    pub(crate) urls: Option<Spanned<OneOrMany>>,
    /// First words of every NATS subject: fleets that share a server each need their own.
    #[schemars(extend("default" = BusConfig::default().root))]
    pub(crate) root: Option<Spanned<String>>,
    /// Token to be let in by. Better in the environment or in a file.
    #[schemars(extend("x-env" = "BERTH_NATS_TOKEN"))]
    pub(crate) token: Option<Secret>,
    /// File that holds the token alone; it is read where `token` is not given.
    pub(crate) token_file: Option<Spanned<PathBuf>>,
    /// NATS credentials file (`.creds`).
    #[schemars(extend("x-env" = "BERTH_NATS_CREDENTIALS"))]
    pub(crate) credentials: Option<PathBuf>,
    /// Seed of an nkey. Better in the environment or in a file.
    #[schemars(extend("x-env" = "BERTH_NATS_NKEY"))]
    pub(crate) nkey: Option<Secret>,
    /// File that holds the nkey's seed alone (`berth nats init` makes them); it is read where `nkey` is not given.
    #[schemars(extend("x-env" = "BERTH_NATS_NKEY_FILE"))]
    pub(crate) nkey_file: Option<Spanned<PathBuf>>,
    /// On how many servers of a NATS cluster each stream and bucket is kept: 3 for a cluster of three. The scheduler
    /// applies it at its start.
    #[schemars(range(min = *REPLICAS.start(), max = *REPLICAS.end()))]
    #[schemars(extend("default" = BusConfig::default().replicas, "x-env" = "BERTH_NATS_REPLICAS"))]
    pub(crate) replicas: Option<Spanned<u32>>,
    /// Certificate (PEM) of the authority that the server's is checked against; with it nothing is said without TLS.
    #[schemars(extend("x-env" = "BERTH_NATS_CA"))]
    pub(crate) ca: Option<Spanned<PathBuf>>,
}

/// The HTTP endpoint.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawGateway {
    /// Where it listens: an address or several. `"0.0.0.0:8421"` is every interface; elsewhere than on loopback it starts
    /// only if there is an API key.
    #[schemars(extend("default" = GatewayConfig::default().listen, "x-env" = "BERTH_LISTEN"))]
    pub(crate) listen: Option<Spanned<OneOrMany>>,
    /// For a gateway in a container: where its port is published on the host, which then decides whether a key is needed.
    #[schemars(extend("x-env" = "BERTH_PUBLISHED"))]
    pub(crate) published: Option<Spanned<String>>,
    /// Names by which a gateway that asks for no key may be reached, besides its own; a request by another is refused (403
    /// `host_not_known`), since it may come from a web page.
    pub(crate) hosts: Words,
    /// HTTP threads.
    #[schemars(range(min = 1), extend("x-default" = "one per core"))]
    pub(crate) workers: Option<Spanned<usize>>,
    /// The largest request body taken.
    #[schemars(extend("default" = schema::size(GatewayConfig::default().body_limit), "x-least" = "1KiB", "x-most" = "1TiB"))]
    pub(crate) body_limit: Option<Spanned<Size>>,
    /// A client that sends nothing of a body that it has begun for so long gets 408.
    #[schemars(extend("default" = schema::span(GatewayConfig::default().body_timeout), "x-least" = "1s"))]
    pub(crate) body_timeout: Option<Spanned<Span>>,
    /// Bodies up to this size travel inside a NATS message, larger ones through the object store.
    #[schemars(extend("default" = schema::size(GatewayConfig::default().inline_limit), "x-most" = schema::size(INLINE)))]
    pub(crate) inline_limit: Option<Spanned<Size>>,
    /// Output that an engine may be ahead of its client.
    #[schemars(extend("default" = schema::size(GatewayConfig::default().window), "x-least" = "4KiB"))]
    pub(crate) window: Option<Spanned<Size>>,
    /// A streaming client gets a real HTTP status if its answer begins within this time; after it, 200 and heartbeats.
    #[schemars(extend("default" = schema::span(GatewayConfig::default().grace)))]
    pub(crate) grace: Option<Span>,
    /// How often a streaming client that waits hears of it.
    #[schemars(extend("default" = schema::span(GatewayConfig::default().heartbeat), "x-least" = "100ms"))]
    pub(crate) heartbeat: Option<Spanned<Span>>,
    /// How long a plain request waits for its answer to begin.
    #[schemars(extend("default" = schema::span(GatewayConfig::default().wait_limit)))]
    pub(crate) wait_limit: Option<Span>,
    /// How long a stream waits for its answer to begin.
    #[schemars(extend("default" = schema::span(GatewayConfig::default().stream_wait_limit)))]
    pub(crate) stream_wait_limit: Option<Span>,
    /// A plain request whose wait is over keeps its place for so long, if its client says that it will ask again.
    #[schemars(extend("default" = schema::span(GatewayConfig::default().retry_grace)))]
    pub(crate) retry_grace: Option<Span>,
    /// How long requests that run may take to end when the gateway is told to end; then they are cut off. Whoever stops it (Docker,
    /// systemd) must wait for longer.
    #[schemars(extend("default" = schema::span(GatewayConfig::default().finish)))]
    pub(crate) finish: Option<Span>,
    /// Lets everybody in without a key, wherever it listens.
    #[schemars(extend("default" = GatewayConfig::default().open))]
    pub(crate) open: Option<Spanned<bool>>,
    pub(crate) keys: Vec<RawKey>,
    /// Where it serves `/metrics`, `/livez` and `/readyz` besides, without a key.
    #[schemars(extend("x-default" = "nowhere", "x-env" = "BERTH_METRICS_LISTEN"))]
    pub(crate) metrics_listen: Option<Spanned<String>>,
}

/// API keys, by their hashes ([keys.md](keys.md)). As soon as there is one, here or by `berth key create`, every request
/// needs one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawKey {
    /// Its name in logs, metrics and tables: 1 to 64 letters, digits, `-`, `_` and `.`.
    pub(crate) name: Spanned<String>,
    /// `blake3:` and 64 hexadecimal digits, as `berth key create NAME --toml` or `berth key hash` print it.
    pub(crate) hash: Spanned<String>,
    /// `"user"` asks models and sees its own leases; `"admin"` may do everything.
    #[schemars(default, schema_with = "schema::scope", extend("default" = Scope::default().as_str()))]
    pub(crate) scope: Option<Spanned<Scope>>,
    /// How much its requests' waiting counts.
    #[schemars(default, schema_with = "schema::class", extend("default" = Class::default().as_str()))]
    pub(crate) class: Option<Spanned<Class>>,
    /// Requests at a time, for each gateway.
    #[schemars(range(min = 1), extend("x-default" = "no limit"))]
    pub(crate) concurrency: Option<Spanned<u32>>,
    /// Requests within a minute, for each gateway.
    #[schemars(range(min = 1), extend("x-default" = "no limit"))]
    pub(crate) requests_per_minute: Option<Spanned<u32>>,
    /// Tokens of prompts and answers within a minute, for each gateway.
    #[schemars(range(min = 1), extend("x-default" = "no limit"))]
    pub(crate) tokens_per_minute: Option<Spanned<u32>>,
    /// The models that it may name.
    #[schemars(extend("x-default" = "all"))]
    pub(crate) models: Option<Spanned<Words>>,
    /// From when on it opens nothing, as in `2027-01-31` or `2027-01-31T18:00:00Z`.
    #[schemars(default, schema_with = "schema::day", extend("x-default" = "never"))]
    pub(crate) expires: Option<Spanned<Datetime>>,
}

/// This machine: what its agent may give to engines.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawHost {
    /// Its name in the fleet: letters, digits, `-` and `_`.
    #[schemars(extend("x-default" = "its hostname", "x-env" = "BERTH_HOST"))]
    pub(crate) name: Option<Spanned<String>>,
    /// Words that models may ask for by their `labels`.
    pub(crate) labels: Words,
    /// Memory for engines. On a machine without GPUs: how much RAM they may take in all; on one with GPUs: how much of each.
    #[schemars(extend("x-default" = "80% of RAM; all of each GPU", "x-least" = "1B", "x-most" = schema::size(MOST_MEMORY)))]
    pub(crate) memory: Option<Spanned<Size>>,
    /// What may run engines; of these, those that work here are used.
    #[schemars(schema_with = "schema::drivers")]
    #[schemars(extend("default" = HostConfig::default().drivers.iter().map(|driver| driver.as_str()).collect::<Vec<_>>()))]
    pub(crate) drivers: Option<Spanned<Vec<Driver>>>,
    /// The Docker engine: `unix:///...` or `tcp://host:2375`.
    #[schemars(extend("x-default" = "`$DOCKER_HOST`, else the usual socket"))]
    pub(crate) docker_host: Option<Spanned<String>>,
    /// For an agent that runs in a container itself: the Docker network that it shares with its engines.
    #[schemars(extend("x-default" = "one of the host's own", "x-env" = "BERTH_DOCKER_NETWORK"))]
    pub(crate) docker_network: Option<String>,
    pub(crate) registries: Vec<RawRegistry>,
    /// Where the agent keeps engine logs and its own state.
    #[schemars(extend("x-default" = "below the data directory"))]
    pub(crate) state_dir: Option<String>,
    /// RAM for engines that sleep instead of being stopped ([sleeping.md](sleeping.md)).
    #[schemars(extend("x-default" = "half of RAM with GPUs, else none", "x-most" = schema::size(MOST_MEMORY)))]
    pub(crate) sleep_memory: Option<Spanned<Size>>,
    /// More of it, for the moments in which one engine falls asleep so that another can wake.
    #[schemars(extend("default" = schema::size(HostConfig::default().sleep_spare), "x-most" = schema::size(MOST_MEMORY)))]
    pub(crate) sleep_spare: Option<Spanned<Size>>,
    /// How long an engine may take to stop before it is killed, unless its model says otherwise.
    #[schemars(extend("default" = schema::span(HostConfig::default().stop_grace)))]
    pub(crate) stop_grace: Option<Span>,
    /// When the agent is told to end, the containers that serve are left running for the next one, which is how an agent is
    /// upgraded. Processes end with their agent. The variable is `1` or `true`.
    #[schemars(extend("default" = HostConfig::default().keep_engines, "x-env" = "BERTH_KEEP_ENGINES"))]
    pub(crate) keep_engines: bool,
    /// How long jobs that run may take to end when the agent is told to end; then they are cut off. Whoever stops it (Docker,
    /// systemd) must wait for longer.
    #[schemars(extend("default" = schema::span(HostConfig::default().finish)))]
    pub(crate) finish: Option<Span>,
    /// Where the agent serves `/metrics`, `/livez` and `/readyz`, without a key.
    #[schemars(extend("x-default" = "nowhere"))]
    pub(crate) metrics_listen: Option<Spanned<String>>,
}

/// What lets this host into image registries, before what `docker login` of the agent's user has left. The password is in a
/// variable of the agent or in a file: one of the two is needed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRegistry {
    /// Its address as images name it, as in `"ghcr.io"`.
    pub(crate) address: Spanned<String>,
    /// The user. Registries that take a token alone take any name.
    pub(crate) user: Spanned<String>,
    /// Name of the variable that holds the password.
    pub(crate) password_env: Option<Spanned<String>>,
    /// File that holds the password alone.
    pub(crate) password_file: Option<PathBuf>,
}

/// Queueing and placement ([scheduling.md](scheduling.md)). `berth apply` changes these in a running fleet, but for
/// `host_timeout`, `record` and `metrics_listen`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawScheduler {
    /// An engine idle for so long is put to sleep, or stopped if it cannot sleep; `"never"`: only when another model needs the
    /// room.
    #[schemars(extend("default" = schema::ttl(SchedulerConfig::default().idle_ttl)))]
    pub(crate) idle_ttl: Option<Ttl>,
    /// An engine asleep for so long is stopped; `"never"`: only when its host's RAM is needed.
    #[schemars(extend("default" = schema::ttl(SchedulerConfig::default().asleep_ttl)))]
    pub(crate) asleep_ttl: Option<Ttl>,
    /// A model without an engine whose oldest request has waited for so long goes first, and may have busy engines drained
    /// for it.
    #[schemars(extend("default" = schema::span(SchedulerConfig::default().max_wait)))]
    pub(crate) max_wait: Option<Span>,
    /// A host that is silent for so long counts as lost.
    #[schemars(extend("default" = schema::span(SchedulerConfig::default().host_timeout), "x-least" = schema::span(HOST_TIMEOUT)))]
    pub(crate) host_timeout: Option<Spanned<Span>>,
    /// Requests that may be outstanding at once; more are refused with 429.
    #[schemars(range(min = 1), extend("default" = SchedulerConfig::default().queue_limit))]
    pub(crate) queue_limit: Option<Spanned<u64>>,
    /// Of these: requests for one model that may wait.
    #[schemars(range(min = 1), extend("default" = SchedulerConfig::default().model_queue_limit))]
    pub(crate) model_queue_limit: Option<Spanned<u64>>,
    /// Of these: requests of one API key.
    #[schemars(range(min = 1), extend("default" = SchedulerConfig::default().key_queue_limit))]
    pub(crate) key_queue_limit: Option<Spanned<u64>>,
    /// The longest lease that may be asked for.
    #[schemars(extend("default" = schema::span(SchedulerConfig::default().lease_ceiling)))]
    #[schemars(extend("x-least" = schema::span(*LEASE.start()), "x-most" = schema::span(*LEASE.end())))]
    pub(crate) lease_ceiling: Option<Spanned<Span>>,
    /// Leases that one session may hold at a time.
    #[schemars(range(min = 1), extend("default" = SchedulerConfig::default().leases_per_session))]
    pub(crate) leases_per_session: Option<Spanned<u64>>,
    /// Leases that one API key may hold at a time; callers without a key count as one.
    #[schemars(range(min = 1), extend("default" = SchedulerConfig::default().leases_per_key))]
    pub(crate) leases_per_key: Option<Spanned<u64>>,
    /// File for every event that the scheduler decides by, and what it decided, for `berth replay`. No prompt, answer or secret
    /// is in it. It ends at 1 GiB.
    #[schemars(extend("x-default" = "none"))]
    pub(crate) record: Option<Spanned<String>>,
    /// Where it serves `/metrics`, `/livez` and `/readyz`, without a key.
    #[schemars(extend("x-default" = "nowhere"))]
    pub(crate) metrics_listen: Option<Spanned<String>>,
}
