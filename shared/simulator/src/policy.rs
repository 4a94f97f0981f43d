//! The policies by name, and one run under one of them.

use thiserror::Error;

use crate::berth::{self, Estimate, Fault};
use crate::outcome::Outcome;
use crate::rivals::{self, Bound, Clairvoyant, Exhaustive, Fifo, Ollama, Rival};
use crate::select::{Job, Workload};
use crate::setup::Setup;
use crate::time::{Micros, seconds};

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Berth's own scheduling core.
    Berth,
    /// One queue, strictly in order of arrival.
    Fifo,
    /// Ollama's rule: one pending queue; what is loaded is served past it.
    Ollama,
    /// llama-swap's rule: models have a fixed home; one keeps it until nothing of it waits.
    LlamaSwap,
    /// The same over a pool: any idle accelerator takes the oldest waiting model.
    Pooled,
    /// A rule that knows the future.
    Clairvoyant,
    /// No start costs anything.
    Bound,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Berth,
        Self::Fifo,
        Self::Ollama,
        Self::LlamaSwap,
        Self::Pooled,
        Self::Clairvoyant,
        Self::Bound,
    ];

    /// The name on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Berth => "berth",
            Self::Fifo => "fifo",
            Self::Ollama => "ollama",
            Self::LlamaSwap => "llama-swap",
            Self::Pooled => "pooled",
            Self::Clairvoyant => "clairvoyant",
            Self::Bound => "bound",
        }
    }
}

/// A run that did not come to its end.
#[derive(Debug, Error)]
pub enum SimulateError {
    /// A fleet without accelerators, hosts or slots.
    #[error("{what} is 0; a fleet has at least one")]
    Zero {
        /// What there is none of.
        what: &'static str,
    },
    /// A rival rule left a job waiting.
    #[error(
        "{policy}: {job} never started after it had arrived; this is a bug of the rule or of the simulator"
    )]
    NeverStarted {
        /// Which rule.
        policy: &'static str,
        /// Which job.
        job: String,
    },
    /// The core did what a fleet cannot follow.
    #[error("berth, after {at} s: {fault}; this is a bug of the scheduling core or of the simulator")]
    Core {
        /// When, since the trace began.
        at: f64,
        /// What.
        #[source]
        fault: Fault,
    },
}

/// What Berth's core tells every job when it arrives, in the order of arrivals, and what each then waits.
///
/// # Errors
/// A job never ends.
pub fn estimates(workload: &Workload, setup: &Setup) -> Result<Vec<Estimate>, SimulateError> {
    berth::estimates(workload, setup).map_err(|(at, fault)| SimulateError::Core { at: seconds(at), fault })
}

/// Runs a workload. `started` is told, now and then, how many jobs have started.
///
/// # Errors
/// The set-up is empty, or a job never ends.
pub fn simulate(
    policy: Policy,
    workload: &Workload,
    setup: &Setup,
    started: &mut dyn FnMut(usize),
) -> Result<Outcome, SimulateError> {
    for (what, count) in
        [("accelerators", setup.accelerators), ("slots", setup.slots), ("per_host", setup.per_host)]
    {
        if count == 0 {
            return Err(SimulateError::Zero { what });
        }
    }
    let mut rule: Box<dyn Rival> = match policy {
        Policy::Berth => {
            let (waits, swaps) = berth::run(workload, setup, started)
                .map_err(|(at, fault)| SimulateError::Core { at: seconds(at), fault })?;
            return Ok(Outcome::of(policy.name(), workload.models.len(), waits, swaps));
        }
        Policy::Fifo => Box::new(Fifo::default()),
        Policy::Ollama => Box::new(Ollama::default()),
        Policy::LlamaSwap => Box::new(Exhaustive::at_home(workload, setup.accelerators)),
        Policy::Pooled => Box::new(Exhaustive::pooled()),
        Policy::Clairvoyant => Box::new(Clairvoyant::new(workload)),
        Policy::Bound => Box::new(Bound::default()),
    };
    let (starts, swaps) = rivals::run(workload, setup, &mut *rule, started);
    let waits: Result<Vec<Micros>, _> = workload
        .jobs
        .iter()
        .zip(starts)
        .map(|(job, start)| {
            start.and_then(|start| start.checked_sub(job.arrival)).ok_or_else(|| {
                SimulateError::NeverStarted { policy: policy.name(), job: describe(job, workload) }
            })
        })
        .collect();
    Ok(Outcome::of(policy.name(), workload.models.len(), waits?, swaps))
}

/// A job in words, so that it can be found in its trace.
pub(crate) fn describe(job: &Job, workload: &Workload) -> String {
    format!(
        "the job of line {} (model {}, session {}, arrived at {} s)",
        job.line,
        workload.models.get(job.model).map_or("?", String::as_str),
        workload.sessions.get(job.session).map_or("?", String::as_str),
        seconds(job.arrival),
    )
}
