//! The catalog: models come, change and go.

use std::collections::{BTreeMap, BTreeSet};

use berth_wire::{ApiError, EngineId, ErrorKind, HostId, ModelId, SessionId};

use crate::books::{Engine, EnginePhase, Model};
use crate::event::ModelNeeds;
use crate::state::Step;

impl Step<'_> {
    pub(crate) fn catalog(&mut self, models: Vec<ModelNeeds>) {
        let mut wanted: BTreeMap<ModelId, ModelNeeds> =
            models.into_iter().map(|needs| (needs.id.clone(), needs)).collect();
        let known: Vec<ModelId> = self.state.models.keys().cloned().collect();
        for id in known {
            match wanted.remove(&id) {
                Some(needs) => self.change(&id, needs),
                None => self.retire(&id),
            }
        }
        let mut leases: BTreeMap<ModelId, BTreeSet<SessionId>> = BTreeMap::new();
        for (session, model) in self.state.leases.keys() {
            leases.entry(model.clone()).or_default().insert(session.clone());
        }
        let mut engines: BTreeMap<ModelId, BTreeSet<EngineId>> = BTreeMap::new();
        for (id, engine) in self.state.engines.iter() {
            engines.entry(engine.model.clone()).or_default().insert(*id);
        }
        let mut failed: BTreeMap<ModelId, BTreeSet<HostId>> = BTreeMap::new();
        for (host, entry) in self.state.hosts.iter() {
            for model in entry.failed.keys() {
                failed.entry(model.clone()).or_default().insert(host.clone());
            }
        }
        for (id, needs) in wanted {
            let mut model = Model::new(needs);
            model.leases = leases.remove(&id).unwrap_or_default();
            self.recall(&mut model);
            model.engines = engines.remove(&id).unwrap_or_default();
            model.failed_on = failed.remove(&id).unwrap_or_default();
            self.state.models.insert(id.clone(), model);
            self.touch(&id);
        }
        self.state.protected_stale = true;
        self.state.shares.clear();
        self.room_changed();
    }

    fn change(&mut self, id: &ModelId, needs: ModelNeeds) {
        let Some(model) = self.state.models.get_mut(id) else { return };
        if model.needs == needs {
            return;
        }
        let reconfigured = model.needs.config != needs.config;
        model.needs = needs;
        if reconfigured {
            model.start_took = None;
            model.service = None;
            model.estimate = None;
        }
        // What was wrong may have been put right.
        model.blocked = None;
        model.not_before = None;
        model.start_failures = 0;
        let engines = model.engines.clone();
        self.forgive_hosts(id);
        self.drop_plan(id);
        for engine in engines {
            let idle = self.state.engines.get(&engine).is_some_and(Engine::is_idle);
            if idle {
                // Its idle limit may be new.
                self.set_idle_timer(engine);
            }
        }
        self.touch(id);
    }

    fn retire(&mut self, id: &ModelId) {
        let error = ApiError::new(
            ErrorKind::ModelNotFound,
            "model_not_found",
            format!("the model `{id}` was taken out of the catalog"),
        )
        .param("model");
        self.fail_queue(id, &error);
        let sessions: Vec<_> =
            self.state.models.get(id).map(|model| model.leases.iter().cloned().collect()).unwrap_or_default();
        for session in sessions {
            self.lease_released(&session, Some(id));
        }
        self.drop_plan(id);
        let Some(model) = self.state.models.remove(id) else { return };
        for session in model.hints.sessions() {
            self.hint_gone(&session);
        }
        self.state.wanting.remove(id);
        for engine in model.engines {
            let idle = self
                .state
                .engines
                .get(&engine)
                .is_some_and(|engine| engine.is_idle() && engine.phase != EnginePhase::Stopping);
            if idle {
                self.stop(engine, format!("{id} was taken out of the catalog"));
            }
        }
    }
}
