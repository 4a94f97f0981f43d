//! What a choice is made from: the books at one moment, and what each engine is worth where it is.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_wire::{EngineId, ModelId, Timestamp};

use crate::books::{Device, Engine, EnginePhase, Host, Model};
use crate::state::State;

/// Spare slots of other replicas count as such while they are used to less than this.
const SPARE_BELOW: f64 = 0.7;

/// The books at one moment.
pub(crate) struct Scene<'a> {
    pub(crate) state: &'a State,
    pub(crate) now: Timestamp,
    /// Models whose leases count.
    pub(crate) protected: &'a BTreeSet<ModelId>,
}

/// Whose room a model may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Only what is free.
    Free,
    /// That of idle engines for which nobody waits, holds a lease or gave a hint.
    Unclaimed,
    /// That of idle engines.
    Idle,
    /// That of busy ones too, once they have served those who waited for them and have had their time. For when
    /// several models wait: a change for one of them holds up the others as well.
    Busy,
    /// That of busy ones too, once they have served those who waited for them: nobody else waits.
    Any,
}

/// What those who want room bring with them, as far as it bears on a victim's loss.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    /// Seconds until the claimant is ready, once the room is free.
    pub(crate) start: f64,
    /// Seconds that its queue then takes.
    pub(crate) backlog: f64,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(state: &'a State, now: Timestamp) -> Self {
        Self { state, now, protected: &state.protected }
    }

    /// Engines of the model that serve it now or soon.
    pub(crate) fn replicas(&self, model: &'a Model) -> usize {
        self.state.tallies.of(&model.needs.id).serving
    }

    /// Whether an engine of the model is on its way.
    pub(crate) fn loads(&self, model: &'a Model) -> bool {
        self.state.tallies.of(&model.needs.id).loads()
    }

    /// Seconds that the waiting jobs of a model take on so many engines.
    pub(crate) fn backlog(&self, model: &Model, replicas: usize) -> f64 {
        let slots = f64::from(model.needs.concurrency.max(1)) * replicas.max(1) as f64;
        model.queue.len() as f64 * self.state.service(model).as_secs_f64() / slots
    }

    /// What waking an engine takes on that host, longer where other loads share its disk.
    pub(crate) fn wake_on(&self, model: &Model, host: &Host, device: Option<&Device>) -> f64 {
        self.state.wake_cost(model, device).as_secs_f64() * self.crowding(host)
    }

    /// How many times as long a load takes on the host because of others.
    pub(crate) fn crowding(&self, host: &Host) -> f64 {
        let loads = host
            .engines
            .iter()
            .filter_map(|id| self.state.engines.get(id))
            .filter(|engine| engine.phase.is_loading())
            .count();
        1.0 + loads as f64
    }

    /// Seconds until the engine has nothing left to do, if it takes nothing new.
    pub(crate) fn drain(&self, engine: &Engine) -> f64 {
        if engine.is_idle() {
            return 0.0;
        }
        self.state
            .models
            .get(&engine.model)
            .map_or(Duration::ZERO, |model| self.state.service(model))
            .as_secs_f64()
    }

    /// Whether eviction puts it to sleep instead of stopping it.
    pub(crate) fn would_sleep(&self, engine: &Engine, host: &Host) -> bool {
        engine.phase == EnginePhase::Ready
            && engine.sleep.is_some_and(|sleep| sleep.ram <= host.sleep_memory)
            && self.state.models.contains_key(&engine.model)
    }

    /// Weighted seconds of waiting that its model is expected to lose if the engine makes room: arrivals over the
    /// time until it can be back, each waiting half of that on average, and what its leases weigh.
    pub(crate) fn loss(&self, engine: &Engine, host: &Host, claim: Claim) -> f64 {
        let waiting = self.state.models.get(&engine.model).map_or(0.0, |model| model.queue.weight());
        self.loss_with(engine, host, claim, (waiting, self.drain(engine)))
    }

    /// The same once nothing runs on it and nobody waits for it.
    pub(crate) fn loss_when_idle(&self, engine: &Engine, host: &Host, claim: Claim) -> f64 {
        self.loss_with(engine, host, claim, (0.0, 0.0))
    }

    fn loss_with(&self, engine: &Engine, host: &Host, claim: Claim, (waiting, drain): (f64, f64)) -> f64 {
        let Some(model) = self.state.models.get(&engine.model) else { return 0.0 };
        let device = host.devices.iter().find(|device| engine.awake_on(&device.id) > 0);
        let service = self.state.service(model).as_secs_f64();
        let rate = model.rate.per_second(self.now, &self.state.policy);
        let others = self.replicas(model).saturating_sub(usize::from(engine.serves()));
        let slots = f64::from(model.needs.concurrency.max(1)) * others as f64;
        if others > 0 && rate * service < slots * SPARE_BELOW {
            return 0.0;
        }
        let start = self.state.start_cost(model, host, device).as_secs_f64();
        let back = if self.would_sleep(engine, host) {
            self.state.wake_cost(model, device).as_secs_f64()
        } else {
            start
        };
        if engine.phase == EnginePhase::Sleeping {
            // Only the difference between waking and starting is lost.
            let more = (start - self.state.wake_cost(model, device).as_secs_f64()).max(0.0);
            return rate * model.weight * more * more / 2.0;
        }
        let horizon = drain + claim.start + claim.backlog.min(3.0 * start) + back;
        let arrivals = (rate + model.hints.rate()) * model.weight * horizon * horizon / 2.0;
        let hinted = model.hints.lost(horizon, self.now) * model.weight;
        let waiting = waiting * horizon;
        let leases = if self.protected.contains(&model.needs.id) {
            model.leases.len() as f64 * self.state.policy.lease_weight * back
        } else {
            0.0
        };
        arrivals + hinted + waiting + leases
    }

    /// Whether the engine may be evicted.
    pub(crate) fn may_evict(&self, engine: &Engine, reach: Reach) -> bool {
        if engine.draining_for.is_some() {
            return false;
        }
        let model = self.state.models.get(&engine.model);
        if model.is_some_and(|model| model.needs.pin) {
            return false;
        }
        if reach == Reach::Free || (reach == Reach::Unclaimed && model.is_some_and(Model::is_awaited)) {
            return false;
        }
        let queued = model.is_some_and(|model| !model.queue.is_empty());
        match engine.phase {
            // Nobody waits for it any more.
            EnginePhase::Ordered | EnginePhase::Starting => !model.is_some_and(Model::is_awaited),
            EnginePhase::Stopping | EnginePhase::FallingAsleep | EnginePhase::Waking => false,
            EnginePhase::Sleeping => !self.state.is_to_wake(engine),
            EnginePhase::Ready if engine.is_idle() => !queued,
            // Gated: what waited for it when it became ready is served first.
            EnginePhase::Ready => {
                // Where its own jobs wait it is overload: each change of models then costs all who wait.
                let times = if queued { self.state.policy.visit_factor } else { 1.0 };
                let visit = self.state.policy.max_wait.as_secs_f64() * times;
                let had_its_time = self.now.since(engine.since).as_secs_f64() >= visit;
                let reached = reach == Reach::Any || (reach == Reach::Busy && had_its_time);
                reached && (engine.quota == 0 || !queued)
            }
        }
    }

    /// Bytes of the accelerator that its eviction frees.
    pub(crate) fn frees(&self, engine: &Engine, host: &Host, device: &Device) -> u64 {
        let taken = engine.bytes_on(&device.id);
        let sleeps = engine.phase == EnginePhase::FallingAsleep || self.would_sleep(engine, host);
        if sleeps { taken - engine.asleep_on(&device.id) } else { taken }
    }

    /// Bytes of the accelerator that are neither taken nor claimed by another model.
    pub(crate) fn free(&self, host: &Host, device: &Device, except: Option<&ModelId>) -> u64 {
        let taken: u64 = host
            .engines
            .iter()
            .filter_map(|id| self.state.engines.get(id))
            .map(|engine| engine.bytes_on(&device.id))
            .sum();
        let claimed: u64 = host
            .plans
            .iter()
            .filter(|claimant| Some(*claimant) != except)
            .filter_map(|claimant| self.state.models.get(claimant)?.plan.as_ref())
            .map(|plan| {
                let claim: u64 =
                    plan.reservations.iter().filter(|r| r.accelerator == device.id).map(|r| r.bytes).sum();
                // What its victims will give back is counted as taken already.
                let coming: u64 = plan
                    .victims
                    .iter()
                    .filter_map(|victim| self.state.engines.get(victim))
                    .map(|engine| match plan.stops {
                        true => engine.bytes_on(&device.id),
                        false => self.frees(engine, host, device),
                    })
                    .sum();
                claim.saturating_sub(coming)
            })
            .sum();
        device.memory.saturating_sub(taken).saturating_sub(claimed)
    }

    /// Bytes that engines are giving back without anybody having claimed them.
    pub(crate) fn coming(&self, host: &Host, device: &Device) -> u64 {
        let claimed: BTreeSet<EngineId> = host
            .plans
            .iter()
            .filter_map(|claimant| self.state.models.get(claimant)?.plan.as_ref())
            .flat_map(|plan| plan.victims.iter().copied())
            .collect();
        host.engines
            .iter()
            .filter(|id| !claimed.contains(id))
            .filter_map(|id| self.state.engines.get(id))
            .map(|engine| match engine.phase {
                EnginePhase::Stopping => engine.bytes_on(&device.id),
                EnginePhase::FallingAsleep => engine.bytes_on(&device.id) - engine.asleep_on(&device.id),
                _ => 0,
            })
            .sum()
    }
}

impl State {
    /// Somebody waits for room to wake it.
    pub(crate) fn is_to_wake(&self, engine: &Engine) -> bool {
        let plan = self.models.get(&engine.model).and_then(|model| model.plan.as_ref());
        plan.and_then(|plan| plan.wake)
            .and_then(|id| self.engines.get(&id))
            .is_some_and(|e| std::ptr::eq(e, engine))
    }
}
