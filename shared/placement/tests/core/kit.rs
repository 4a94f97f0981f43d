//! Models, jobs and errors as tests need them.

use berth_placement::{JobFacts, ModelNeeds};
use berth_wire::{ApiError, Class, Driver, ErrorKind, JobId, Timestamp};

pub const GIB: u64 = 1 << 30;

pub fn model(id: &str, memory: u64, concurrency: u32) -> ModelNeeds {
    ModelNeeds {
        id: id.into(),
        memory: Some(memory),
        accelerators: 1,
        concurrency,
        driver: Driver::Process,
        labels: Vec::new(),
        idle_ttl: None,
        asleep_ttl: None,
        pin: false,
        keeps_context: false,
        max_replicas: None,
        config: String::new(),
    }
}

/// A job that arrived at the epoch.
pub fn job(n: u128, model: &str) -> JobFacts {
    JobFacts {
        id: JobId(n),
        model: model.into(),
        arrival: Timestamp(0),
        deadline: None,
        hurried: true,
        session: None,
        key: None,
        class: Class::Standard,
        tokens: 500,
    }
}

pub fn error(message: &str) -> ApiError {
    ApiError::new(ErrorKind::EngineFailed, "engine_failed", message)
}
