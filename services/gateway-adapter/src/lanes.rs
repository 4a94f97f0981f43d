//! The express lane as a gateway sees it: engines that take offers, as their records tell, and what this gateway itself
//! has offered and waits for. A guess: the host decides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_bus::Entries;
use berth_wire::{EngineId, EngineRecord, EngineState, HostId, ModelId};

/// An engine that said no is left alone for so long, unless there is news of it.
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// One engine of a model.
#[derive(Debug)]
struct Known {
    host: HostId,
    /// It takes offers, by its record.
    open: bool,
    slots: u32,
    /// Slots in use by its record, which may be a quarter of a second old.
    running: u32,
    /// Slots that offers of this gateway take, or ask for.
    own: u32,
    /// It said no, and is not asked before this.
    not_before: Option<Instant>,
}

impl Known {
    /// Slots that seem to be free; those of this gateway are known for sure, others' may have been given back.
    fn free(&self) -> u32 {
        self.slots.saturating_sub(self.own.max(self.running))
    }
}

#[derive(Debug, Default)]
struct OfModel {
    /// Jobs of this gateway that wait for it.
    waiting: u32,
    engines: BTreeMap<EngineId, Known>,
}

/// Shared by all workers of a gateway.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    models: Mutex<BTreeMap<ModelId, OfModel>>,
}

/// An engine that is offered a job, or runs it: one of its slots is counted as taken until this is dropped.
#[derive(Debug)]
pub(crate) struct Pick {
    lanes: Arc<Lanes>,
    model: ModelId,
    pub(crate) engine: EngineId,
    pub(crate) host: HostId,
}

/// A job that waits for its model: until this is dropped none is offered past it.
#[derive(Debug)]
pub(crate) struct Waits {
    lanes: Arc<Lanes>,
    model: ModelId,
}

impl Lanes {
    fn models(&self) -> MutexGuard<'_, BTreeMap<ModelId, OfModel>> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the engines' bucket says now.
    pub(crate) fn update(&self, records: &Entries<EngineRecord>) {
        let mut models = self.models();
        for known in models.values_mut().flat_map(|model| model.engines.values_mut()) {
            known.open = false;
        }
        for record in records.values() {
            let model = models.entry(record.model.clone()).or_default();
            let known = model.engines.entry(record.engine).or_insert_with(|| Known {
                host: record.host.clone(),
                open: false,
                slots: 0,
                running: 0,
                own: 0,
                not_before: None,
            });
            known.open = record.lane && record.state == EngineState::Ready;
            if known.running != record.running {
                known.not_before = None;
            }
            known.running = record.running;
            known.slots = record.concurrency;
        }
        for model in models.values_mut() {
            model.engines.retain(|_, known| known.open || known.own > 0);
        }
        models.retain(|_, model| model.waiting > 0 || !model.engines.is_empty());
    }

    /// The engine to offer a job of `model` to: of those that take offers the one with the most free slots. None while
    /// a job of this gateway waits for the model.
    pub(crate) fn pick(self: &Arc<Self>, model: &ModelId) -> Option<Pick> {
        let mut models = self.models();
        let entry = models.get_mut(model).filter(|entry| entry.waiting == 0)?;
        let now = Instant::now();
        let asked = |known: &Known| {
            known.open && known.own < known.slots && known.not_before.is_none_or(|at| at <= now)
        };
        let best = entry.engines.iter_mut().filter(|(_, known)| asked(known));
        let (engine, known) = best.max_by_key(|(_, known)| known.free())?;
        known.own += 1;
        let (engine, host) = (*engine, known.host.clone());
        Some(Pick { lanes: Arc::clone(self), model: model.clone(), engine, host })
    }

    /// A job waits for `model` from here on.
    pub(crate) fn wait(self: &Arc<Self>, model: &ModelId) -> Waits {
        self.models().entry(model.clone()).or_default().waiting += 1;
        Waits { lanes: Arc::clone(self), model: model.clone() }
    }

    /// Hosts with engines that may run jobs of this gateway.
    pub(crate) fn hosts(&self) -> Vec<HostId> {
        let models = self.models();
        let mut hosts: Vec<HostId> = models
            .values()
            .flat_map(|model| model.engines.values())
            .map(|known| known.host.clone())
            .collect();
        hosts.sort();
        hosts.dedup();
        hosts
    }

    /// How things stand, for people.
    pub(crate) fn observe(&self) -> serde_json::Value {
        let models = self.models();
        let shown = models.iter().map(|(id, model)| {
            let open = model.engines.values().filter(|known| known.open).count();
            let own: u32 = model.engines.values().map(|known| known.own).sum();
            let value = serde_json::json!({ "open": open, "running": own, "waiting": model.waiting });
            (id.to_string(), value)
        });
        serde_json::Value::Object(shown.collect())
    }

    fn with(&self, pick: &Pick, change: impl FnOnce(&mut Known)) {
        if let Some(known) =
            self.models().get_mut(&pick.model).and_then(|model| model.engines.get_mut(&pick.engine))
        {
            change(known);
        }
    }
}

impl Pick {
    pub(crate) fn model(&self) -> &ModelId {
        &self.model
    }

    /// It said that it has no slot.
    pub(crate) fn was_busy(&self) {
        self.lanes.with(self, |known| known.not_before = Some(Instant::now() + BUSY_PAUSE));
    }

    /// It has ended a job, so that a slot is free.
    pub(crate) fn ended(&self) {
        self.lanes.with(self, |known| {
            known.not_before = None;
            known.running = known.running.saturating_sub(1);
        });
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.lanes.with(self, |known| known.own = known.own.saturating_sub(1));
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        if let Some(model) = self.lanes.models().get_mut(&self.model) {
            model.waiting = model.waiting.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_wire::{Driver, EngineKind, Epoch, Timestamp};

    use super::*;

    fn record(n: u32, lane: bool, running: u32, concurrency: u32) -> (String, Arc<EngineRecord>) {
        let record = EngineRecord {
            engine: EngineId::new(Epoch(1), n),
            host: "h".into(),
            model: "m".into(),
            kind: EngineKind::Sim,
            driver: Driver::Process,
            state: EngineState::Ready,
            running,
            concurrency,
            tokens_per_second: 0.0,
            lane,
            reservations: Vec::new(),
            since: Timestamp(0),
            detail: None,
            image: None,
            adapters: Vec::new(),
        };
        (format!("h.1-{n}"), Arc::new(record))
    }

    fn lanes(records: &[(String, Arc<EngineRecord>)]) -> Arc<Lanes> {
        let lanes = Arc::new(Lanes::default());
        lanes.update(&Arc::new(records.iter().cloned().collect()));
        lanes
    }

    fn engine(pick: &Option<Pick>) -> Option<u32> {
        pick.as_ref().map(|pick| if pick.engine == EngineId::new(Epoch(1), 1) { 1 } else { 2 })
    }

    #[test]
    fn the_engine_with_the_most_free_slots_is_offered_a_job_and_own_offers_count() {
        let lanes = lanes(&[record(1, true, 0, 2), record(2, true, 1, 4)]);
        let model = "m".into();
        let picks: Vec<_> = (0..6).map(|_| lanes.pick(&model)).collect();
        let mut engines: Vec<_> = picks.iter().map(engine).collect();
        assert_eq!(engines.first(), Some(&Some(2)));
        engines.sort_unstable();
        assert_eq!(engines, [Some(1), Some(1), Some(2), Some(2), Some(2), Some(2)]);
        assert!(lanes.pick(&model).is_none(), "all slots are this gateway's");
        drop(picks);
        assert!(lanes.pick(&model).is_some());
    }

    #[test]
    fn a_closed_lane_and_an_engine_that_said_no_are_offered_nothing() {
        let model = "m".into();
        assert!(lanes(&[record(1, false, 0, 2)]).pick(&model).is_none());
        let lanes = lanes(&[record(1, true, 0, 2)]);
        let (first, second) = (lanes.pick(&model).unwrap(), lanes.pick(&model).unwrap());
        second.was_busy();
        drop(second);
        assert!(lanes.pick(&model).is_none());
        first.ended();
        assert!(lanes.pick(&model).is_some(), "a slot was given back");
    }

    #[test]
    fn nobody_is_offered_past_a_job_that_waits_here() {
        let lanes = lanes(&[record(1, true, 0, 2)]);
        let waits = lanes.wait(&"m".into());
        assert!(lanes.pick(&"m".into()).is_none());
        drop(waits);
        assert!(lanes.pick(&"m".into()).is_some());
    }

    #[test]
    fn an_engine_that_is_gone_is_forgotten_with_its_last_job() {
        let lanes = lanes(&[record(1, true, 0, 2)]);
        let pick = lanes.pick(&"m".into());
        lanes.update(&Arc::default());
        assert!(lanes.pick(&"m".into()).is_none());
        assert_eq!(lanes.hosts().len(), 1);
        drop(pick);
        lanes.update(&Arc::default());
        assert!(lanes.hosts().is_empty());
    }
}
