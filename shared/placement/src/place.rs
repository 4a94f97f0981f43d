//! When, and the taking of a place: at once where those who wait have waited enough for what the victims lose,
//! else at the moment at which they will have.

use std::time::Duration;

use berth_wire::{EngineId, ModelId, Timestamp};

use crate::books::{EnginePhase, Model, Plan};
use crate::demand::{Cause, Demand};
use crate::scene::Scene;
use crate::site::Site;
use crate::state::Step;
use crate::timers::Due;

/// A choice that depends on time is not looked at more often than this.
const SOON: Duration = Duration::from_millis(250);
/// And not less often, since what victims would lose changes too.
const LATE: Duration = Duration::from_secs(5);
/// Except by those who have waited for so many times as long since a look: a hundredth more does not matter to them,
/// and behind a job that takes months they would be looked at for months.
const RARELY: u32 = 100;

/// Whether to take a place.
pub(crate) enum Timing {
    Now,
    At(Timestamp),
}

impl Scene<'_> {
    /// How long a model is not looked at that waits for what may change by itself.
    fn late(&self, model: &Model) -> Duration {
        model.oldest().map_or(LATE, |oldest| LATE.max(self.now.since(oldest) / RARELY))
    }

    /// When the place is worth what it costs.
    pub(crate) fn timing(&self, model: &Model, demand: &Demand, site: &Site) -> Timing {
        if demand.first.is_some() || site.victims.is_empty() {
            return Timing::Now;
        }
        if demand.cause == Cause::Leases
            && let Some(at) = self.out_of_use(site).filter(|at| *at > self.now)
        {
            return Timing::At(at);
        }
        let (waited, theta) = match demand.cause {
            // What a start now spares those who come, against what it costs those who are there.
            Cause::Hints => (demand.waited, 1.0),
            // What it spares those who would still wait for the engines that are there.
            Cause::Jobs if demand.replica => {
                let policy = &self.state.policy;
                let others = (1.0 / demand.share - 1.0).max(1.0);
                let spared = (demand.backlog / others - policy.replica_start * site.delay()).max(0.0);
                (spared * demand.weight * demand.share, policy.replica_theta)
            }
            _ => ((demand.waited + demand.weight * site.delay()) * demand.share, self.state.policy.theta),
        };
        let missing = theta * site.loss - waited;
        // Strictly more for a hint, so that two models that are hinted alike do not evict each other in turn.
        if missing < 0.0 || (missing <= 0.0 && demand.cause != Cause::Hints) {
            return Timing::Now;
        }
        let seconds = missing / (demand.weight * demand.share).max(1e-6);
        let late = self.late(model);
        let later = Duration::try_from_secs_f64(seconds).unwrap_or(late).clamp(SOON, late);
        Timing::At(self.now.plus(later))
    }

    /// When none of the victims is in use any more. A lease keeps warm what is warm; started in place of a model that
    /// is in use, its own would be evicted again by the next job of that one.
    fn out_of_use(&self, site: &Site) -> Option<Timestamp> {
        let victims = site.victims.iter().filter_map(|id| self.state.engines.get(id));
        let used = victims.filter(|engine| engine.used).map(|engine| engine.last_used);
        used.max().map(|at| at.plus(self.state.policy.lease_yield))
    }
}

impl Step<'_> {
    /// Finds the model a place and acts on it.
    pub(crate) fn place(&mut self, id: &ModelId) {
        self.state.survey(self.now);
        let Some(model) = self.state.models.get(id) else { return };
        if model.plan.is_some()
            || model.not_before.is_some_and(|at| at > self.now)
            || model.blocked_at(self.now)
        {
            return;
        }
        let scene = Scene::new(self.state, self.now);
        let Some(demand) = scene.demand(id) else {
            let at = scene.foreseen_at(model);
            self.look_at(id, at);
            return;
        };
        let found = scene.find(&demand.wish(model));
        let weighed = found.weighed;
        match &found.best {
            Some(site) => match scene.timing(model, &demand, site) {
                Timing::Now => {
                    let why = self.why_start(id, &demand, &found);
                    if let Some(site) = found.best {
                        self.take(id, site, why);
                    }
                }
                Timing::At(at) => {
                    let ages = demand.ages.filter(|ages| *ages > self.now);
                    self.look_at(id, Some(ages.map_or(at, |ages| ages.min(at))));
                }
            },
            None if found.could_fit || demand.cause != Cause::Jobs => {
                // Only what may not be evicted is in the way, or memory is on its way already.
                let ages = demand.ages.filter(|ages| *ages > self.now);
                let back = self.host_is_tried_again(id);
                // Engines in its way become ones that may be drained.
                let drained = demand.aged.map(|_| self.now.plus(scene.late(model)));
                let back = back.into_iter().chain(drained).min();
                self.look_at(id, ages.into_iter().chain(back).min());
            }
            None => self.fits_nowhere(id, &demand),
        }
        self.searched(id, &demand, weighed);
    }

    fn fits_nowhere(&mut self, id: &ModelId, demand: &Demand) {
        let stays = |id| self.state.engines.get(id).is_some_and(|engine| !engine.leaving);
        let served = self.state.models.get(id).is_some_and(|model| model.engines.iter().any(stays));
        let known = self.state.settled && !self.state.hosts.is_empty() && !self.state.one_is_leaving(id);
        if known && demand.cause == Cause::Jobs && !served {
            let error = self.state.cannot_fit(id);
            self.fail_queue(id, &error);
        }
    }

    /// When the first host on which the model failed to start may be tried again.
    fn host_is_tried_again(&self, id: &ModelId) -> Option<Timestamp> {
        let hosts = self.state.models.get(id)?.failed_on.iter().filter_map(|host| self.state.hosts.get(host));
        let failed = hosts.filter_map(|host| host.failed.get(id).map(|(_, until)| *until));
        failed.filter(|until| *until > self.now).min()
    }

    /// Notes what a search has cost, how high the model ranks, and where its next search goes on.
    fn searched(&mut self, id: &ModelId, demand: &Demand, weighed: usize) {
        self.worked(weighed);
        self.state.wanting.rank(id, Some(demand));
        if self.state.yard.is_small() {
            return;
        }
        let turn = self.state.models.get(id).map_or(0, |model| self.state.yard.turn_after(model.turn));
        if let Some(model) = self.state.models.get_mut(id) {
            model.turn = turn;
        }
    }

    /// Sees to it that the model is looked at again then.
    fn look_at(&mut self, id: &ModelId, at: Option<Timestamp>) {
        let Some(at) = at else { return };
        let Some(model) = self.state.models.get_mut(id) else { return };
        if model.looked_at.is_some_and(|set| set > self.now && set <= at) {
            return;
        }
        if let Some(set) = model.looked_at.replace(at) {
            self.state.timers.unset(set, Due::Place(id.clone()));
        }
        self.state.timers.set(at, Due::Place(id.clone()));
    }

    fn take(&mut self, id: &ModelId, site: Site, why: String) {
        if site.victims.is_empty() {
            self.occupy(id, site.wake, &site.host, site.reservations, why);
            return;
        }
        if let Some(host) = self.state.hosts.get_mut(&site.host) {
            host.plans.insert(id.clone());
        }
        let victims: Vec<EngineId> = site.victims.iter().copied().collect();
        if let Some(model) = self.state.models.get_mut(id) {
            model.plan = Some(Plan {
                host: site.host,
                reservations: site.reservations,
                victims: site.victims,
                wake: site.wake,
                stops: site.stops,
                why,
            });
        }
        for victim in victims {
            let Some(engine) = self.state.engines.get_mut(&victim) else { continue };
            let victim_model = engine.model.clone();
            if engine.is_idle() {
                self.make_way(victim, site.stops, format!("evicted: {id} needs the memory"));
            } else {
                engine.draining_for = Some(id.clone());
                if self.state.models.get(&victim_model).is_none_or(|model| model.queue.is_empty()) {
                    engine.quota = 0;
                }
            }
            self.touch(&victim_model);
        }
    }

    /// Has an engine that runs nothing leave.
    pub(crate) fn make_way(&mut self, victim: EngineId, stops: bool, reason: String) {
        if stops { self.stop(victim, reason) } else { self.put_away(victim, reason) }
    }

    fn occupy(
        &mut self,
        id: &ModelId,
        wake: Option<EngineId>,
        host: &berth_wire::HostId,
        reservations: Vec<berth_wire::Reservation>,
        why: String,
    ) {
        match wake {
            Some(engine) => self.wake(engine, why),
            None => self.start(id, host, reservations, why),
        }
    }

    /// A victim's memory is free: when it was the last, the model that claimed it starts.
    pub(crate) fn victim_gone(&mut self, claimant: &ModelId, victim: EngineId) {
        let Some(plan) = self.state.models.get_mut(claimant).and_then(|model| model.plan.as_mut()) else {
            return;
        };
        if !plan.victims.remove(&victim) || !plan.victims.is_empty() {
            return;
        }
        let plan = plan.clone();
        if self.still_fits(claimant, &plan) {
            self.drop_claim(claimant);
            self.occupy(claimant, plan.wake, &plan.host, plan.reservations, plan.why);
        } else {
            self.drop_plan(claimant);
            self.touch(claimant);
        }
    }

    /// Whether the room is there: a victim may have kept more than was expected.
    fn still_fits(&self, claimant: &ModelId, plan: &Plan) -> bool {
        let Some(host) = self.state.hosts.get(&plan.host) else { return false };
        let scene = Scene::new(self.state, self.now);
        let sleeper = plan.wake.map(|id| self.state.engines.get(&id));
        if sleeper.is_some_and(|engine| engine.is_none_or(|engine| engine.phase != EnginePhase::Sleeping)) {
            return false;
        }
        plan.reservations.iter().all(|reservation| {
            let Some(device) = host.devices.iter().find(|device| device.id == reservation.accelerator) else {
                return false;
            };
            let kept = sleeper.flatten().map_or(0, |engine| engine.asleep_on(&device.id));
            scene.free(host, device, Some(claimant)) >= reservation.bytes.saturating_sub(kept)
        })
    }

    /// Takes a model's claim out of the books.
    fn drop_claim(&mut self, id: &ModelId) -> Option<Plan> {
        let plan = self.state.models.get_mut(id).and_then(|model| model.plan.take())?;
        if let Some(host) = self.state.hosts.get_mut(&plan.host) {
            host.plans.remove(id);
        }
        Some(plan)
    }

    /// Gives up a claim: what was only being drained for it serves on.
    pub(crate) fn drop_plan(&mut self, id: &ModelId) {
        let Some(plan) = self.drop_claim(id) else { return };
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
}

impl crate::books::Model {
    fn blocked_at(&self, now: Timestamp) -> bool {
        self.blocked.as_ref().is_some_and(|(until, _)| *until > now)
    }
}
