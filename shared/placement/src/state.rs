//! The state and the step function.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use std::time::Duration;

use berth_wire::{Attempt, EngineId, Epoch, HostId, JobId, KeyId, ModelId, SessionId, Timestamp};

use crate::books::{Engine, EnginePhase, Host, Job, JobPhase, JobView, Model, ModelView};
use crate::demand::Demand;
use crate::effect::Effect;
use crate::event::Event;
use crate::learn::Learned;
use crate::lease::{Held, Order};
use crate::policy::Policy;
use crate::scene::Scene;
use crate::tally::Tallies;
use crate::timers::{Due, Timers};
use crate::wanting::Wanting;
use crate::watch::Watched;
use crate::yard::Yard;

/// So many timers run in one step.
const TIMERS: usize = 32;
/// A step that has weighed so many places leaves the other models to the next.
const ENOUGH: usize = 24;
/// Where many models wait for their turn, the next step follows after this if nothing happens.
const PAUSE: Duration = Duration::from_millis(2);

/// Everything the core knows.
#[derive(Debug, Clone)]
pub struct State {
    pub(crate) policy: Policy,
    pub(crate) epoch: Epoch,
    engines_made: u32,
    attempts_made: u32,
    pub(crate) models: Watched<ModelId, Model>,
    pub(crate) hosts: Watched<HostId, Host>,
    pub(crate) engines: Watched<EngineId, Engine>,
    /// Hosts that a person drains, there or not.
    pub(crate) drained: BTreeSet<HostId>,
    pub(crate) jobs: HashMap<JobId, Job>,
    pub(crate) leases: BTreeMap<(SessionId, ModelId), Held>,
    pub(crate) lease_order: Order,
    /// Models whose leases count, whether that may have changed, and when it was found last.
    pub(crate) protected: BTreeSet<ModelId>,
    pub(crate) protected_stale: bool,
    pub(crate) protected_at: Timestamp,
    /// Accelerators that a model's engines hold or will, where that was found and has not changed.
    pub(crate) shares: HashMap<ModelId, f64>,
    /// Hints by session.
    pub(crate) hints_of: HashMap<SessionId, usize>,
    /// What was measured, by model and accelerator.
    pub(crate) profiles: HashMap<ModelId, BTreeMap<String, Learned>>,
    /// How long a job of any model takes (EWMA).
    pub(crate) mean_service: Option<Duration>,
    /// How long a start of any model takes (EWMA): the guess for one that was never started.
    pub(crate) mean_start: Option<Duration>,
    /// Jobs outstanding by API key.
    pub(crate) of_key: HashMap<KeyId, usize>,
    /// Models that may want an engine.
    pub(crate) wanting: Wanting,
    pub(crate) tallies: Tallies,
    pub(crate) yard: Yard,
    /// Hosts whose room may have changed.
    pub(crate) surveyed: BTreeSet<HostId>,
    /// What runs at engines without having been sent there by this leader.
    pub(crate) strays: BTreeSet<(JobId, EngineId)>,
    pub(crate) timers: Timers,
    pub(crate) settled: bool,
    /// Whether the `Tell` timer is running.
    pub(crate) telling: bool,
    /// Models of whose queues places have changed since they were told.
    pub(crate) stale: BTreeSet<ModelId>,
    /// Those that are still to be told in this round, of so many.
    pub(crate) round: BTreeSet<ModelId>,
    pub(crate) round_of: usize,
    /// The `Look` timer runs.
    looking: bool,
    /// Jobs that ended, or were cancelled before they were submitted; the stream may yet deliver them.
    pub(crate) over: Recent,
    /// Express jobs that ended; a snapshot that crossed their ends may yet tell of them.
    pub(crate) express_over: Recent,
}

/// A bounded memory of job ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent {
    known: HashSet<JobId>,
    order: VecDeque<JobId>,
}

impl Recent {
    const KEPT: usize = 20_000;

    pub(crate) fn insert(&mut self, job: JobId) {
        if self.known.insert(job) {
            self.order.push_back(job);
            if self.order.len() > Self::KEPT
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    pub(crate) fn contains(&self, job: JobId) -> bool {
        self.known.contains(&job)
    }
}

impl State {
    /// The state of a leader that knows nothing yet.
    #[must_use]
    pub fn new(policy: Policy, epoch: Epoch, now: Timestamp) -> Self {
        let mut timers = Timers::default();
        timers.set(now.plus(policy.settle), Due::Settled);
        Self {
            wanting: Wanting::new(policy.ordered_whole),
            yard: Yard::new(policy.searched_whole),
            policy,
            epoch,
            engines_made: 0,
            attempts_made: 0,
            models: Watched::default(),
            hosts: Watched::default(),
            engines: Watched::default(),
            drained: BTreeSet::new(),
            jobs: HashMap::new(),
            leases: BTreeMap::new(),
            lease_order: Order::default(),
            protected: BTreeSet::new(),
            protected_stale: false,
            protected_at: now,
            shares: HashMap::new(),
            hints_of: HashMap::new(),
            profiles: HashMap::new(),
            mean_service: None,
            mean_start: None,
            of_key: HashMap::new(),
            tallies: Tallies::default(),
            surveyed: BTreeSet::new(),
            strays: BTreeSet::new(),
            timers,
            settled: false,
            telling: false,
            stale: BTreeSet::new(),
            round: BTreeSet::new(),
            round_of: 0,
            looking: false,
            over: Recent::default(),
            express_over: Recent::default(),
        }
    }

    /// When [`Event::Timer`] is due next.
    #[must_use]
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// The numbers that it decides by.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The epoch it decides in.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Jobs that have not ended.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.jobs.len()
    }

    /// Jobs that wait.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.models.values().map(|model| model.queue.len()).sum()
    }

    /// Jobs that run, those of the express lane included.
    #[must_use]
    pub fn running(&self) -> usize {
        self.engines.values().map(|engine| engine.taken()).sum()
    }

    /// Whether the job is known and has not ended.
    #[must_use]
    pub fn knows(&self, job: JobId) -> bool {
        self.jobs.contains_key(&job)
    }

    /// Whether the engine is in the books.
    #[must_use]
    pub fn has_engine(&self, engine: EngineId) -> bool {
        self.engines.contains_key(&engine)
    }

    /// Whether a host's engine has an id that no leader of this store can have given it: the store was lost and
    /// epochs began anew.
    #[must_use]
    pub fn is_not_of_this_store(&self, engine: EngineId, host: &HostId) -> bool {
        match self.engines.get(&engine) {
            Some(known) => known.host != *host,
            None => engine > EngineId::new(self.epoch, self.engines_made),
        }
    }

    /// Whether the engine is to be stopped, as far as the core knows.
    #[must_use]
    pub fn is_stopping(&self, engine: EngineId) -> bool {
        self.engines.get(&engine).is_some_and(|engine| engine.phase == EnginePhase::Stopping)
    }

    /// Whether the engine takes nothing new because another model needs its room.
    #[must_use]
    pub fn is_draining(&self, engine: EngineId) -> bool {
        self.engines.get(&engine).is_some_and(|engine| engine.draining_for.is_some())
    }

    /// Which run of a host's agent the books are of.
    #[must_use]
    pub fn boot_of(&self, host: &HostId) -> Option<&str> {
        self.hosts.get(host).map(|host| host.boot.as_str())
    }

    /// Up to `limit` outstanding jobs, oldest first.
    #[must_use]
    pub fn jobs(&self, limit: usize, now: Timestamp) -> Vec<JobView> {
        let mut jobs: Vec<_> = self.jobs.iter().collect();
        jobs.sort_by_key(|(id, job)| (job.arrival, **id));
        jobs.into_iter()
            .take(limit)
            .map(|(id, job)| JobView {
                job: *id,
                model: job.model.clone(),
                phase: job.phase,
                age_ms: u64::try_from(now.since(job.arrival).as_millis()).unwrap_or(u64::MAX),
            })
            .collect()
    }

    /// Every model with how many of its jobs wait, since when the first of them came, and how many leases it has.
    pub fn waits(&self) -> impl Iterator<Item = (&ModelId, usize, Option<Timestamp>, usize)> {
        self.models
            .iter()
            .map(|(id, model)| (id, model.queue.len(), model.queue.oldest(), model.leases.len()))
    }

    /// Every model with its queue and engines.
    #[must_use]
    pub fn models(&self, now: Timestamp) -> Vec<ModelView> {
        self.models
            .values()
            .map(|model| {
                let engines = || model.engines.iter().filter_map(|id| Some((*id, self.engines.get(id)?)));
                ModelView {
                    model: model.needs.id.clone(),
                    queued: model.queue.len(),
                    running: engines().map(|(_, engine)| engine.taken()).sum(),
                    engines: engines().map(|(id, engine)| (id, engine.phase)).collect(),
                    error: model.blocked.as_ref().map(|(_, error)| error.message.clone()),
                    wait_estimate_s: self
                        .expected_wait(model, model.queue.len(), now)
                        .map(|wait| wait.as_secs_f64()),
                    leases: model.leases.len(),
                }
            })
            .collect()
    }

    pub(crate) fn make_engine_id(&mut self) -> EngineId {
        self.engines_made += 1;
        EngineId::new(self.epoch, self.engines_made)
    }

    pub(crate) fn make_attempt(&mut self) -> Attempt {
        self.attempts_made += 1;
        Attempt::new(self.epoch, self.attempts_made)
    }

    pub(crate) fn model_of(&self, job: JobId) -> Option<&Model> {
        self.models.get(&self.jobs.get(&job)?.model)
    }
}

/// One step: the state, the time, and what it comes to.
pub(crate) struct Step<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) now: Timestamp,
    pub(crate) effects: Vec<Effect>,
    /// Models whose queue or engines changed.
    touched: BTreeSet<ModelId>,
    /// Memory may have become free, or may be freed.
    room_changed: bool,
    /// What its searches have cost.
    work: usize,
}

/// Takes in what happened at `now` and says what to do. `now` must not go backwards between steps.
#[must_use]
pub fn step(state: &mut State, event: Event, now: Timestamp) -> Vec<Effect> {
    let mut step =
        Step { state, now, effects: Vec::new(), touched: BTreeSet::new(), room_changed: false, work: 0 };
    step.take_in(event);
    step.run_timers();
    step.decide();
    step.state.survey(now);
    step.effects
}

impl Step<'_> {
    fn take_in(&mut self, event: Event) {
        match event {
            Event::Catalog(models) => self.catalog(models),
            Event::HostSnapshot { host, engines, running } => self.host_snapshot(host, engines, running),
            Event::HostLost { host, reason } => self.host_lost(&host, &reason),
            Event::Drain { host, on } => self.drain(&host, on),
            Event::EngineChanged { host, engine } => self.engine_changed(&host, engine),
            Event::StartRefused { engine, failure, silent } => self.start_refused(engine, &failure, silent),
            Event::JobSubmitted(job) => self.job_submitted(&job),
            Event::JobCancelled(job) => self.job_cancelled(job),
            Event::JobStarted { job, engine } => self.job_started(&job, engine),
            Event::AttemptEnded { job, attempt, engine, end, usage } => {
                self.attempt_ended(job, attempt, engine, end, usage);
            }
            Event::DispatchRefused { job, attempt, why } => self.dispatch_refused(job, attempt, &why),
            Event::SleepRefused { engine, why } => self.sleep_refused(engine, &why),
            Event::Profiles(profiles) => self.profiles(profiles),
            Event::Estimates(estimates) => self.estimates(estimates),
            Event::LeaseAsked { session, model, key, ttl, keep_context } => {
                self.lease_asked(session, model, key, ttl, keep_context);
            }
            Event::LeaseReleased { session, model } => self.lease_released(&session, model.as_ref()),
            Event::LeasesRestored(leases) => self.leases_restored(leases),
            Event::Hint { session, model, due, key } => self.hinted(&session, &model, due, key),
            Event::HintWithdrawn { session, model } => self.hint_withdrawn(&session, model.as_ref()),
            Event::LoadAsked { model, host } => self.load_asked(&model, host),
            Event::UnloadAsked { model, host, force } => self.unload_asked(&model, host.as_ref(), force),
            Event::Policy(policy) => self.policy(*policy),
            Event::Timer => {}
        }
    }

    fn run_timers(&mut self) {
        // The others are due still, and the next step follows at once.
        for _ in 0..TIMERS {
            let Some(due) = self.state.timers.take(self.now) else { return };
            match due {
                Due::Idle(engine) => self.idle_due(engine),
                Due::Asleep(engine) => self.asleep_due(engine),
                Due::Deadline(job) => self.deadline_due(job),
                Due::Place(model) => self.touch(&model),
                Due::Lease(session, model) => self.lease_due(session, model),
                Due::Hints(model) => self.hints_due(&model),
                Due::Held(engine) => self.release_hold(engine),
                Due::Settled => {
                    self.state.settled = true;
                    self.room_changed = true;
                }
                Due::Load(model) => self.load_due(&model),
                Due::Tell => self.tell_due(),
                Due::Look => self.state.looking = false,
            }
        }
    }

    /// Notes that a model's queue or engines changed.
    pub(crate) fn touch(&mut self, model: &ModelId) {
        if !self.touched.contains(model) {
            self.touched.insert(model.clone());
        }
    }

    /// Notes that memory may have become free.
    pub(crate) fn room_changed(&mut self) {
        self.room_changed = true;
    }

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Counts accelerators that a search has weighed.
    pub(crate) fn worked(&mut self, weighed: usize) {
        self.work += weighed;
    }

    /// Admits and places until nothing changes any more, or the step has taken long enough.
    fn decide(&mut self) {
        // Each round settles the models it touches; placing one may undrain or stop engines of another.
        for round in 0..=self.state.models.len() {
            let touched = std::mem::take(&mut self.touched);
            for model in &touched {
                self.admit(model);
                self.review(model);
            }
            if std::mem::take(&mut self.room_changed) {
                self.state.wanting.room_changed();
            }
            let mut concerned = self.state.wanting.take_left();
            concerned.extend(touched.iter().cloned());
            for model in self.in_turn(concerned) {
                self.place_in_time(model);
            }
            if round == 0 {
                let next = self.state.wanting.next_of_round();
                for model in self.in_turn(next) {
                    self.place_in_time(model);
                }
            }
            for model in &touched {
                self.settle_lanes(model);
            }
            self.see_off();
            if self.touched.is_empty() && !self.room_changed {
                break;
            }
        }
        if self.state.wanting.has_left() && !self.state.looking {
            self.state.looking = true;
            let at = if self.state.wanting.are_few() { self.now } else { self.now.plus(PAUSE) };
            self.state.timers.set(at, Due::Look);
        }
    }

    /// Places a model, or leaves it for the next step where this one has done enough.
    fn place_in_time(&mut self, id: ModelId) {
        if self.work >= ENOUGH && !self.state.yard.is_small() {
            self.state.wanting.leave(id);
        } else {
            self.place(&id);
        }
    }

    /// Those of the models that want an engine, in the order in which they are seen to.
    fn in_turn(&mut self, mut concerned: BTreeSet<ModelId>) -> Vec<ModelId> {
        concerned.retain(|id| self.state.wanting.contains(id));
        if concerned.len() < 2 {
            return concerned.into_iter().collect();
        }
        self.state.survey(self.now);
        let scene = Scene::new(self.state, self.now);
        let mut turn: Vec<(Demand, ModelId)> = Vec::new();
        let mut later = Vec::new();
        for id in concerned {
            match scene.demand(&id) {
                Some(demand) => turn.push((demand, id)),
                // A hint that is not near yet.
                None => later.push(id),
            }
        }
        turn.sort_by(|(a, a_id), (b, b_id)| a.before(b).then_with(|| a_id.cmp(b_id)));
        turn.into_iter().map(|(_, id)| id).chain(later).collect()
    }

    /// Brings `wanting` and the plan of a model up to date.
    fn review(&mut self, id: &ModelId) {
        self.state.tidy();
        let Some(model) = self.state.models.get(id) else {
            self.state.wanting.remove(id);
            return;
        };
        let served = self.state.tallies.of(id).serving > 0;
        let wanted = if served {
            Scene::new(self.state, self.now).demand(id).is_some()
        } else {
            model.is_awaited() || model.needs.pin
        };
        if wanted {
            self.state.wanting.insert(id);
            self.state.recount(id);
            return;
        }
        self.state.wanting.remove(id);
        if model.plan.is_some() {
            self.drop_plan(id);
        }
    }
}

impl JobPhase {
    /// Whether an engine has it.
    #[must_use]
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running { .. })
    }
}
