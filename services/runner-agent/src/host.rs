//! The actor that hears the leader's commands and keeps the books. Every command is answered at once.

use std::rc::Rc;
use std::time::Duration;

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, StreamHandler, WrapFuture};
use berth_actors::{Backoff, Drain, Life, Supervised, Vital, supervise};
use berth_bus::{Inbound, Subscriber, read, read_dispatch_headers};
use berth_telemetry::{Chain, metric};
use berth_wire::{
    CancelJob, Credit, DecodeError, EngineState, Epoch, Job, Message, Reply, SleepEngine, StartEngine,
    StatusRequest, StopEngine, Verb, WakeEngine,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::attempt::Task;
use crate::books::{EngineCell, Running};
use crate::engine::{Stop, begin, can_run};
use crate::shared::Shared;

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
            Some(Verb::Cancel) => self.cancel(&message),
            Some(Verb::Credit) => {
                if let Some(credit) = read::<Credit>(&message) {
                    self.shared.books.borrow().credit(credit.job, credit.attempt, credit.granted);
                }
                None
            }
            Some(Verb::Start) => Some(self.command(&message, Self::start)),
            Some(Verb::Stop) => Some(self.command(&message, |host, stop| host.stop(&stop))),
            Some(Verb::Sleep) => Some(self.command(&message, |_, _: SleepEngine| Err(no_sleep()))),
            Some(Verb::Wake) => Some(self.command(&message, |_, _: WakeEngine| Err(no_sleep()))),
            Some(Verb::Status) => self.status(&message),
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

/// No engine is reported as able to sleep, so that no leader should ask.
fn no_sleep() -> Reply {
    refused("this agent cannot put engines to sleep or wake them; stop and start them instead")
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
        if shared.draining.get() {
            return Err(refused("this host is being stopped"));
        }
        let kind = start.model.engine.driver;
        if !can_run(shared, kind) {
            return Err(refused(format!("the {} driver does not work on this host", kind.as_str())));
        }
        shared
            .devices
            .check_fit(&start.reservations, &shared.books.borrow().reserved())
            .map_err(|why| refused(format!("field `reservations`: {why}")))?;
        begin(shared, EngineCell::new(start), None);
        Ok(())
    }

    fn stop(&self, stop: &StopEngine) -> Result<(), Reply> {
        let engine = self.shared.books.borrow().engines.get(&stop.engine).cloned();
        let Some(engine) = engine else {
            return Err(refused(format!("engine {} is not on this host", stop.engine)));
        };
        let serving = engine.cell.slots.taken();
        if serving > 0 && !stop.force {
            return Err(refused(format!("engine {} serves {serving} jobs", stop.engine)));
        }
        info!(engine = %stop.engine, reason = stop.reason, force = stop.force, "told to stop an engine");
        // At once, so that a dispatch right behind this command is refused.
        if engine.cell.state() == EngineState::Ready {
            engine.cell.set_state(EngineState::Stopping, None);
        }
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
        self.answer(message, self.shared.snapshot(ended));
        None
    }

    fn dispatch(&self, message: &Inbound) -> Option<Reply> {
        match self.admit(message) {
            Ok(Some(task)) => {
                actix_rt::spawn(task.run());
                None
            }
            Ok(None) => Some(Reply::Ok),
            Err(reply) => Some(reply),
        }
    }

    /// Takes a job, if there is a slot; `None` for one that was taken before.
    fn admit(&self, message: &Inbound) -> Result<Option<Task>, Reply> {
        let shared = &self.shared;
        let headers = read_dispatch_headers(message.headers.as_ref()).map_err(|e| unreadable(&e))?;
        self.fence(headers.epoch)?;
        let job = Job::decode(&message.payload).map_err(|e| unreadable(&e))?;
        let mut books = shared.books.borrow_mut();
        if books.knows(job.id, headers.attempt) {
            return Ok(None);
        }
        if shared.draining.get() {
            return Err(refused("this host is being stopped"));
        }
        let Some(cell) = books.engines.get(&headers.engine).map(|engine| Rc::clone(&engine.cell)) else {
            return Err(refused(format!("engine {} is not on this host", headers.engine)));
        };
        if cell.state() != EngineState::Ready {
            let state = cell.state().as_str();
            return Err(refused(format!("engine {} is {state}, not ready", headers.engine)));
        }
        if shared.outbox.borrow().is_full() {
            return Err(Reply::Busy { retry_after: Some(Duration::from_secs(1)) });
        }
        let slot = cell.slots.take().ok_or(Reply::Busy { retry_after: None })?;
        let (cancel, credit) = (CancellationToken::new(), watch::Sender::new(0));
        let running = Running { engine: headers.engine, cancel: cancel.clone(), credit: credit.clone() };
        books.begin(job.id, headers.attempt, running);
        Ok(Some(Task {
            shared: Rc::clone(shared),
            cell,
            job,
            attempt: headers.attempt,
            slot,
            cancel,
            credit,
            reply: message.reply.clone(),
        }))
    }
}
