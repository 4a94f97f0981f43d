//! What is known of one engine.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use berth_wire::{
    Driver, EngineFailure, EngineId, EngineKind, EngineRecord, EngineReport, EngineState, HostId, ModelSpec,
    Reservation, SleepCost, StartEngine, Timestamp,
};
use reqwest::Url;
use reqwest::header::HeaderValue;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::adapters::Adapters;
use crate::asleep::Turn;
use crate::books::now;
use crate::contexts::Contexts;
use crate::driver::Instance;
use crate::logs::Log;
use crate::pace::Pace;
use crate::procs::Mark;
use crate::slots::Slots;

/// What is known of one engine; shared by its actor and its attempts.
#[derive(Debug)]
pub(crate) struct EngineCell {
    pub(crate) start: StartEngine,
    pub(crate) slots: Rc<Slots>,
    pub(crate) adapters: Rc<Adapters>,
    pub(crate) contexts: Rc<Contexts>,
    /// Somebody wants it to end.
    pub(crate) stop: CancellationToken,
    /// It serves no longer: what runs on it has failed.
    pub(crate) gone: CancellationToken,
    since: Cell<Timestamp>,
    endpoint: RefCell<Rc<str>>,
    /// Of the routes that were asked for at this endpoint.
    urls: RefCell<Vec<(&'static str, Url)>>,
    key: RefCell<Option<HeaderValue>>,
    holds: Cell<Option<u64>>,
    start_took: Cell<Option<Duration>>,
    detail: RefCell<Option<String>>,
    image: RefCell<Option<String>>,
    log: RefCell<Option<Log>>,
    failure: RefCell<Option<EngineFailure>>,
    /// How its processes are known.
    mark: RefCell<Option<Mark>>,
    /// Most bytes of GPUs that it was measured to hold, and how many of these were told.
    peak: Cell<(u64, u64)>,
    /// Its output tokens.
    pub(crate) pace: Pace,
    /// Slots in use when last asked.
    seen_taken: Cell<u32>,
    /// What it would take up asleep; `None`: it cannot sleep.
    sleep: Cell<Option<SleepCost>>,
    /// It is on its way to sleep.
    falling: Cell<bool>,
    /// It holds no more of its accelerators than a sleeper keeps.
    asleep: Cell<bool>,
    /// Which of the two it is to be.
    turn: watch::Sender<Turn>,
}

impl EngineCell {
    pub(crate) fn new(start: StartEngine, sleep: Option<SleepCost>) -> Rc<Self> {
        Rc::new(Self {
            slots: Slots::new(start.model.concurrency),
            adapters: Adapters::new(&start.model),
            contexts: Contexts::new(&start.model),
            start,
            stop: CancellationToken::new(),
            gone: CancellationToken::new(),
            since: Cell::new(now()),
            endpoint: RefCell::new("".into()),
            urls: RefCell::default(),
            key: RefCell::new(None),
            holds: Cell::new(None),
            start_took: Cell::new(None),
            detail: RefCell::new(None),
            image: RefCell::new(None),
            log: RefCell::new(None),
            failure: RefCell::new(None),
            mark: RefCell::new(None),
            peak: Cell::new((0, 0)),
            pace: Pace::new(Instant::now()),
            seen_taken: Cell::new(0),
            sleep: Cell::new(sleep),
            falling: Cell::new(false),
            asleep: Cell::new(false),
            turn: watch::Sender::new(Turn::Awake),
        })
    }

    pub(crate) fn id(&self) -> EngineId {
        self.start.engine
    }

    pub(crate) fn model(&self) -> &ModelSpec {
        &self.start.model
    }

    pub(crate) fn state(&self) -> EngineState {
        self.slots.gate(|gate| gate.state())
    }

    pub(crate) fn endpoint(&self) -> Rc<str> {
        Rc::clone(&self.endpoint.borrow())
    }

    fn set_endpoint(&self, endpoint: &str) {
        *self.endpoint.borrow_mut() = endpoint.into();
        self.urls.borrow_mut().clear();
    }

    /// Where a request for `path` goes.
    pub(crate) fn url(&self, path: &str) -> String {
        let endpoint = self.endpoint.borrow();
        let scheme = if endpoint.contains("://") { "" } else { "http://" };
        format!("{scheme}{endpoint}{path}")
    }

    /// Where requests of a route go: read once, since that costs about what the rest of a request does.
    pub(crate) fn route_url(&self, path: &'static str) -> Option<Url> {
        let known = self.urls.borrow().iter().find(|(known, _)| *known == path).map(|(_, url)| url.clone());
        known.or_else(|| {
            let url: Url = self.url(path).parse().ok()?;
            self.urls.borrow_mut().push((path, url.clone()));
            Some(url)
        })
    }

    /// What lets requests in.
    pub(crate) fn key(&self) -> Option<HeaderValue> {
        self.key.borrow().clone()
    }

    /// Takes over what the engine says of itself once it serves.
    pub(crate) fn meet(&self, instance: &dyn Instance) {
        self.set_endpoint(instance.endpoint());
        *self.key.borrow_mut() = instance.key();
        self.holds.set(instance.holds());
    }

    /// Bytes that a server of others says it holds for it.
    pub(crate) fn lent(&self) -> u64 {
        self.holds.get().unwrap_or(0)
    }

    pub(crate) fn serves(&self) -> bool {
        self.state() == EngineState::Ready
    }

    /// Whether it can outlive its agent: it serves or sleeps, and nothing of it is a child of this process.
    pub(crate) fn may_stay(&self) -> bool {
        (self.serves() || self.state() == EngineState::Sleeping)
            && self.model().engine.driver == Driver::Docker
    }

    pub(crate) fn set_detail(&self, detail: Option<String>) {
        *self.detail.borrow_mut() = detail;
    }

    /// Notes what is to be known of what runs.
    pub(crate) fn know(&self, instance: &dyn Instance) {
        *self.image.borrow_mut() = instance.image().map(str::to_owned);
        *self.log.borrow_mut() = instance.log();
    }

    pub(crate) fn log(&self) -> Option<Log> {
        self.log.borrow().clone()
    }

    pub(crate) fn sleep_cost(&self) -> Option<SleepCost> {
        self.sleep.get()
    }

    pub(crate) fn set_sleep_cost(&self, cost: Option<SleepCost>) {
        self.sleep.set(cost);
    }

    /// Has its actor turn it; one that is told to wake takes its memory back from here on.
    pub(crate) fn turn(&self, turn: Turn) {
        match turn {
            Turn::Asleep => {
                self.set_state(EngineState::Stopping, Some("falling asleep".into()));
                self.falling.set(true);
            }
            Turn::Awake => self.set_state(EngineState::Waking, None),
        }
        self.turn.send_replace(turn);
    }

    /// It was asleep when this agent came.
    pub(crate) fn found_asleep(&self) {
        self.set_state(EngineState::Sleeping, None);
        self.turn.send_replace(Turn::Asleep);
    }

    /// Whether it is, or is about to be, as wanted.
    pub(crate) fn turns_to(&self, turn: Turn) -> bool {
        *self.turn.borrow() == turn
    }

    /// Waits until it is to be other than it is.
    pub(crate) async fn turned_to(&self, turn: Turn) {
        // The sender is this cell's own.
        let _ = self.turn.subscribe().wait_for(|now| *now == turn).await;
    }

    /// What it holds of its accelerators.
    pub(crate) fn held(&self) -> impl Iterator<Item = Reservation> {
        let most = match self.sleep.get() {
            Some(cost) if self.asleep.get() => cost.residue,
            _ => u64::MAX,
        };
        self.start.reservations.iter().map(move |r| Reservation { bytes: r.bytes.min(most), ..r.clone() })
    }

    pub(crate) fn set_state(&self, state: EngineState, detail: Option<String>) {
        self.falling.set(false);
        match state {
            EngineState::Sleeping => self.asleep.set(true),
            // One that is stopped in its sleep takes nothing back.
            EngineState::Waking | EngineState::Ready => self.asleep.set(false),
            _ => {}
        }
        if self.slots.gate(|gate| gate.set_state(state)) != state {
            self.since.set(now());
        }
        *self.detail.borrow_mut() = detail;
    }

    pub(crate) fn set_ready(&self, took: Duration) {
        self.start_took.set(Some(took));
        self.set_state(EngineState::Ready, None);
    }

    pub(crate) fn set_failed(&self, failure: EngineFailure) {
        *self.failure.borrow_mut() = Some(failure);
        self.set_state(EngineState::Failed, None);
    }

    pub(crate) fn mark(&self) -> Option<Mark> {
        self.mark.borrow().clone()
    }

    pub(crate) fn set_mark(&self, mark: Option<Mark>) {
        *self.mark.borrow_mut() = mark;
    }

    /// It was measured to hold so many bytes of GPUs; whether that is news.
    pub(crate) fn measured(&self, bytes: u64) -> bool {
        let (peak, told) = self.peak.get();
        let peak = peak.max(bytes);
        // A cache that fills block by block is no news each time.
        let news = self.learns_memory() && peak > told.saturating_add(told / 64);
        self.peak.set((peak, if news { peak } else { told }));
        news
    }

    /// Whether what it holds says what it needs: vLLM takes whatever it is given.
    fn learns_memory(&self) -> bool {
        self.model().engine.kind != EngineKind::Vllm
    }

    /// Whether other slots are in use than when this was last asked, or it has become faster or slower.
    pub(crate) fn use_changed(&self) -> bool {
        let taken = self.slots.taken();
        let other_pace = self.pace.look(Instant::now());
        self.seen_taken.replace(taken) != taken || other_pace
    }

    pub(crate) fn report(&self) -> EngineReport {
        EngineReport {
            engine: self.id(),
            model: self.model().id.clone(),
            // To the leader that ordered it this says nothing; to a later one that it is under way to something, for
            // which those who wait may wait.
            state: if self.falling.get() { EngineState::Starting } else { self.state() },
            reservations: self.start.reservations.clone(),
            concurrency: self.model().concurrency,
            failure: self.failure.borrow().clone(),
            start_took: self.start_took.get(),
            detail: self.detail.borrow().clone(),
            sleep: self.sleep.get(),
            peak_memory: self
                .holds
                .get()
                .or(Some(self.peak.get().0).filter(|bytes| *bytes > 0 && self.learns_memory())),
        }
    }

    pub(crate) fn record(&self, host: &HostId) -> EngineRecord {
        let model = self.model();
        EngineRecord {
            engine: self.id(),
            host: host.clone(),
            model: model.id.clone(),
            kind: model.engine.kind,
            driver: model.engine.driver,
            state: self.state(),
            running: self.slots.taken(),
            concurrency: model.concurrency,
            tokens_per_second: self.pace.per_second(),
            lane: self.slots.gate(|gate| gate.takes_offers()),
            reservations: self.start.reservations.clone(),
            since: self.since.get(),
            detail: self.detail.borrow().clone(),
            image: self.image.borrow().clone(),
            adapters: self.adapters.held(model, self.state()),
        }
    }
}
