//! The actor that looks at the fleet every second and calls the roll every few.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant, SystemTime};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, StreamHandler, WrapFuture};
use berth_actors::{Drain, Life, Vital};
use berth_bus::{Bus, View, put_json};
use berth_config::HealthConfig;
use berth_wire::{EngineRecord, Event, EventBody, HostBeat, HostId, LeaderRecord, Timestamp};
use serde_json::json;
use tracing::{debug, info, warn};

use crate::alerts::{Alert, Alerts, Change, Raised};
use crate::facts::{self, Told};
use crate::gauges::{Gauges, looks};
use crate::picture::{Finding, Levels, Picture};
use crate::roll_call::Services;
use crate::rollup::{Rollup, Slot};
use crate::signals::Signals;
use crate::webhook::Webhooks;
use crate::{jetstream, roll_call};

const LOOK: Duration = Duration::from_secs(1);
const ROLL_CALL: Duration = Duration::from_secs(5);
const JETSTREAM: Duration = Duration::from_secs(15);
/// How often the slot that runs is written down.
const WRITE: Duration = Duration::from_secs(15);

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
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) report: serde_json::Value,
    /// Names of the services that answer.
    pub(crate) services: BTreeMap<String, Vec<String>>,
}

/// Shared with those who answer.
pub(crate) type Report = Arc<RwLock<Found>>;

pub(crate) struct Watcher {
    life: Life,
    bus: Bus,
    views: Views,
    picture: Picture,
    /// What happened before this watched is known; nothing is judged sooner.
    up_to_now: bool,
    /// How often the bus has been connected.
    connects: u64,
    services: Services,
    jetstream: BTreeMap<String, f64>,
    signals: Signals,
    alerts: Alerts,
    rollup: Rollup,
    gauges: Gauges,
    webhooks: Webhooks,
    report: Report,
}

impl Watcher {
    pub(crate) fn new(
        life: Life,
        bus: Bus,
        views: Views,
        host_timeout: Duration,
        config: &HealthConfig,
        webhooks: Webhooks,
        report: Report,
    ) -> Self {
        Self {
            life,
            up_to_now: false,
            connects: connects(&bus),
            bus,
            views,
            picture: Picture::new(host_timeout),
            services: BTreeMap::new(),
            jetstream: BTreeMap::new(),
            signals: Signals::new(config.alerts.clone()),
            alerts: Alerts::new(config.alerts.hold),
            rollup: Rollup::new(now()),
            gauges: Gauges::default(),
            webhooks,
            report,
        }
    }

    fn look(&mut self) {
        if !self.up_to_now {
            return;
        }
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
            if finding.is_bad() {
                warn!("{finding}");
            } else {
                info!("{finding}");
            }
            self.signals.found(&finding, now);
        }
        let readings =
            self.signals.readings(&levels, &self.services, &self.jetstream, self.bus.is_connected(), now);
        for change in self.alerts.judge(readings, now) {
            self.tell(&change);
        }
        let raised = self.alerts.raised(now);
        self.rollup.look(looks(&levels));
        self.gauges.show(&levels, &self.services, &self.jetstream, &raised);
        let mut services: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (id, service) in &self.services {
            let instance = id.strip_prefix(&format!("{}.", service.name)).unwrap_or(id);
            services.entry(service.name.clone()).or_default().push(instance.to_owned());
        }
        let found = Found { report: self.found(&raised, &services), services };
        if let Ok(mut last) = self.report.write() {
            *last = found;
        }
    }

    fn found(&self, raised: &[Raised], services: &BTreeMap<String, Vec<String>>) -> serde_json::Value {
        json!({
            "fleet": self.picture.summary(),
            "services": services,
            "alerts": raised,
            "jetstream": self.jetstream,
            "now": self.rollup.slot(),
        })
    }

    /// Says what is new in the log, as an event, and to the webhooks.
    fn tell(&self, change: &Change) {
        let (state, raised) = match change {
            Change::Raised(raised) => ("raised", raised),
            Change::Resolved(raised) => ("resolved", raised),
        };
        let Raised { alert, about, message, for_s } = raised.clone();
        let name = alert.as_str();
        let body = match change {
            Change::Raised(_) => {
                warn!(alert = name, about, "{message}");
                EventBody::AlertRaised { alert: name.into(), about: about.clone(), message: message.clone() }
            }
            Change::Resolved(_) => {
                info!(alert = name, about, for_s, "resolved");
                EventBody::AlertResolved {
                    alert: name.into(),
                    about: about.clone(),
                    message: message.clone(),
                    after_s: for_s,
                }
            }
        };
        let at = now();
        self.webhooks.tell(&json!({
            "state": state, "alert": name, "about": about, "message": message, "for_s": for_s, "at": at,
            "fleet": self.bus.subjects.root(),
        }));
        let (bus, subject) = (self.bus.clone(), self.bus.subjects.event(body.kind(), &body.id()));
        actix_rt::spawn(async move {
            if let Err(error) = bus.publish_json(subject, &Event { at, body }).await {
                debug!(%error, "could not publish an alert");
            }
        });
    }

    /// A fact, `at` by our own clock.
    fn learn(&mut self, fact: Event, at: Instant) {
        match fact.body {
            EventBody::EngineReady { .. } => self.rollup.swapped(fact.at),
            EventBody::EngineFailed { engine, host, model, message } => {
                if self.up_to_now {
                    warn!("the engine {engine} of {model} on {host} failed: {message}");
                }
                self.signals.failed(model, at);
            }
            // What is told from now on, this tells itself.
            EventBody::AlertRaised { alert, about, message } if !self.up_to_now => {
                let Some(alert) = Alert::named(&alert) else { return };
                if alert == Alert::HostLost {
                    self.signals.misses(HostId::from(about.as_str()), at);
                }
                self.alerts.take_over(alert, about, message, at);
            }
            EventBody::AlertResolved { alert, about, .. } if !self.up_to_now => {
                let Some(alert) = Alert::named(&alert) else { return };
                if alert == Alert::HostLost {
                    self.signals.found(&Finding::HostJoined { host: HostId::from(about.as_str()) }, at);
                }
                self.alerts.leave(alert, about);
            }
            _ => {}
        }
    }

    fn write_down(&mut self) {
        let slots: Vec<Slot> = self.rollup.turn(now()).into_iter().chain([self.rollup.slot()]).collect();
        let bus = self.bus.clone();
        actix_rt::spawn(async move {
            // The bucket is there once a scheduler has been.
            let Ok(bucket) = bus.bucket("trends").await else { return };
            for slot in slots {
                if let Err(error) = put_json(&bucket, &Slot::key(slot.at), &slot).await {
                    debug!(%error, "could not keep a roll-up");
                }
            }
        });
    }

    fn call(&self, ctx: &mut Context<Self>) {
        let bus = self.bus.clone();
        let call = async move { roll_call::call(&bus).await };
        ctx.spawn(call.into_actor(self).map(|services, actor, _| {
            let Some(services) = services else { return };
            actor.signals.heard(&services, Instant::now());
            let gateways =
                services.iter().filter_map(|(id, service)| Some((id.clone(), service.counted()?))).collect();
            actor.rollup.hear(gateways);
            actor.services = services;
        }));
    }
}

fn connects(bus: &Bus) -> u64 {
    bus.client.statistics().connects.load(Ordering::Relaxed)
}

fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

impl Actor for Watcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(Box::pin(facts::follow(self.bus.clone())));
        ctx.run_interval(LOOK, |actor, _| actor.look());
        ctx.run_interval(WRITE, |actor, _| actor.write_down());
        self.call(ctx);
        ctx.run_interval(ROLL_CALL, Self::call_again);
        ctx.run_interval(JETSTREAM, |actor, ctx| {
            let bus = actor.bus.clone();
            let used = async move { jetstream::used(&bus).await };
            ctx.spawn(used.into_actor(actor).map(|used, actor, _| {
                actor.jetstream = used.unwrap_or_else(|| std::mem::take(&mut actor.jetstream));
            }));
        });
    }
}

impl Watcher {
    fn call_again(&mut self, ctx: &mut Context<Self>) {
        self.call(ctx);
    }
}

impl StreamHandler<Told> for Watcher {
    fn handle(&mut self, told: Told, _: &mut Self::Context) {
        match told {
            Told::Fact(fact) => {
                let ago = now().since(fact.at);
                let at = Instant::now();
                self.learn(fact, at.checked_sub(ago).unwrap_or(at));
            }
            Told::Again => {}
            Told::UpToNow => self.up_to_now = true,
        }
    }
}

impl Vital for Watcher {
    fn life(&self) -> &Life {
        &self.life
    }

    fn observe(&self) -> serde_json::Value {
        json!({ "fleet": self.picture.summary() })
    }
}

impl Handler<Drain> for Watcher {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
