//! What the engines of each model come to, kept up with every change, so that no step counts them.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use berth_wire::{EngineId, HostId, ModelId, Timestamp};

use crate::books::{Engine, EnginePhase, Host};

/// The engines of one model.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// That serve it now or soon.
    pub(crate) serving: usize,
    /// That are ready and not drained, and their free slots.
    pub(crate) ready: u64,
    pub(crate) free: u64,
    /// That are ready, drained or not.
    pub(crate) up: usize,
    /// That take a job now, by free slots, the oldest last.
    pub(crate) open: BTreeSet<(u32, Reverse<EngineId>)>,
    /// That are starting, and being woken: since when.
    pub(crate) starting: BTreeSet<(Timestamp, EngineId)>,
    pub(crate) waking: BTreeSet<(Timestamp, EngineId)>,
    pub(crate) sleeping: BTreeSet<EngineId>,
}

impl Tally {
    /// Whether one is on its way.
    pub(crate) fn loads(&self) -> bool {
        !self.starting.is_empty() || !self.waking.is_empty()
    }
}

/// One engine as it was counted.
#[derive(Debug, Clone)]
struct Counted {
    model: ModelId,
    host: HostId,
    part: Part,
    room: RoomPart,
}

/// What it adds to its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    phase: EnginePhase,
    since: Timestamp,
    drained: bool,
    leaving: bool,
    free: u32,
    open: bool,
}

/// What of it bears on the room on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RoomPart {
    phase: EnginePhase,
    since: Timestamp,
    asleep: bool,
    drained: bool,
    busy: bool,
    bytes: u64,
}

/// The tallies of all models.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tallies {
    models: HashMap<ModelId, Tally>,
    engines: HashMap<EngineId, Counted>,
}

/// What a change of an engine may change beside its model's tally.
pub(crate) struct Change {
    pub(crate) model: ModelId,
    pub(crate) host: HostId,
    /// Room on its host.
    pub(crate) room: bool,
}

static NONE: Tally = Tally {
    serving: 0,
    ready: 0,
    free: 0,
    up: 0,
    open: BTreeSet::new(),
    starting: BTreeSet::new(),
    waking: BTreeSet::new(),
    sleeping: BTreeSet::new(),
};

impl Tallies {
    pub(crate) fn of(&self, model: &ModelId) -> &Tally {
        self.models.get(model).unwrap_or(&NONE)
    }

    /// Takes in how an engine is now; `None`: it is gone.
    pub(crate) fn count(&mut self, id: EngineId, engine: Option<(&Engine, Option<&Host>)>) -> Option<Change> {
        let now = engine.map(|(engine, host)| Counted {
            model: engine.model.clone(),
            host: engine.host.clone(),
            part: Part {
                phase: engine.phase,
                since: engine.since,
                drained: engine.draining_for.is_some() || engine.leaving,
                leaving: engine.leaving,
                free: engine.free_slots(),
                open: engine.admits() && host.is_some_and(|host| !host.draining),
            },
            room: RoomPart {
                phase: engine.phase,
                since: engine.since,
                asleep: engine.asleep,
                drained: engine.draining_for.is_some(),
                busy: !engine.running.is_empty(),
                bytes: engine.reservations.iter().map(|r| r.bytes).sum(),
            },
        });
        let before = match &now {
            Some(now) => self.engines.insert(id, now.clone()),
            None => self.engines.remove(&id),
        };
        let (model, host) = {
            let either = now.as_ref().or(before.as_ref())?;
            (either.model.clone(), either.host.clone())
        };
        let (part, room) = (now.as_ref().map(|now| now.part), now.as_ref().map(|now| now.room));
        let (part_before, room_before) =
            (before.as_ref().map(|before| before.part), before.as_ref().map(|before| before.room));
        if part != part_before {
            let tally = self.models.entry(model.clone()).or_default();
            if let Some(before) = part_before {
                tally.take(id, before);
            }
            if let Some(part) = part {
                tally.add(id, part);
            }
        }
        Some(Change { model, host, room: room != room_before })
    }
}

impl Tally {
    fn add(&mut self, id: EngineId, part: Part) {
        self.serving += usize::from(part.serves());
        self.up += usize::from(part.phase == EnginePhase::Ready);
        if part.phase == EnginePhase::Ready && !part.drained {
            self.ready += 1;
            self.free += u64::from(part.free);
        }
        if part.open {
            self.open.insert((part.free, Reverse(id)));
        }
        match part.phase {
            EnginePhase::Waking => self.waking.insert((part.since, id)),
            EnginePhase::Ordered | EnginePhase::Starting => self.starting.insert((part.since, id)),
            EnginePhase::Sleeping => self.sleeping.insert(id),
            _ => false,
        };
    }

    fn take(&mut self, id: EngineId, part: Part) {
        self.serving -= usize::from(part.serves()).min(self.serving);
        self.up -= usize::from(part.phase == EnginePhase::Ready).min(self.up);
        if part.phase == EnginePhase::Ready && !part.drained {
            self.ready = self.ready.saturating_sub(1);
            self.free = self.free.saturating_sub(u64::from(part.free));
        }
        self.open.remove(&(part.free, Reverse(id)));
        self.waking.remove(&(part.since, id));
        self.starting.remove(&(part.since, id));
        self.sleeping.remove(&id);
    }
}

impl Part {
    fn serves(self) -> bool {
        !self.leaving && (self.phase.is_loading() || (self.phase == EnginePhase::Ready && !self.drained))
    }
}
