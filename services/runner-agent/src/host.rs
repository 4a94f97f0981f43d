//! The actor that hears the leader's commands and keeps the books. Every command is answered at once.

use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, StreamHandler, WrapFuture};
use async_nats::Subject;
use berth_actors::{Backoff, Drain, Life, Supervised, Vital, supervise};
use berth_bus::{
    Inbound, NatsOutput, OutputSink, Subscriber, read, read_dispatch_headers, read_offer_headers,
};
use berth_telemetry::{Chain, metric};
use berth_wire::{
    Attempt, CancelJob, Credit, DecodeError, DispatchHeaders, EngineId, Epoch, Job, Message, ReadLog, Reply,
    RollAnswer, RollCall, SessionId, SetLane, SleepEngine, StartEngine, Started, StatusRequest, StopEngine,
    TRACEPARENT, Verb, WakeEngine,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::asleep::{put_to_sleep, wake_up};
use crate::attempt::Task;
use crate::books::Running;
use crate::cell::EngineCell;
use crate::engine::{Stop, begin, can_run};
use crate::gate::{Gate, No};
use crate::logs;
use crate::shared::Shared;
use crate::traced;

/// Nothing here waits, so a short queue is enough.
const MAILBOX: usize = 64;

/// The keeper of the books.
pub(crate) struct HostActor {
    life: Life,
    shared: Rc<Shared>,
}

pub(crate) fn supervise_host(shared: &Rc<Shared>) -> Supervised<HostActor> {
    let owned = Rc::clone(shared);
    supervise(&shared.vitals, "agent.host", MAILBOX, move |life| HostActor {
        life,
        shared: Rc::clone(&owned),
    })
}

impl Actor for HostActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let subscribed = subscribe(Rc::clone(&self.shared));
        ctx.spawn(subscribed.into_actor(self).map(|subscriber, host, ctx: &mut Context<Self>| {
            ctx.add_stream(subscriber);
            host.shared.listening.send_replace(true);
        }));
    }
}

async fn subscribe(shared: Rc<Shared>) -> Subscriber {
    let subject = shared.bus.subjects.ctl_all(&shared.host);
    let mut backoff = Backoff::default();
    loop {
        match shared.bus.subscribe(subject.clone()).await {
            Ok(subscriber) => return subscriber,
            Err(error) => warn!(error = %Chain(&error), "cannot hear commands yet"),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

impl Vital for HostActor {
    fn life(&self) -> &Life {
        &self.life
    }

    fn observe(&self) -> serde_json::Value {
        self.shared.observe()
    }
}

impl Handler<Drain> for HostActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

impl StreamHandler<Inbound> for HostActor {
    fn handle(&mut self, message: Inbound, _: &mut Self::Context) {
        let reply = match Verb::of(&message.subject) {
            Some(Verb::Dispatch) => self.dispatch(&message),
            Some(Verb::Offer) => {
                self.offer(&message);
                None
            }
            Some(Verb::Lane) => Some(self.command(&message, |host, lane| host.lane(&lane))),
            Some(Verb::Roll) => self.roll(&message),
            Some(Verb::Cancel) => self.cancel(&message),
            Some(Verb::Credit) => {
                if let Some(credit) = read::<Credit>(&message) {
                    self.shared.books.borrow().credit(credit.job, credit.attempt, credit.granted);
                }
                None
            }
            Some(Verb::Start) => Some(self.command(&message, Self::start)),
            Some(Verb::Stop) => Some(self.command(&message, |host, stop| host.stop(&stop))),
            Some(Verb::Sleep) => {
                Some(self.command(&message, |host, sleep: SleepEngine| put_to_sleep(&host.shared, &sleep)))
            }
            Some(Verb::Wake) => {
                Some(self.command(&message, |host, wake: WakeEngine| wake_up(&host.shared, &wake)))
            }
            Some(Verb::Status) => self.status(&message),
            Some(Verb::Logs) => Some(self.logs(&message)),
            None => Some(refused(format!("`{}` names no command of this version", message.subject))),
        };
        if let Some(reply) = reply {
            self.answer(&message, reply);
        }
    }
}

fn refused(message: impl Into<String>) -> Reply {
    Reply::Refused { message: message.into() }
}

fn unreadable(error: &DecodeError) -> Reply {
    metrics::counter!(metric::BUS_BAD_MESSAGES, "schema" => error.schema).increment(1);
    warn!(%error, "refused a command that cannot be read");
    refused(error.to_string())
}

/// A command with a fencing token.
trait Fenced: Message {
    fn epoch(&self) -> Epoch;
}

impl Fenced for StartEngine {
    fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Fenced for StopEngine {
    fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Fenced for SleepEngine {
    fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Fenced for WakeEngine {
    fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Fenced for SetLane {
    fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Fenced for StatusRequest {
    fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl HostActor {
    fn answer<M: Message + 'static>(&self, message: &Inbound, reply: M) {
        let Some(to) = message.reply.clone() else { return };
        let shared = Rc::clone(&self.shared);
        actix_rt::spawn(async move {
            if let Err(error) = shared.bus.reply(Some(to), &reply).await {
                debug!(error = %Chain(&error), "could not answer a command");
            }
        });
    }

    fn fence(&self, epoch: Epoch) -> Result<(), Reply> {
        self.shared.books.borrow_mut().fence(epoch).map_err(|epoch| Reply::Stale { epoch })
    }

    fn command<M: Fenced>(
        &self,
        message: &Inbound,
        run: impl FnOnce(&Self, M) -> Result<(), Reply>,
    ) -> Reply {
        let obeyed = berth_wire::decode::<M>(&message.payload).map_err(|error| unreadable(&error)).and_then(
            |command| {
                self.fence(command.epoch())?;
                run(self, command)
            },
        );
        obeyed.err().unwrap_or(Reply::Ok)
    }

    fn start(&self, start: StartEngine) -> Result<(), Reply> {
        let shared = &self.shared;
        // The answer to an earlier copy of this command may have been lost.
        if shared.books.borrow().engines.contains_key(&start.engine) {
            return Ok(());
        }
        if start.boot.as_ref().is_some_and(|boot| *boot != shared.boot) {
            return Err(refused("this start was decided before the agent was restarted"));
        }
        if shared.draining.get() {
            // No fault of the model's.
            return Err(Reply::Busy { retry_after: Some(Duration::from_secs(1)) });
        }
        let kind = start.model.engine.driver;
        if !can_run(shared, kind) {
            return Err(refused(format!("the {} driver does not work on this host", kind.as_str())));
        }
        shared
            .devices
            .check_fit(&start.reservations, &shared.books.borrow().reserved().iter())
            .map_err(|why| refused(format!("field `reservations`: {why}")))?;
        let sleep = shared.sleep_cost(&start);
        begin(shared, EngineCell::new(start, sleep), None);
        Ok(())
    }

    fn stop(&self, stop: &StopEngine) -> Result<(), Reply> {
        let engine = self.shared.books.borrow().engines.get(&stop.engine).cloned();
        let Some(engine) = engine else {
            return Err(refused(format!("engine {} is not on this host", stop.engine)));
        };
        // At once, so that a dispatch or an offer right behind this command is refused.
        if let Err(serving) = engine.cell.slots.gate(|gate| gate.stop(stop.force)) {
            return Err(refused(format!("engine {} serves {serving} jobs", stop.engine)));
        }
        info!(engine = %stop.engine, reason = stop.reason, force = stop.force, "told to stop an engine");
        match engine.actor.addr() {
            Ok(addr) => addr.do_send(Stop),
            // Its successor clears up anyway.
            Err(_) => engine.cell.stop.cancel(),
        }
        Ok(())
    }

    fn cancel(&self, message: &Inbound) -> Option<Reply> {
        match berth_wire::decode::<CancelJob>(&message.payload) {
            Ok(cancel) => {
                self.shared.books.borrow_mut().cancel(cancel.job, cancel.attempt);
                Some(Reply::Ok)
            }
            Err(error) => Some(unreadable(&error)),
        }
    }

    fn status(&self, message: &Inbound) -> Option<Reply> {
        let reply = self.command::<StatusRequest>(message, |_, _| Ok(()));
        if reply != Reply::Ok {
            return Some(reply);
        }
        let ended = self.shared.outbox.borrow().unacknowledged();
        let mut snapshot = self.shared.snapshot(ended);
        self.shared.outbox.borrow_mut().number(&mut snapshot);
        self.answer(message, snapshot);
        None
    }

    fn dispatch(&self, message: &Inbound) -> Option<Reply> {
        match self.admit(message) {
            Ok(Some(task)) => {
                task.spawn();
                None
            }
            Ok(None) => Some(Reply::Ok),
            Err(reply) => Some(reply),
        }
    }

    /// Commands nothing, so that it takes no leader.
    fn logs(&self, message: &Inbound) -> Reply {
        match berth_wire::decode::<ReadLog>(&message.payload) {
            Ok(ask) => logs::read(&self.shared, ask).map_or_else(refused, |()| Reply::Ok),
            Err(error) => unreadable(&error),
        }
    }

    /// Opens or closes an engine's express lane.
    fn lane(&self, lane: &SetLane) -> Result<(), Reply> {
        let books = self.shared.books.borrow();
        let Some(engine) = books.engines.get(&lane.engine) else {
            return Err(refused(format!("engine {} is not on this host", lane.engine)));
        };
        engine.cell.slots.gate(|gate| gate.set_lane(lane.epoch, lane.number, lane.open));
        self.shared.tell_lane(&engine.cell);
        Ok(())
    }

    /// Which of a gateway's express jobs do not run here.
    fn roll(&self, message: &Inbound) -> Option<Reply> {
        match berth_wire::decode::<RollCall>(&message.payload) {
            Ok(RollCall { mut jobs }) => {
                let books = self.shared.books.borrow();
                jobs.retain(|job| !books.runs_express(*job));
                self.answer(message, RollAnswer { missing: jobs });
                None
            }
            Err(error) => Some(unreadable(&error)),
        }
    }

    /// Takes an offer, whose answer comes as frames, or declines it at once.
    fn offer(&self, message: &Inbound) {
        let reply = match self.admit_offer(message) {
            Ok(Some(task)) => {
                task.spawn();
                return;
            }
            Ok(None) => return,
            Err(reply) => reply,
        };
        let Some(to) = message.reply.clone() else { return };
        let shared = Rc::clone(&self.shared);
        actix_rt::spawn(async move {
            if let Err(error) = NatsOutput::new(shared.bus.clone()).decline(to, reply).await {
                debug!(error = %Chain(&error), "could not decline an offer");
            }
        });
    }

    fn admit_offer(&self, message: &Inbound) -> Result<Option<Task>, Reply> {
        let engine = read_offer_headers(message.headers.as_ref()).map_err(|e| unreadable(&e))?;
        let job = Job::decode(&message.payload).map_err(|e| unreadable(&e))?;
        let started = Started {
            job: job.id,
            attempt: Attempt::EXPRESS,
            engine,
            model: job.model.clone(),
            submitted_at: job.submitted_at,
            session: job.session.as_deref().map(SessionId::from),
            key: job.key.clone(),
            class: job.class,
            bytes: job.body.len(),
        };
        let task = self.take(job, engine, Attempt::EXPRESS, None, Gate::offer)?;
        if task.is_some() {
            self.shared.tell_started(started);
        }
        Ok(task)
    }

    /// Takes a job that was dispatched; `None` for one that was taken before.
    fn admit(&self, message: &Inbound) -> Result<Option<Task>, Reply> {
        let headers = read_dispatch_headers(message.headers.as_ref()).map_err(|e| unreadable(&e))?;
        self.fence(headers.epoch)?;
        let mut job = Job::decode(&message.payload).map_err(|e| unreadable(&e))?;
        if let Some(above) = message.headers.as_ref().and_then(|headers| headers.get(TRACEPARENT)) {
            job.traceparent = Some(above.as_str().to_owned());
        }
        let DispatchHeaders { engine, attempt, .. } = headers;
        let taken = self.take(job, engine, attempt, message.reply.clone(), Gate::dispatch);
        if matches!(taken, Err(Reply::Busy { .. })) {
            // The leader's books lag behind.
            self.shared.hurry();
        }
        taken
    }

    /// Takes a job, if `ask` gets it a slot; `None` for one that was taken before.
    fn take(
        &self,
        mut job: Job,
        engine: EngineId,
        attempt: Attempt,
        reply: Option<Subject>,
        ask: impl FnOnce(&mut Gate) -> Result<(), No>,
    ) -> Result<Option<Task>, Reply> {
        let shared = &self.shared;
        let mut books = shared.books.borrow_mut();
        if books.knows(job.id, attempt) {
            return Ok(None);
        }
        if shared.draining.get() {
            // No fault of the job's: the leader is about to hear of it, and sends it elsewhere or lets it wait.
            return Err(Reply::Busy { retry_after: Some(Duration::from_secs(1)) });
        }
        let Some(cell) = books.engines.get(&engine).map(|engine| Rc::clone(&engine.cell)) else {
            return Err(refused(format!("engine {engine} is not on this host")));
        };
        if shared.outbox.borrow().is_full() {
            return Err(Reply::Busy { retry_after: Some(Duration::from_secs(1)) });
        }
        let slot = cell.slots.take(ask).map_err(|no| match no {
            No::NotReady(state) => refused(format!("engine {engine} is {}, not ready", state.as_str())),
            No::Full | No::Closed => Reply::Busy { retry_after: None },
        })?;
        let (cancel, credit) = (CancellationToken::new(), watch::Sender::new(0));
        let running = Running {
            engine,
            gateway: job.gateway.clone(),
            since: Instant::now(),
            cancel: cancel.clone(),
            credit: credit.clone(),
        };
        books.begin(job.id, attempt, running);
        let span = traced::begin(&shared.tracer, &mut job, attempt, &cell);
        Ok(Some(Task { shared: Rc::clone(shared), cell, job, attempt, slot, cancel, credit, reply, span }))
    }
}
