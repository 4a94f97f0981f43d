//! One engine, owned by one actor: from the start command until its memory is free again.
//!
//! The actor's life is one straight line (launch, wait, serve, stop), so that a slow pull or stop delays nobody
//! else. Should the actor fall, its successor removes what is left of the engine and reports it as failed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, WrapFuture};
use berth_actors::{Drain, Life, Supervised, Vital, supervise};
use berth_telemetry::metric;
use berth_wire::{AcceleratorKind, Driver as DriverKind, EngineFailure, EngineKind, EngineState};
use futures::FutureExt;
use tracing::{info, warn};

use crate::adapters::{missing, rank, settle};
use crate::asleep::{Night, Turn};
use crate::books::Engine;
use crate::cell::EngineCell;
use crate::contexts;
use crate::driver::{Driver, Failure, Instance, Order};
use crate::nvidia::is_alone;
use crate::ready::wait_ready;
use crate::share;
use crate::shared::Shared;
use crate::shortage::memory_is_free;
use crate::tail::with_log;

/// Progress is told no more often than this.
const TELL: Duration = Duration::from_millis(500);

/// Asks an engine to end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Stop;

/// The owner of one engine.
pub(crate) struct EngineActor {
    life: Life,
    shared: Rc<Shared>,
    cell: Rc<EngineCell>,
    beginning: Option<Beginning>,
}

/// How an actor comes by its engine.
enum Beginning {
    Launch,
    /// It serves already, or sleeps.
    Adopt(Box<dyn Instance>, Turn),
}

/// Puts an engine on the books and has it started, or adopts it.
pub(crate) fn begin(shared: &Rc<Shared>, cell: Rc<EngineCell>, adopted: Option<Box<dyn Instance>>) {
    let id = cell.id();
    // As it was found: an order that changes that may come before the actor runs.
    let found = if cell.turns_to(Turn::Asleep) { Turn::Asleep } else { Turn::Awake };
    let mut beginning = Some(adopted.map_or(Beginning::Launch, |instance| Beginning::Adopt(instance, found)));
    let (owner, owned) = (Rc::clone(shared), Rc::clone(&cell));
    let actor: Supervised<EngineActor> =
        supervise(&shared.vitals, &format!("agent.engine.{id}"), 16, move |life| EngineActor {
            life,
            shared: Rc::clone(&owner),
            cell: Rc::clone(&owned),
            beginning: beginning.take(),
        });
    shared.books.borrow_mut().engines.insert(id, Engine { cell, actor });
}

impl Actor for EngineActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let (shared, cell) = (Rc::clone(&self.shared), Rc::clone(&self.cell));
        let live = live(shared, cell, self.beginning.take());
        ctx.spawn(live.into_actor(self));
    }
}

impl Vital for EngineActor {
    fn life(&self) -> &Life {
        &self.life
    }

    fn observe(&self) -> serde_json::Value {
        serde_json::json!(self.cell.record(&self.shared.host))
    }
}

impl Handler<Stop> for EngineActor {
    type Result = ();

    fn handle(&mut self, _: Stop, _: &mut Self::Context) {
        self.cell.stop.cancel();
    }
}

impl Handler<Drain> for EngineActor {
    type Result = ();

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

async fn live(shared: Rc<Shared>, cell: Rc<EngineCell>, beginning: Option<Beginning>) {
    let life = Course { shared: &shared, cell: &cell, began: Instant::now() };
    let course = async {
        match beginning {
            Some(Beginning::Launch) => life.launch().await,
            Some(Beginning::Adopt(instance, found)) => life.serve(instance, found).await,
            None => life.clear_up().await,
        }
    };
    let failure = tokio::select! {
        failure = course => failure,
        never = contexts::hear(&shared, &cell) => never,
    };
    cell.gone.cancel();
    let (engine, model) = (cell.id(), &cell.model().id);
    match failure {
        Some(failure) => {
            warn!(%engine, %model, permanent = failure.permanent, "engine failed: {}", failure.message);
            metrics::counter!(metric::ENGINE_FAILURES, "model" => model.to_string()).increment(1);
            cell.set_failed(failure);
        }
        None => {
            info!(%engine, %model, "engine stopped");
            cell.set_state(EngineState::Stopped, None);
        }
    }
    shared.tell_engine(&cell);
    shared.retire(cell.id());
}

/// The way of one engine. Each step returns how it failed; `None`: it was stopped.
struct Course<'a> {
    shared: &'a Shared,
    cell: &'a EngineCell,
    began: Instant,
}

fn failed(failure: Failure) -> EngineFailure {
    EngineFailure { message: failure.message, permanent: failure.permanent, was_ready: false }
}

impl Course<'_> {
    fn driver(&self) -> Option<&dyn Driver> {
        self.shared.driver(self.cell.model().engine.driver)
    }

    fn order(&self) -> Order {
        let start = self.cell.start.clone();
        let devices = &self.shared.devices;
        let sleeps = self.cell.sleep_cost().is_some();
        let shelf = contexts::shelf(self.shared, self.cell);
        Order {
            gpus: devices.gpus(&start.reservations, AcceleratorKind::Nvidia),
            amd: devices.gpus(&start.reservations, AcceleratorKind::Amd),
            ram: devices.ram(&start.reservations, start.model.memory.is_some()),
            more: [share::of(&start, devices), rank(&start.model), shelf.args].concat(),
            volumes: shelf.volumes,
            sleeps,
            start,
        }
    }

    fn set(&self, state: EngineState, detail: Option<String>) {
        self.cell.set_state(state, detail);
        self.shared.tell_engine(self.cell);
    }

    async fn launch(&self) -> Option<EngineFailure> {
        let kind = self.cell.model().engine.driver;
        let Some(driver) = self.driver() else {
            return Some(failed(Failure::permanent(format!(
                "the {} driver does not work on this host",
                kind.as_str()
            ))));
        };
        info!(engine = %self.cell.id(), model = %self.cell.model().id, driver = kind.as_str(), "starting an engine");
        self.set(EngineState::Starting, None);
        let order = self.order();
        let told = Cell::new(None::<Instant>);
        let progress = |detail: String| {
            if told.get().is_none_or(|at| at.elapsed() >= TELL) {
                told.set(Some(Instant::now()));
                self.set(EngineState::Starting, Some(detail));
            }
        };
        let launched = async {
            // vLLM serves its base and its other adapters without.
            if self.cell.model().engine.kind == EngineKind::LlamaCpp
                && let Some(why) = missing(self.cell.model())
            {
                return Err(Failure::permanent(format!("{why}: put it there, or correct its `path`")));
            }
            if order.gpus.len() > 1 && is_alone(&order.gpus) {
                return Err(Failure::permanent(
                    "a program can use one MIG instance and no more: say accelerators = 1, or end MIG mode on this host",
                ));
            }
            self.shared.external.make_room(self.shared, &order).await;
            memory_is_free(self.shared, self.cell, 0).await?;
            driver.launch(&order, &progress).await
        };
        let launched = tokio::select! {
            biased;
            () = self.cell.stop.cancelled() => None,
            launched = launched => Some(launched),
        };
        match launched {
            Some(Ok(instance)) => self.load(instance).await,
            Some(Err(failure)) => {
                driver.sweep(self.cell.id()).await;
                Some(failed(failure))
            }
            None => {
                self.set(EngineState::Stopping, None);
                driver.sweep(self.cell.id()).await;
                None
            }
        }
    }

    async fn load(&self, mut instance: Box<dyn Instance>) -> Option<EngineFailure> {
        let spec = &self.cell.model().engine;
        self.cell.know(&*instance);
        self.set(EngineState::Starting, Some("loading".into()));
        enum Event {
            Stop,
            Ready,
            Exited,
            TooLong,
        }
        self.cell.set_mark(instance.mark().await);
        let endpoint = instance.endpoint().to_owned();
        let last = RefCell::new(None);
        let lent = instance.is_lent();
        let ready = async {
            if !lent {
                wait_ready(&self.shared.http, &endpoint, &spec.health_path, &last).await;
                while let Err(why) = settle(&self.shared.http, &endpoint, self.cell.model()).await {
                    *last.borrow_mut() = Some(why);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        };
        let event = tokio::select! {
            biased;
            () = self.cell.stop.cancelled() => Event::Stop,
            () = instance.exited() => Event::Exited,
            () = ready => Event::Ready,
            () = tokio::time::sleep(spec.start_timeout) => Event::TooLong,
        };
        match event {
            Event::Ready => {
                let took = self.began.elapsed();
                info!(engine = %self.cell.id(), model = %self.cell.model().id, took_ms = took.as_millis(), "engine ready");
                self.cell.set_ready(took);
                self.serve(instance, Turn::Awake).await
            }
            Event::Stop => self.stop(instance).await,
            Event::Exited => {
                let what = format!("the engine {} before it was ready", instance.how().await);
                Some(self.give_up(instance, what, false).await)
            }
            Event::TooLong => {
                let what = format!(
                    "the engine did not answer on {} with success (2xx) within its start_timeout of {}: {}",
                    spec.health_path,
                    berth_config::show_duration(spec.start_timeout),
                    last.take().unwrap_or_else(|| "it never answered at all".into()),
                );
                // Those who wait have waited for as long as was allowed: no second start without being told.
                let failure = self.give_up(instance, what, false).await;
                Some(EngineFailure { permanent: true, ..failure })
            }
        }
    }

    /// Serves and sleeps in turn, until it is stopped or ends. `is` is what it does now, whatever was ordered meanwhile.
    async fn serve(&self, mut instance: Box<dyn Instance>, mut is: Turn) -> Option<EngineFailure> {
        enum Event {
            Stop,
            Turn,
            Exited,
        }
        if self.cell.mark().is_none() {
            self.cell.set_mark(instance.mark().await);
        }
        self.cell.meet(instance.as_ref());
        self.cell.know(&*instance);
        loop {
            let (state, next) = match is {
                Turn::Asleep => (EngineState::Sleeping, Turn::Awake),
                Turn::Awake => (EngineState::Ready, Turn::Asleep),
            };
            // An order that has come already has said what it does next.
            if !self.cell.turns_to(next) {
                self.set(state, None);
            }
            let mut event = tokio::select! {
                biased;
                () = self.cell.stop.cancelled() => Event::Stop,
                () = instance.exited() => Event::Exited,
                () = self.cell.turned_to(next) => Event::Turn,
            };
            if let Event::Turn = event {
                let turned = tokio::select! {
                    biased;
                    () = self.cell.stop.cancelled() => None,
                    turned = self.turn(next, instance.as_mut()) => Some(turned),
                };
                match turned {
                    Some(Ok(())) => {
                        is = next;
                        continue;
                    }
                    None => event = Event::Stop,
                    Some(Err(_)) if instance.exited().now_or_never().is_some() => event = Event::Exited,
                    // Those who want its room get it.
                    Some(Err(why)) if next == Turn::Asleep => {
                        warn!(engine = %self.cell.id(), why, "an engine does not fall asleep; stopping it");
                        event = Event::Stop;
                    }
                    Some(Err(why)) => {
                        self.cell.set_state(EngineState::Stopping, None);
                        self.cell.gone.cancel();
                        let what = format!("the engine could not be woken: {why}");
                        return Some(self.give_up(instance, what, true).await);
                    }
                }
            }
            if let Event::Stop = event {
                return self.stop(instance).await;
            }
            // First, so that no job is dispatched to it, and what runs on it ends as failed.
            self.cell.set_state(EngineState::Stopping, None);
            self.cell.gone.cancel();
            let when = match is {
                Turn::Asleep => " while it was asleep",
                Turn::Awake if instance.is_lent() => "",
                Turn::Awake => " while it was ready",
            };
            let what = format!("the engine {}{when}", instance.how().await);
            return Some(self.give_up(instance, what, true).await);
        }
    }

    async fn turn(&self, turn: Turn, instance: &mut dyn Instance) -> Result<(), String> {
        let night = Night { shared: self.shared, cell: self.cell };
        match turn {
            Turn::Asleep => night.fall_asleep(instance).await,
            Turn::Awake => {
                let residue = self.cell.sleep_cost().map_or(0, |cost| cost.residue);
                memory_is_free(self.shared, self.cell, residue).await.map_err(|failure| failure.message)?;
                let took = night.wake(instance).await?;
                self.cell.set_ready(took);
                Ok(())
            }
        }
    }

    async fn stop(&self, mut instance: Box<dyn Instance>) -> Option<EngineFailure> {
        info!(engine = %self.cell.id(), model = %self.cell.model().id, "stopping an engine");
        self.set(EngineState::Stopping, None);
        self.cell.gone.cancel();
        self.attempts_ended().await;
        contexts::save(self.shared, self.cell, instance.endpoint()).await;
        instance.stop(self.cell.model().engine.stop_grace).await;
        None
    }

    /// Frees the memory of an engine that failed, and says why: with its last words, unless it has served, since then
    /// they may be of what others asked it.
    async fn give_up(&self, mut instance: Box<dyn Instance>, what: String, was_ready: bool) -> EngineFailure {
        let endpoint = instance.endpoint().to_owned();
        let lines = if was_ready { Vec::new() } else { instance.tail().await };
        instance.stop(Duration::ZERO).await;
        self.attempts_ended().await;
        let message = if instance.is_lent() {
            what
        } else if was_ready {
            format!("{what}; what it logged is not told, since requests may be in it")
        } else {
            // Where an engine listens is nobody's business but ours.
            let told = with_log(&what, &lines);
            if endpoint.is_empty() { told } else { told.replace(&endpoint, "its address") }
        };
        EngineFailure { message, permanent: false, was_ready }
    }

    /// Attempts notice the end by themselves; their ends are to be told before the engine's.
    async fn attempts_ended(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.cell.slots.idle()).await;
    }

    /// After this actor fell: nobody holds the engine any more.
    async fn clear_up(&self) -> Option<EngineFailure> {
        self.cell.set_state(EngineState::Stopping, None);
        self.cell.gone.cancel();
        if let Some(driver) = self.driver() {
            driver.sweep(self.cell.id()).await;
        }
        let was_ready = !self.cell.endpoint().is_empty();
        Some(EngineFailure {
            message: "the agent lost this engine by a fault of its own; its log tells more".into(),
            permanent: false,
            was_ready,
        })
    }
}

/// Whether this host can run engines of a kind.
pub(crate) fn can_run(shared: &Shared, kind: DriverKind) -> bool {
    shared.driver(kind).is_some()
}
