//! Admission: a free slot on a ready engine takes the next job of its model at once.

use std::time::Duration;

use berth_wire::{EngineId, EventBody, JobId, ModelId, Stage, Timestamp};

use crate::books::{Engine, EnginePhase, JobPhase, Model};
use crate::effect::Effect;
use crate::state::{State, Step};
use crate::timers::Due;

/// So many waiting jobs of a model are told their place at a time; those behind hear when they come nearer.
const TOLD: usize = 256;

impl State {
    /// How long a job with so many before it may expect to wait, from what was measured; `None`: nothing was, or
    /// there is no room yet and nobody knows when.
    pub(crate) fn expected_wait(&self, model: &Model, position: usize, now: Timestamp) -> Option<Duration> {
        let engines = || model.engines.iter().filter_map(|id| self.engines.get(id));
        let ready = engines().filter(|e| e.phase == EnginePhase::Ready && e.draining_for.is_none());
        let (replicas, free) =
            ready.fold((0u64, 0u64), |(n, free), e| (n + 1, free + u64::from(e.free_slots())));
        if (position as u64) < free {
            return Some(Duration::ZERO);
        }
        let loading = engines().filter(|engine| engine.phase.is_loading()).map(|engine| {
            let took = match engine.phase {
                EnginePhase::Waking => Some(self.wake_cost(model, None)),
                _ => model.start_took,
            };
            took.map(|took| took.saturating_sub(now.since(engine.since)))
        });
        let start = if replicas > 0 { Some(Duration::ZERO) } else { loading.flatten().min() };
        let slots = u64::from(model.needs.concurrency.max(1)) * replicas.max(1);
        let turns =
            u32::try_from((position as u64).saturating_add(if replicas > 0 { slots } else { 0 }) / slots);
        let queue = match turns.unwrap_or(u32::MAX) {
            0 => Duration::ZERO,
            turns => model.service?.saturating_mul(turns),
        };
        Some(start.or(model.start_took)?.saturating_add(queue))
    }

    /// The least that a job submitted now must wait, if anything measured says so: half of what is expected, since
    /// jobs before it may leave.
    pub(crate) fn least_wait(&self, model: &Model, now: Timestamp) -> Option<Duration> {
        let sleeps = |id| self.engines.get(id).is_some_and(|engine| engine.phase == EnginePhase::Sleeping);
        if model.engines.iter().any(sleeps) {
            return None;
        }
        Some(self.expected_wait(model, model.queue.len(), now)? / 2)
    }
}

impl Step<'_> {
    /// Starts as many waiting jobs of the model as there are free slots.
    pub(crate) fn admit(&mut self, id: &ModelId) {
        while let Some((job, engine)) = self.next_admission(id) {
            self.dispatch(job, engine);
        }
    }

    fn next_admission(&self, id: &ModelId) -> Option<(JobId, EngineId)> {
        let model = self.state.models.get(id)?;
        let job = model.queue.next(self.now)?;
        let session = self.state.jobs.get(&job).and_then(|job| job.session.as_ref());
        // Where its session was served last, the prompt's prefix may still be in the cache.
        let last = session.and_then(|session| model.affinity.of(session));
        let engine = model
            .engines
            .iter()
            .filter_map(|id| Some((*id, self.state.engines.get(id)?)))
            .filter(|(_, engine)| engine.admits() && self.host_takes(engine))
            .max_by_key(|(id, engine)| (engine.free_slots(), Some(*id) == last, std::cmp::Reverse(*id)))?
            .0;
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
        engine.running.insert(id, attempt);
        engine.last_used = self.now;
        engine.used = true;
        engine.quota = engine.quota.saturating_sub(1);
        let host = engine.host.clone();
        if let Some(model) = self.state.models.get_mut(&job.model) {
            model.queue.serve(id, expected);
            model.stale_places = true;
            if let Some(session) = &job.session {
                model.affinity.served(session, engine_id);
            }
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
        let Some(model) = self.state.model_of(id) else { return };
        let position = model.queue.position(id);
        let (stage, eta) = self.outlook(model, position);
        let position = u32::try_from(position).unwrap_or(u32::MAX);
        self.emit(Effect::Tell { job: id, stage, position, eta });
        self.keep_telling();
    }

    /// Tells the first waiting jobs of a model where they stand.
    pub(crate) fn tell_queue(&mut self, id: &ModelId) {
        let Some(model) = self.state.models.get(id) else { return };
        let told: Vec<_> = model
            .queue
            .ids()
            .take(TOLD)
            .enumerate()
            .map(|(position, job)| {
                let (stage, eta) = self.outlook(model, position);
                let position = u32::try_from(position).unwrap_or(u32::MAX);
                Effect::Tell { job, stage, position, eta }
            })
            .collect();
        self.effects.extend(told);
        if let Some(model) = self.state.models.get_mut(id) {
            model.stale_places = false;
        }
        self.keep_telling();
    }

    /// What a job at `position` may expect.
    fn outlook(&self, model: &Model, position: usize) -> (Stage, Option<Duration>) {
        let engines = || model.engines.iter().filter_map(|id| self.state.engines.get(id));
        let serves =
            engines().any(|engine| engine.phase == EnginePhase::Ready && engine.draining_for.is_none());
        let loads = !serves && engines().any(|engine| engine.phase.is_loading());
        let stage = if loads { Stage::Loading } else { Stage::Queued };
        (stage, self.state.expected_wait(model, position, self.now))
    }

    fn keep_telling(&mut self) {
        if !self.state.telling {
            self.state.telling = true;
            self.state.timers.set(self.now.plus(self.state.policy.tell_every), Due::Tell);
        }
    }

    /// The regular round: queues whose places have changed.
    pub(crate) fn tell_due(&mut self) {
        self.state.telling = false;
        let stale: Vec<ModelId> = self
            .state
            .models
            .values()
            .filter(|model| model.stale_places && !model.queue.is_empty())
            .map(|model| model.needs.id.clone())
            .collect();
        for model in &stale {
            self.tell_queue(model);
        }
        if self.state.models.values().any(|model| !model.queue.is_empty()) {
            self.keep_telling();
        }
    }
}
