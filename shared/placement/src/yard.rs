//! Where there may be room: the fleet's accelerators in orders in which the best places come early, so that a
//! search looks at some of them and not at all.
//!
//! A fleet of up to `Policy::searched_whole` accelerators is searched whole. In a larger one a search weighs those that the orders
//! name, where the model ran last or sleeps, and some in rotation, so that no place is left out for ever.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_wire::{Driver, EngineId, HostId, ModelId, Timestamp};

use crate::books::{Device, Engine, EnginePhase, Host, Model};
use crate::scene::{Claim, Reach, Scene};
use crate::site::{Wish, eligible};
use crate::state::State;

/// Accelerators of all kinds that are weighed for each reason: room is free, idle engines or busy ones may go.
const PICKED: usize = 8;
/// So many entries of an order are passed over at most.
const PASSED: usize = 128;
/// Accelerators weighed in rotation.
const IN_TURN: usize = 3;
/// Losses are compared for a start of so many seconds.
const USUAL_START: f64 = 30.0;

/// Hosts that differ in name alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    drivers: Vec<Driver>,
    labels: Vec<String>,
    draining: bool,
    devices: Vec<(String, u64)>,
}

/// An accelerator, by a number of the yard's own.
type Slot = u32;

/// An accelerator with what it is ranked by, the least first.
type Ranked = (u64, Slot);

/// The orders of one kind's accelerators.
#[derive(Debug, Clone, Default)]
struct Orders {
    hosts: BTreeSet<HostId>,
    /// By whether something computes there, loads on the host, and free bytes.
    free: BTreeSet<(bool, u32, u64, Slot)>,
    /// Idle engines may go: by whether something computes there, class of room, and least loss.
    idle: BTreeSet<(bool, u32, u64, Slot, u64)>,
    /// Busy ones may go: by class of room, and since when the first has been ready.
    oldest: BTreeSet<(u32, Timestamp, Slot, u64)>,
    /// The same by least loss.
    lightest: BTreeSet<(u32, u64, Slot, u64)>,
}

/// What there is on one accelerator.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Room {
    computes: bool,
    loads: u32,
    free: u64,
    /// Bytes once idle engines have gone, and the least loss of one.
    idle: Option<(u64, u64)>,
    /// Bytes once all have gone, since when the first has been ready, and the least loss of one.
    busy: Option<(u64, Timestamp, u64)>,
}

#[derive(Debug, Clone)]
struct Lot {
    kind: Kind,
    rooms: Vec<(Slot, Option<Room>)>,
}

/// The fleet's accelerators.
#[derive(Debug, Clone, Default)]
pub(crate) struct Yard {
    /// A fleet of so many accelerators is searched whole.
    few: usize,
    kinds: BTreeMap<Kind, Orders>,
    lots: HashMap<HostId, Lot>,
    slots: BTreeMap<Slot, (HostId, usize)>,
    slots_made: Slot,
    /// One of each sort of accelerator, and how many there are.
    sorts: BTreeMap<(String, u64), (Device, usize)>,
}

/// Accelerators of a host that are weighed.
pub(crate) type Picked<'a> = BTreeMap<&'a HostId, BTreeSet<usize>>;

impl Yard {
    pub(crate) fn new(few: usize) -> Self {
        Self { few, ..Self::default() }
    }

    /// How many accelerators there are.
    pub(crate) fn accelerators(&self) -> usize {
        self.slots.len()
    }

    /// One accelerator of each sort.
    pub(crate) fn sorts(&self) -> impl Iterator<Item = &Device> {
        self.sorts.values().map(|(device, _)| device)
    }

    /// Hosts, those that differ in name alone together.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = &BTreeSet<HostId>> {
        self.kinds.values().map(|orders| &orders.hosts)
    }

    /// Whether the fleet is searched whole.
    pub(crate) fn is_small(&self) -> bool {
        self.slots.len() <= self.few
    }

    /// Where the next search in rotation begins.
    pub(crate) fn turn_after(&self, turn: u32) -> u32 {
        self.slots.range(turn..).nth(IN_TURN).map_or(0, |(slot, _)| *slot)
    }

    /// Takes a host out. Whether it was there.
    pub(crate) fn remove(&mut self, id: &HostId) -> bool {
        let Some(lot) = self.lots.remove(id) else { return false };
        for (slot, room) in &lot.rooms {
            self.slots.remove(slot);
            if let (Some(room), Some(orders)) = (room, self.kinds.get_mut(&lot.kind)) {
                orders.remove(*slot, room);
            }
        }
        for sort in &lot.kind.devices {
            if let Some((_, count)) = self.sorts.get_mut(sort) {
                *count -= 1;
                if *count == 0 {
                    self.sorts.remove(sort);
                }
            }
        }
        if let Some(orders) = self.kinds.get_mut(&lot.kind) {
            orders.hosts.remove(id);
            if orders.hosts.is_empty() {
                self.kinds.remove(&lot.kind);
            }
        }
        true
    }

    /// Sees to it that the host is there as what it is now. Whether that is new.
    fn enter(&mut self, id: &HostId, host: &Host) -> bool {
        let known = self.lots.get(id).is_some_and(|lot| lot.kind.is(host));
        if known {
            return false;
        }
        self.remove(id);
        let kind = Kind::of(host);
        let mut rooms = Vec::new();
        for n in 0..host.devices.len() {
            self.slots_made = self.slots_made.wrapping_add(1);
            self.slots.insert(self.slots_made, (id.clone(), n));
            rooms.push((self.slots_made, None));
        }
        for device in &host.devices {
            let sort = self.sorts.entry((device.name.clone(), device.memory));
            sort.or_insert_with(|| (device.clone(), 0)).1 += 1;
        }
        self.kinds.entry(kind.clone()).or_default().hosts.insert(id.clone());
        self.lots.insert(id.clone(), Lot { kind, rooms });
        true
    }

    fn set(&mut self, id: &HostId, now: Vec<Room>) {
        let Some(lot) = self.lots.get_mut(id) else { return };
        let Some(orders) = self.kinds.get_mut(&lot.kind) else { return };
        for ((slot, room), now) in lot.rooms.iter_mut().zip(now) {
            if room.as_ref() == Some(&now) {
                continue;
            }
            if let Some(before) = room {
                orders.remove(*slot, before);
            }
            orders.insert(*slot, &now);
            *room = Some(now);
        }
    }

    fn pick<'a>(&'a self, slots: impl IntoIterator<Item = Slot>, picked: &mut Picked<'a>) {
        for slot in slots {
            if let Some((host, device)) = self.slots.get(&slot) {
                picked.entry(host).or_default().insert(*device);
            }
        }
    }

    fn room(&self, host: &HostId, device: usize) -> Option<&Room> {
        self.lots.get(host)?.rooms.get(device)?.1.as_ref()
    }
}

impl Kind {
    fn of(host: &Host) -> Self {
        Self {
            drivers: host.drivers.clone(),
            labels: host.labels.clone(),
            draining: host.draining,
            devices: host.devices.iter().map(|device| (device.name.clone(), device.memory)).collect(),
        }
    }

    fn has(&self, device: &Device) -> bool {
        self.devices.iter().any(|(name, memory)| *memory == device.memory && *name == device.name)
    }

    fn is(&self, host: &Host) -> bool {
        let alike = |((name, memory), device): (&(String, u64), &Device)| {
            *name == device.name && *memory == device.memory
        };
        self.draining == host.draining
            && self.drivers == host.drivers
            && self.labels == host.labels
            && self.devices.len() == host.devices.len()
            && self.devices.iter().zip(&host.devices).all(alike)
    }
}

/// The class of so many bytes: powers of two of a quarter of a GiB.
fn class(bytes: u64) -> u32 {
    u64::BITS - (bytes >> 28).leading_zeros()
}

impl Orders {
    fn insert(&mut self, slot: Slot, room: &Room) {
        if room.free > 0 {
            self.free.insert((room.computes, room.loads, room.free, slot));
        }
        if let Some((bytes, loss)) = room.idle {
            self.idle.insert((room.computes, class(bytes), loss, slot, bytes));
        }
        if let Some((bytes, since, loss)) = room.busy {
            self.oldest.insert((class(bytes), since, slot, bytes));
            self.lightest.insert((class(bytes), loss, slot, bytes));
        }
    }

    fn remove(&mut self, slot: Slot, room: &Room) {
        self.free.remove(&(room.computes, room.loads, room.free, slot));
        if let Some((bytes, loss)) = room.idle {
            self.idle.remove(&(room.computes, class(bytes), loss, slot, bytes));
        }
        if let Some((bytes, since, loss)) = room.busy {
            self.oldest.remove(&(class(bytes), since, slot, bytes));
            self.lightest.remove(&(class(bytes), loss, slot, bytes));
        }
    }

    /// Accelerators with so much free: where the fewest loads run, the tightest first.
    fn with_free(&self, need: u64, computes: bool, most: usize, found: &mut Vec<Ranked>) {
        let most = found.len() + most;
        let mut from = (computes, 0, need, 0);
        // A few steps from one number of loads to the next.
        for _ in 0..8 {
            let Some((has, loads, _, _)) = self.free.range(from..).next().copied() else { return };
            if has != computes {
                return;
            }
            let of_these = self.free.range((computes, loads, need, 0)..(computes, loads + 1, 0, 0));
            let left = most.saturating_sub(found.len());
            found.extend(of_these.take(left).map(|(_, loads, _, slot)| (u64::from(*loads), *slot)));
            if found.len() >= most {
                return;
            }
            from = (computes, loads + 1, need, 0);
        }
    }

    /// Those on which idle engines may go, of each class of room those that lose least.
    fn with_idle(&self, need: u64, computes: bool, most: usize, found: &mut Vec<Ranked>) {
        let mut next = class(need);
        while let Some((has, class, ..)) = self.idle.range((computes, next, 0, 0, 0)..).next().copied() {
            if has != computes {
                return;
            }
            let of_class = self.idle.range((computes, class, 0, 0, 0)..(computes, class + 1, 0, 0, 0));
            let enough = of_class.take(PASSED).filter(|(.., bytes)| *bytes >= need);
            found.extend(enough.take(most).map(|(_, _, loss, slot, _)| (*loss, *slot)));
            next = class + 1;
        }
    }

    /// Those on which busy engines may go, of each class those whose first has been ready longest, at least since
    /// `until`.
    fn with_oldest(&self, need: u64, until: Option<Timestamp>, most: usize, found: &mut Vec<Ranked>) {
        let mut next = class(need);
        while let Some((class, ..)) = self.oldest.range((next, Timestamp(0), 0, 0)..).next().copied() {
            let end = (class, until.unwrap_or(Timestamp(u64::MAX)), Slot::MAX, u64::MAX);
            let of_class = self.oldest.range((class, Timestamp(0), 0, 0)..=end);
            let enough = of_class.take(PASSED).filter(|(.., bytes)| *bytes >= need);
            found.extend(enough.take(most).map(|(_, since, slot, _)| (since.0, *slot)));
            next = class + 1;
        }
    }

    /// The same of those that lose least.
    fn with_lightest(&self, need: u64, most: usize, found: &mut Vec<Ranked>) {
        let mut next = class(need);
        while let Some((class, ..)) = self.lightest.range((next, 0, 0, 0)..).next().copied() {
            let of_class = self.lightest.range((class, 0, 0, 0)..(class + 1, 0, 0, 0));
            let enough = of_class.take(PASSED).filter(|(.., bytes)| *bytes >= need);
            found.extend(enough.take(most).map(|(_, loss, slot, _)| (*loss, *slot)));
            next = class + 1;
        }
    }
}

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
