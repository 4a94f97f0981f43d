//! Where there may be room: the fleet's accelerators in orders in which the best places come early, so that a
//! search looks at some of them and not at all.
//!
//! A fleet of up to `Policy::searched_whole` accelerators is searched whole. In a larger one a search weighs those
//! that the orders name, where the model ran last or sleeps, and some in rotation, so that no place is left out for
//! ever.

mod search;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_wire::{Driver, HostId, Timestamp};

use crate::books::{Device, Host};

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
