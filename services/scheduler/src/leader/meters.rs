//! The leader's metrics, kept so that no decision makes labels anew.

use std::collections::BTreeMap;

use berth_placement::{State, Verdict};
use berth_telemetry::metric;
use berth_wire::{ModelId, Outcome, Timestamp};
use metrics::{Counter, Gauge, Histogram};
use serde::Serialize;

/// So many models whose jobs wait are named, the longest wait first.
const NAMED: usize = 50;

pub(super) struct Meters {
    pub(super) decision: Histogram,
    pub(super) dispatches: Counter,
    pub(super) starts: Counter,
    pub(super) wakes: Counter,
    pub(super) sleeps: Counter,
    pub(super) stops: Counter,
    pub(super) attempts_lost: Counter,
    pub(super) leases_refused: Counter,
    completed: Counter,
    failed: Counter,
    cancelled: Counter,
    running: Gauge,
    leads: Gauge,
    models: BTreeMap<ModelId, Queue>,
}

struct Queue {
    queued: Gauge,
    oldest: Gauge,
    leases: Gauge,
    now: Waiting,
}

/// The jobs of a model that wait.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Waiting {
    jobs: usize,
    oldest_s: f64,
}

impl Queue {
    fn new(model: &ModelId) -> Self {
        let of = |name: &'static str| metrics::gauge!(name, "model" => model.to_string());
        Self {
            queued: of(metric::QUEUED),
            oldest: of(metric::OLDEST_WAIT),
            leases: of(metric::LEASES),
            now: Waiting::default(),
        }
    }

    fn set(&mut self, now: Waiting, leases: usize) {
        self.now = now;
        self.queued.set(now.jobs as f64);
        self.oldest.set(now.oldest_s);
        self.leases.set(leases as f64);
    }
}

impl Meters {
    pub(super) fn new() -> Self {
        let order = |order: &'static str| metrics::counter!(metric::ENGINE_ORDERS, "order" => order);
        let ended = |outcome: &'static str| metrics::counter!(metric::JOBS_ENDED, "outcome" => outcome);
        let leads = metrics::gauge!(metric::LEADS);
        leads.set(1.0);
        Self {
            decision: metrics::histogram!(metric::DECISION_SECONDS),
            dispatches: metrics::counter!(metric::DISPATCHES),
            starts: order("start"),
            wakes: order("wake"),
            sleeps: order("sleep"),
            stops: order("stop"),
            attempts_lost: metrics::counter!(metric::ATTEMPTS_LOST),
            leases_refused: metrics::counter!(metric::LEASES_REFUSED),
            completed: ended("completed"),
            failed: ended("failed"),
            cancelled: ended("cancelled"),
            running: metrics::gauge!(metric::RUNNING),
            leads,
            models: BTreeMap::new(),
        }
    }

    /// Counts the end of a job.
    pub(super) fn ended(&self, verdict: &Verdict) {
        match verdict {
            Verdict::Completed => &self.completed,
            Verdict::Cancelled => &self.cancelled,
            Verdict::Failed { .. } => &self.failed,
        }
        .increment(1);
    }

    /// Counts the end of a job that the core does not end.
    pub(super) fn express_ended(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Completed => &self.completed,
            Outcome::Cancelled | Outcome::Abandoned => &self.cancelled,
            // Its gateway submits it, and it ends as what comes of that.
            Outcome::Failed { output_sent: false, .. } => return,
            Outcome::Failed { .. } => &self.failed,
        }
        .increment(1);
    }

    /// Tells how long its queues are.
    pub(super) fn look(&mut self, state: &State, now: Timestamp) {
        self.running.set(state.running() as f64);
        for queue in self.models.values_mut() {
            queue.now = Waiting::default();
        }
        let mut seen = Vec::new();
        for (model, jobs, oldest, leases) in state.waits() {
            let oldest_s = oldest.map_or(0.0, |oldest| now.since(oldest).as_secs_f64());
            if !self.models.contains_key(model) {
                self.models.insert(model.clone(), Queue::new(model));
            }
            if let Some(queue) = self.models.get_mut(model) {
                queue.set(Waiting { jobs, oldest_s }, leases);
            }
            seen.push(model);
        }
        // A model that left the catalog has no queue any more.
        if seen.len() < self.models.len() {
            self.models.retain(|model, queue| {
                let there = seen.contains(&model);
                if !there {
                    queue.set(Waiting::default(), 0);
                }
                there
            });
        }
    }

    /// The models whose jobs wait, as last looked at.
    pub(super) fn waiting(&self) -> BTreeMap<&ModelId, Waiting> {
        let mut waiting: Vec<_> = self.models.iter().filter(|(_, queue)| queue.now.jobs > 0).collect();
        waiting.sort_by(|(_, a), (_, b)| b.now.oldest_s.total_cmp(&a.now.oldest_s));
        waiting.into_iter().take(NAMED).map(|(model, queue)| (model, queue.now)).collect()
    }
}

impl Drop for Meters {
    /// Its term is over: another leader tells of the queues.
    fn drop(&mut self) {
        self.leads.set(0.0);
        self.running.set(0.0);
        for queue in self.models.values_mut() {
            queue.set(Waiting::default(), 0);
        }
    }
}
