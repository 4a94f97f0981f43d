//! What this host runs: engines by id, attempts by job, and the newest leader.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use berth_actors::Supervised;
use berth_wire::{
    Attempt, EngineId, Epoch, GatewayId, JobId, ModelId, Reservation, RunningAttempt, Timestamp,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cell::EngineCell;
use crate::engine::EngineActor;

/// An engine and the actor that owns its process or container.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) cell: Rc<EngineCell>,
    pub(crate) actor: Supervised<EngineActor>,
}

/// An attempt that runs, as it is reached by credit and cancellation.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) engine: EngineId,
    pub(crate) gateway: GatewayId,
    pub(crate) since: Instant,
    pub(crate) cancel: CancellationToken,
    /// Bytes granted in all.
    pub(crate) credit: watch::Sender<u64>,
}

/// Cancellations and dispatches remembered for those that cross on the way.
const REMEMBERED: usize = 512;

/// The books. They outlive the actor that keeps them.
#[derive(Default)]
pub(crate) struct Books {
    pub(crate) engines: BTreeMap<EngineId, Engine>,
    /// Bytes of RAM that engines were measured to hold asleep, by model.
    pub(crate) slept: BTreeMap<ModelId, u64>,
    /// Adapters that are not where they should be, and were told of.
    pub(crate) missing: BTreeSet<String>,
    attempts: BTreeMap<(JobId, Attempt), Running>,
    epoch: Epoch,
    cancelled: VecDeque<(JobId, Option<Attempt>)>,
    ended: VecDeque<(JobId, Attempt)>,
}

impl Books {
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Obeys nobody older than `epoch` from here on; the newest known if `epoch` itself is older.
    pub(crate) fn fence(&mut self, epoch: Epoch) -> Result<(), Epoch> {
        if epoch < self.epoch {
            return Err(self.epoch);
        }
        self.epoch = epoch;
        Ok(())
    }

    /// What engines hold of the accelerators.
    pub(crate) fn reserved(&self) -> Vec<Reservation> {
        self.engines.values().flat_map(|engine| engine.cell.held()).collect()
    }

    pub(crate) fn running(&self) -> Vec<RunningAttempt> {
        self.attempts
            .iter()
            .map(|(&(job, attempt), running)| RunningAttempt { job, attempt, engine: running.engine })
            .collect()
    }

    pub(crate) fn count_running(&self) -> usize {
        self.attempts.len()
    }

    /// Whether this attempt runs or ran here: its dispatch came twice.
    pub(crate) fn knows(&self, job: JobId, attempt: Attempt) -> bool {
        self.attempts.contains_key(&(job, attempt)) || self.ended.contains(&(job, attempt))
    }

    /// Enters an attempt; one that was cancelled before it came starts out cancelled.
    pub(crate) fn begin(&mut self, job: JobId, attempt: Attempt, running: Running) {
        if self.cancelled.iter().any(|(j, a)| *j == job && a.is_none_or(|a| a == attempt)) {
            running.cancel.cancel();
        }
        self.attempts.insert((job, attempt), running);
    }

    pub(crate) fn end(&mut self, job: JobId, attempt: Attempt) {
        self.attempts.remove(&(job, attempt));
        remember(&mut self.ended, (job, attempt));
    }

    /// Cancels what runs of a job, and what may still be on its way.
    pub(crate) fn cancel(&mut self, job: JobId, attempt: Option<Attempt>) {
        for (_, running) in self.of_job(job).filter(|((_, a), _)| attempt.is_none_or(|wanted| wanted == *a)) {
            running.cancel.cancel();
        }
        remember(&mut self.cancelled, (job, attempt));
    }

    /// Whether a job of the express lane runs here.
    pub(crate) fn runs_express(&self, job: JobId) -> bool {
        self.attempts.contains_key(&(job, Attempt::EXPRESS))
    }

    /// Gateways with jobs of the express lane that have run for so long.
    pub(crate) fn express_gateways(&self, least: Duration) -> BTreeSet<GatewayId> {
        let old = self.express().filter(|running| running.since.elapsed() >= least);
        old.map(|running| running.gateway.clone()).collect()
    }

    /// Ends what runs of the express lane for a gateway that is gone.
    pub(crate) fn abandon_express(&self, gateway: &GatewayId) -> usize {
        let left = self.express().filter(|running| running.gateway == *gateway);
        left.map(|running| running.cancel.cancel()).count()
    }

    fn express(&self) -> impl Iterator<Item = &Running> {
        self.attempts.iter().filter(|((_, attempt), _)| attempt.is_express()).map(|(_, running)| running)
    }

    /// Grants credit; a smaller sum than before was overtaken on the way.
    pub(crate) fn credit(&self, job: JobId, attempt: Attempt, granted: u64) {
        if let Some(running) = self.attempts.get(&(job, attempt)) {
            grant(&running.credit, granted);
        }
    }

    fn of_job(&self, job: JobId) -> impl Iterator<Item = (&(JobId, Attempt), &Running)> {
        let first = (job, Attempt::new(Epoch(0), 0));
        self.attempts.range(first..).take_while(move |((j, _), _)| *j == job)
    }
}

/// Raises a sum of credit.
pub(crate) fn grant(credit: &watch::Sender<u64>, granted: u64) {
    credit.send_if_modified(|sum| {
        let more = granted > *sum;
        *sum = granted.max(*sum);
        more
    });
}

fn remember<T>(recent: &mut VecDeque<T>, what: T) {
    if recent.len() == REMEMBERED {
        recent.pop_front();
    }
    recent.push_back(what);
}

/// The time by this host's clock.
pub(crate) fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        Running {
            engine: EngineId::new(Epoch(1), 1),
            gateway: "g".into(),
            since: Instant::now(),
            cancel: CancellationToken::new(),
            credit: watch::Sender::new(0),
        }
    }

    #[test]
    fn an_older_leader_is_not_obeyed() {
        let mut books = Books::default();
        assert_eq!(books.fence(Epoch(7)), Ok(()));
        assert_eq!(books.fence(Epoch(6)), Err(Epoch(7)));
        assert_eq!(books.fence(Epoch(7)), Ok(()));
    }

    #[test]
    fn a_cancellation_that_overtakes_its_dispatch_is_heard() {
        let mut books = Books::default();
        let (job, attempt) = (JobId(1), Attempt::new(Epoch(1), 1));
        books.cancel(job, None);
        let first = running();
        books.begin(job, attempt, first.clone());
        assert!(first.cancel.is_cancelled());
        let other = running();
        books.begin(JobId(2), attempt, other.clone());
        assert!(!other.cancel.is_cancelled());
    }

    #[test]
    fn cancelling_one_attempt_leaves_a_later_one() {
        let mut books = Books::default();
        let (first, second) = (Attempt::new(Epoch(1), 1), Attempt::new(Epoch(1), 2));
        let (a, b) = (running(), running());
        books.begin(JobId(1), first, a.clone());
        books.begin(JobId(1), second, b.clone());
        books.cancel(JobId(1), Some(first));
        assert!(a.cancel.is_cancelled());
        assert!(!b.cancel.is_cancelled());
    }

    #[test]
    fn credit_only_grows() {
        let mut books = Books::default();
        let attempt = Attempt::new(Epoch(1), 1);
        let one = running();
        books.begin(JobId(1), attempt, one.clone());
        books.credit(JobId(1), attempt, 100);
        books.credit(JobId(1), attempt, 60);
        assert_eq!(*one.credit.borrow(), 100);
    }
}
