//! What operators ask: engines loaded and unloaded by hand, and another policy.

use berth_wire::{
    ApiError, EngineId, ErrorKind, EventBody, HostId, LOAD_KEPT, ModelId, SessionId, Timestamp,
};

use crate::books::{Engine, EnginePhase, Model};
use crate::demand::{Cause, Demand};
use crate::effect::Effect;
use crate::explain::show;
use crate::policy::Policy;
use crate::scene::Scene;
use crate::site::eligible;
use crate::state::Step;
use crate::timers::Due;

/// Why an engine goes that an operator wants gone.
const UNLOADED: &str = "an operator unloaded it";

/// An operator's wish for an engine of a model.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// Where; `None`: wherever it is best.
    pub(crate) host: Option<HostId>,
    /// It is forgotten then.
    until: Timestamp,
}

impl Load {
    /// Whether an engine there fulfils it.
    pub(crate) fn is_on(&self, host: &HostId) -> bool {
        self.host.as_ref().is_none_or(|wanted| wanted == host)
    }
}

impl Scene<'_> {
    /// What an operator wants of the model, where there is no such engine yet.
    pub(crate) fn load_asked(&self, model: &Model) -> Option<Demand> {
        let load = model.load.as_ref().filter(|load| load.until > self.now)?;
        let engines = model.engines.iter().filter_map(|id| self.state.engines.get(id));
        let there = engines.filter(|engine| load.is_on(&engine.host)).any(Engine::serves);
        let demand = Demand { cause: Cause::Load, waited: f64::INFINITY, ..Demand::asked(1.0) };
        (!there).then_some(demand)
    }
}

impl Step<'_> {
    pub(crate) fn load_asked(&mut self, id: &ModelId, host: Option<HostId>) {
        if let Some(model) = self.state.models.get_mut(id) {
            // A person may have put right what was wrong.
            model.blocked = None;
            model.not_before = None;
            model.start_failures = 0;
            self.forgive_hosts(id);
            self.touch(id);
        }
        let error = self.refusal(id).or_else(|| self.refused_there(id, host.as_ref()));
        if let Some(error) = error {
            self.emit(Effect::AskRefused(error));
            return;
        }
        let load = Load { host, until: self.now.plus(LOAD_KEPT) };
        let Some(model) = self.state.models.get_mut(id) else { return };
        let engines: Vec<EngineId> = model.engines.iter().copied().collect();
        self.state.timers.set(load.until, Due::Load(id.clone()));
        let serves = |engine: &Engine| {
            engine.phase == EnginePhase::Ready && engine.serves() && load.is_on(&engine.host)
        };
        let there = engines.iter().filter_map(|engine| self.state.engines.get(engine)).any(serves);
        if let Some(model) = self.state.models.get_mut(id) {
            model.load = (!there).then_some(load);
        }
    }

    fn no_such_host(&self, name: &HostId) -> ApiError {
        let known: Vec<&str> = self.state.hosts.iter().map(|(id, _)| id.as_str()).take(16).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        let message = format!("no host is called `{name}`; there are {known}");
        ApiError::new(ErrorKind::HostNotFound, "host_not_found", message).param("host")
    }

    /// Why the model cannot be had on that host.
    fn refused_there(&self, id: &ModelId, host: Option<&HostId>) -> Option<ApiError> {
        let (name, model) = (host?, self.state.models.get(id)?);
        let wrong = |code: &str, message: String| {
            Some(ApiError::new(ErrorKind::InvalidRequest, code, message).param("host"))
        };
        let Some(host) = self.state.hosts.get(name) else { return Some(self.no_such_host(name)) };
        if host.draining {
            return wrong("host_draining", format!("the host {name} is draining: it takes nothing new"));
        }
        if !eligible(host, model) || !self.state.fits_empty(host, model) {
            let most = host.devices.iter().map(|device| device.memory).max().unwrap_or(0);
            let driver = model.needs.driver.as_str();
            let message = format!(
                "`{id}` cannot run on {name}: it needs the driver {driver}, the labels [{}] and the memory that it takes, \
                 and there are {} accelerator(s) of up to {}",
                model.needs.labels.join(", "),
                host.devices.len(),
                show(most)
            );
            return wrong("model_cannot_fit", message);
        }
        None
    }

    /// The wish has waited for long enough.
    pub(crate) fn load_due(&mut self, id: &ModelId) {
        let Some(model) = self.state.models.get_mut(id) else { return };
        if model.load.as_ref().is_some_and(|load| load.until <= self.now) {
            model.load = None;
            self.touch(id);
        }
    }

    pub(crate) fn unload_asked(&mut self, id: &ModelId, host: Option<&HostId>, force: bool) {
        let Some(model) = self.state.models.get(id) else {
            let message = format!("the model `{id}` is not in the catalog");
            let error = ApiError::new(ErrorKind::ModelNotFound, "model_not_found", message).param("model");
            self.emit(Effect::AskRefused(error));
            return;
        };
        if let Some(name) = host.filter(|name| self.state.hosts.get(*name).is_none()) {
            let error = self.no_such_host(name);
            self.emit(Effect::AskRefused(error));
            return;
        }
        let there = |engine: &Engine| host.is_none_or(|host| *host == engine.host);
        let engines: Vec<EngineId> = model
            .engines
            .iter()
            .copied()
            .filter(|engine| self.state.engines.get(engine).is_some_and(there))
            .collect();
        if !force && let Some(why) = self.kept_by(model, &engines) {
            let message = format!("`{id}` stays: {why}; --force unloads it all the same");
            self.emit(Effect::AskRefused(ApiError::new(ErrorKind::InvalidRequest, "model_in_use", message)));
            return;
        }
        let sessions: Vec<SessionId> = model.leases.iter().cloned().collect();
        if let Some(model) = self.state.models.get_mut(id) {
            model.load = None;
        }
        if host.is_none() {
            self.drop_plan(id);
        }
        if host.is_none() && force {
            for session in sessions {
                self.lease_released(&session, Some(id));
            }
        }
        for engine in engines {
            self.unload(engine, force);
        }
        self.touch(id);
    }

    /// What keeps a model, for a person who would have it unloaded.
    fn kept_by(&self, model: &Model, engines: &[EngineId]) -> Option<String> {
        let several =
            |n: usize, one: &str, many: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {many}") };
        if model.needs.pin {
            return Some("it is pinned; `berth unpin` takes the pin off".into());
        }
        if !model.leases.is_empty() {
            return Some(format!("{} it", several(model.leases.len(), "lease keeps", "leases keep")));
        }
        let engines = engines.iter().filter_map(|id| self.state.engines.get(id));
        let running: usize = engines.map(Engine::taken).sum();
        if running > 0 {
            return Some(format!("{} on it", several(running, "job runs", "jobs run")));
        }
        let waiting = model.queue.len();
        (waiting > 0).then(|| format!("{} for it", several(waiting, "job waits", "jobs wait")))
    }

    /// Has an engine stopped; what runs on it is lost with it if it must be.
    fn unload(&mut self, id: EngineId, force: bool) {
        let Some(engine) = self.state.engines.get_mut(&id) else { return };
        if engine.is_idle() {
            self.stop(id, UNLOADED.into());
            return;
        }
        if !force {
            return;
        }
        let (host, model) = (engine.host.clone(), engine.model.clone());
        let (running, express) = (std::mem::take(&mut engine.running), std::mem::take(&mut engine.express));
        engine.phase = EnginePhase::Stopping;
        engine.since = self.now;
        engine.draining_for = None;
        engine.quota = 0;
        self.emit(Effect::Stop { engine: id, host: host.clone(), reason: UNLOADED.into(), force: true });
        let body = EventBody::EngineStopping { engine: id, host, model: model.clone(), why: UNLOADED.into() };
        self.emit(Effect::Record(body));
        let error =
            ApiError::new(ErrorKind::EngineFailed, "engine_unloaded", "an operator stopped the engine");
        for (job, run) in running {
            self.state.strays.remove(&(job, id));
            self.attempt_lost(job, run.attempt, &error);
        }
        for job in express.into_keys() {
            self.state.express_over.insert(job);
        }
        self.touch(&model);
    }

    /// The numbers are others from here on. What was set by the old ones, as limits of jobs that wait already, stays.
    pub(crate) fn policy(&mut self, policy: Policy) {
        self.state.policy = policy;
        self.state.protected_stale = true;
        let engines: Vec<EngineId> = self.state.engines.iter().map(|(id, _)| *id).collect();
        for engine in engines {
            if self.state.engines.get(&engine).is_some_and(Engine::is_idle) {
                self.set_idle_timer(engine);
            }
        }
        self.room_changed();
    }
}
