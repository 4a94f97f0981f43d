//! Admission: a free slot on a ready engine takes the next job of its model at once.

use std::time::Duration;

use berth_wire::{EngineId, EventBody, JobId, ModelId, Stage};

use crate::books::{Engine, EnginePhase, JobPhase, Model};
use crate::effect::Effect;
use crate::state::Step;
use crate::timers::Due;

/// So many waiting jobs of a model are told their place at a time; those behind hear when they come nearer.
const TOLD: usize = 256;

impl Step<'_> {
    /// Starts as many waiting jobs of the model as there are free slots.
    pub(crate) fn admit(&mut self, id: &ModelId) {
        while let Some((job, engine)) = self.next_admission(id) {
            self.dispatch(job, engine);
        }
    }

    fn next_admission(&self, id: &ModelId) -> Option<(JobId, EngineId)> {
        let model = self.state.models.get(id)?;
        let (_, job) = model.queue.first()?;
        let engine = model
            .engines
            .iter()
            .filter_map(|id| Some((*id, self.state.engines.get(id)?)))
            .filter(|(_, engine)| engine.admits() && self.host_takes(engine))
            .max_by_key(|(id, engine)| (engine.free_slots(), std::cmp::Reverse(*id)))?
            .0;
        Some((*job, engine))
    }

    fn host_takes(&self, engine: &Engine) -> bool {
        self.state.hosts.get(&engine.host).is_some_and(|host| !host.draining)
    }

    fn dispatch(&mut self, id: JobId, engine_id: EngineId) {
        let attempt = self.state.make_attempt();
        let Some(job) = self.state.jobs.get_mut(&id) else { return };
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
            model.queue.remove(&(job.arrival, id));
            model.stale_places = true;
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
        let Some(job) = self.state.jobs.get(&id) else { return };
        let position = model.queue.range(..(job.arrival, id)).take(100_000).count();
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
            .iter()
            .take(TOLD)
            .enumerate()
            .map(|(position, (_, job))| {
                let (stage, eta) = self.outlook(model, position);
                let position = u32::try_from(position).unwrap_or(u32::MAX);
                Effect::Tell { job: *job, stage, position, eta }
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
        let starting = model
            .engines
            .iter()
            .filter_map(|id| self.state.engines.get(id))
            .find(|engine| matches!(engine.phase, EnginePhase::Ordered | EnginePhase::Starting));
        let slots = u64::from(model.needs.concurrency.max(1));
        let turns = u32::try_from(position as u64 / slots).unwrap_or(u32::MAX);
        let queue = model.service.map_or(Duration::ZERO, |service| service.saturating_mul(turns));
        match starting {
            Some(engine) => {
                let left = model.start_took.map(|took| took.saturating_sub(self.now.since(engine.since)));
                (Stage::Loading, left.map(|left| left.saturating_add(queue)))
            }
            None => (Stage::Queued, model.service.map(|service| queue.saturating_add(service))),
        }
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
