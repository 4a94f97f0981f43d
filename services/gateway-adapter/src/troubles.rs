//! Which models cannot be had, by the word of the scheduler that leads. What is asked often and may not wait is answered
//! from what it said last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_wire::{ModelId, ModelView, OperateReply, OperateRequest};

use crate::caller::Caller;
use crate::worker::Worker;

/// How old its word may be.
const FRESH: Duration = Duration::from_secs(1);
/// How long it is waited for: lists of models are asked for by clients in a hurry.
const PATIENCE: Duration = Duration::from_millis(250);

/// A model that has no engine and gets none now.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    /// `failed` or `cannot_fit`.
    pub(crate) state: String,
    error: String,
}

impl Trouble {
    fn of(model: ModelView) -> Option<(ModelId, Self)> {
        let ModelView { model, state, error, .. } = model;
        let known = matches!(state.as_str(), "failed" | "cannot_fit");
        Some((model, Self { state, error: error.filter(|_| known)? }))
    }

    /// Why, for this caller.
    pub(crate) fn told(&self, caller: &Caller) -> String {
        if caller.is_admin() { self.error.clone() } else { in_short(&self.state).into() }
    }
}

/// The same without hosts and what engines said, which are for operators.
pub(crate) fn in_short(state: &str) -> &'static str {
    match state {
        "cannot_fit" => "no host of this fleet can give what it needs",
        _ => "its engine did not start; it is given up for now",
    }
}

pub(crate) type Failing = HashMap<ModelId, Trouble>;

/// What was heard last, and when it was asked for.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Mutex<(Option<Instant>, Arc<Failing>)>);

impl Troubles {
    /// All models that cannot be had. Who asks while the scheduler is being asked gets what it said before.
    pub(crate) async fn failing(&self, worker: &Worker) -> Arc<Failing> {
        {
            let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if last.0.is_some_and(|at| at.elapsed() < FRESH) {
                return Arc::clone(&last.1);
            }
            last.0 = Some(Instant::now());
        }
        let bus = worker.bus();
        let said = bus.request(bus.subjects.operate(), &OperateRequest::Models, PATIENCE).await;
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Where nobody leads, what was said last is all that is known.
        if let Ok(OperateReply::Models(models)) = said {
            last.1 = Arc::new(models.into_iter().filter_map(Trouble::of).collect());
        }
        Arc::clone(&last.1)
    }
}
