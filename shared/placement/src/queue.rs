//! The waiting jobs of one model: served in the order of tokens received, by key and by session within a key.
//!
//! Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", arXiv 2401.00588): the flow
//! that has had the fewest tokens is next; one that returns is lifted to the least of those who wait, so that
//! absence earns nothing. A job past its limit of waiting goes before all of that, oldest limit first.

use std::collections::{BTreeMap, BTreeSet};

use berth_wire::{Class, JobId, KeyId, SessionId, Timestamp};

use crate::small::{SmallMap, SmallSet};

/// A job as its queue sees it.
#[derive(Debug, Clone)]
pub(crate) struct Waiting {
    pub(crate) arrival: Timestamp,
    /// From here on it goes first.
    pub(crate) limit: Timestamp,
    pub(crate) key: Option<KeyId>,
    pub(crate) session: Option<SessionId>,
    pub(crate) class: Class,
    pub(crate) tokens: u64,
}

/// Idle flows are forgotten beyond so many.
const REMEMBERED: usize = 1024;

/// Jobs of one session, or sessions of one key, with what they have received.
#[derive(Debug, Clone, Default)]
struct Flow {
    counter: u64,
    jobs: SmallSet<(Timestamp, JobId)>,
}

#[derive(Debug, Clone, Default)]
struct KeyFlow {
    counter: u64,
    waiting: usize,
    sessions: SmallMap<Option<SessionId>, Flow>,
    /// Sessions with waiting jobs by what they have had, then by their oldest job.
    order: SmallSet<(u64, Timestamp, Option<SessionId>)>,
    /// The counter of the session served last.
    last: u64,
    /// Sessions that were kept when idle ones were forgotten last.
    kept: usize,
}

/// The queue.
#[derive(Debug, Clone, Default)]
pub(crate) struct Queue {
    jobs: BTreeMap<JobId, Waiting>,
    by_arrival: BTreeSet<(Timestamp, JobId)>,
    by_limit: BTreeSet<(Timestamp, JobId)>,
    keys: BTreeMap<Option<KeyId>, KeyFlow>,
    /// Keys with waiting jobs by what they have had, then by the oldest job of the session that is next.
    order: BTreeSet<(u64, Option<Timestamp>, Option<KeyId>)>,
    /// Keys that were kept when idle ones were forgotten last.
    kept: usize,
    /// The counter of the key served last.
    last: u64,
    /// Sum of weights, in quarters, and of weight times arrival.
    weight: u64,
    weighted_arrival: u128,
}

impl Queue {
    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(crate) fn contains(&self, id: JobId) -> bool {
        self.jobs.contains_key(&id)
    }

    /// When the oldest arrived.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.by_arrival.first().map(|(at, _)| *at)
    }

    /// When the first of them reaches its limit of waiting.
    pub(crate) fn limit(&self) -> Option<Timestamp> {
        self.by_limit.first().map(|(at, _)| *at)
    }

    /// Jobs by arrival.
    pub(crate) fn ids(&self) -> impl Iterator<Item = JobId> {
        self.by_arrival.iter().map(|(_, id)| *id)
    }

    /// How many came before the job, counted from the nearer end.
    pub(crate) fn position(&self, id: JobId) -> usize {
        let Some(job) = self.jobs.get(&id) else { return 0 };
        let mut before = self.by_arrival.range(..(job.arrival, id));
        let mut from = self.by_arrival.range((job.arrival, id)..);
        for n in 0.. {
            if before.next().is_none() {
                return n;
            }
            if from.next().is_none() {
                return self.by_arrival.len() - n;
            }
        }
        0
    }

    /// Sum of the weights; one standard job weighs 1.
    pub(crate) fn weight(&self) -> f64 {
        self.weight as f64 / 4.0
    }

    /// Weighted seconds that they have waited, all together.
    pub(crate) fn waited(&self, now: Timestamp) -> f64 {
        let until = u128::from(now.0) * u128::from(self.weight);
        until.saturating_sub(self.weighted_arrival) as f64 / 4000.0
    }

    pub(crate) fn push(&mut self, id: JobId, job: Waiting) {
        if self.jobs.contains_key(&id) {
            return;
        }
        let floor = self.floor();
        self.keys.entry(job.key.clone()).or_default();
        self.change(&job.key, |key| {
            if key.waiting == 0 {
                key.counter = key.counter.max(floor);
            }
            key.waiting += 1;
            key.push(&job, id);
        });
        self.by_arrival.insert((job.arrival, id));
        self.by_limit.insert((job.limit, id));
        self.weight += job.class.quarters();
        self.weighted_arrival += u128::from(job.class.quarters()) * u128::from(job.arrival.0);
        self.jobs.insert(id, job);
    }

    pub(crate) fn remove(&mut self, id: JobId) -> bool {
        let Some(job) = self.jobs.remove(&id) else { return false };
        self.by_arrival.remove(&(job.arrival, id));
        self.by_limit.remove(&(job.limit, id));
        self.weight = self.weight.saturating_sub(job.class.quarters());
        let weighted = u128::from(job.class.quarters()) * u128::from(job.arrival.0);
        self.weighted_arrival = self.weighted_arrival.saturating_sub(weighted);
        self.change(&job.key, |key| {
            key.waiting = key.waiting.saturating_sub(1);
            key.remove(&job, id);
        });
        true
    }

    /// Changes a key's flow, and its place in the order.
    fn change(&mut self, id: &Option<KeyId>, change: impl FnOnce(&mut KeyFlow)) {
        let Some(key) = self.keys.get_mut(id) else { return };
        let before = key.rank();
        change(key);
        let after = key.rank();
        if before == after {
            return;
        }
        if let Some((counter, head)) = before {
            self.order.remove(&(counter, head, id.clone()));
        }
        if let Some((counter, head)) = after {
            self.order.insert((counter, head, id.clone()));
        }
    }

    /// The job that a free slot takes next.
    pub(crate) fn next(&self, now: Timestamp) -> Option<JobId> {
        if let Some((limit, id)) = self.by_limit.first()
            && *limit <= now
        {
            return Some(*id);
        }
        let (_, _, key) = self.order.first()?;
        let key = self.keys.get(key)?;
        let (_, _, session) = key.order.first()?;
        key.sessions.get(session)?.jobs.first().map(|(_, id)| *id)
    }

    /// Takes a job out to be served, and counts what it is expected to take.
    pub(crate) fn serve(&mut self, id: JobId, tokens: u64) {
        let Some(job) = self.jobs.get(&id).cloned() else { return };
        self.remove(id);
        let cost = cost(job.class, tokens);
        self.last = self.keys.get(&job.key).map_or(self.last, |key| self.last.max(key.counter));
        self.change(&job.key, |key| {
            key.counter = key.counter.saturating_add(cost);
            key.last = key.last.max(key.sessions.get(&job.session).map_or(0, |flow| flow.counter));
            key.charge(&job.session, |counter| counter.saturating_add(cost));
        });
        self.forget();
    }

    /// Counts what a job is expected to take that never waited: its host took it by the express lane.
    pub(crate) fn pass(&mut self, job: &Waiting) {
        let cost = cost(job.class, job.tokens);
        let floor = self.floor();
        self.keys.entry(job.key.clone()).or_default();
        let mut before = 0;
        self.change(&job.key, |key| {
            if key.waiting == 0 {
                key.counter = key.counter.max(floor);
            }
            before = key.counter;
            key.counter = key.counter.saturating_add(cost);
            key.pass(job, cost);
        });
        self.last = self.last.max(before);
        self.forget();
    }

    /// What the flow that comes back has had at the least.
    fn floor(&self) -> u64 {
        self.order.first().map_or(self.last, |(counter, _, _)| *counter)
    }

    fn forget(&mut self) {
        // Not at every job again where many are kept.
        if self.keys.len() > REMEMBERED.max(2 * self.kept) {
            let last = self.last;
            self.keys.retain(|_, key| key.waiting > 0 || key.counter > last);
            self.kept = self.keys.len();
        }
    }

    /// Puts right what a job was expected to take.
    pub(crate) fn settle(&mut self, job: &Waiting, actual: u64) {
        let (expected, actual) = (cost(job.class, job.tokens), cost(job.class, actual));
        let right = |counter: u64| counter.saturating_sub(expected).saturating_add(actual);
        self.change(&job.key, |key| {
            key.counter = right(key.counter);
            key.charge(&job.session, right);
        });
    }
}

/// Tokens over weight.
fn cost(class: Class, tokens: u64) -> u64 {
    (tokens.saturating_mul(4) / class.quarters().max(1)).max(1)
}

impl KeyFlow {
    /// Where it stands among the keys; `None`: nothing of it waits.
    fn rank(&self) -> Option<(u64, Option<Timestamp>)> {
        (self.waiting > 0).then(|| (self.counter, self.order.first().map(|(_, at, _)| *at)))
    }

    fn push(&mut self, job: &Waiting, id: JobId) {
        let floor = self.order.first().map_or(self.last, |(counter, _, _)| *counter);
        if self.sessions.get(&job.session).is_none() {
            self.sessions.insert(job.session.clone(), Flow::default());
        }
        let Some(flow) = self.sessions.get_mut(&job.session) else { return };
        match flow.jobs.first() {
            None => flow.counter = flow.counter.max(floor),
            Some((at, _)) => {
                self.order.remove(&(flow.counter, *at, job.session.clone()));
            }
        }
        flow.jobs.insert((job.arrival, id));
        if let Some((at, _)) = flow.jobs.first() {
            self.order.insert((flow.counter, *at, job.session.clone()));
        }
    }

    /// Counts a job of a session that never waited.
    fn pass(&mut self, job: &Waiting, cost: u64) {
        let floor = self.order.first().map_or(self.last, |(counter, _, _)| *counter);
        if self.sessions.get(&job.session).is_none() {
            self.sessions.insert(job.session.clone(), Flow::default());
        }
        let Some(flow) = self.sessions.get_mut(&job.session) else { return };
        if flow.jobs.is_empty() {
            flow.counter = flow.counter.max(floor);
        }
        self.last = self.last.max(flow.counter);
        self.charge(&job.session, |counter| counter.saturating_add(cost));
    }

    fn remove(&mut self, job: &Waiting, id: JobId) {
        let Some(flow) = self.sessions.get_mut(&job.session) else { return };
        if let Some((at, _)) = flow.jobs.first() {
            self.order.remove(&(flow.counter, *at, job.session.clone()));
        }
        flow.jobs.remove(&(job.arrival, id));
        if let Some((at, _)) = flow.jobs.first() {
            self.order.insert((flow.counter, *at, job.session.clone()));
        }
    }

    /// Changes what a session has had.
    fn charge(&mut self, session: &Option<SessionId>, change: impl Fn(u64) -> u64) {
        let Some(flow) = self.sessions.get_mut(session) else { return };
        let head = flow.jobs.first().map(|(at, _)| *at);
        if let Some(at) = head {
            self.order.remove(&(flow.counter, at, session.clone()));
        }
        flow.counter = change(flow.counter);
        if let Some(at) = head {
            self.order.insert((flow.counter, at, session.clone()));
        }
        if self.sessions.len() > REMEMBERED.max(2 * self.kept) {
            let last = self.last;
            self.sessions.retain(|flow| !flow.jobs.is_empty() || flow.counter > last);
            self.kept = self.sessions.len();
        }
    }
}
