//! How the yard is kept up with the books, and which accelerators a search weighs.

use std::collections::BTreeSet;

use berth_wire::{EngineId, HostId, ModelId, Timestamp};

use super::{IN_TURN, PICKED, Picked, Room, USUAL_START};
use crate::books::{Device, Engine, EnginePhase, Host, Model};
use crate::scene::{Claim, Reach, Scene};
use crate::site::{Wish, eligible};
use crate::state::State;

impl State {
    /// Whether hosts of this kind could have the model, were nothing else there.
    pub(crate) fn could_have(&self, alike: &BTreeSet<HostId>, model: &Model) -> bool {
        let host = alike.first().and_then(|id| self.hosts.get(id));
        host.is_some_and(|host| eligible(host, model) && self.fits_empty(host, model))
    }

    /// Whether there is a host that could have the model, were nothing else there.
    pub(crate) fn fits_somewhere(&self, model: &Model) -> bool {
        self.yard.kinds().any(|alike| self.could_have(alike, model))
    }

    /// Brings the tallies up to date.
    pub(crate) fn tidy(&mut self) {
        if self.hosts.has_changed() {
            // Of its engines it tells itself.
            self.surveyed.extend(self.hosts.take_changed());
        }
        if self.engines.has_changed() {
            for id in self.engines.take_changed() {
                self.count(id);
            }
        }
        if self.models.has_changed() {
            for id in self.models.take_changed() {
                self.recount(&id);
            }
        }
    }

    fn count(&mut self, id: EngineId) {
        let engine = self.engines.get(&id).map(|engine| (engine, self.hosts.get(&engine.host)));
        let Some(change) = self.tallies.count(id, engine) else { return };
        if change.room {
            self.shares.remove(&change.model);
            self.protected_stale |=
                self.models.get(&change.model).is_some_and(|model| !model.leases.is_empty());
            self.surveyed.insert(change.host);
        }
        self.recount(&change.model);
    }

    /// A model's queue or engines may have changed.
    pub(crate) fn recount(&mut self, id: &ModelId) {
        let starting = &self.tallies.of(id).starting;
        if !starting.is_empty() && !self.models.get(id).is_some_and(Model::is_awaited) {
            // Nobody waits for them any more: they may go.
            let hosts = starting.iter().filter_map(|(_, engine)| self.engines.get(engine));
            self.surveyed.extend(hosts.map(|engine| engine.host.clone()));
        }
        if self.wanting.contains(id) {
            let unserved = self.tallies.of(id).serving == 0;
            let oldest = self.models.get(id).filter(|_| unserved).and_then(Model::oldest);
            self.wanting.unserved_since(id, oldest);
        }
    }

    /// Brings the orders of the fleet's accelerators up to date.
    pub(crate) fn survey(&mut self, now: Timestamp) {
        self.tidy();
        if !self.surveyed.is_empty() {
            let was_small = self.yard.is_small();
            let mut hosts = std::mem::take(&mut self.surveyed);
            for id in hosts.iter() {
                let other = match self.hosts.get(id) {
                    Some(host) => self.yard.enter(id, host),
                    None => self.yard.remove(id),
                };
                if other {
                    self.protected_stale = true;
                    self.shares.clear();
                }
            }
            // A fleet that is searched whole needs no orders.
            if !self.yard.is_small() {
                if was_small {
                    hosts.extend(self.hosts.keys().cloned());
                }
                for id in hosts.iter() {
                    let rooms = Scene::new(self, now).rooms(id);
                    self.yard.set(id, rooms);
                }
            }
        }
        self.refresh_protected(now);
    }
}

impl State {
    /// A host whose room is not as the yard has it.
    pub(crate) fn misjudged(&self) -> Option<&HostId> {
        let seen = |room: &Room| (room.computes, room.loads, room.free);
        self.hosts.keys().filter(|_| !self.yard.is_small()).find(|id| {
            let known = self.yard.lots.get(*id).map(|lot| lot.rooms.as_slice()).unwrap_or_default();
            let known = known.iter().map(|(_, room)| room.as_ref().map(seen));
            let rooms = Scene::new(self, Timestamp(0)).rooms(id);
            !known.eq(rooms.iter().map(|room| Some(seen(room))))
        })
    }
}

impl<'a> Scene<'a> {
    fn rooms(&self, id: &HostId) -> Vec<Room> {
        let Some(host) = self.state.hosts.get(id) else { return Vec::new() };
        let engines: Vec<&Engine> = host.engines.iter().filter_map(|id| self.state.engines.get(id)).collect();
        let loads = engines.iter().filter(|engine| engine.phase.is_loading()).count();
        let losses: Vec<u64> = engines.iter().map(|engine| self.lasting_loss(engine, host)).collect();
        host.devices
            .iter()
            .map(|device| {
                let on = || engines.iter().zip(&losses).filter(|(e, _)| e.awake_on(&device.id) > 0);
                let free = self.free(host, device, None);
                let mut room = Room {
                    computes: on().any(|(e, _)| !e.running.is_empty() && e.phase != EnginePhase::Sleeping),
                    loads: u32::try_from(loads).unwrap_or(u32::MAX),
                    free,
                    idle: None,
                    busy: None,
                };
                let (mut idle, mut all) = (free, free);
                for (engine, loss) in on() {
                    let bytes = engine.bytes_on(&device.id);
                    if !self.ever_goes(engine) || bytes == 0 {
                        continue;
                    }
                    all += bytes;
                    let (_, since, least) = room.busy.unwrap_or((0, Timestamp(u64::MAX), u64::MAX));
                    room.busy = Some((all, since.min(engine.since), least.min(*loss)));
                    if engine.running.is_empty() {
                        idle += bytes;
                        let least = room.idle.map_or(u64::MAX, |(_, least)| least);
                        room.idle = Some((idle, least.min(*loss)));
                    }
                }
                room
            })
            .collect()
    }

    /// Whether the engine is one that may be evicted as it is, if its model lets it go.
    fn ever_goes(&self, engine: &Engine) -> bool {
        let pinned = self.state.models.get(&engine.model).is_some_and(|model| model.needs.pin);
        let goes = match engine.phase {
            EnginePhase::Ready | EnginePhase::Sleeping => true,
            EnginePhase::Ordered | EnginePhase::Starting => {
                !self.state.models.get(&engine.model).is_some_and(Model::is_awaited)
            }
            _ => false,
        };
        goes && !pinned && engine.draining_for.is_none()
    }

    /// What the engine's model would lose, in a form that keeps its order while arrival rates decay.
    fn lasting_loss(&self, engine: &Engine, host: &Host) -> u64 {
        let loss = self.loss(engine, host, Claim { start: USUAL_START, backlog: 0.0 });
        let [tau, _] = self.state.policy.rate_taus;
        let lasting = libm::log(loss.max(1e-6)) + self.now.0 as f64 / 1000.0 / tau.as_secs_f64().max(1e-3);
        // Never negative from some moment in 1970 on, so that bits keep the order.
        (lasting + 1e3).max(0.0).to_bits()
    }

    /// Accelerators that are worth weighing for a model.
    pub(crate) fn worth_weighing(&self, wish: &Wish<'a>) -> Picked<'a> {
        let (state, model) = (self.state, wish.model);
        let yard = &state.yard;
        let mut picked = Picked::new();
        let busy = match wish.reach {
            _ if wish.replica => None,
            Reach::Any => Some(None),
            Reach::Busy => {
                let had_time = u64::try_from(state.policy.max_wait.as_millis()).unwrap_or(u64::MAX);
                Some(Some(Timestamp(self.now.0.saturating_sub(had_time))))
            }
            _ => None,
        };
        let needs: Vec<(&Device, u64)> =
            yard.sorts().map(|sort| (sort, state.need_on(model, sort))).collect();
        let kinds = yard.kinds.iter().filter_map(|(kind, orders)| {
            let host = state.hosts.get(orders.hosts.first()?)?;
            eligible(host, model).then_some((kind, orders))
        });
        let kinds: Vec<_> = kinds.collect();
        let most = (PICKED / kinds.len().max(1)).max(2);
        let (mut free, mut idle, mut oldest, mut lightest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (kind, orders) in kinds {
            let fits = |(device, need): &&(&Device, u64)| *need <= device.memory && kind.has(device);
            for (_, need) in needs.iter().filter(fits) {
                let need = *need;
                orders.with_free(need, false, most, &mut free);
                if !wish.replica {
                    orders.with_free(need, true, most, &mut free);
                }
                let computing = if wish.replica { [false].as_slice() } else { &[false, true] };
                for computes in computing.iter().filter(|_| wish.reach != Reach::Free) {
                    orders.with_idle(need, *computes, most, &mut idle);
                }
                if let Some(until) = busy {
                    orders.with_oldest(need, until, most, &mut oldest);
                    if until.is_none() {
                        orders.with_lightest(need, most, &mut lightest);
                    }
                }
            }
        }
        // The best of all kinds.
        for found in [&mut free, &mut idle, &mut oldest, &mut lightest] {
            found.sort_unstable();
            yard.pick(found.iter().map(|(_, slot)| *slot).take(PICKED), &mut picked);
        }
        let sleepers = state.tallies.of(&model.needs.id).sleeping.iter();
        let there = sleepers.filter_map(|id| Some(&state.engines.get(id)?.host)).take(PICKED);
        for host in there.chain(&model.ran_on) {
            if let Some(lot) = yard.lots.get(host) {
                yard.pick(lot.rooms.iter().map(|(slot, _)| *slot).take(8), &mut picked);
            }
        }
        let turn = yard.slots.range(model.turn..).map(|(slot, _)| *slot);
        yard.pick(turn.take(IN_TURN), &mut picked);
        let gang = model.needs.accelerators > 1;
        picked.retain(|id, devices| {
            let Some(host) = state.hosts.get(*id) else { return false };
            if gang {
                devices.extend(0..host.devices.len());
            }
            devices.retain(|n| self.may_do(id, host, *n, wish, &needs));
            devices.len() as u64 >= u64::from(model.needs.accelerators)
                || !state.tallies.of(&model.needs.id).sleeping.is_disjoint(&host.engines)
        });
        picked
    }

    /// Bytes of the accelerator that are neither taken nor claimed, where the yard knows.
    pub(crate) fn known_free(&self, id: &HostId, device: usize, model: &Model) -> Option<u64> {
        // A claim of its own would count.
        if self.state.yard.is_small() || model.plan.is_some() {
            return None;
        }
        self.state.yard.room(id, device).map(|room| room.free)
    }

    /// Whether there may be room for the model on an accelerator, as far as the yard knows.
    fn may_do(
        &self,
        id: &HostId,
        host: &Host,
        device: usize,
        wish: &Wish<'_>,
        needs: &[(&Device, u64)],
    ) -> bool {
        let Some(room) = self.state.yard.room(id, device) else { return true };
        let Some(device) = host.devices.get(device) else { return false };
        let sort = needs.iter().find(|(sort, _)| sort.memory == device.memory && sort.name == device.name);
        let need = sort.map_or(u64::MAX, |(_, need)| *need);
        let idle = room.idle.map_or(room.free, |(bytes, _)| bytes);
        let bytes = match wish.reach {
            Reach::Free => room.free,
            Reach::Unclaimed | Reach::Idle => idle,
            Reach::Busy | Reach::Any => room.busy.map_or(idle, |(bytes, ..)| bytes),
        };
        bytes >= need && !(wish.replica && room.computes)
    }
}
