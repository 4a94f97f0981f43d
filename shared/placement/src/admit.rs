//! Admission: a free slot on a ready engine takes the next job of its model at once.

use std::cmp::Reverse;
use std::time::Duration;

use berth_wire::{EngineId, EventBody, JobId, ModelId, Stage, Timestamp};

use crate::books::{Engine, JobPhase, Model, Run};
use crate::effect::Effect;
use crate::forecast::{Outlook, span};
use crate::line::Line;
use crate::scene::Scene;
use crate::state::{State, Step};
use crate::timers::Due;

/// So many waiting jobs of a model are told their place at a time; those behind hear when they come nearer.
const TOLD: usize = 256;
/// Jobs of so many models at a time: each has its own outlook.
const MODELS_TOLD: usize = 16;

/// What jobs of one model may expect, wherever they stand in its queue.
pub(crate) struct Prospect {
    /// Slots that are free.
    free: u64,
    /// When those are that are taken, or have yet to come.
    line: Line,
    /// The model has no engine: when it may have one.
    pub(crate) outlook: Option<Outlook>,
}

impl Prospect {
    /// How long a job with so many before it may expect to wait.
    pub(crate) fn wait(&self, position: usize) -> Option<Duration> {
        let free = usize::try_from(self.free).unwrap_or(usize::MAX);
        match position.checked_sub(free) {
            None => Some(Duration::ZERO),
            Some(before) => span(self.line.nth(before.saturating_add(1))?),
        }
    }
}

impl Scene<'_> {
    /// What jobs of the model may expect, from what was measured.
    pub(crate) fn prospect(&self, model: &Model) -> Prospect {
        let tally = self.state.tallies.of(&model.needs.id);
        let service = model.service.map(|service| service.as_secs_f64());
        let mut line = Line::new(service);
        let engines = || model.engines.iter().filter_map(|id| self.state.engines.get(id));
        let mean = self.state.service(model).as_secs_f64();
        for engine in engines().filter(|engine| engine.serves() && !engine.phase.is_loading()) {
            if service.is_some() {
                self.left(engine, mean).into_iter().flatten().for_each(|left| line.busy(left));
            }
        }
        let loading = engines().filter(|engine| engine.phase.is_loading());
        for (at, slots) in loading.filter_map(|engine| Some((self.start_left(engine)?, engine.concurrency))) {
            line.opens(at, slots);
        }
        let outlook = (tally.serving == 0).then(|| self.outlook(model));
        if let Some(at) = outlook.as_ref().and_then(|outlook| outlook.ready) {
            line.opens(at, model.needs.concurrency);
        }
        Prospect { free: tally.free, line: line.sort(), outlook }
    }
}

impl State {
    /// How long a job with so many before it may expect to wait, from what was measured; `None`: nothing was, or
    /// nobody knows.
    pub(crate) fn expected_wait(&self, model: &Model, position: usize, now: Timestamp) -> Option<Duration> {
        Scene::new(self, now).prospect(model).wait(position)
    }
}

impl Step<'_> {
    /// Starts as many waiting jobs of the model as there are free slots.
    pub(crate) fn admit(&mut self, id: &ModelId) {
        loop {
            self.state.tidy();
            let Some((job, engine)) = self.next_admission(id) else { return };
            self.dispatch(job, engine);
        }
    }

    fn next_admission(&self, id: &ModelId) -> Option<(JobId, EngineId)> {
        let model = self.state.models.get(id)?;
        let job = model.queue.next(self.now)?;
        let session = self.state.jobs.get(&job).and_then(|job| job.session.as_ref());
        // Where its session was served last, the prompt's prefix may still be in the cache.
        let last = session.and_then(|session| model.affinity.of(session));
        // The one with most free slots, of several the last one, of others the oldest.
        let open = &self.state.tallies.of(id).open;
        let (free, Reverse(oldest)) = open.last()?;
        let engine = last.filter(|last| open.contains(&(*free, Reverse(*last)))).unwrap_or(*oldest);
        Some((job, engine))
    }

    pub(crate) fn host_takes(&self, engine: &Engine) -> bool {
        self.state.hosts.get(&engine.host).is_some_and(|host| !host.draining)
    }

    fn dispatch(&mut self, id: JobId, engine_id: EngineId) {
        let attempt = self.state.make_attempt();
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
        // A guess of more than jobs take here would lift whoever comes while it is outstanding.
        if let Some(mean) = self.state.models.get(&job.model).and_then(|model| model.tokens) {
            job.tokens = job.tokens.min(mean);
        }
        let expected = job.tokens;
        let Some(engine) = self.state.engines.get_mut(&engine_id) else { return };
        job.phase = JobPhase::Running { engine: engine_id, attempt };
        job.attempts += 1;
        job.started = self.now;
        let waited = self.now.since(job.arrival);
        engine.running.insert(id, Run { attempt, since: self.now });
        engine.last_used = self.now;
        engine.used = true;
        engine.quota = engine.quota.saturating_sub(1);
        let host = engine.host.clone();
        if let Some(model) = self.state.models.get_mut(&job.model) {
            model.queue.serve(id, expected);
            if let Some(session) = &job.session {
                model.affinity.served(session, engine_id);
            }
            let model = job.model.clone();
            self.places_changed(&model);
        }
        self.emit(Effect::Dispatch { job: id, attempt, engine: engine_id, host: host.clone() });
        self.emit(Effect::Record(EventBody::JobDispatched {
            job: id,
            attempt,
            engine: engine_id,
            host,
            queue_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        }));
    }

    /// Tells one waiting job where it stands.
    pub(crate) fn tell(&mut self, id: JobId) {
        self.state.tidy();
        let Some(model) = self.state.model_of(id) else { return };
        let position = model.queue.position(id);
        let (stage, prospect) = self.outlook(model);
        let eta = prospect.wait(position);
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        self.emit(Effect::Tell { job: id, stage, position, eta });
        self.keep_telling();
    }

    /// Tells the first waiting jobs of a model where they stand.
    pub(crate) fn tell_queue(&mut self, id: &ModelId) {
        self.state.tidy();
        let Some(model) = self.state.models.get(id) else { return };
        let (stage, prospect) = self.outlook(model);
        let told = model.queue.ids().take(TOLD).enumerate().map(|(position, job)| {
            let eta = prospect.wait(position);
            Effect::Tell { job, stage, position: u32::try_from(position).unwrap_or(u32::MAX), eta }
        });
        self.effects.extend(told);
        self.state.stale.remove(id);
        self.keep_telling();
    }

    /// What jobs of a model may expect.
    fn outlook(&self, model: &Model) -> (Stage, Prospect) {
        let tally = self.state.tallies.of(&model.needs.id);
        let loads = tally.ready == 0 && tally.loads();
        let stage = if loads { Stage::Loading } else { Stage::Queued };
        (stage, Scene::new(self.state, self.now).prospect(model))
    }

    /// Notes that places in a model's queue have changed since they were told.
    pub(crate) fn places_changed(&mut self, id: &ModelId) {
        if !self.state.stale.contains(id) {
            self.state.stale.insert(id.clone());
        }
        self.keep_telling();
    }

    fn keep_telling(&mut self) {
        if !self.state.telling {
            self.state.telling = true;
            self.state.timers.set(self.now.plus(self.state.policy.tell_every), Due::Tell);
        }
    }

    /// The regular round: queues whose places have changed. One of many jobs is spread over the time until the next.
    pub(crate) fn tell_due(&mut self) {
        if self.state.round.is_empty() {
            self.state.round = std::mem::take(&mut self.state.stale);
            self.state.round_of = self.state.round.len();
        }
        let before = self.effects.len();
        for _ in 0..MODELS_TOLD {
            if self.effects.len() - before >= TOLD {
                break;
            }
            let Some(model) = self.state.round.pop_first() else { break };
            self.tell_queue(&model);
        }
        if self.state.round.is_empty() {
            self.state.telling = false;
            if !self.state.stale.is_empty() {
                self.keep_telling();
            }
            return;
        }
        let part = u32::try_from(self.state.round_of).unwrap_or(u32::MAX).max(1);
        let pause = (self.state.policy.tell_every / part).max(Duration::from_millis(1));
        self.state.timers.set(self.now.plus(pause), Due::Tell);
    }
}
