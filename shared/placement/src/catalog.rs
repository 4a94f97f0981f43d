//! The catalog: models come, change and go.

use std::collections::BTreeMap;

use berth_wire::{ApiError, ErrorKind, ModelId};

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
        for (id, needs) in wanted {
            let mut model = Model::new(needs);
            model.leases =
                self.state.leases.keys().filter(|(_, on)| *on == id).map(|(of, _)| of.clone()).collect();
            self.recall(&mut model);
            model.engines = self
                .state
                .engines
                .iter()
                .filter(|(_, engine)| engine.model == id)
                .map(|(id, _)| *id)
                .collect();
            self.state.models.insert(id.clone(), model);
            self.touch(&id);
        }
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
        }
        // What was wrong may have been put right.
        model.blocked = None;
        model.not_before = None;
        model.start_failures = 0;
        for host in self.state.hosts.values_mut() {
            host.failed.remove(id);
        }
        let engines = model.engines.clone();
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
