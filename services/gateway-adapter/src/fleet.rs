//! What all workers of a gateway know together: the catalog, and the fleet as KV tells of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_nats::connection::State;
use berth_actors::{Supervised, Vitals};
use berth_bus::permit::Denial;
use berth_bus::{Bus, View};
use berth_config::{Config, GatewayConfig};
use berth_telemetry::trace::Tracer;
use berth_wire::{EngineRecord, EngineState, HostBeat, LeaderRecord, ModelSpec};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::RenderMetrics;
use crate::catalog::Catalog;
use crate::client::now;
use crate::demux::{Demux, DismissWaiting};
use crate::keys::Keys;
use crate::knocks::Knocks;
use crate::lanes::Lanes;
use crate::later::Later;
use crate::ledger::Ledger;
use crate::shelf::Shelf;
use crate::troubles::Troubles;

/// Shared by all threads of a gateway.
pub(crate) struct Fleet {
    config: Arc<Config>,
    /// This gateway's name on the bus; its workers add their number.
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) started: u64,
    pub(crate) vitals: Vitals,
    pub(crate) metrics: Option<RenderMetrics>,
    pub(crate) tracer: Tracer,
    /// Workers made so far.
    pub(crate) workers: AtomicUsize,
    /// Jobs whose client still waits or reads.
    pub(crate) running: AtomicUsize,
    /// One of the workers looks after the jobs of gateways that are gone.
    pub(crate) adopts: AtomicBool,
    /// Nothing new is taken.
    pub(crate) draining: AtomicBool,
    pub(crate) keys: Arc<Keys>,
    pub(crate) knocks: Knocks,
    /// Jobs whose client was told to come again.
    pub(crate) shelf: Shelf,
    /// What is done once for its key.
    pub(crate) ledger: Ledger,
    /// Jobs that their clients come back for.
    pub(crate) later: Later,
    bus: Bus,
    catalog: ArcSwap<Catalog>,
    models: View<ModelSpec>,
    pub(crate) hosts: View<HostBeat>,
    pub(crate) engines: View<EngineRecord>,
    pub(crate) leader: View<LeaderRecord>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) troubles: Troubles,
    staff: Mutex<Vec<(Supervised<Demux>, Bus)>>,
}

/// Counts among what runs until it is dropped.
pub(crate) struct Counted(Arc<Fleet>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One component's part in being ready.
#[derive(Debug, Serialize)]
pub(crate) struct Component {
    pub(crate) name: &'static str,
    pub(crate) ready: bool,
    pub(crate) detail: String,
}

impl Fleet {
    /// Follows the fleet on `bus` until `end`.
    pub(crate) fn follow(
        config: Arc<Config>,
        bus: &Bus,
        id: String,
        metrics: Option<RenderMetrics>,
        tracer: Tracer,
        end: CancellationToken,
    ) -> Arc<Self> {
        let keys = Keys::follow(&config.gateway, bus, end.clone());
        let shelf = Shelf::new(config.gateway.retry_grace);
        let fleet = Arc::new(Self {
            config,
            shelf,
            ledger: Ledger::default(),
            later: Later::default(),
            id,
            started: now().0 / 1000,
            vitals: Vitals::default(),
            metrics,
            tracer,
            workers: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            adopts: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            keys,
            knocks: Knocks::default(),
            bus: bus.clone(),
            catalog: ArcSwap::default(),
            models: View::follow(bus, "catalog"),
            hosts: View::follow(bus, "hosts"),
            engines: View::follow(bus, "engines"),
            leader: View::follow(bus, "leader"),
            lanes: Arc::default(),
            troubles: Troubles::default(),
            staff: Mutex::new(Vec::new()),
        });
        let (lanes, mut engines, ended) = (Arc::clone(&fleet.lanes), fleet.engines.clone(), end.clone());
        actix_rt::spawn(async move {
            while let Some(Some(records)) = ended.run_until_cancelled(engines.changed()).await {
                lanes.update(&records);
            }
        });
        let (keeper, mut models) = (Arc::clone(&fleet), fleet.models.clone());
        actix_rt::spawn(async move {
            loop {
                tokio::select! {
                    () = end.cancelled() => return,
                    changed = models.changed() => match changed {
                        Some(entries) => keeper.catalog.store(Arc::new(Catalog::new(&entries))),
                        None => return,
                    },
                }
            }
        });
        fleet
    }

    pub(crate) fn config(&self) -> &GatewayConfig {
        &self.config.gateway
    }

    /// The longest lease, as far as this gateway's configuration says.
    pub(crate) fn lease_ceiling(&self) -> Duration {
        self.config.scheduler.lease_ceiling
    }

    pub(crate) fn catalog(&self) -> Arc<Catalog> {
        self.catalog.load_full()
    }

    pub(crate) fn catalog_known(&self) -> bool {
        self.models.is_synced()
    }

    pub(crate) fn hired(&self, demux: Supervised<Demux>, bus: Bus) {
        self.staff.lock().unwrap_or_else(PoisonError::into_inner).push((demux, bus));
    }

    /// Workers that take requests.
    pub(crate) fn workers_ready(&self) -> usize {
        self.staff.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn staff(&self) -> Vec<(Supervised<Demux>, Bus)> {
        self.staff.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something that the gateway must not end before.
    pub(crate) fn count(self: &Arc<Self>) -> Counted {
        self.running.fetch_add(1, Ordering::AcqRel);
        Counted(Arc::clone(self))
    }

    /// Ends the jobs that no engine has begun to serve.
    pub(crate) async fn dismiss_waiting(&self) {
        let staff = self.staff();
        futures::future::join_all(staff.iter().map(|(demux, _)| demux.send(DismissWaiting))).await;
    }

    /// Ends every demux and, with it, the jobs that are left.
    pub(crate) async fn drain(&self, limit: Duration) {
        let staff = self.staff();
        futures::future::join_all(staff.iter().map(|(demux, _)| demux.drain(limit))).await;
    }

    /// Closes the workers' connections, after the last answer.
    pub(crate) async fn close(&self) {
        let staff = self.staff();
        futures::future::join_all(staff.iter().map(|(_, bus)| bus.close())).await;
    }

    /// What a request needs, part by part.
    pub(crate) fn readiness(&self) -> Vec<Component> {
        let connected = self.bus.client.connection_state() == State::Connected;
        let staff = self.staff.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = staff.iter().filter(|(_, bus)| bus.client.connection_state() != State::Connected).count();
        let denied = staff.iter().flat_map(|(_, bus)| bus.denied()).chain(self.bus.denied()).next();
        drop(staff);
        let models = self.catalog.load().models().len();
        let leader = self.leader.entries().values().next().map(|record| record.instance.clone());
        let hosts = self.hosts.entries().values().filter(|beat| !beat.draining).count();
        let part = |name, ready, yes: String, no: &str| Component {
            name,
            ready,
            detail: if ready { yes } else { no.to_owned() },
        };
        vec![
            match denied {
                None => part("bus", connected && cut == 0, "connected".into(), "not connected to NATS"),
                Some(Denial { action, subject }) => {
                    let detail = format!("the NATS server does not let us {action} `{subject}`");
                    Component { name: "bus", ready: false, detail }
                }
            },
            part("catalog", self.catalog_known(), format!("{models} models"), "not read yet"),
            part("keys", self.keys.known(), "known".into(), "not read yet"),
            part("scheduler", leader.is_some(), leader.unwrap_or_default(), "no scheduler leads"),
            part("hosts", hosts > 0, format!("{hosts} hosts"), "no host takes jobs"),
        ]
    }

    /// What an engine of the model says of its own start, if it says anything.
    pub(crate) fn loading_detail(&self, model: &str) -> Option<String> {
        let engines = self.engines.entries();
        let starts = |engine: &&Arc<EngineRecord>| {
            engine.model.as_str() == model
                && matches!(engine.state, EngineState::Starting | EngineState::Waking)
        };
        engines.values().filter(starts).find_map(|engine| engine.detail.clone())
    }

    /// The state of a model's best engine, for people.
    pub(crate) fn state_of(&self, model: &ModelSpec) -> &'static str {
        let rank = |state: EngineState| match state {
            EngineState::Ready => 6,
            EngineState::Waking => 5,
            EngineState::Starting => 4,
            EngineState::Sleeping => 3,
            EngineState::Stopping => 2,
            EngineState::Failed => 1,
            EngineState::Stopped => 0,
        };
        self.engines
            .entries()
            .values()
            .filter(|engine| engine.model == model.id)
            .map(|engine| engine.state)
            .max_by_key(|state| rank(*state))
            .map_or("stopped", EngineState::as_str)
    }
}
