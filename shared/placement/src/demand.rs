//! Who: which models want an engine, and how much.

use std::time::Duration;

use berth_wire::{ModelId, Timestamp};

use crate::books::Model;
use crate::scene::{Reach, Scene};
use crate::site::Wish;

/// Why a model wants an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// Jobs wait.
    Jobs,
    /// It is pinned.
    Pin,
    /// An operator asked for it.
    Load,
    /// Sessions hold leases on it.
    Leases,
    /// Sessions said that they will need it.
    Hints,
}

/// What a model wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    pub(crate) cause: Cause,
    /// Weight of those who wait: a second of delay costs so many weighted seconds.
    pub(crate) weight: f64,
    /// Weighted seconds they have waited.
    pub(crate) waited: f64,
    /// Part of that which counts: less where other engines of the model serve.
    pub(crate) share: f64,
    /// Its oldest job has waited past its limit, and there is no engine: since when.
    pub(crate) aged: Option<Timestamp>,
    /// It goes before all: it has waited for much longer than others.
    pub(crate) first: Option<Timestamp>,
    /// When its limit is.
    pub(crate) ages: Option<Timestamp>,
    /// Seconds its queue takes on one engine.
    pub(crate) backlog: f64,
    /// It has an engine already.
    pub(crate) replica: bool,
    /// Whose room it may take.
    pub(crate) reach: Reach,
    /// Greater goes first among the same cause.
    pub(crate) priority: f64,
}

/// Models that wait for an engine beside one.
#[derive(Debug, Clone, Copy)]
struct Others {
    count: f64,
    /// Seconds that the oldest job of each has waited, all together.
    ages: f64,
}

impl Scene<'_> {
    /// What the model wants now; `None`: nothing.
    pub(crate) fn demand(&self, id: &ModelId) -> Option<Demand> {
        let model = self.state.models.get(id)?;
        let replicas = self.replicas(model);
        if model.queue.is_empty() {
            return if replicas == 0 { self.foreseen(model) } else { self.load_asked(model) };
        }
        if replicas > 0 && !self.wants_more(model, replicas) {
            return self.load_asked(model);
        }
        let age = model.oldest().map_or(Duration::ZERO, |oldest| self.now.since(oldest)).as_secs_f64();
        let share = 1.0 / (replicas + 1) as f64;
        let weight = model.queue.weight();
        let ages = model.queue.limit().filter(|_| replicas == 0);
        let aged = ages.filter(|at| *at <= self.now);
        let others = aged.map(|_| self.others_waiting(id));
        let first = aged.filter(|_| others.is_some_and(|others| self.stands_out(age, others)));
        let alone = others.is_some_and(|others| others.count < 1.0);
        Some(Demand {
            cause: Cause::Jobs,
            weight,
            waited: model.queue.waited(self.now),
            share,
            aged,
            first,
            ages,
            backlog: self.backlog(model, 1),
            replica: replicas > 0,
            reach: match aged {
                Some(_) if alone => Reach::Any,
                Some(_) => Reach::Busy,
                None => Reach::Idle,
            },
            priority: libm::pow(weight, self.state.policy.alpha) * (age + 1.0) * share,
        })
    }

    /// Other models that wait for an engine and have none.
    fn others_waiting(&self, id: &ModelId) -> Others {
        let (count, ages) = self.state.wanting.others(id, self.now);
        Others { count, ages }
    }

    /// Whether a model past its limit goes before all. Where all others have waited for as long, it does not: going
    /// by age alone would cost more than it saves, and each one's turn comes by its age anyway.
    fn stands_out(&self, age: f64, others: Others) -> bool {
        age * others.count >= others.ages * self.state.policy.aged_factor
    }

    /// A queue that takes longer than a good part of a start is worth another engine.
    fn wants_more(&self, model: &Model, replicas: usize) -> bool {
        let policy = &self.state.policy;
        let start = model.start_took.unwrap_or_else(|| self.state.start_guess()).as_secs_f64();
        let enough = (start * policy.replica_share).max(policy.replica_backlog.as_secs_f64());
        let allowed = model.needs.max_replicas.is_none_or(|most| (replicas as u64) < u64::from(most));
        // Not on a guess of how long its jobs take.
        allowed && model.service.is_some() && !self.loads(model) && self.backlog(model, replicas) > enough
    }

    /// What a model wants for whom nobody waits yet.
    fn foreseen(&self, model: &Model) -> Option<Demand> {
        if let Some(load) = self.load_asked(model) {
            return Some(load);
        }
        let demand = Demand { cause: Cause::Pin, waited: f64::INFINITY, ..Demand::asked(1.0) };
        if model.needs.pin {
            return Some(demand);
        }
        if !model.leases.is_empty() {
            let reach = if self.protected.contains(&model.needs.id) { Reach::Unclaimed } else { Reach::Free };
            // Its age does not count: nobody waits, and it would push out what others use again and again.
            return Some(Demand { cause: Cause::Leases, waited: 0.0, reach, ..demand });
        }
        let start = model.start_took.unwrap_or_else(|| self.state.start_guess());
        let due = model.hints.first_due()?;
        if due > self.now.plus(start) {
            return None;
        }
        let waited = model.hints.spared(start, self.now);
        let weight = model.hints.count() as f64;
        Some(Demand { cause: Cause::Hints, weight, waited, priority: waited, ..demand })
    }

    /// When a demand that is not there yet may be: a hint that comes near.
    pub(crate) fn foreseen_at(&self, model: &Model) -> Option<Timestamp> {
        let start = model.start_took.unwrap_or_else(|| self.state.start_guess());
        let due = model.hints.first_due()?;
        let at = Timestamp(due.0.saturating_sub(u64::try_from(start.as_millis()).unwrap_or(0)));
        (at > self.now).then_some(at)
    }
}

impl Demand {
    /// Of jobs that come now.
    pub(crate) fn asked(weight: f64) -> Self {
        Self {
            cause: Cause::Jobs,
            weight,
            waited: 0.0,
            share: 1.0,
            aged: None,
            first: None,
            ages: None,
            backlog: 0.0,
            replica: false,
            reach: Reach::Idle,
            priority: 0.0,
        }
    }

    pub(crate) fn wish<'a>(&self, model: &'a Model) -> Wish<'a> {
        let only =
            model.load.as_ref().filter(|_| self.cause == Cause::Load).and_then(|load| load.host.as_ref());
        Wish {
            model,
            weight: self.weight,
            reach: self.reach,
            replica: self.replica,
            backlog: self.backlog,
            only,
        }
    }

    /// Who goes first: those past their limit, by their limit; then jobs by priority, pins, what operators asked for, leases and hints.
    pub(crate) fn before(&self, other: &Self) -> std::cmp::Ordering {
        let first = |demand: &Self| (demand.first.is_none(), demand.first);
        first(self)
            .cmp(&first(other))
            .then(self.cause.cmp(&other.cause))
            .then(other.priority.total_cmp(&self.priority))
    }
}
