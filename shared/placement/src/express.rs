//! The express lane: jobs that a host took straight from a gateway. The core hears of them when they have begun, counts
//! them like any other, and says which engines may take some.
//!
//! An express attempt and a job in the books may have the same id: its gateway gave the attempt up and submitted the
//! job. Neither says anything of the other.

use berth_wire::{EngineId, JobId, ModelId, Usage};

use crate::books::{Engine, EnginePhase, Express};
use crate::effect::Effect;
use crate::event::{AttemptEnd, JobFacts};
use crate::queue::Waiting;
use crate::state::Step;

impl Step<'_> {
    /// A host took a job: it has a slot from here on.
    pub(crate) fn job_started(&mut self, facts: &JobFacts, engine: EngineId) {
        if !self.enter_express(facts.id, engine) {
            return;
        }
        let mut counted = Waiting {
            arrival: facts.arrival,
            limit: facts.arrival,
            key: facts.key.clone(),
            session: facts.session.clone(),
            class: facts.class,
            tokens: facts.tokens,
        };
        self.asked_for(&facts.model, facts.class);
        if let Some(model) = self.state.models.get_mut(&facts.model) {
            if let Some(mean) = model.tokens {
                counted.tokens = counted.tokens.min(mean);
            }
            model.queue.pass(&counted);
            if let Some(session) = &facts.session {
                model.affinity.served(session, engine);
                if model.hints.came_true(session) {
                    self.hint_gone(session);
                }
            }
        }
        if let Some(session) = &facts.session {
            self.renew_lease(session, &facts.model);
        }
        let entry = self.state.engines.get_mut(&engine).and_then(|engine| engine.express.get_mut(&facts.id));
        if let Some(entry) = entry {
            entry.counted = Some(counted);
        }
    }

    /// A snapshot tells of an express job.
    pub(crate) fn express_found(&mut self, id: JobId, engine: EngineId) {
        if !self.state.express_over.contains(id) {
            self.enter_express(id, engine);
        }
    }

    /// Gives it its slot; false if it has been counted already, or its engine is gone and it with it.
    fn enter_express(&mut self, id: JobId, engine_id: EngineId) -> bool {
        let Some(engine) = self.state.engines.get_mut(&engine_id) else { return false };
        if engine.express.entry(id).or_default().counted.is_some() {
            return false;
        }
        engine.last_used = self.now;
        engine.used = true;
        let model = engine.model.clone();
        // What was ordered crossed the job, and its host refuses to stop what serves.
        let crossed = match engine.phase {
            EnginePhase::FallingAsleep => !engine.in_ram,
            EnginePhase::Stopping => true,
            _ => false,
        };
        if crossed {
            self.drain_instead(engine_id);
        }
        self.touch(&model);
        true
    }

    /// The end of an express attempt: of interest for its slot and for what is learnt from it. Its client has been
    /// told, or waits for what it submitted instead.
    pub(crate) fn express_ended(&mut self, id: JobId, engine_id: EngineId, end: &AttemptEnd, usage: Usage) {
        self.state.express_over.insert(id);
        let Some(engine) = self.state.engines.get_mut(&engine_id) else { return };
        let Some(Express { counted }) = engine.express.remove(&id) else { return };
        engine.last_used = self.now;
        let model = engine.model.clone();
        if let Some(counted) = counted {
            let answered = matches!(end, AttemptEnd::Completed);
            let told = usage.prompt_tokens.zip(usage.completion_tokens);
            let took = told.map(|(prompt, output)| prompt.saturating_add(output));
            if let Some(entry) = self.state.models.get_mut(&model) {
                match (answered, took) {
                    (true, Some(took)) => {
                        entry.queue.settle(&counted, took);
                        let mean = |mean: u64| mean.saturating_mul(7).saturating_add(took) / 8;
                        entry.tokens = Some(entry.tokens.map_or(took, mean));
                    }
                    (true, None) => {}
                    (false, _) => entry.queue.settle(&counted, 0),
                }
            }
            if answered {
                self.learn_service(engine_id, &model, usage.total, usage);
            }
        }
        if self.state.engines.get(&engine_id).is_some_and(Engine::is_idle) {
            self.engine_idle(engine_id);
        }
        self.touch(&model);
    }

    /// Opens or closes the lanes of a model's engines: open while it serves and nobody waits for the model.
    pub(crate) fn settle_lanes(&mut self, id: &ModelId) {
        let Some(model) = self.state.models.get(id) else { return };
        let waited_for = !model.queue.is_empty();
        let changes: Vec<(EngineId, bool)> = model
            .engines
            .iter()
            .filter_map(|id| Some((*id, self.state.engines.get(id)?)))
            .filter_map(|(id, engine)| {
                let open = self.lane(engine, waited_for)?;
                (engine.lane != Some(open)).then_some((id, open))
            })
            .collect();
        for (id, open) in changes {
            let Some(engine) = self.state.engines.get_mut(&id) else { continue };
            engine.lane = Some(open);
            let host = engine.host.clone();
            self.emit(Effect::Lane { engine: id, host, open });
        }
    }

    /// How an engine's lane should be; `None`: it does not serve yet, so it makes no difference.
    fn lane(&self, engine: &Engine, waited_for: bool) -> Option<bool> {
        if engine.phase.is_loading() {
            return None;
        }
        let serves = engine.phase == EnginePhase::Ready && engine.draining_for.is_none() && !engine.leaving;
        Some(serves && !waited_for && self.host_takes(engine))
    }
}
