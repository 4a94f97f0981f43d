//! Engines: ordered, ready, stopped, failed.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_wire::{
    ApiError, EngineFailure, EngineId, EngineState, ErrorKind, EventBody, HostId, ModelId, Reservation,
    Residency,
};

use crate::books::{Engine, EnginePhase};
use crate::effect::Effect;
use crate::event::EngineFacts;
use crate::state::Step;
use crate::timers::Due;

impl Step<'_> {
    /// Orders an engine for a model; its memory is taken from here on.
    pub(crate) fn start(
        &mut self,
        model: &ModelId,
        host: &HostId,
        reservations: Vec<Reservation>,
        why: String,
    ) {
        let id = self.state.make_engine_id();
        let Some(entry) = self.state.models.get_mut(model) else { return };
        entry.plan = None;
        entry.engines.insert(id);
        let concurrency = entry.needs.concurrency;
        let mut from = Residency::Absent;
        if let Some(host) = self.state.hosts.get_mut(host) {
            host.engines.insert(id);
            host.plans.remove(model);
            if host.ran.contains(model) {
                from = Residency::Stopped;
            }
        }
        self.state.engines.insert(
            id,
            Engine {
                model: model.clone(),
                host: host.clone(),
                phase: EnginePhase::Ordered,
                reservations: reservations.clone(),
                concurrency,
                sleep: None,
                in_ram: false,
                asleep: false,
                credit: 0.0,
                from: Some(from),
                running: BTreeMap::new(),
                express: BTreeMap::new(),
                lane: Some(false),
                since: self.now,
                last_used: self.now,
                draining_for: None,
                leaving: false,
                quota: 0,
                idle_timer: false,
                used: false,
                held_until: None,
            },
        );
        self.emit(Effect::Start { engine: id, model: model.clone(), host: host.clone(), reservations });
        self.emit(Effect::Record(EventBody::EngineStarting {
            engine: id,
            host: host.clone(),
            model: model.clone(),
            why,
        }));
        self.tell_queue(model);
        self.touch(model);
    }

    /// Stops an engine that runs nothing.
    pub(crate) fn stop(&mut self, id: EngineId, reason: String) {
        let Some(engine) = self.state.engines.get_mut(&id) else { return };
        if engine.phase == EnginePhase::Stopping || !engine.is_idle() {
            return;
        }
        engine.phase = EnginePhase::Stopping;
        engine.since = self.now;
        let (host, model) = (engine.host.clone(), engine.model.clone());
        self.emit(Effect::Stop { engine: id, host: host.clone(), reason: reason.clone(), force: false });
        self.emit(Effect::Record(EventBody::EngineStopping {
            engine: id,
            host,
            model: model.clone(),
            why: reason,
        }));
        self.touch(&model);
    }

    pub(crate) fn engine_changed(&mut self, host: &HostId, facts: EngineFacts) {
        if !self.state.hosts.contains_key(host) {
            return;
        }
        match facts.state {
            EngineState::Stopped => self.engine_gone(host, &facts),
            EngineState::Failed => self.engine_failed(host, &facts),
            _ => self.engine_lives(host, facts),
        }
    }

    /// Takes in an engine that is not gone, known or not.
    pub(crate) fn engine_lives(&mut self, host: &HostId, facts: EngineFacts) {
        let id = facts.id;
        let phase = match facts.state {
            EngineState::Ready => EnginePhase::Ready,
            EngineState::Sleeping => EnginePhase::Sleeping,
            EngineState::Waking => EnginePhase::Waking,
            EngineState::Stopping | EngineState::Stopped | EngineState::Failed => EnginePhase::Stopping,
            _ => EnginePhase::Starting,
        };
        if let Some(entry) = self.state.models.get_mut(&facts.model) {
            entry.engines.insert(id);
        }
        if let Some(entry) = self.state.hosts.get_mut(host) {
            entry.engines.insert(id);
            if phase == EnginePhase::Ready {
                entry.failed.remove(&facts.model);
            }
        }
        let now = self.now;
        let leaving = self.state.drained.contains(host);
        let engine = self.state.engines.get_or_insert_with(id, || Engine {
            model: facts.model.clone(),
            host: host.clone(),
            phase: EnginePhase::Ordered,
            reservations: Vec::new(),
            concurrency: facts.concurrency,
            sleep: None,
            in_ram: false,
            asleep: false,
            credit: 0.0,
            from: None,
            running: BTreeMap::new(),
            express: BTreeMap::new(),
            lane: None,
            since: now,
            last_used: now,
            draining_for: None,
            leaving,
            quota: 0,
            idle_timer: false,
            used: false,
            held_until: None,
        });
        if !facts.reservations.is_empty() {
            engine.reservations = facts.reservations;
        }
        engine.concurrency = facts.concurrency.max(1);
        engine.sleep = facts.sleep.or(engine.sleep);
        // What has been ordered is not undone by a report that crossed it.
        let crossed = match engine.phase {
            EnginePhase::Stopping => phase != EnginePhase::Stopping,
            EnginePhase::FallingAsleep => phase != EnginePhase::Sleeping && phase != EnginePhase::Stopping,
            EnginePhase::Waking => phase == EnginePhase::Sleeping,
            _ => false,
        };
        if crossed {
            return;
        }
        if engine.phase != phase {
            engine.phase = phase;
            engine.since = now;
            match phase {
                EnginePhase::Ready => {
                    self.engine_ready(id, host, &facts.model, facts.start_took, facts.peak_memory);
                }
                EnginePhase::Sleeping => self.asleep(id),
                _ => {}
            }
        } else if let Some(peak) = facts.peak_memory {
            self.learn_peak(id, peak);
        }
        if !self.state.models.contains_key(&facts.model) {
            self.stop(id, format!("{} is not in the catalog any more", facts.model));
        }
        self.touch(&facts.model);
    }

    fn engine_ready(
        &mut self,
        id: EngineId,
        host: &HostId,
        model: &ModelId,
        took: Option<Duration>,
        peak: Option<u64>,
    ) {
        let queued = self.state.models.get(model).map_or(0, |model| model.queue.len());
        if let Some(engine) = self.state.engines.get_mut(&id) {
            engine.last_used = self.now;
            engine.in_ram = false;
            engine.asleep = false;
            engine.quota = u32::try_from(queued).unwrap_or(u32::MAX);
        }
        if let Some(took) = took {
            self.learn_start(id, took, peak);
        }
        if let Some(host) = self.state.hosts.get_mut(host) {
            host.ran.insert(model.clone());
        }
        if let Some(model) = self.state.models.get_mut(model) {
            model.ran_on(host);
            if model.load.as_ref().is_some_and(|load| load.is_on(host)) {
                model.load = None;
            }
        }
        self.emit(Effect::Record(EventBody::EngineReady {
            engine: id,
            host: host.clone(),
            model: model.clone(),
            took_ms: took.and_then(|took| u64::try_from(took.as_millis()).ok()),
        }));
        self.send_to_sleep(host);
        self.admit(model);
        if self.state.engines.get(&id).is_some_and(Engine::is_idle) {
            self.engine_idle(id);
        }
    }

    fn engine_gone(&mut self, host: &HostId, facts: &EngineFacts) {
        if self.state.engines.contains_key(&facts.id) {
            self.emit(Effect::Record(EventBody::EngineStopped {
                engine: facts.id,
                host: host.clone(),
                model: facts.model.clone(),
            }));
            self.forget_engine(facts.id, "the engine was stopped while it served this job");
        }
    }

    /// Takes an engine out of the books. What ran on it is lost with it, whatever is still reported of it.
    pub(crate) fn forget_engine(&mut self, id: EngineId, reason: &str) {
        let Some(engine) = self.state.engines.remove(&id) else { return };
        let error = ApiError::new(ErrorKind::EngineFailed, "engine_failed", reason);
        for (job, run) in &engine.running {
            self.state.strays.remove(&(*job, id));
            self.attempt_lost(*job, run.attempt, &error);
        }
        if let Some(model) = self.state.models.get_mut(&engine.model) {
            model.engines.remove(&id);
        }
        let plans = match self.state.hosts.get_mut(&engine.host) {
            Some(host) => {
                host.engines.remove(&id);
                host.plans.clone()
            }
            None => return,
        };
        self.send_to_sleep(&engine.host);
        for claimant in plans {
            self.victim_gone(&claimant, id);
        }
        self.touch(&engine.model);
        self.room_changed();
    }

    fn engine_failed(&mut self, host: &HostId, facts: &EngineFacts) {
        let failure = facts.failure.clone().unwrap_or_else(|| EngineFailure {
            message: "the engine failed; its host does not say why".into(),
            permanent: false,
            was_ready: false,
        });
        let Some(engine) = self.state.engines.get(&facts.id) else { return };
        let stopping = engine.phase == EnginePhase::Stopping;
        // One that fell over by itself would otherwise be started again for ever. One that fell over its work
        // may do better with other work, and jobs have a limit of attempts of their own.
        let at_start = !failure.was_ready || !engine.used;
        if let Some(model) = self.state.models.get_mut(&facts.model) {
            model.last_failure = Some(failure.message.clone());
        }
        self.emit(Effect::Record(EventBody::EngineFailed {
            engine: facts.id,
            host: host.clone(),
            model: facts.model.clone(),
            message: failure.message.clone(),
        }));
        self.forget_engine(facts.id, &failure.message);
        if at_start && !stopping {
            self.start_failed(&facts.model, host, &failure, false);
        }
    }

    pub(crate) fn start_refused(&mut self, id: EngineId, failure: &EngineFailure, silent: bool) {
        let Some(engine) = self.state.engines.get(&id) else { return };
        let (model, host, phase) = (engine.model.clone(), engine.host.clone(), engine.phase);
        if !matches!(phase, EnginePhase::Ordered | EnginePhase::Waking) {
            return;
        }
        self.emit(Effect::Record(EventBody::EngineFailed {
            engine: id,
            host: host.clone(),
            model: model.clone(),
            message: failure.message.clone(),
        }));
        if phase == EnginePhase::Waking {
            // Its host has it still.
            self.stop(id, format!("it could not be woken: {}", failure.message));
        } else {
            self.forget_engine(id, &failure.message);
        }
        self.start_failed(&model, &host, failure, silent);
    }

    /// Tries again elsewhere, or there after a delay, or gives the model up for a while and tells its jobs why.
    fn start_failed(&mut self, id: &ModelId, host: &HostId, failure: &EngineFailure, silent: bool) {
        let policy = self.state.policy.clone();
        if let Some(host) = self.state.hosts.get_mut(host) {
            let times = host.failed.get(id).map_or(0, |(times, _)| *times) + 1;
            let pause = if failure.permanent {
                policy.backoff_ceiling
            } else {
                doubled(policy.retry_delay, times, policy.backoff_ceiling)
            };
            host.failed.insert(id.clone(), (times, self.now.plus(pause)));
        }
        if let Some(model) = self.state.models.get_mut(id) {
            model.failed_on.insert(host.clone());
        }
        let untried = self.has_untried_host(id);
        let Some(model) = self.state.models.get_mut(id) else { return };
        // A host that is away says nothing of the model; it is soon lost, or back.
        if !silent {
            model.start_failures += 1;
        }
        let again = !failure.permanent && model.start_failures < policy.max_start_failures;
        if again || untried {
            self.touch(id);
            return;
        }
        model.start_failures = 0;
        model.given_up += 1;
        let pause = doubled(policy.backoff_floor, model.given_up, policy.backoff_ceiling);
        let until = self.now.plus(pause);
        let error = ApiError::new(
            ErrorKind::Unavailable,
            "engine_start_failed",
            format!("no engine for `{id}` could be started: {}", failure.message),
        )
        .retry_after(pause);
        model.load = None;
        model.blocked = Some((until, error.clone()));
        model.not_before = Some(until);
        self.forgive_hosts(id);
        // A pinned model is tried again without being asked for.
        self.state.timers.set(until, Due::Place(id.clone()));
        self.fail_queue(id, &error);
        self.touch(id);
    }

    /// Whether some host that could have the model has not failed to start it.
    fn has_untried_host(&self, id: &ModelId) -> bool {
        let Some(model) = self.state.models.get(id) else { return false };
        // At most so many are passed over as have failed.
        self.state
            .yard
            .kinds()
            .filter(|alike| self.state.could_have(alike, model))
            .flatten()
            .filter_map(|host| self.state.hosts.get(host))
            .any(|host| !host.failed.contains_key(id))
    }

    /// Forgets on which hosts the model failed to start.
    pub(crate) fn forgive_hosts(&mut self, id: &ModelId) {
        let Some(model) = self.state.models.get_mut(id) else { return };
        for host in std::mem::take(&mut model.failed_on) {
            if let Some(host) = self.state.hosts.get_mut(&host) {
                host.failed.remove(id);
            }
        }
    }

    pub(crate) fn set_idle_timer(&mut self, id: EngineId) {
        let Some(engine) = self.state.engines.get(&id).filter(|engine| !engine.idle_timer) else { return };
        let Some(ttl) = self.idle_ttl(engine) else { return };
        self.state.timers.set(engine.last_used.plus(ttl), Due::Idle(id));
        if let Some(engine) = self.state.engines.get_mut(&id) {
            engine.idle_timer = true;
        }
    }

    fn idle_ttl(&self, engine: &Engine) -> Option<Duration> {
        let needs = &self.state.models.get(&engine.model)?.needs;
        if needs.pin { None } else { needs.idle_ttl.or(self.state.policy.idle_ttl) }
    }

    pub(crate) fn idle_due(&mut self, id: EngineId) {
        if let Some(engine) = self.state.engines.get_mut(&id) {
            engine.idle_timer = false;
        }
        let Some(engine) = self.state.engines.get(&id) else { return };
        if engine.phase != EnginePhase::Ready || !engine.is_idle() {
            return;
        }
        // Its lease's end looks again.
        if self.state.models.get(&engine.model).is_some_and(|model| !model.leases.is_empty()) {
            return;
        }
        let Some(ttl) = self.idle_ttl(engine) else { return };
        let idle = self.now.since(engine.last_used);
        if idle >= ttl {
            self.put_away(id, format!("idle for {} s", idle.as_secs()));
        } else {
            self.set_idle_timer(id);
        }
    }
}

/// `first` doubled `times - 1` times, up to `ceiling`.
pub(crate) fn doubled(first: Duration, times: u32, ceiling: Duration) -> Duration {
    let factor = 1u32.checked_shl(times.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(ceiling)
}
