//! What Docker tells of containers by its events, and whether it is there at all.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use berth_actors::{Backoff, Supervised, Vitals};
use berth_telemetry::Chain;
use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use futures::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::actor::Worker;
use crate::container::remove;
use crate::docker::DockerDriver;
use crate::late;
use crate::shared::Shared;

/// What is to be removed is tried so often.
const SWEEP: Duration = Duration::from_secs(15);

/// What was heard of one container.
#[derive(Debug, Default, Clone, Copy)]
struct Heard {
    /// The kernel has killed a process of it for want of memory.
    starved: bool,
    ended: bool,
}

/// What is known from events.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// By name: only those that somebody holds.
    heard: RefCell<BTreeMap<String, Heard>>,
    changed: Notify,
    /// When the stream of events last broke off, or could not be had.
    away: Cell<Option<Instant>>,
    /// Containers that nobody holds and that could not be removed yet.
    condemned: RefCell<BTreeSet<String>>,
}

impl Watch {
    /// Somebody holds this container from now on.
    pub(crate) fn expect(&self, name: &str) {
        self.heard.borrow_mut().insert(name.to_owned(), Heard::default());
    }

    pub(crate) fn forget(&self, name: &str) {
        self.heard.borrow_mut().remove(name);
    }

    /// It is to be removed when Docker is back.
    pub(crate) fn condemn(&self, name: &str) {
        self.condemned.borrow_mut().insert(name.to_owned());
    }

    /// Waits until it is said to have ended; a claim to be looked at.
    pub(crate) async fn ended(&self, name: &str) {
        loop {
            let changed = self.changed.notified();
            if self.take_ended(name) {
                return;
            }
            changed.await;
        }
    }

    /// Told once: who has looked and found it running waits for the next word.
    fn take_ended(&self, name: &str) -> bool {
        self.heard.borrow_mut().get_mut(name).is_some_and(|heard| std::mem::take(&mut heard.ended))
    }

    pub(crate) fn is_starved(&self, name: &str) -> bool {
        self.heard.borrow().get(name).is_some_and(|heard| heard.starved)
    }

    pub(crate) fn was_away_within(&self, span: Duration) -> bool {
        self.away.get().is_some_and(|at| at.elapsed() < span)
    }

    /// Has all who hold containers look at them.
    fn look_again(&self) {
        for heard in self.heard.borrow_mut().values_mut() {
            heard.ended = true;
        }
        self.changed.notify_waiters();
    }

    fn note(&self, name: &str, change: impl FnOnce(&mut Heard)) {
        if let Some(heard) = self.heard.borrow_mut().get_mut(name) {
            change(heard);
        }
        self.changed.notify_waiters();
    }
}

/// Listens to Docker for as long as the agent runs.
pub(crate) fn supervise(vitals: &Vitals, shared: &Rc<Shared>) -> Supervised<Worker> {
    let (work, observe) = (Rc::clone(shared), Rc::clone(shared));
    Worker::supervise(
        vitals,
        "agent.docker",
        Rc::new(move || listen(Rc::clone(&work)).boxed_local()),
        Rc::new(move || {
            let driver = observe.docker.get();
            let condemned = driver.map_or(0, |driver| driver.watch().condemned.borrow().len());
            serde_json::json!({ "docker": driver.is_some(), "to_remove": condemned })
        }),
    )
}

async fn listen(shared: Rc<Shared>) {
    let driver = match shared.docker.get() {
        Some(driver) => driver.clone(),
        None => late::driver(&shared).await,
    };
    let watch = Rc::clone(driver.watch());
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut told = false;
    loop {
        if driver.answers().await {
            if told {
                info!("Docker is back");
                told = false;
            }
            backoff.reset();
            hear(&shared, &driver, &watch).await;
        }
        watch.away.set(Some(Instant::now()));
        if !told {
            warn!("Docker does not tell of its containers any more; trying on");
            told = true;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Takes events until the stream breaks off.
async fn hear(shared: &Rc<Shared>, driver: &DockerDriver, watch: &Watch) {
    let mut filters: HashMap<String, Vec<String>> = driver.owner().filters();
    filters.insert("type".into(), vec!["container".into()]);
    filters.insert("event".into(), ["die", "oom", "health_status"].map(str::to_owned).to_vec());
    let options = EventsOptionsBuilder::new().filters(&filters).build();
    let mut events = driver.docker().events(Some(options)).boxed_local();
    let mut sweeps = tokio::time::interval(SWEEP);
    sweeps.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut first = true;
    loop {
        tokio::select! {
            // The first tick comes at once, behind the first look at the stream, so that no event falls between.
            biased;
            event = events.next() => match event {
                Some(Ok(event)) => take(shared, driver, watch, &event),
                Some(Err(error)) => {
                    warn!(error = %Chain(&error), "Docker's events broke off");
                    return;
                }
                None => return,
            },
            _ = sweeps.tick() => {
                if std::mem::take(&mut first) {
                    watch.look_again();
                    sweep_dead(shared, driver).await;
                }
                sweep_condemned(driver, watch).await;
            }
        }
    }
}

fn take(shared: &Shared, driver: &DockerDriver, watch: &Watch, event: &EventMessage) {
    let Some(action) = event.action.as_deref() else { return };
    let attributes = event.actor.as_ref().and_then(|actor| actor.attributes.as_ref());
    let Some(name) = attributes.and_then(|attributes| attributes.get("name")) else { return };
    match action {
        "die" => watch.note(name, |heard| heard.ended = true),
        "oom" => {
            watch.note(name, |heard| heard.starved = true);
            warn!(container = name, "the kernel killed a process of an engine for want of memory");
            tell(shared, driver, name, Some("a process of it was killed for want of memory"));
        }
        "health_status: unhealthy" => {
            warn!(container = name, "the health check of an engine's image fails");
            tell(shared, driver, name, Some("the health check of its image fails"));
        }
        "health_status: healthy" => tell(shared, driver, name, None),
        _ => {}
    }
}

/// Lets people know of an engine that serves on.
fn tell(shared: &Shared, driver: &DockerDriver, name: &str, detail: Option<&str>) {
    let books = shared.books.borrow();
    let engine = books.engines.values().find(|engine| driver.owner().name(engine.cell.id()) == name);
    if let Some(engine) = engine.filter(|engine| engine.cell.serves()) {
        engine.cell.set_detail(detail.map(str::to_owned));
        shared.tell_lane(&engine.cell);
    }
}

/// Removes what has ended while Docker or its events were away and that no engine on the books owns. Each is looked at
/// once more right before: one that runs is somebody's.
async fn sweep_dead(shared: &Shared, driver: &DockerDriver) {
    for (id, engine) in driver.dead().await {
        let owned = || shared.books.borrow().engines.contains_key(&engine);
        if !owned() && driver.is_dead(&id).await && !owned() {
            info!(%engine, "removing the container of an engine that is gone");
            remove(driver.docker(), &id, Some(Duration::from_secs(2))).await;
        }
    }
}

async fn sweep_condemned(driver: &DockerDriver, watch: &Watch) {
    let condemned: Vec<String> = watch.condemned.borrow().iter().cloned().collect();
    for name in condemned {
        if remove(driver.docker(), &name, Some(Duration::ZERO)).await {
            watch.condemned.borrow_mut().remove(&name);
        }
    }
}
