//! The agent's own life: connect, clear up, serve, and leave in order.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use berth_actors::{Backoff, Supervised, Vital, Vitals};
use berth_bus::{Bodies, Bus, BusError, BusOptions, Registered, register};
use berth_config::Config;
use berth_probes::{Component, Listener, Probes};
use berth_telemetry::Chain;
use berth_telemetry::trace::{self, Exporting};
use berth_wire::Driver;
use futures::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::accelerators::Devices;
use crate::actor::{END, Worker};
use crate::asleep;
use crate::beat;
use crate::books::Books;
use crate::cgroup::Tree;
use crate::contexts;
use crate::detect::try_drivers;
use crate::docker::DockerDriver;
use crate::docker_spec::Owner;
use crate::engine::Stop;
use crate::error::AgentError;
use crate::estimate;
use crate::external::Externals;
use crate::heard;
use crate::host::{HostActor, supervise_host};
use crate::leftovers;
use crate::outbox::Outbox;
use crate::process::ProcessDriver;
use crate::record::Notes;
use crate::records::Records;
use crate::reporter;
use crate::shared::Shared;
use crate::watch;

/// Engines may take so long to stop.
const STOP: Duration = Duration::from_secs(14);
/// A leader may take so long to hear the goodbye.
const GOODBYE: Duration = Duration::from_secs(3);

/// Runs this host's agent on the current thread until `shutdown`, then drains: nothing new is taken, what runs may
/// finish, engines are stopped (or left for the next agent, where that is configured), the leader is told.
///
/// # Errors
/// When NATS cannot be reached or the state folder cannot be used. Everything later is tried again.
pub async fn run(
    config: Arc<Config>,
    options: BusOptions,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    let connected = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        bus = Bus::connect(&options, "berth-agent") => bus?,
    };
    let Some(stores) = open_stores(&connected, &shutdown).await else {
        connected.close().await;
        return Ok(());
    };
    let agent = Box::pin(Agent::start(config, connected, stores)).await?;
    info!(host = %agent.shared.host, boot = agent.shared.boot, "agent ready");
    shutdown.cancelled().await;
    agent.leave().await;
    Ok(())
}

/// The scheduler makes them when it first starts.
struct Stores {
    hosts: Store,
    engines: Store,
    bodies: Bodies,
}

async fn open_stores(bus: &Bus, shutdown: &CancellationToken) -> Option<Stores> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
    let mut told = false;
    loop {
        let opened: Result<Stores, BusError> = async {
            Ok(Stores {
                hosts: bus.bucket("hosts").await?,
                engines: bus.bucket("engines").await?,
                bodies: Bodies::open(bus).await?,
            })
        }
        .await;
        match opened {
            Ok(stores) => return Some(stores),
            Err(error) if !told => {
                info!(error = %Chain(&error), "waiting for a scheduler");
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// A folder of this host's for what is of one kind: its own for every fleet and host name.
pub(crate) fn state_folder(config: &Config, kind: &str) -> PathBuf {
    let base = config.host.state_dir.clone().unwrap_or_else(|| berth_config::env::data_dir().join("agent"));
    base.join(kind).join(&config.bus.root).join(config.host.name.as_str())
}

/// Where engines that are processes get cgroups.
fn cgroups(config: &Config, folder: &Path) -> Option<Tree> {
    if !config.host.drivers.contains(&Driver::Process) {
        return None;
    }
    match Tree::find(folder) {
        Ok(tree) => {
            let limits = tree.controllers().join(", ");
            info!(folder = %tree.folder().display(), limits, "engines that are processes get cgroups of their own");
            Some(tree)
        }
        Err(why) => {
            info!(why, "engines that are processes run without limits and cgroups of their own");
            None
        }
    }
}

struct Agent {
    shared: Rc<Shared>,
    hosts: Store,
    host: Supervised<HostActor>,
    beat: Supervised<Worker>,
    reporter: Supervised<Worker>,
    gateways: Supervised<Worker>,
    records: Supervised<Worker>,
    estimates: Supervised<Worker>,
    external: Option<Supervised<Worker>>,
    docker: Supervised<Worker>,
    probes: Option<Listener>,
    traces: Option<Exporting>,
    _registered: Option<Registered>,
}

impl Agent {
    async fn start(config: Arc<Config>, bus: Bus, stores: Stores) -> Result<Self, AgentError> {
        let folder = state_folder(&config, "engines");
        let notes = Notes::open(folder.clone())
            .map_err(|source| AgentError::StateDir { path: folder.clone(), source })?;
        contexts::clear(&config);
        // Before anything starts: their memory must be free.
        let tree = cgroups(&config, &folder);
        let killed = notes.kill_leftovers().await;
        let killed = killed + if let Some(tree) = &tree { tree.clear().await } else { 0 };
        let devices = Arc::new(Devices::find(&config));
        let (found, docker) = try_drivers(&config, &devices).await;
        for (driver, why) in &found.missing {
            info!(driver = driver.as_str(), why, "this driver does not work here yet; it is tried again");
        }
        let owner = Owner { root: bus.subjects.root().into(), host: config.host.name.clone() };
        let docker = match docker {
            Some(docker) => Some(DockerDriver::new(docker, owner, &config.host).await),
            None => None,
        };
        let http = reqwest::Client::builder()
            .no_proxy()
            .http1_only()
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            // Below the 5 s after which uvicorn and llama.cpp close idle connections, so that none is closed
            // under a request.
            .pool_idle_timeout(Duration::from_secs(3))
            .build()
            .map_err(AgentError::Http)?;
        let external = Externals::new(&config, &http, devices.known());
        let hidden = config.host.registries.iter().filter_map(|entry| entry.password_env.clone()).collect();
        let (tracer, traces) = trace::start(&config.telemetry, "agent", config.host.name.as_str())?;
        let shared = Rc::new(Shared {
            tracer,
            host: config.host.name.clone(),
            boot: uuid::Uuid::now_v7().simple().to_string(),
            measured: RefCell::new(devices.known().to_vec()),
            sleep_memory: asleep::budget(&config, &devices),
            config,
            bus,
            bodies: stores.bodies,
            http,
            devices,
            drivers: RefCell::new(found.drivers),
            docker: docker.map_or_else(OnceCell::new, OnceCell::from),
            process: ProcessDriver::new(notes, tree, hidden),
            external,
            vitals: Vitals::default(),
            books: RefCell::new(Books::default()),
            outbox: RefCell::new(Outbox::default()),
            outbox_changed: Notify::new(),
            records: Records::new(stores.engines),
            draining: Cell::new(false),
            estimates: RefCell::default(),
            log_readers: Rc::new(()),
            beat_now: Notify::new(),
            listening: tokio::sync::watch::Sender::new(false),
        });
        beat::measure(&shared).await;
        leftovers::clear(&shared, killed).await;
        estimate::first(&shared).await;
        shared.want_snapshot();
        let probes = {
            let bus = shared.bus.clone();
            let part =
                move || vec![Component::new("bus", bus.is_connected(), "connected", "not connected to NATS")];
            let address = shared.config.host.metrics_listen;
            Probes::new("agent", shared.vitals.clone(), part).listen(address, "[host] metrics_listen")?
        };
        Ok(Self { probes, traces: Some(traces), ..Self::supervise(shared, stores.hosts).await })
    }

    async fn supervise(shared: Rc<Shared>, hosts: Store) -> Self {
        let host = supervise_host(&shared);
        // Whoever reads the first beat or snapshot may command at once.
        let _ = shared.listening.subscribe().wait_for(|listening| *listening).await;
        let vitals = shared.vitals.clone();
        let beat = beat::supervise(&vitals, &shared, hosts.clone());
        let reporter = reporter::supervise(&vitals, &shared);
        let gateways = heard::supervise(&vitals, &shared);
        let (work, observe) = (Rc::clone(&shared), Rc::clone(&shared));
        let records = Worker::supervise(
            &vitals,
            "agent.records",
            Rc::new(move || {
                let shared = Rc::clone(&work);
                async move { shared.records.run().await }.boxed_local()
            }),
            Rc::new(move || observe.records.observe()),
        );
        let estimates = estimate::supervise(&vitals, &shared);
        let external = (!shared.external.is_empty()).then(|| {
            let (work, observe) = (Rc::clone(&shared), Rc::clone(&shared));
            Worker::supervise(
                &vitals,
                "agent.external",
                Rc::new(move || {
                    let shared = Rc::clone(&work);
                    async move { shared.external.watch(&shared).await }.boxed_local()
                }),
                Rc::new(move || observe.external.observe()),
            )
        });
        let docker = watch::supervise(&vitals, &shared);
        let registered = register_service(&shared).await;
        Self {
            shared,
            hosts,
            host,
            beat,
            reporter,
            gateways,
            records,
            estimates,
            external,
            docker,
            probes: None,
            traces: None,
            _registered: registered,
        }
    }

    async fn leave(self) {
        let shared = &self.shared;
        info!("agent leaves: finishing what runs, then stopping its engines");
        shared.draining.set(true);
        // The leader hears of it by this; the heartbeat is for those who look.
        shared.want_snapshot();
        shared.beat_now.notify_one();
        let idle = wait_until(shared.config.host.finish, || shared.books.borrow().count_running() == 0).await;
        if !idle {
            let running = shared.books.borrow().count_running();
            warn!(running, "jobs did not end in time; cutting them off");
        }
        let engines: Vec<_> = shared.books.borrow().engines.values().cloned().collect();
        let (kept, stopped): (Vec<_>, Vec<_>) =
            engines.into_iter().partition(|engine| shared.config.host.keep_engines && engine.cell.may_stay());
        for engine in &kept {
            info!(engine = %engine.cell.id(), "left running for the next agent of this host");
            // What still runs on it fails now, and its clients are told.
            engine.cell.gone.cancel();
        }
        for engine in stopped {
            match engine.actor.addr() {
                Ok(addr) => addr.do_send(Stop),
                Err(_) => engine.cell.stop.cancel(),
            }
        }
        let ended = || {
            let books = shared.books.borrow();
            books.count_running() == 0 && books.engines.len() <= kept.len()
        };
        if !wait_until(STOP, ended).await {
            warn!("engines did not stop in time; the next run of this host removes them");
        }
        if let Some(external) = &self.external {
            self.stop(external).await;
        }
        if kept.is_empty() {
            if let Some(docker) = shared.docker.get() {
                docker.leave().await;
            }
            shared.tell_goodbye();
        }
        if tokio::time::timeout(GOODBYE, reporter::flushed(shared)).await.is_err() {
            info!("no leader heard the goodbye");
        }
        let farewell = async {
            shared.records.flushed().await;
            self.stop(&self.beat).await;
            if !kept.is_empty() {
                // The last beat says that this host takes nothing. It counts as lost only if no agent comes in time.
                return;
            }
            if let Err(error) = self.hosts.delete(shared.host.as_str()).await {
                info!(error = %Chain(&error), "could not remove the heartbeat; it expires");
            }
        };
        let _ = tokio::time::timeout(END, farewell).await;
        tokio::join!(
            self.stop(&self.host),
            self.stop(&self.reporter),
            self.stop(&self.gateways),
            self.stop(&self.estimates),
            self.stop(&self.records),
            self.stop(&self.docker)
        );
        if let Some(probes) = self.probes {
            probes.stop().await;
        }
        if let Some(traces) = self.traces {
            traces.stop().await;
        }
        let _ = tokio::time::timeout(END, shared.bus.close()).await;
        info!("agent ended");
    }

    async fn stop<A: Vital>(&self, actor: &Supervised<A>) {
        actor.drain(END).await;
    }
}

/// Bytes that are free where the agent keeps its state.
fn disk_free(folder: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(folder).ok()?;
    Some(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// Waits for a state, and says whether it came in time.
async fn wait_until(limit: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let wait = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(limit, wait).await.is_ok()
}

async fn register_service(shared: &Shared) -> Option<Registered> {
    let (host, boot) = (shared.host.to_string(), shared.boot.clone());
    let vitals = shared.vitals.clone();
    let metadata = HashMap::from([("host".to_owned(), host.clone()), ("boot".to_owned(), boot.clone())]);
    let subject = format!("{}.status.agent.{host}", shared.bus.subjects.root());
    let folder = state_folder(&shared.config, "engines");
    let status = move || {
        serde_json::json!({
            "service": "agent",
            "host": host,
            "boot": boot,
            "actors": vitals.signs(),
            "disk_free": disk_free(&folder),
        })
    };
    let registered =
        register(&shared.bus, "berth-agent", "runs this host's engines", subject, metadata, status).await;
    registered.inspect_err(|error| warn!(error = %Chain(error), "not in `nats micro ls`")).ok()
}
