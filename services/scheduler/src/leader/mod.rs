//! The leading actor: owns the core's state for one term.

mod clock;
mod drains;
mod found;
mod heard;
mod lane;
mod leases;
mod meters;
mod operate;
mod sleep;
mod traces;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, SpawnHandle, WrapFuture};
use berth_actors::{Drain, Life, Vital};
use berth_placement::{Effect, Event, Policy, Refusal, State, Verdict, step};
use berth_telemetry::metric;
use berth_telemetry::trace::Tracer;
use berth_wire::{
    ApiError, EngineId, EventBody, GatewayId, HostId, JobId, LEASE_TTL, ModelId, ModelSpec, Notice,
    ReportEntry, Snapshot, Timestamp,
};
pub(crate) use drains::DrainAsked;
pub(crate) use heard::{Arrived, Beats, Cancelled, Catalog, Reported, RollAsked, StatusAsked, StreamTaken};
pub(crate) use leases::{LeaseAsked, Restored};
pub(crate) use operate::{Operated, PolicyChanged};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::effects::{Answer, Carrier, Outrun, record};
use crate::entry::Entries;
use crate::found::Found;
use crate::hosts::Hosts;
use crate::leader::clock::Clock;
use crate::leader::drains::Drains;
use crate::leader::lane::Lanes;
use crate::leader::leases::Outcome;
use crate::leader::meters::Meters;
use crate::leader::sleep::{Order, Orders};
use crate::leader::traces::{Traces, answered};
use crate::recorder::Recorder;
use crate::translate;

/// What outlives a term: whether this instance leads, and where its decisions are written down.
#[derive(Clone, Default)]
pub(crate) struct Shared {
    leads: Arc<Mutex<bool>>,
    recorder: Option<Recorder>,
    tracer: Tracer,
    pub(crate) outrun: Outrun,
}

impl Shared {
    pub(crate) fn new(recorder: Option<Recorder>, tracer: Tracer) -> Self {
        Self { recorder, tracer, ..Self::default() }
    }

    pub(crate) fn leads(&self) -> bool {
        *self.leads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clear(&self) {
        *self.leads.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }

    fn set(&self) {
        *self.leads.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// How long before a host that did not take a stop is asked again.
const STOP_AGAIN: Duration = Duration::from_secs(1);
/// How long after a job's end a gateway that still waits for it has lost its last frame.
const LAST_WORD: Duration = Duration::from_secs(5);
/// A gateway that is not heard twice in a row, so far apart, is gone, and its clients with it.
const ROLL_CALL: Duration = Duration::from_secs(3);

/// The actor.
pub(crate) struct Leader {
    life: Life,
    carrier: Carrier,
    clock: Clock,
    state: State,
    catalog: BTreeMap<ModelId, Arc<ModelSpec>>,
    entries: Entries,
    /// The stream holds jobs that have yet to be read.
    behind: bool,
    hosts: Hosts,
    timer: Option<(Timestamp, SpawnHandle)>,
    /// Gateways that were not heard when they were last asked for.
    missed: BTreeSet<GatewayId>,
    /// What engines were last told to do.
    orders: Orders,
    /// What hosts were last told of their lanes.
    lanes: Lanes,
    /// What the event that is being taken in did to leases.
    leases: Outcome,
    /// Hosts that people have drained.
    drains: Drains,
    /// How long a lease lasts where nothing is said.
    lease_ttl: Duration,
    recorder: Option<Recorder>,
    meters: Meters,
    traces: Traces,
    /// Models that hosts report of servers that others run.
    found: Found,
    over: CancellationToken,
}

impl Leader {
    pub(crate) fn new(
        life: Life,
        carrier: Carrier,
        policy: Policy,
        host_timeout: Duration,
        shared: &Shared,
        over: CancellationToken,
    ) -> Self {
        shared.set();
        let clock = Clock::start();
        let began = clock.now();
        let recorder = shared.recorder.clone();
        if let Some(recorder) = &recorder {
            recorder.begin(&policy, carrier.epoch, began);
        }
        let lease_ttl = LEASE_TTL.min(policy.lease_ceiling);
        let state = State::new(policy, carrier.epoch, began);
        Self {
            life,
            carrier,
            clock,
            state,
            catalog: BTreeMap::new(),
            entries: Entries::default(),
            behind: true,
            hosts: Hosts::new(host_timeout),
            timer: None,
            missed: BTreeSet::new(),
            orders: Orders::default(),
            lanes: Lanes::default(),
            leases: Outcome::default(),
            drains: Drains::default(),
            lease_ttl,
            recorder,
            meters: Meters::new(),
            traces: Traces::new(shared.tracer.clone()),
            found: Found::default(),
            over,
        }
    }

    /// One event through the core, and its effects on their way.
    fn feed(&mut self, event: Event, ctx: &mut Context<Self>) {
        let began = Instant::now();
        let now = self.clock.now();
        let recorded = self.recorder.as_ref().map(|recorder| (recorder.clone(), event.clone()));
        let effects = step(&mut self.state, event, now);
        self.meters.decision.record(began.elapsed().as_secs_f64());
        if let Some((recorder, event)) = recorded {
            recorder.step(now, &event, &effects);
        }
        self.leases = Outcome::default();
        for effect in effects {
            self.carry_out(effect, ctx);
        }
        self.set_timer(ctx);
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let due = self.state.next_timer();
        match (&self.timer, due) {
            (Some((set, _)), Some(due)) if *set <= due => return,
            (_, None) => return,
            _ => {}
        }
        if let Some((_, handle)) = self.timer.take() {
            ctx.cancel_future(handle);
        }
        if let Some(due) = due {
            let handle = ctx.run_later(due.since(self.clock.now()), |leader, ctx| {
                leader.timer = None;
                leader.feed(Event::Timer, ctx);
            });
            self.timer = Some((due, handle));
        }
    }

    fn carry_out(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        let carrier = self.carrier.clone();
        match effect {
            Effect::Dispatch { job, attempt, engine, host } => {
                let Some(entry) = self.entries.get(job) else {
                    debug!(%job, "dispatched a job without an entry");
                    return;
                };
                self.meters.dispatches.increment(1);
                let payload = entry.payload.clone();
                let span = self.traces.dispatched(job, attempt, engine, &host);
                let above = span.as_ref().map(|span| span.traceparent());
                let sent = async move { carrier.dispatch(&host, engine, attempt, payload, above).await };
                ctx.spawn(sent.into_actor(self).map(move |answer, leader, ctx| {
                    answered(span, &answer);
                    let why = match answer {
                        Answer::Taken => return,
                        Answer::Refused(why) => why,
                        Answer::Unanswered(why) => Refusal::Silent(why),
                        Answer::Stale => return leader.over.cancel(),
                    };
                    leader.traces.back(job);
                    leader.feed(Event::DispatchRefused { job, attempt, why }, ctx);
                }));
            }
            Effect::Start { engine, model, host, reservations } => {
                let Some(spec) = self.catalog.get(&model) else { return };
                self.meters.starts.increment(1);
                let spec = ModelSpec::clone(spec);
                let boot = self.state.boot_of(&host).map(str::to_owned);
                let sent = async move { carrier.start(&host, engine, boot, spec, reservations).await };
                ctx.spawn(sent.into_actor(self).map(move |result, leader, ctx| match result {
                    Ok(true) => {}
                    Ok(false) => leader.over.cancel(),
                    Err((failure, silent)) => {
                        leader.feed(Event::StartRefused { engine, failure, silent }, ctx);
                    }
                }));
            }
            Effect::Stop { engine, host, reason, force } => {
                self.meters.stops.increment(1);
                self.orders.supersede(engine);
                self.stop(host, engine, reason, force, ctx);
            }
            Effect::Sleep { engine, host, reason } => {
                self.meters.sleeps.increment(1);
                self.order(engine, host, Order::Sleep { reason }, ctx);
            }
            Effect::Wake { engine, host, reservations, .. } => {
                self.meters.wakes.increment(1);
                self.order(engine, host, Order::Wake { reservations }, ctx);
            }
            Effect::Lane { engine, host, open } => self.lane(engine, host, open, ctx),
            Effect::LeaseKept(lease) => carrier.keeper.keep_lease(&lease),
            Effect::LeaseEnded { session, model } => {
                carrier.keeper.forget_lease(&session, &model);
                self.leases.ended.push((session, model));
            }
            Effect::LeaseRefused { error, .. } => {
                self.meters.leases_refused.increment(1);
                self.leases.refused = Some(error);
            }
            Effect::AskRefused(error) => self.leases.refused = Some(error),
            Effect::Learned(profile) => carrier.keeper.keep_profile(&profile),
            Effect::CancelAttempt { job, attempt, host } => {
                ctx.spawn(async move { carrier.cancel(&host, job, attempt).await }.into_actor(self));
            }
            Effect::Tell { job, stage, position, eta } => {
                self.notify(job, Notice::Waiting { stage, position, eta }, ctx);
            }
            Effect::AttemptLost { job, attempt, error } => {
                self.meters.attempts_lost.increment(1);
                self.traces.back(job);
                self.notify(job, Notice::AttemptLost { attempt, error }, ctx);
            }
            Effect::End { job, verdict } => self.end(job, verdict, ctx),
            Effect::Record(body) => {
                log(&body);
                self.traces.heard(&body);
                ctx.spawn(async move { record(&carrier.bus, body).await }.into_actor(self));
            }
        }
    }

    /// Has an engine stopped. A host that does not do it is asked what is true there, and then once more: until
    /// it is gone, its memory counts as taken.
    fn stop(&mut self, host: HostId, engine: EngineId, reason: String, force: bool, ctx: &mut Context<Self>) {
        let carrier = self.carrier.clone();
        let (to, why) = (host.clone(), reason.clone());
        let sent = async move { carrier.stop(&to, engine, why, force).await };
        ctx.spawn(sent.into_actor(self).map(move |answer, leader, ctx| match answer {
            Answer::Taken => {}
            Answer::Stale => leader.over.cancel(),
            Answer::Refused(_) | Answer::Unanswered(_) => {
                warn!(%host, %engine, ?answer, "a stop was not taken; asking again");
                leader.ask(host.clone(), ctx);
                ctx.run_later(STOP_AGAIN, move |leader, ctx| {
                    // A job of the express lane that crossed the stop has the core think again.
                    if leader.state.is_stopping(engine) {
                        leader.stop(host, engine, reason, force, ctx);
                    }
                });
            }
        }));
    }

    /// Looks for gateways that died: nobody waits for their jobs any more.
    fn call_gateways(&mut self, ctx: &mut Context<Self>) {
        let (carrier, gateways) = (self.carrier.clone(), self.entries.gateways());
        let called = async move { carrier.unheard(gateways).await };
        ctx.spawn(called.into_actor(self).map(|unheard, leader, ctx| {
            let before = std::mem::replace(&mut leader.missed, unheard);
            let gone: Vec<GatewayId> = leader.missed.intersection(&before).cloned().collect();
            for gateway in gone {
                let jobs = leader.entries.of_gateway(&gateway);
                warn!(%gateway, jobs = jobs.len(), "a gateway is gone; cancelling what its clients waited for");
                for job in jobs {
                    leader.feed(Event::JobCancelled(job), ctx);
                }
            }
            ctx.run_later(ROLL_CALL, Self::call_gateways);
        }));
    }

    /// Asks a host for a snapshot.
    fn ask(&mut self, host: HostId, ctx: &mut Context<Self>) {
        let carrier = self.carrier.clone();
        let asked = async move { carrier.ask_snapshot(&host).await };
        ctx.spawn(asked.into_actor(self).map(|snapshot, leader, ctx| match snapshot {
            Some(snapshot) => leader.met(snapshot, ctx),
            None if leader.carrier.outrun.is_known() => leader.over.cancel(),
            None => {}
        }));
    }

    /// Asks a silent host whether it lives: its heartbeats may have been lost with a bucket or a connection.
    fn suspect(&mut self, host: HostId, reason: String, ctx: &mut Context<Self>) {
        let carrier = self.carrier.clone();
        let to = host.clone();
        let asked = async move { carrier.ask_snapshot(&to).await };
        ctx.spawn(asked.into_actor(self).map(|snapshot, leader, ctx| match snapshot {
            Some(snapshot) => leader.met(snapshot, ctx),
            None if leader.hosts.is_lost(&host, Instant::now()) => {
                leader.found_at(&host, &[], ctx);
                leader.feed(Event::HostLost { host, reason }, ctx);
            }
            None => {}
        }));
    }

    fn met(&mut self, snapshot: Snapshot, ctx: &mut Context<Self>) {
        if self.hosts.synced(&snapshot, Instant::now()) {
            self.take_snapshot(snapshot, ctx);
        } else {
            debug!(host = %snapshot.beat.host, "a snapshot came after what is newer");
        }
    }

    fn notify(&self, job: JobId, notice: Notice, ctx: &mut Context<Self>) {
        let Some(entry) = self.entries.get(job) else { return };
        let (carrier, gateway) = (self.carrier.clone(), entry.gateway.clone());
        ctx.spawn(async move { carrier.notify(&gateway, job, notice).await }.into_actor(self));
    }

    fn end(&mut self, job: JobId, verdict: Verdict, ctx: &mut Context<Self>) {
        self.meters.ended(&verdict);
        self.traces.ended(job, &verdict);
        let told_here = match verdict {
            Verdict::Failed { error, told: false } => {
                self.notify(job, Notice::Failed(error), ctx);
                true
            }
            _ => false,
        };
        let Some(entry) = self.entries.remove(job) else { return };
        let carrier = self.carrier.clone();
        // Outlives the actor: the job must leave the stream.
        actix_rt::spawn(async move {
            entry.ticket.remove().await;
            if !told_here {
                // Its last frame may have been lost with a connection. A gateway that has it knows the job no more.
                tokio::time::sleep(LAST_WORD).await;
                carrier.notify(&entry.gateway, job, Notice::Failed(ApiError::answer_lost())).await;
            }
        });
    }

    fn take_snapshot(&mut self, snapshot: Snapshot, ctx: &mut Context<Self>) {
        let host = &snapshot.beat.host;
        let engines = || snapshot.engines.iter().map(|report| report.engine);
        if let Some(stray) = engines().find(|engine| self.state.is_not_of_this_store(*engine, host)) {
            // Its id would be given to another engine.
            warn!(%host, engine = %stray, epoch = %self.carrier.epoch, "engines of leaders to come: NATS has lost its store; \
                campaigning for a later epoch");
            engines().for_each(|engine| self.carrier.outrun.by(engine.epoch()));
            self.over.cancel();
            return;
        }
        self.found_at(&snapshot.beat.host, &snapshot.found, ctx);
        for event in translate::snapshot(snapshot) {
            self.feed(event, ctx);
        }
    }

    fn take_entry(&mut self, host: &HostId, entry: ReportEntry, ctx: &mut Context<Self>) {
        match entry {
            ReportEntry::Snapshot(snapshot) => self.take_snapshot(*snapshot, ctx),
            ReportEntry::Engine(report) => {
                if let Some(took) = report.start_took {
                    metrics::histogram!(metric::ENGINE_START_SECONDS, "model" => report.model.to_string())
                        .record(took.as_secs_f64());
                }
                let engine = translate::engine(report);
                self.feed(Event::EngineChanged { host: host.clone(), engine }, ctx);
            }
            ReportEntry::Started(started) => {
                self.feed(translate::started(&started, self.clock.now()), ctx);
            }
            ReportEntry::Ended(mut ended) => {
                if let Some(started) = ended.started.take() {
                    self.feed(translate::started(&started, self.clock.now()), ctx);
                }
                if ended.attempt.is_express() {
                    self.meters.express_ended(&ended.outcome);
                }
                self.feed(translate::ended(ended), ctx);
            }
            ReportEntry::Goodbye => {
                self.hosts.left(host);
                self.found_at(host, &[], ctx);
                let reason = "its agent was shut down".to_owned();
                self.feed(Event::HostLost { host: host.clone(), reason }, ctx);
            }
        }
    }
}

fn log(body: &EventBody) {
    match body {
        EventBody::JobQueued { .. } | EventBody::JobDispatched { .. } | EventBody::JobEnded { .. } => {
            debug!(event = ?body);
        }
        _ => info!(event = ?body),
    }
}

impl Actor for Leader {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.set_timer(ctx);
        self.call_gateways(ctx);
        self.forget_unfound(ctx);
        ctx.run_interval(Duration::from_secs(1), |leader, _| {
            let now = leader.clock.now();
            leader.meters.look(&leader.state, now);
        });
    }
}

impl Vital for Leader {
    fn life(&self) -> &Life {
        &self.life
    }

    fn observe(&self) -> serde_json::Value {
        serde_json::json!({
            "epoch": self.carrier.epoch,
            "outstanding": self.state.outstanding(),
            "running": self.state.running(),
            "hosts": self.hosts.alive(),
            "payload_bytes": self.entries.kept(),
            "waiting": self.meters.waiting(),
        })
    }
}

impl Handler<Drain> for Leader {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
