//! An engine as its host has it.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_placement::EngineFacts;
use berth_wire::{
    Attempt, EngineFailure, EngineId, EngineState, HostId, JobId, ModelId, Reservation, SleepCost,
};

#[derive(Debug, Clone)]
pub struct Engine {
    pub host: HostId,
    pub model: ModelId,
    pub state: EngineState,
    pub reservations: Vec<Reservation>,
    pub concurrency: u32,
    pub running: BTreeMap<JobId, Attempt>,
    pub sleep: Option<SleepCost>,
    /// It holds host RAM.
    pub in_ram: bool,
    /// Only its residue is left on its accelerators.
    pub asleep: bool,
}

pub fn facts_of(id: EngineId, engine: &Engine, failure: Option<EngineFailure>) -> EngineFacts {
    EngineFacts {
        id,
        model: engine.model.clone(),
        state: engine.state,
        reservations: engine.reservations.clone(),
        concurrency: engine.concurrency,
        failure,
        start_took: (engine.state == EngineState::Ready).then_some(Duration::from_secs(3)),
        sleep: engine.sleep,
        peak_memory: None,
    }
}
