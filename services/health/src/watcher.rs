//! The actor that looks at the fleet every second and calls the roll every few.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use berth_actors::{Drain, Life, Vital};
use berth_bus::{Bus, View};
use berth_telemetry::metric;
use berth_wire::{EngineRecord, HostBeat, LeaderRecord};
use tracing::{info, warn};

use crate::picture::{Alert, Levels, Picture};
use crate::roll_call;

const LOOK: Duration = Duration::from_secs(1);
const ROLL_CALL: Duration = Duration::from_secs(5);

/// What health follows.
#[derive(Clone)]
pub(crate) struct Views {
    pub(crate) leader: View<LeaderRecord>,
    pub(crate) hosts: View<HostBeat>,
    pub(crate) engines: View<EngineRecord>,
}

impl Views {
    pub(crate) fn follow(bus: &Bus) -> Self {
        Self {
            leader: View::follow(bus, "leader"),
            hosts: View::follow(bus, "hosts"),
            engines: View::follow(bus, "engines"),
        }
    }

    fn levels(&self) -> Option<Levels> {
        let synced = self.leader.is_synced() && self.hosts.is_synced() && self.engines.is_synced();
        synced.then(|| Levels {
            leader: self.leader.entries(),
            hosts: self.hosts.entries(),
            engines: self.engines.entries(),
        })
    }
}

/// What the watcher last found, for those who ask.
pub(crate) type Report = Arc<RwLock<serde_json::Value>>;

pub(crate) struct Watcher {
    life: Life,
    bus: Bus,
    views: Views,
    picture: Picture,
    /// How often the bus has been connected.
    connects: u64,
    services: BTreeMap<String, Vec<String>>,
    report: Report,
    /// Gauges are set back when what they tell of is gone.
    accelerators: Vec<(String, String)>,
}

impl Watcher {
    pub(crate) fn new(life: Life, bus: Bus, views: Views, host_timeout: Duration, report: Report) -> Self {
        Self {
            life,
            connects: connects(&bus),
            bus,
            views,
            picture: Picture::new(host_timeout),
            services: BTreeMap::new(),
            report,
            accelerators: Vec::new(),
        }
    }

    fn look(&mut self) {
        // Nothing to judge before a scheduler has made the buckets: that itself is told as a missing leader.
        let levels = self.views.levels().unwrap_or_else(|| Levels {
            leader: Arc::default(),
            hosts: Arc::default(),
            engines: Arc::default(),
        });
        let now = Instant::now();
        let connects = connects(&self.bus);
        if std::mem::replace(&mut self.connects, connects) != connects {
            self.picture.bus_is_back(now);
        }
        for finding in self.picture.look(&levels, now) {
            match finding.alert() {
                Alert::Info => info!("{finding}"),
                Alert::Warning => warn!("{finding}"),
            }
        }
        self.gauges(&levels);
        let report = self.observe();
        if let Ok(mut last) = self.report.write() {
            *last = report;
        }
    }

    fn gauges(&mut self, levels: &Levels) {
        let mut reserved: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for engine in levels.engines.values().filter(|engine| !engine.state.is_gone()) {
            for part in &engine.reservations {
                *reserved.entry((engine.host.as_str(), part.accelerator.as_str())).or_default() += part.bytes;
            }
        }
        let mut seen = Vec::new();
        for beat in levels.hosts.values() {
            for accelerator in &beat.accelerators {
                let (host, id) = (beat.host.as_str(), accelerator.id.as_str());
                set(host, id, accelerator.memory, reserved.get(&(host, id)).copied().unwrap_or(0));
                seen.push((host.to_owned(), id.to_owned()));
            }
        }
        for (host, id) in self.accelerators.iter().filter(|known| !seen.contains(known)) {
            set(host, id, 0, 0);
        }
        self.accelerators = seen;
    }
}

fn connects(bus: &Bus) -> u64 {
    bus.client.statistics().connects.load(Ordering::Relaxed)
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory are far below the limit of exactness")]
fn set(host: &str, accelerator: &str, memory: u64, reserved: u64) {
    let labels = [("host", host.to_owned()), ("accelerator", accelerator.to_owned())];
    metrics::gauge!(metric::ACCELERATOR_MEMORY, &labels).set(memory as f64);
    metrics::gauge!(metric::ACCELERATOR_RESERVED, &labels).set(reserved as f64);
}

impl Actor for Watcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(LOOK, |actor, _| actor.look());
        ctx.run_interval(ROLL_CALL, |actor, ctx| {
            let bus = actor.bus.clone();
            let call = async move { roll_call::call(&bus).await };
            ctx.spawn(call.into_actor(actor).map(|services, actor, _| {
                if let Some(services) = services {
                    actor.services = services;
                }
            }));
        });
    }
}

impl Vital for Watcher {
    fn life(&self) -> &Life {
        &self.life
    }

    fn observe(&self) -> serde_json::Value {
        serde_json::json!({ "fleet": self.picture.summary(), "services": self.services })
    }
}

impl Handler<Drain> for Watcher {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
