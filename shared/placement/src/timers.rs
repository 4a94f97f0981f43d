//! What is due when. A timer that is no longer meant does nothing when it comes.

use std::collections::BTreeSet;

use berth_wire::{EngineId, JobId, ModelId, SessionId, Timestamp};

/// What becomes due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// An engine may have been idle for too long.
    Idle(EngineId),
    /// A job may have missed its deadline.
    Deadline(JobId),
    /// A model may be placed again, or has waited long enough to have busy engines drained.
    Place(ModelId),
    /// An engine whose host refused a dispatch may be tried again.
    Held(EngineId),
    /// A lease may have run out.
    Lease(SessionId, ModelId),
    /// Hints of a model may have come to nothing.
    Hints(ModelId),
    /// Hosts have had their time to report.
    Settled,
    /// Waiting jobs are told their places.
    Tell,
    /// Models that a step had no time for are looked at.
    Look,
    /// An engine may have been asleep for too long.
    Asleep(EngineId),
    /// What an operator asked may have waited for too long.
    Load(ModelId),
}

/// Timers in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Timestamp, Due)>,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Timestamp, due: Due) {
        self.due.insert((at, due));
    }

    pub(crate) fn unset(&mut self, at: Timestamp, due: Due) {
        self.due.remove(&(at, due));
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes the first that is due at `now`.
    pub(crate) fn take(&mut self, now: Timestamp) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        self.due.pop_first().map(|(_, due)| due)
    }
}
