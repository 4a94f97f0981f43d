//! One role as a process of its own.

use std::net::SocketAddr;
use std::sync::Arc;

use berth_bus::BusOptions;
use berth_bus::permit::Identity;
use berth_config::{Config, env};
use berth_telemetry::Chain;
use tokio_util::sync::CancellationToken;

use crate::cli::RoleArgs;
use crate::exit::{Exit, Failure};
use crate::setup;
use crate::signals::Signals;

/// A service of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// HTTP in, bus out.
    Gateway,
    /// Decides what runs where.
    Scheduler,
    /// Runs this machine's engines.
    Agent,
    /// Watches the fleet.
    Health,
}

impl Role {
    /// The name of its command.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Scheduler => "scheduler",
            Self::Agent => "agent",
            Self::Health => "health",
        }
    }

    /// Runs it on this thread's actix system until `shutdown`.
    pub(crate) async fn run(
        self,
        config: Arc<Config>,
        bus: BusOptions,
        shutdown: CancellationToken,
        started: impl FnOnce(Vec<SocketAddr>),
        metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    ) -> Result<(), Failure> {
        fn failed(role: Role) -> impl Fn(&dyn std::error::Error) -> Failure {
            move |error| Failure::Role { role: role.as_str(), why: Chain(error).to_string() }
        }
        let failed = failed(self);
        let bus = bus.with_identity(match self {
            Self::Gateway => Identity::Gateway,
            Self::Scheduler => Identity::Scheduler,
            Self::Agent => Identity::Agent(config.host.name.clone()),
            Self::Health => Identity::Health,
        });
        // Boxed: each future holds a whole service.
        match self {
            Self::Gateway => Box::pin(berth_gateway_adapter::run(config, bus, shutdown, started, metrics))
                .await
                .map_err(|error| failed(&error)),
            Self::Scheduler => {
                Box::pin(berth_scheduler::run(config, bus, shutdown)).await.map_err(|error| failed(&error))
            }
            Self::Agent => {
                Box::pin(berth_runner_agent::run(config, bus, shutdown)).await.map_err(|error| failed(&error))
            }
            Self::Health => {
                Box::pin(berth_health::run(config, bus, shutdown)).await.map_err(|error| failed(&error))
            }
        }
    }
}

/// Runs a role until a signal.
pub(crate) fn run(role: Role, args: &RoleArgs) -> Result<Exit, Failure> {
    let (mut config, _) = setup::config(args.config.as_deref(), &args.nats_url)?;
    match (role, args.listen) {
        (Role::Gateway, Some(address)) => config.gateway.listen = vec![address],
        (Role::Health, Some(address)) => config.health.listen = Some(address),
        (Role::Scheduler, Some(address)) => config.scheduler.metrics_listen = Some(address),
        (Role::Agent, Some(address)) => config.host.metrics_listen = Some(address),
        (_, None) => {}
    }
    if args.open && role != Role::Gateway {
        return Err(Failure::Option(format!(
            "--open is for a gateway; leave it out for `berth {}`",
            role.as_str()
        )));
    }
    if args.keep_engines && role != Role::Agent {
        return Err(Failure::Option(format!(
            "--keep-engines is for an agent; leave it out for `berth {}`",
            role.as_str()
        )));
    }
    config.host.keep_engines |= args.keep_engines;
    setup::open(&mut config, args.open)?;
    if config.host.state_dir.is_none() {
        config.host.state_dir = Some(args.data_dir.clone().unwrap_or_else(env::data_dir).join("agent"));
    }
    actix_rt::System::new().block_on(async {
        let signals = Signals::watch()?;
        let metrics = Some(setup::metrics()?);
        let bus = BusOptions::from_config(&config.bus);
        let published = config.gateway.published;
        let started = move |addresses: Vec<SocketAddr>| {
            for address in published.map_or(addresses, |address| vec![address]) {
                println!("the gateway takes requests on http://{address}/v1");
            }
        };
        let running = role.run(Arc::new(config), bus, signals.stop.clone(), started, metrics);
        tokio::select! {
            ended = running => ended.map(|()| Exit::Done),
            () = signals.hurry.cancelled() => Ok(Exit::Interrupted),
        }
    })
}
