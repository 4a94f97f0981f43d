//! When: how long a model without an engine waits for room, by what the policy does and what was measured. Whose room
//! it is, when that may be had, and who goes before.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use berth_wire::{EngineId, ModelId, Timestamp};

use crate::books::{Device, Engine, EnginePhase, Host, Model};
use crate::demand::{Cause, Demand};
use crate::scene::{Claim, Reach, Scene};
use crate::site::{Wish, eligible};

/// Of more models that want an engine, not each is compared.
const COMPARED: usize = 64;
/// A model that is asked for more often than it can serve is not idle in any time that would be told.
const NEVER: f64 = 86_400.0;
/// A start that has taken so many times what was measured may take any time.
const OVERDUE: f64 = 2.0;

/// When a model may have an engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outlook {
    /// Seconds until an engine of it serves; `None`: nobody knows.
    pub(crate) ready: Option<f64>,
    /// Every place that it could have is a pinned model's: as things are, it will have none.
    pub(crate) never: bool,
    /// Models that go before it.
    pub(crate) before: usize,
}

/// One place, and when it can be had.
#[derive(Debug, Clone, Copy)]
struct Opening {
    /// Seconds until its room is free; `None`: nobody knows, or never.
    free: Option<f64>,
    /// Seconds that a start takes there; `None`: not measured.
    start: Option<f64>,
    /// Only pinned models are in the way.
    pinned: bool,
}

/// Who wants room.
#[derive(Debug, Clone, Copy)]
struct Claimant {
    weight: f64,
    waited: f64,
    /// Seconds until the oldest of its jobs has waited for so long that it goes first; `None`: only a lease wants it.
    limit: Option<f64>,
    backlog: f64,
    /// Nobody else waits for room.
    alone: bool,
}

/// Seconds as an order that a heap can keep.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seconds(f64);

impl Eq for Seconds {}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Scene<'_> {
    /// Seconds until one that is on its way serves; `None`: not measured, or it takes longer than it should.
    pub(crate) fn start_left(&self, engine: &Engine) -> Option<f64> {
        let model = self.state.models.get(&engine.model)?;
        let host = self.state.hosts.get(&engine.host)?;
        let device = host.devices.iter().find(|device| engine.awake_on(&device.id) > 0);
        let took = match engine.phase {
            EnginePhase::Waking => self.state.wake_cost(model, device).as_secs_f64(),
            _ => self.known_start(model, host, device)?,
        };
        let since = self.now.since(engine.since).as_secs_f64();
        if since < took { Some(took - since) } else { (since < took * OVERDUE).then_some(since - took + 0.5) }
    }

    /// What a start takes, if it was measured.
    fn known_start(&self, model: &Model, host: &Host, device: Option<&Device>) -> Option<f64> {
        let measured = model.start_took.is_some()
            || device.is_some_and(|device| self.state.profile(model, &device.name).is_some());
        measured.then(|| self.state.start_cost(model, host, device).as_secs_f64())
    }

    /// Seconds that are left of each job that runs on the engine; `None`: it runs longer than any that is known.
    pub(crate) fn left(&self, engine: &Engine, mean: f64) -> Vec<Option<f64>> {
        let Some(model) = self.state.models.get(&engine.model) else { return Vec::new() };
        let since = |began: Timestamp| self.now.since(began).as_secs_f64();
        let queued = engine.running.values().map(|run| model.times.left(since(run.since), mean));
        let express = engine.express.values().map(|express| {
            let ran = express.counted.as_ref().map_or(0.0, |counted| since(counted.arrival));
            model.times.left(ran, mean)
        });
        queued.chain(express).collect()
    }

    /// Seconds until a model that has no engine, and none on its way, has one: for a job that waits or comes now.
    pub(crate) fn outlook(&self, model: &Model) -> Outlook {
        self.outlook_for(model, true)
    }

    /// The same for a lease on a model that nobody has asked for, which takes no room that is in use.
    pub(crate) fn lease_outlook(&self, model: &Model) -> Outlook {
        self.outlook_for(model, !model.queue.is_empty())
    }

    fn outlook_for(&self, model: &Model, for_job: bool) -> Outlook {
        let held = self.held_back(model);
        if let Some(plan) = &model.plan {
            return Outlook { ready: self.planned(model, plan).map(|at| at.max(held)), ..Outlook::default() };
        }
        let claimant = self.claimant(model, for_job);
        let ahead = self.ahead(model, &claimant);
        let openings = self.openings(model, claimant);
        let never = !openings.is_empty() && openings.iter().all(|opening| opening.pinned);
        let before = ahead.len();
        let mut free: BinaryHeap<Reverse<(Seconds, Seconds)>> = openings
            .iter()
            .filter_map(|opening| Some(Reverse((Seconds(opening.free?), Seconds(opening.start?)))))
            .collect();
        for visit in ahead {
            // What goes before takes the first place there is, and gives it back when it has been served.
            let Some(Reverse((Seconds(at), start))) = free.pop() else { break };
            free.push(Reverse((Seconds(at + visit), start)));
        }
        let first = free.pop().map(|Reverse((Seconds(at), Seconds(start)))| at.max(held) + start);
        Outlook { ready: first.filter(|at| *at < NEVER), never, before }
    }

    /// Seconds in which nothing is started for the model, whatever room there is.
    fn held_back(&self, model: &Model) -> f64 {
        let blocked = model.blocked.as_ref().map(|(until, _)| *until);
        let until = blocked.into_iter().chain(model.not_before).max();
        until.map_or(0.0, |until| until.since(self.now).as_secs_f64())
    }

    /// Seconds until a model has the room that others are leaving for it, and has started there.
    fn planned(&self, model: &Model, plan: &crate::books::Plan) -> Option<f64> {
        let host = self.state.hosts.get(&plan.host)?;
        let mut free = 0.0_f64;
        for victim in plan.victims.iter().filter_map(|id| self.state.engines.get(id)) {
            free = free.max(self.all_left(victim)?);
        }
        let first = plan.reservations.first().map(|reservation| &reservation.accelerator);
        let device = host.devices.iter().find(|device| Some(&device.id) == first);
        let start = match plan.wake {
            Some(_) => self.wake_on(model, host, device),
            None => self.known_start(model, host, device)? * self.crowding(host),
        };
        Some(free + start)
    }

    /// Seconds until nothing of what runs on an engine is left.
    fn all_left(&self, engine: &Engine) -> Option<f64> {
        let mean = self.mean_of(&engine.model);
        let mut most = 0.0_f64;
        for left in self.left(engine, mean) {
            most = most.max(left?);
        }
        Some(most)
    }

    fn mean_of(&self, id: &ModelId) -> f64 {
        let service = self.state.models.get(id).map(|model| self.state.service(model));
        service.unwrap_or(self.state.policy.service_guess).as_secs_f64()
    }

    fn claimant(&self, model: &Model, for_job: bool) -> Claimant {
        let policy = &self.state.policy;
        let (others, _) = self.state.wanting.others(&model.needs.id, self.now);
        let limit = model.queue.limit().map_or(policy.max_wait, |at| at.since(self.now)).as_secs_f64();
        Claimant {
            // The job that asks counts even before it is in the queue.
            weight: model.queue.weight().max(1.0),
            waited: model.queue.waited(self.now),
            limit: for_job.then_some(limit),
            backlog: self.backlog(model, 1),
            alone: others < 1.0,
        }
    }

    /// How long each model that goes before this one keeps the room that it takes.
    fn ahead(&self, model: &Model, claimant: &Claimant) -> Vec<f64> {
        let id = &model.needs.id;
        let (count, _) = self.state.wanting.others(id, self.now);
        if !self.state.wanting.are_few() || self.state.wanting.len() > COMPARED {
            // About half of them.
            let visit = self.state.start_guess().as_secs_f64() + self.mean_of(id);
            return vec![visit; (count / 2.0) as usize];
        }
        let rivals: Vec<(&ModelId, &Model, Demand)> = self
            .state
            .wanting
            .ids()
            .filter(|other| *other != id)
            .filter_map(|other| Some((other, self.state.models.get(other)?)))
            .filter(|(other, model)| {
                let served = self.state.tallies.of(other).serving > 0;
                !served && model.plan.is_none() && self.held_back(model) <= 0.0
            })
            .filter_map(|(other, model)| Some((other, model, self.demand(other)?)))
            .collect();
        // Who is asked for more often comes up while they wait.
        let visits: Vec<f64> = rivals.iter().map(|(_, model, _)| self.visit(model)).collect();
        let later = visits.iter().sum::<f64>() / 2.0;
        let mut own = match (claimant.limit, self.demand(id)) {
            (Some(_), Some(demand)) if demand.cause == Cause::Jobs => demand,
            (Some(_), _) => Demand::asked(claimant.weight),
            (None, demand) => {
                let demand = demand.unwrap_or_else(|| Demand::asked(claimant.weight));
                Demand { cause: Cause::Leases, ..demand }
            }
        };
        own.priority = self.priority_in(model, &own, later);
        let since = |model: &Model| self.lease_since(model).unwrap_or(Timestamp(u64::MAX));
        let own_since = since(model);
        let goes_first = |(other, model, demand): &(&ModelId, &Model, Demand)| {
            let demand = Demand { priority: self.priority_in(model, demand, later), ..*demand };
            let order = demand.before(&own);
            // Leases have their turn by age.
            order.is_lt() || (order.is_eq() && (since(model), *other) < (own_since, id))
        };
        rivals.iter().zip(visits).filter(|(rival, _)| goes_first(rival)).map(|(_, visit)| visit).collect()
    }

    /// What the priority of a demand will be in so many seconds.
    fn priority_in(&self, model: &Model, demand: &Demand, later: f64) -> f64 {
        if demand.cause != Cause::Jobs {
            return demand.priority;
        }
        let policy = &self.state.policy;
        let age = model.oldest().map_or(Duration::ZERO, |oldest| self.now.since(oldest)).as_secs_f64();
        let come = model.rate.per_second(self.now, policy) * model.weight * later;
        libm::pow(demand.weight + come, policy.alpha) * (age + later + 1.0)
    }

    fn lease_since(&self, model: &Model) -> Option<Timestamp> {
        let leases = model.leases.iter().map(|session| (session.clone(), model.needs.id.clone()));
        leases.filter_map(|key| Some(self.state.leases.get(&key)?.lease.since)).min()
    }

    /// Seconds from a model's having room until it is idle again.
    fn visit(&self, model: &Model) -> f64 {
        let start = model.start_took.unwrap_or_else(|| self.state.start_guess()).as_secs_f64();
        let mean = self.state.service(model).as_secs_f64();
        start + self.until_idle(model, self.backlog(model, 1).max(mean), 1)
    }

    /// Seconds until a model is idle that has work for so many, on so many engines: others arrive meanwhile.
    fn until_idle(&self, model: &Model, work: f64, engines: usize) -> f64 {
        let rate = model.rate.per_second(self.now, &self.state.policy) / engines.max(1) as f64;
        let mean = self.state.service(model).as_secs_f64();
        let load = rate * mean;
        if load >= f64::from(model.needs.concurrency) {
            return NEVER;
        }
        if rate <= 0.0 {
            return work;
        }
        // A busy period of a queue with slots enough for all.
        let period = (libm::exp(load.min(20.0)) - 1.0) / rate;
        (work + (1.0 - libm::exp(-rate * work)) * period).min(NEVER)
    }

    /// Every place that the model could have, in a large fleet those that are likely.
    fn openings(&self, model: &Model, claimant: Claimant) -> Vec<Opening> {
        let state = self.state;
        let wish = Wish {
            model,
            weight: claimant.weight,
            reach: Reach::Any,
            replica: false,
            backlog: claimant.backlog,
            only: None,
        };
        let mut openings = Vec::new();
        if state.yard.is_small() {
            for (_, host) in state.hosts.iter() {
                let all = 0..host.devices.len();
                self.openings_on(host, all, model, claimant, &mut openings);
            }
        } else {
            for (id, devices) in self.worth_weighing(&wish) {
                if let Some(host) = state.hosts.get(id) {
                    self.openings_on(host, devices.into_iter(), model, claimant, &mut openings);
                }
            }
        }
        openings
    }

    fn openings_on(
        &self,
        host: &Host,
        devices: impl Iterator<Item = usize>,
        model: &Model,
        claimant: Claimant,
        openings: &mut Vec<Opening>,
    ) {
        if !eligible(host, model) {
            return;
        }
        let failed =
            host.failed.get(&model.needs.id).map_or(0.0, |(_, until)| until.since(self.now).as_secs_f64());
        let sleeps = !self.state.tallies.of(&model.needs.id).sleeping.is_disjoint(&host.engines);
        let crowding = self.crowding(host);
        let mut here: Vec<Opening> = devices
            .filter_map(|n| host.devices.get(n))
            .filter(|device| self.state.need_on(model, device) <= device.memory)
            .map(|device| {
                let start = if sleeps {
                    Some(self.wake_on(model, host, Some(device)))
                } else {
                    self.known_start(model, host, Some(device)).map(|start| start * crowding)
                };
                let mut opening = self.opening(host, device, model, claimant, start);
                opening.free = opening.free.map(|free| free.max(failed));
                opening
            })
            .collect();
        let wanted = usize::try_from(model.needs.accelerators).unwrap_or(usize::MAX);
        if wanted <= 1 {
            openings.append(&mut here);
            return;
        }
        // So many at a time: the last of the first ones.
        here.sort_by(|a, b| {
            let at = |opening: &Opening| opening.free.unwrap_or(f64::INFINITY);
            a.pinned.cmp(&b.pinned).then(at(a).total_cmp(&at(b)))
        });
        openings.extend(here.chunks_exact(wanted).filter_map(|of| of.last()).take(1));
    }

    /// When there is room for the model on an accelerator.
    fn opening(
        &self,
        host: &Host,
        device: &Device,
        model: &Model,
        claimant: Claimant,
        start: Option<f64>,
    ) -> Opening {
        let need = self.state.need_on(model, device);
        let mut room =
            self.free(host, device, Some(&model.needs.id)).saturating_add(self.coming(host, device));
        if room >= need {
            return Opening { free: Some(0.0), start, pinned: false };
        }
        let claim = Claim {
            start: start.unwrap_or_else(|| self.state.start_guess().as_secs_f64()),
            backlog: claimant.backlog,
        };
        let mut leaving: Vec<(f64, u64)> = Vec::new();
        let mut unpinned = room;
        for (engine_id, engine) in
            host.engines.iter().filter_map(|id| Some((*id, self.state.engines.get(id)?)))
        {
            let bytes = engine.bytes_on(&device.id);
            let pinned = self.state.models.get(&engine.model).is_some_and(|model| model.needs.pin);
            if bytes == 0 || pinned {
                continue;
            }
            unpinned = unpinned.saturating_add(bytes);
            if let Some(at) = self.leaves(engine_id, engine, host, claimant, claim) {
                leaving.push((at, bytes));
            }
        }
        leaving.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (at, bytes) in leaving {
            room = room.saturating_add(bytes);
            if room >= need {
                return Opening { free: Some(at), start, pinned: false };
            }
        }
        let claimed = host.plans.iter().any(|claimant| *claimant != model.needs.id);
        Opening { free: None, start, pinned: unpinned < need && !claimed }
    }

    /// Seconds until an engine makes way for a claimant; `None`: nobody knows.
    fn leaves(
        &self,
        id: EngineId,
        engine: &Engine,
        host: &Host,
        claimant: Claimant,
        claim: Claim,
    ) -> Option<f64> {
        let Some(model) = self.state.models.get(&engine.model) else { return Some(0.0) };
        // What it leaves has been promised to another model.
        let promised = host
            .plans
            .iter()
            .filter_map(|other| self.state.models.get(other))
            .find(|other| other.plan.as_ref().is_some_and(|plan| plan.victims.contains(&id)));
        if let Some(other) = promised {
            return Some(self.all_left(engine)? + self.visit(other));
        }
        let engines = self.state.tallies.of(&engine.model).serving;
        let mean = self.state.service(model).as_secs_f64();
        let idle = match engine.phase {
            EnginePhase::Stopping | EnginePhase::FallingAsleep | EnginePhase::Sleeping => return Some(0.0),
            EnginePhase::Ordered | EnginePhase::Starting | EnginePhase::Waking => {
                if !model.is_awaited() {
                    return Some(0.0);
                }
                let left = self.start_left(engine).unwrap_or_else(|| self.state.start_guess().as_secs_f64());
                let work = if model.queue.is_empty() { 0.0 } else { self.backlog(model, engines) + mean };
                left + self.until_idle(model, work, engines)
            }
            EnginePhase::Ready if engine.is_idle() && model.queue.is_empty() => 0.0,
            EnginePhase::Ready => match self.all_left(engine) {
                Some(left) if model.queue.is_empty() => self.until_idle(model, left, engines),
                Some(left) => self.until_idle(model, self.backlog(model, engines) + left.max(mean), engines),
                None => return None,
            },
        };
        match claimant.limit {
            Some(limit) => Some(self.gives_way(engine, model, host, (claimant, limit), claim, idle)),
            None => self.yields(engine, model, idle),
        }
    }

    /// When an engine that is idle in so many seconds makes way for those who wait: once they have waited enough for
    /// what it loses, and at the latest when they have waited for too long.
    fn gives_way(
        &self,
        engine: &Engine,
        model: &Model,
        host: &Host,
        (claimant, limit): (Claimant, f64),
        claim: Claim,
        idle: f64,
    ) -> f64 {
        let policy = &self.state.policy;
        let loss = self.loss_when_idle(engine, host, claim);
        let enough = |loss: f64| {
            let missing = policy.theta * loss - claimant.waited - claimant.weight * claim.start;
            (missing / claimant.weight).max(0.0)
        };
        let mut worth = enough(loss);
        if self.protected.contains(&model.needs.id)
            && let Some(ends) = self.leases_end(model)
        {
            let without = (loss - self.lease_loss(engine, model, host)).max(0.0);
            worth = worth.min(enough(without).max(ends));
        }
        let willing = idle.max(worth.min(limit));
        // Past its limit it may have a busy one drained.
        let queued = !model.queue.is_empty();
        let visit = policy.max_wait.as_secs_f64() * if queued { policy.visit_factor } else { 1.0 };
        let had_its_time = visit - self.now.since(engine.since).as_secs_f64();
        let drained = if claimant.alone { limit } else { limit.max(had_its_time) };
        let gate = if queued && engine.quota > 0 { self.backlog(model, 1) } else { 0.0 };
        willing.min(drained.max(gate) + self.mean_of(&engine.model))
    }

    /// When an engine that is idle in so many seconds makes way for a lease: once nobody awaits its model any more and it
    /// has not been used for a while.
    fn yields(&self, engine: &Engine, model: &Model, idle: f64) -> Option<f64> {
        let rest = self.state.policy.lease_yield;
        let unused =
            if engine.used { engine.last_used.plus(rest).since(self.now).as_secs_f64() } else { 0.0 };
        let unused = if idle > 0.0 { idle + rest.as_secs_f64() } else { unused };
        let leases = self.leases_end(model).unwrap_or(0.0);
        Some(unused.max(leases)).filter(|at| *at < NEVER)
    }

    /// Seconds until the last lease on a model ends, unless one is renewed.
    pub(crate) fn leases_end(&self, model: &Model) -> Option<f64> {
        let leases = model.leases.iter().map(|session| (session.clone(), model.needs.id.clone()));
        let ends = leases.filter_map(|key| Some(self.state.leases.get(&key)?.lease.expires)).max()?;
        Some(ends.since(self.now).as_secs_f64())
    }

    /// What of its loss is for its leases.
    fn lease_loss(&self, engine: &Engine, model: &Model, host: &Host) -> f64 {
        let device = host.devices.iter().find(|device| engine.awake_on(&device.id) > 0);
        let back = if self.would_sleep(engine, host) {
            self.state.wake_cost(model, device)
        } else {
            self.state.start_cost(model, host, device)
        };
        model.leases.len() as f64 * self.state.policy.lease_weight * back.as_secs_f64()
    }
}

/// Seconds as a time, if they are one.
pub(crate) fn span(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}
