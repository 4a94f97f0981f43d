//! What the services are given: complete, checked, with every default filled in.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use berth_wire::{Driver, HostId, KeyRecord, ModelSpec};

use crate::env;
use crate::external::ExternalConfig;
use crate::health::HealthConfig;
use crate::problem::Problem;
use crate::registry::RegistryConfig;
use crate::secret::Secret;
use crate::telemetry::TelemetryConfig;

/// One mebibyte.
pub(crate) const MIB: u64 = 1024 * 1024;

/// Everything that a configuration file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Where NATS is and how to be let in.
    pub bus: BusConfig,
    /// The HTTP endpoint.
    pub gateway: GatewayConfig,
    /// This machine.
    pub host: HostConfig,
    /// Queueing and placement.
    pub scheduler: SchedulerConfig,
    /// The watcher of the fleet.
    pub health: HealthConfig,
    /// Traces.
    pub telemetry: TelemetryConfig,
    /// The catalog, in the order of the file.
    pub models: Vec<ModelSpec>,
    /// Servers that somebody else runs, whose models this machine's agent finds.
    pub external: Vec<ExternalConfig>,
    /// What is right and should be known all the same, at its line.
    pub notes: Vec<Problem>,
}

/// `[bus]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusConfig {
    /// NATS servers, tried in turn.
    pub urls: Vec<String>,
    /// First tokens of every subject; fleets with different roots share a server without meeting.
    pub root: String,
    /// Token to be let in by.
    pub token: Option<Secret>,
    /// A NATS credentials file (`.creds`).
    pub credentials: Option<PathBuf>,
    /// An nkey seed (`SU...`).
    pub nkey: Option<Secret>,
    /// On how many servers of a cluster each stream and bucket is kept.
    pub replicas: u32,
    /// Certificate of the authority that the server is checked against; with it a connection without TLS is refused.
    pub ca: Option<PathBuf>,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            urls: vec!["nats://127.0.0.1:4222".into()],
            root: "berth.v1".into(),
            token: None,
            credentials: None,
            nkey: None,
            replicas: 1,
            ca: None,
        }
    }
}

/// `[gateway]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// Addresses to serve HTTP on.
    pub listen: Vec<SocketAddr>,
    /// Where it is reached instead, if it listens in a container whose port is published there.
    pub published: Option<SocketAddr>,
    /// Names by which it may be called while it asks for no key, beside addresses and those of this machine.
    pub hosts: Vec<String>,
    /// HTTP worker threads; `None`: one per core.
    pub workers: Option<usize>,
    /// Largest request body taken, in bytes.
    pub body_limit: u64,
    /// How long a client may send nothing of a body that it has begun to send.
    pub body_timeout: Duration,
    /// Bodies larger than this travel through the object store (claim check).
    pub inline_limit: u64,
    /// Bytes of output granted to a job ahead of its client.
    pub window: u64,
    /// How long a streaming client's status line is held back for a real status.
    pub grace: Duration,
    /// Interval of heartbeats to a streaming client that waits.
    pub heartbeat: Duration,
    /// Longest wait of a client that does not stream.
    pub wait_limit: Duration,
    /// Longest wait of a streaming client for its first token.
    pub stream_wait_limit: Duration,
    /// How long a job is kept for the retry of a client that was told to come again.
    pub retry_grace: Duration,
    /// How long answers that are being given may go on once the gateway is told to stop.
    pub finish: Duration,
    /// Nobody is asked for an API key, wherever it listens.
    pub open: bool,
    /// API keys, by their hashes; more may be in the bucket `berth_keys`.
    pub keys: Vec<KeyRecord>,
    /// Address to serve metrics, `/livez` and `/readyz` on, beside the endpoint and without a key; `None`: not served.
    pub metrics_listen: Option<SocketAddr>,
}

impl GatewayConfig {
    /// The first address that other machines can reach.
    #[must_use]
    pub fn exposed(&self) -> Option<SocketAddr> {
        let reached = self.published.as_ref().map_or(self.listen.as_slice(), std::slice::from_ref);
        reached.iter().copied().find(|address| !is_loopback(*address))
    }
}

/// Whether only this machine can reach it.
#[must_use]
pub fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 8421))],
            published: None,
            hosts: Vec::new(),
            workers: None,
            body_limit: 32 * MIB,
            body_timeout: Duration::from_secs(30),
            inline_limit: 256 * 1024,
            window: 256 * 1024,
            grace: Duration::from_secs(10),
            heartbeat: Duration::from_secs(10),
            wait_limit: Duration::from_secs(240),
            stream_wait_limit: Duration::from_secs(15 * 60),
            retry_grace: Duration::from_secs(21),
            finish: Duration::from_secs(30),
            open: false,
            keys: Vec::new(),
            metrics_listen: None,
        }
    }
}

/// `[host]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostConfig {
    /// This machine's name in the fleet.
    pub name: HostId,
    /// Labels that models may ask for, as in `gpu=a100`.
    pub labels: Vec<String>,
    /// Budget of the RAM pseudo-device (`None`: 80% of RAM); on a machine with GPUs a cap on each (`None`: all of it).
    pub memory: Option<u64>,
    /// Drivers that may be used here; those that work are.
    pub drivers: Vec<Driver>,
    /// The Docker engine, as `unix:///run/docker.sock` or `tcp://host:2375`; `None`: `$DOCKER_HOST`, else the usual socket.
    pub docker_host: Option<String>,
    /// Docker network to put engines on, for an agent that is itself a container on it.
    pub docker_network: Option<String>,
    /// What lets into image registries, before what `docker login` has left.
    pub registries: Vec<RegistryConfig>,
    /// Where the agent keeps engine logs and its own state; `None`: a folder in the data directory.
    pub state_dir: Option<PathBuf>,
    /// How long an engine may take to stop before it is killed, unless its model says otherwise.
    pub stop_grace: Duration,
    /// Containers that serve are left running when the agent ends, for the next one.
    pub keep_engines: bool,
    /// How long jobs that run may go on once the agent is told to stop.
    pub finish: Duration,
    /// RAM for engines that sleep; `None`: half of it on a machine with GPUs, none elsewhere.
    pub sleep_memory: Option<u64>,
    /// More of it, for the moments in which one engine falls asleep so that another can wake.
    pub sleep_spare: u64,
    /// Address to serve metrics, `/livez` and `/readyz` on; `None`: not served.
    pub metrics_listen: Option<SocketAddr>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            name: env::host_name(),
            labels: Vec::new(),
            memory: None,
            drivers: vec![Driver::Docker, Driver::Process],
            docker_host: None,
            docker_network: None,
            registries: Vec::new(),
            state_dir: None,
            stop_grace: Duration::from_secs(10),
            keep_engines: false,
            finish: Duration::from_secs(20),
            sleep_memory: None,
            sleep_spare: 0,
            metrics_listen: None,
        }
    }
}

/// `[scheduler]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Put engines idle for so long to sleep, or stop those that cannot, for models that do not say; `None`: only when
    /// the room is needed.
    pub idle_ttl: Option<Duration>,
    /// Stop engines that have been asleep for so long, for models that do not say; `None`: only when RAM is needed.
    pub asleep_ttl: Option<Duration>,
    /// A model without an engine whose oldest job has waited for so long goes first, and may have busy engines
    /// drained for it.
    pub max_wait: Duration,
    /// A host silent for so long counts as lost.
    pub host_timeout: Duration,
    /// Jobs that may be outstanding in all.
    pub queue_limit: u64,
    /// Jobs of one model that may wait.
    pub model_queue_limit: u64,
    /// Jobs of one API key that may be outstanding.
    pub key_queue_limit: u64,
    /// Longest lease granted.
    pub lease_ceiling: Duration,
    /// Leases that one session may hold.
    pub leases_per_session: u64,
    /// Leases that one API key may hold.
    pub leases_per_key: u64,
    /// Where every event of the core is written, for `berth replay`; `None`: nowhere.
    pub record: Option<PathBuf>,
    /// Address to serve metrics, `/livez` and `/readyz` on; `None`: not served.
    pub metrics_listen: Option<SocketAddr>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            idle_ttl: None,
            asleep_ttl: None,
            max_wait: Duration::from_secs(300),
            host_timeout: Duration::from_secs(15),
            queue_limit: 100_000,
            model_queue_limit: 20_000,
            key_queue_limit: 20_000,
            lease_ceiling: Duration::from_secs(3600),
            leases_per_session: 8,
            leases_per_key: 256,
            record: None,
            metrics_listen: None,
        }
    }
}
