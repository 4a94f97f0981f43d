//! Hosts that a person drains: what runs there finishes, nothing new goes there, and their engines go when they are idle.
//!
//! It holds until it is taken back, also while the host is away and under the next leader.

use std::time::Duration;

use berth_wire::{ApiError, EngineId, ErrorKind, EventBody, HostId, ModelId};

use crate::books::{Engine, EnginePhase, Host};
use crate::effect::Effect;
use crate::site::suits;
use crate::state::{State, Step};

/// So many hosts are named in an error.
const NAMED: usize = 8;
/// Draining a host is a person's doing, and takes as long as that.
const RETRY: Duration = Duration::from_secs(30);

/// How far a drained host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainView {
    /// It is there.
    pub present: bool,
    /// Jobs that run there.
    pub running: usize,
    /// Engines there that are not gone.
    pub engines: usize,
    /// Of these, how many stay until another engine of their model is ready elsewhere.
    pub staying: usize,
}

impl State {
    /// Whether a person drains the host.
    #[must_use]
    pub fn drains(&self, host: &HostId) -> bool {
        self.drained.contains(host)
    }

    /// Hosts that are there.
    pub fn present(&self) -> impl Iterator<Item = &HostId> {
        self.hosts.keys()
    }

    /// What is left on a host.
    #[must_use]
    pub fn left_on(&self, host: &HostId) -> DrainView {
        let Some(entry) = self.hosts.get(host) else { return DrainView::default() };
        let engines = || entry.engines.iter().filter_map(|id| self.engines.get(id));
        DrainView {
            present: true,
            running: engines().map(Engine::taken).sum(),
            engines: entry.engines.len(),
            staying: engines().filter(|engine| engine.is_idle() && self.has_successor(engine)).count(),
        }
    }

    /// Somebody counts on the model of an engine that leaves, and another engine of it is on its way.
    fn has_successor(&self, engine: &Engine) -> bool {
        let Some(model) = self.models.get(&engine.model) else { return false };
        let counted_on = model.needs.pin || !model.leases.is_empty();
        if engine.phase != EnginePhase::Ready || !counted_on {
            return false;
        }
        let others = || model.engines.iter().filter_map(|id| self.engines.get(id)).filter(|e| e.serves());
        let there = others().any(|other| other.phase == EnginePhase::Ready);
        let coming = others().any(|other| other.phase.is_loading());
        !there && (coming || model.plan.is_some() || self.wanting.is_left(&engine.model))
    }
}

impl State {
    /// Whether a host could run the model but for its agent being about to end. It may be back in a moment, as in an
    /// upgrade: who wants the model waits until it has left.
    pub(crate) fn one_is_leaving(&self, id: &ModelId) -> bool {
        let Some(model) = self.models.get(id) else { return false };
        let leaving = self.hosts.values().filter(|host| host.leaving);
        leaving.filter(|host| suits(host, model)).any(|host| self.fits_empty(host, model))
    }

    /// Where only hosts that a person drains could have the model: what those who want it are told.
    pub(crate) fn all_drained(&self, id: &ModelId) -> Option<ApiError> {
        let model = self.models.get(id)?;
        let could = |host: &Host| suits(host, model) && !host.leaving && self.fits_empty(host, model);
        let drained = self.drained.iter().filter_map(|id| Some((id, self.hosts.get(id)?)));
        let names: Vec<&str> =
            drained.filter(|(_, host)| could(host)).map(|(id, _)| id.as_str()).take(NAMED).collect();
        let first = names.first()?;
        let text = format!(
            "only hosts that are being drained could run `{id}`: {}; try again later, or have one back with `berth \
             undrain {first}`",
            names.join(", ")
        );
        Some(ApiError::new(ErrorKind::Unavailable, "host_drained", text).param("model").retry_after(RETRY))
    }
}

impl Step<'_> {
    /// A person has a host drained, or takes that back.
    pub(crate) fn drain(&mut self, id: &HostId, on: bool) {
        let changed = if on { self.state.drained.insert(id.clone()) } else { self.state.drained.remove(id) };
        if !changed {
            return;
        }
        self.emit(Effect::Record(match on {
            true => EventBody::HostDraining { host: id.clone() },
            false => EventBody::HostUndrained { host: id.clone() },
        }));
        let Some(host) = self.state.hosts.get_mut(id) else { return };
        host.draining = on || host.leaving;
        let (engines, plans) = (host.engines.clone(), host.plans.clone());
        for engine in engines {
            let Some(engine) = self.state.engines.get_mut(&engine) else { continue };
            engine.leaving = on;
            let model = engine.model.clone();
            self.touch(&model);
        }
        // Room there is nobody's any more.
        for claimant in plans {
            self.drop_plan(&claimant);
            self.touch(&claimant);
        }
        self.room_changed();
    }

    /// Stops what is idle on drained hosts, unless it stays until another engine takes its place.
    pub(crate) fn see_off(&mut self) {
        if self.state.drained.is_empty() {
            return;
        }
        let hosts = self.state.drained.iter().filter_map(|id| self.state.hosts.get(id));
        let idle: Vec<EngineId> = hosts
            .flat_map(|host| &host.engines)
            .filter_map(|id| Some((*id, self.state.engines.get(id)?)))
            .filter(|(_, engine)| engine.is_idle() && !self.state.has_successor(engine))
            // One that is falling asleep is stopped when it sleeps.
            .filter(|(_, engine)| !matches!(engine.phase, EnginePhase::Stopping | EnginePhase::FallingAsleep))
            .map(|(id, _)| id)
            .collect();
        for engine in idle {
            self.stop(engine, "its host is drained".into());
        }
    }
}
