//! Placement: where a model that has no engine gets its memory, and from whom.
//!
//! First policy: free memory first; else the least recently used idle engines, as few as will do; a busy engine
//! is drained only for a model that has waited longer than `max_wait`, and only after it has started as many
//! jobs as waited for it when it became ready.

use std::collections::BTreeSet;

use berth_wire::{EngineId, HostId, ModelId, Reservation, Timestamp};

use crate::books::{Device, Engine, EnginePhase, Host, Model, Plan};
use crate::state::Step;
use crate::timers::Due;

/// What came of looking for a place.
pub(crate) enum Choice {
    /// There is room now.
    Now { host: HostId, reservations: Vec<Reservation> },
    /// There will be room once these are gone.
    Evict { host: HostId, reservations: Vec<Reservation>, victims: BTreeSet<EngineId> },
    /// Only what may not be evicted is in the way, or memory is on its way already.
    Wait,
    /// It fits nowhere, even on empty hosts.
    Never,
}

/// Memory for one engine on one accelerator, and what it costs.
struct Spot {
    reservation: Reservation,
    victims: Vec<EngineId>,
    /// Better spots compare less: busy victims, when the most recent victim was used, what is left over.
    cost: (usize, Timestamp, u64),
}

impl Step<'_> {
    /// Finds the model a place and acts on it.
    pub(crate) fn place(&mut self, id: &ModelId) {
        let Some(model) = self.state.models.get(id) else { return };
        if model.not_before.is_some_and(|at| at > self.now) || model.blocked_at(self.now) {
            return;
        }
        let aged_at = model.oldest().map(|oldest| oldest.plus(self.state.policy.max_wait));
        let aged = aged_at.is_some_and(|at| at <= self.now);
        if model.plan.is_some() {
            return;
        }
        match self.choose(model, aged) {
            Choice::Now { host, reservations } => {
                let why = self.why_start(id);
                self.start(id, &host, reservations, why);
            }
            Choice::Evict { host, reservations, victims } => {
                self.evict_for(id, host, reservations, victims);
            }
            Choice::Wait => {
                if let Some(at) = aged_at.filter(|at| *at > self.now) {
                    self.state.timers.set(at, Due::Place(id.clone()));
                }
            }
            Choice::Never => {
                if self.state.settled && !self.state.hosts.is_empty() {
                    let error = self.cannot_fit(id);
                    self.fail_queue(id, &error);
                }
            }
        }
    }

    fn evict_for(
        &mut self,
        id: &ModelId,
        host: HostId,
        reservations: Vec<Reservation>,
        victims: BTreeSet<EngineId>,
    ) {
        if let Some(host) = self.state.hosts.get_mut(&host) {
            host.plans.insert(id.clone());
        }
        if let Some(model) = self.state.models.get_mut(id) {
            model.plan = Some(Plan { host, reservations, victims: victims.clone() });
        }
        for victim in victims {
            let Some(engine) = self.state.engines.get_mut(&victim) else { continue };
            let victim_model = engine.model.clone();
            if engine.running.is_empty() {
                self.stop(victim, format!("evicted: {id} needs the memory"));
            } else {
                engine.draining_for = Some(id.clone());
            }
            self.touch(&victim_model);
        }
    }

    /// A victim's memory is free: when it was the last, the model that claimed it starts.
    pub(crate) fn victim_gone(&mut self, claimant: &ModelId, victim: EngineId) {
        let Some(plan) = self.state.models.get_mut(claimant).and_then(|model| model.plan.as_mut()) else {
            return;
        };
        if plan.victims.remove(&victim) && plan.victims.is_empty() {
            let (host, reservations) = (plan.host.clone(), std::mem::take(&mut plan.reservations));
            let why = self.why_start(claimant);
            self.start(claimant, &host, reservations, why);
        }
    }

    /// Gives up a claim: what was only being drained for it serves on.
    pub(crate) fn drop_plan(&mut self, id: &ModelId) {
        let Some(plan) = self.state.models.get_mut(id).and_then(|model| model.plan.take()) else { return };
        if let Some(host) = self.state.hosts.get_mut(&plan.host) {
            host.plans.remove(id);
        }
        for victim in plan.victims {
            let Some(engine) = self.state.engines.get_mut(&victim) else { continue };
            if engine.draining_for.as_ref() == Some(id) {
                engine.draining_for = None;
                let model = engine.model.clone();
                self.touch(&model);
            }
        }
        self.room_changed();
    }

    pub(crate) fn choose(&self, model: &Model, aged: bool) -> Choice {
        let mut best: Option<(HostId, Vec<Spot>)> = None;
        let mut could_fit = false;
        for (id, host) in &self.state.hosts {
            if !eligible(host, model) {
                continue;
            }
            could_fit = could_fit || fits_empty(host, model);
            let Some(spots) = self.spots(host, model, aged) else { continue };
            let better = best.as_ref().is_none_or(|(_, least)| cost(&spots) < cost(least));
            if better {
                best = Some((id.clone(), spots));
            }
        }
        match best {
            None if could_fit => Choice::Wait,
            None => Choice::Never,
            Some((host, spots)) => {
                let victims: BTreeSet<EngineId> =
                    spots.iter().flat_map(|spot| spot.victims.iter().copied()).collect();
                let reservations = spots.into_iter().map(|spot| spot.reservation).collect();
                if victims.is_empty() {
                    Choice::Now { host, reservations }
                } else {
                    Choice::Evict { host, reservations, victims }
                }
            }
        }
    }

    /// The cheapest accelerators of one host, or `None` if there are not enough.
    fn spots(&self, host: &Host, model: &Model, aged: bool) -> Option<Vec<Spot>> {
        let wanted = usize::try_from(model.needs.accelerators).ok()?;
        let mut spots: Vec<Spot> =
            host.devices.iter().filter_map(|device| self.spot(host, device, model, aged)).collect();
        spots.sort_by_key(|spot| spot.cost);
        spots.truncate(wanted);
        (spots.len() == wanted).then_some(spots)
    }

    fn spot(&self, host: &Host, device: &Device, model: &Model, aged: bool) -> Option<Spot> {
        let need = need_on(model, device);
        if need > device.memory {
            return None;
        }
        let free = self.free(host, device, &model.needs.id);
        let reservation = Reservation { accelerator: device.id.clone(), bytes: need };
        if free >= need {
            let cost = (0, Timestamp(0), free - need);
            return Some(Spot { reservation, victims: Vec::new(), cost });
        }
        if free.saturating_add(self.coming(host, device)) >= need {
            // It is being freed already; taking more would evict for nothing.
            return None;
        }
        let mut candidates: Vec<(EngineId, &Engine, u64)> = host
            .engines
            .iter()
            .filter_map(|id| Some((*id, self.state.engines.get(id)?)))
            .filter(|(_, engine)| self.may_evict(engine, aged))
            .map(|(id, engine)| (id, engine, engine.bytes_on(&device.id)))
            .filter(|(_, _, bytes)| *bytes > 0)
            .collect();
        candidates.sort_by_key(|(id, engine, _)| (engine.running.len(), engine.last_used, *id));
        let mut gained = free;
        let mut victims = Vec::new();
        for (id, engine, bytes) in candidates {
            if gained >= need {
                break;
            }
            gained = gained.saturating_add(bytes);
            victims.push((id, engine, bytes));
        }
        if gained < need {
            return None;
        }
        // The last ones in may have made earlier ones unnecessary: spare the most recently used first.
        for index in (0..victims.len()).rev() {
            if let Some((_, _, bytes)) = victims.get(index)
                && gained - bytes >= need
            {
                gained -= bytes;
                victims.remove(index);
            }
        }
        let busy = victims.iter().filter(|(_, engine, _)| !engine.running.is_empty()).count();
        let newest = victims.iter().map(|(_, engine, _)| engine.last_used).max().unwrap_or_default();
        let victims = victims.into_iter().map(|(id, _, _)| id).collect();
        Some(Spot { reservation, victims, cost: (busy + 1, newest, gained - need) })
    }

    /// Bytes of the accelerator that are neither taken nor claimed by another model.
    pub(crate) fn free(&self, host: &Host, device: &Device, except: &ModelId) -> u64 {
        let taken: u64 = host
            .engines
            .iter()
            .filter_map(|id| self.state.engines.get(id))
            .map(|engine| engine.bytes_on(&device.id))
            .sum();
        let claimed: u64 = host
            .plans
            .iter()
            .filter(|claimant| *claimant != except)
            .filter_map(|claimant| self.state.models.get(claimant)?.plan.as_ref())
            .map(|plan| {
                let claim: u64 =
                    plan.reservations.iter().filter(|r| r.accelerator == device.id).map(|r| r.bytes).sum();
                // What its victims still hold is counted as taken already.
                let held: u64 = plan
                    .victims
                    .iter()
                    .filter_map(|victim| self.state.engines.get(victim))
                    .map(|engine| engine.bytes_on(&device.id))
                    .sum();
                claim.saturating_sub(held)
            })
            .sum();
        device.memory.saturating_sub(taken).saturating_sub(claimed)
    }

    /// Bytes that engines are giving back without anybody having claimed them.
    fn coming(&self, host: &Host, device: &Device) -> u64 {
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
            .filter(|engine| engine.phase == EnginePhase::Stopping)
            .map(|engine| engine.bytes_on(&device.id))
            .sum()
    }

    fn may_evict(&self, engine: &Engine, aged: bool) -> bool {
        if engine.draining_for.is_some() {
            return false;
        }
        let model = self.state.models.get(&engine.model);
        if model.is_some_and(|model| model.needs.pin) {
            return false;
        }
        let awaited = model.is_some_and(|model| !model.queue.is_empty());
        match engine.phase {
            // Nobody waits for it any more.
            EnginePhase::Ordered | EnginePhase::Starting => !awaited,
            EnginePhase::Stopping => false,
            EnginePhase::Ready if engine.running.is_empty() => !awaited,
            EnginePhase::Ready => aged && (engine.quota == 0 || !awaited),
        }
    }
}

impl Model {
    fn blocked_at(&self, now: Timestamp) -> bool {
        self.blocked.as_ref().is_some_and(|(until, _)| *until > now)
    }
}

fn cost(spots: &[Spot]) -> (usize, Timestamp, u64) {
    spots.iter().fold((0, Timestamp(0), 0), |(busy, newest, rest), spot| {
        (busy + spot.cost.0, newest.max(spot.cost.1), rest.saturating_add(spot.cost.2))
    })
}

/// Bytes the model needs on one of its accelerators.
pub(crate) fn need_on(model: &Model, device: &Device) -> u64 {
    match model.needs.memory {
        Some(bytes) => bytes.div_ceil(u64::from(model.needs.accelerators.max(1))),
        None => device.memory,
    }
}

/// Whether the host may run the model at all.
pub(crate) fn eligible(host: &Host, model: &Model) -> bool {
    !host.draining
        && host.drivers.contains(&model.needs.driver)
        && model.needs.labels.iter().all(|label| host.labels.contains(label))
}

/// Whether the model fits on the host with nothing else there.
pub(crate) fn fits_empty(host: &Host, model: &Model) -> bool {
    let enough = host.devices.iter().filter(|device| need_on(model, device) <= device.memory).count();
    enough as u64 >= u64::from(model.needs.accelerators)
}
