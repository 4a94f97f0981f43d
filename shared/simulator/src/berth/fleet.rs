//! The fleet as it is: engines that start, serve, sleep and stop. It refuses what a real host could not do.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_placement::{EngineFacts, Event};
use berth_wire::{AcceleratorId, EngineId, EngineState, HostId, ModelId, Reservation, SleepCost, Timestamp};

use super::facts::{self, MEMORY};
use super::fault::Fault;
use crate::select::Workload;
use crate::setup::Setup;

/// All hosts with their engines.
pub(super) struct Fleet {
    hosts: BTreeMap<HostId, Host>,
    engines: BTreeMap<EngineId, Engine>,
    models: Vec<ModelId>,
    slots: u32,
    sleep: Option<SleepCost>,
    loads: u64,
}

struct Host {
    accelerators: Vec<AcceleratorId>,
    sleep_memory: u64,
}

struct Engine {
    model: ModelId,
    host: HostId,
    state: EngineState,
    reservations: Vec<Reservation>,
    running: u32,
    /// When its start or wake began.
    since: Timestamp,
    /// Starts and wakes so far: the end of an earlier one does not count.
    turn: u32,
}

impl Fleet {
    pub(super) fn new(workload: &Workload, setup: &Setup) -> Self {
        let hosts = facts::hosts(setup).into_iter().map(|(id, accelerators)| {
            let sleep_memory = facts::sleep_memory(setup, accelerators.len()) + facts::sleep_spare(setup);
            (id, Host { accelerators, sleep_memory })
        });
        Self {
            hosts: hosts.collect(),
            engines: BTreeMap::new(),
            models: workload.models.iter().map(|model| ModelId::from(model.as_str())).collect(),
            slots: setup.slots,
            sleep: facts::sleep_cost(setup),
            loads: 0,
        }
    }

    /// Starts and wakes so far.
    pub(super) fn loads(&self) -> u64 {
        self.loads
    }

    pub(super) fn start(
        &mut self,
        id: EngineId,
        model: ModelId,
        host: HostId,
        reservations: Vec<Reservation>,
        now: Timestamp,
    ) -> Result<(Event, u32), Fault> {
        self.room(id, "start", &host, &reservations)?;
        if self.engines.contains_key(&id) {
            return Err(fault(id, "start", "there is one of that id"));
        }
        let state = EngineState::Starting;
        let engine = Engine { model, host, state, reservations, running: 0, since: now, turn: 1 };
        self.engines.insert(id, engine);
        self.loads += 1;
        self.said(id, None).map(|event| (event, 1)).ok_or_else(|| fault(id, "start", "it is gone"))
    }

    pub(super) fn wake(
        &mut self,
        id: EngineId,
        model: &ModelId,
        host: &HostId,
        reservations: Vec<Reservation>,
        now: Timestamp,
    ) -> Result<(Event, u32), Fault> {
        self.room(id, "wake", host, &reservations)?;
        let engine = self.engine(id, "wake")?;
        if engine.state != EngineState::Sleeping || engine.model != *model || engine.host != *host {
            let state = engine.state.as_str();
            return Err(fault(id, "wake", &format!("it is {state}, of {} on {}", engine.model, engine.host)));
        }
        engine.state = EngineState::Waking;
        engine.reservations = reservations;
        engine.since = now;
        engine.turn += 1;
        let turn = engine.turn;
        self.loads += 1;
        self.said(id, None).map(|event| (event, turn)).ok_or_else(|| fault(id, "wake", "it is gone"))
    }

    /// A start or wake has come to its end; nothing if it was stopped meanwhile.
    pub(super) fn ready(&mut self, id: EngineId, turn: u32, now: Timestamp) -> Option<Event> {
        let engine = self.engines.get_mut(&id).filter(|engine| engine.turn == turn)?;
        if !matches!(engine.state, EngineState::Starting | EngineState::Waking) {
            return None;
        }
        engine.state = EngineState::Ready;
        let took = now.since(engine.since);
        self.said(id, Some(took))
    }

    pub(super) fn stop(&mut self, id: EngineId) -> Result<Event, Fault> {
        let engine = self.engine(id, "stop")?;
        if engine.running > 0 {
            return Err(fault(id, "stop", "it serves"));
        }
        engine.state = EngineState::Stopped;
        engine.reservations.clear();
        let event = self.said(id, None).ok_or_else(|| fault(id, "stop", "it is gone"));
        self.engines.remove(&id);
        event
    }

    /// Puts an engine to sleep, or says that there is no RAM for it, as an agent would.
    pub(super) fn sleep(&mut self, id: EngineId) -> Result<Event, Fault> {
        let Some(cost) = self.sleep else { return Err(fault(id, "sleep", "no engine here can")) };
        let engine = self.engine(id, "sleep")?;
        if engine.running > 0 || engine.state != EngineState::Ready {
            let why = format!("it is {} and serves {} jobs", engine.state.as_str(), engine.running);
            return Err(fault(id, "sleep", &why));
        }
        let host = engine.host.clone();
        let asleep = |engine: &&Engine| engine.host == host && engine.state == EngineState::Sleeping;
        let taken = cost.ram * self.engines.values().filter(asleep).count() as u64;
        if self.hosts.get(&host).is_none_or(|host| taken + cost.ram > host.sleep_memory) {
            let why = "there is no host RAM left for another engine asleep".into();
            return Ok(Event::SleepRefused { engine: id, why });
        }
        let engine = self.engine(id, "sleep")?;
        engine.state = EngineState::Sleeping;
        engine.reservations.clear();
        self.said(id, None).ok_or_else(|| fault(id, "sleep", "it is gone"))
    }

    /// Takes a slot for a job.
    pub(super) fn run(&mut self, id: EngineId, host: &HostId, model: usize) -> Result<(), String> {
        let engine = self.engines.get_mut(&id).ok_or_else(|| format!("engine {id} is gone"))?;
        if engine.state != EngineState::Ready {
            return Err(format!("engine {id} is {}", engine.state.as_str()));
        }
        if engine.host != *host || self.models.get(model) != Some(&engine.model) {
            return Err(format!("engine {id} is of {} on {}", engine.model, engine.host));
        }
        if engine.running >= self.slots {
            return Err(format!("engine {id} has no slot free"));
        }
        engine.running += 1;
        Ok(())
    }

    /// Gives a job's slot back.
    pub(super) fn done(&mut self, id: EngineId) {
        if let Some(engine) = self.engines.get_mut(&id) {
            engine.running = engine.running.saturating_sub(1);
        }
    }

    fn engine(&mut self, id: EngineId, what: &'static str) -> Result<&mut Engine, Fault> {
        self.engines.get_mut(&id).ok_or_else(|| fault(id, what, "there is no such engine"))
    }

    /// Whether the host has that memory free.
    fn room(
        &self,
        id: EngineId,
        what: &'static str,
        host: &HostId,
        reservations: &[Reservation],
    ) -> Result<(), Fault> {
        let Some(there) = self.hosts.get(host) else {
            return Err(fault(id, what, &format!("there is no host {host}")));
        };
        if reservations.is_empty() {
            return Err(fault(id, what, "no memory is set aside for it"));
        }
        for reservation in reservations {
            if !there.accelerators.contains(&reservation.accelerator) {
                let why = format!("{host} has no accelerator {}", reservation.accelerator);
                return Err(fault(id, what, &why));
            }
            let others = self.engines.iter().filter(|(other, engine)| **other != id && engine.host == *host);
            let taken: u64 = others
                .flat_map(|(_, engine)| &engine.reservations)
                .filter(|other| other.accelerator == reservation.accelerator)
                .map(|other| other.bytes)
                .sum();
            if taken.saturating_add(reservation.bytes) > MEMORY {
                let why = format!("{} of {host} has no room for it", reservation.accelerator);
                return Err(fault(id, what, &why));
            }
        }
        Ok(())
    }

    /// What the host's agent says of an engine.
    fn said(&self, id: EngineId, start_took: Option<Duration>) -> Option<Event> {
        let engine = self.engines.get(&id)?;
        let facts = EngineFacts {
            id,
            model: engine.model.clone(),
            state: engine.state,
            reservations: engine.reservations.clone(),
            concurrency: self.slots,
            failure: None,
            start_took,
            sleep: self.sleep,
            peak_memory: None,
        };
        Some(Event::EngineChanged { host: engine.host.clone(), engine: facts })
    }
}

fn fault(engine: EngineId, what: &'static str, why: &str) -> Fault {
    Fault::Engine { engine: engine.to_string(), what, why: why.into() }
}

#[cfg(test)]
mod tests {
    use berth_wire::Epoch;

    use super::*;
    use crate::setup::SleepTier;

    const NOW: Timestamp = Timestamp(1000);

    fn fleet() -> Fleet {
        let workload = Workload { models: vec!["a".into(), "b".into()], ..Workload::default() };
        let sleep = Some(SleepTier { engines: 1, wake: Duration::from_secs(3) });
        Fleet::new(&workload, &Setup { slots: 1, sleep, ..Setup::default() })
    }

    fn id(n: u32) -> EngineId {
        EngineId::new(Epoch(1), n)
    }

    fn whole() -> Vec<Reservation> {
        vec![Reservation { accelerator: "gpu0".into(), bytes: MEMORY }]
    }

    fn started(fleet: &mut Fleet, n: u32, model: &str) {
        fleet.start(id(n), model.into(), "host1".into(), whole(), NOW).unwrap();
        assert!(fleet.ready(id(n), 1, NOW.plus(Duration::from_secs(30))).is_some());
    }

    fn facts(event: Event) -> EngineFacts {
        match event {
            Event::EngineChanged { engine, .. } => engine,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_engine_asleep_leaves_its_accelerator_and_takes_it_again_when_it_wakes() {
        let mut fleet = fleet();
        started(&mut fleet, 1, "a");
        let asleep = facts(fleet.sleep(id(1)).unwrap());
        assert_eq!((asleep.state, asleep.reservations.len()), (EngineState::Sleeping, 0));
        assert_eq!(asleep.sleep, Some(SleepCost { ram: MEMORY, residue: 0 }));
        started(&mut fleet, 2, "b");
        let host = "host1".into();
        let taken = fleet.wake(id(1), &"a".into(), &host, whole(), NOW).unwrap_err();
        assert!(taken.to_string().contains("no room"), "{taken}");
        fleet.stop(id(2)).unwrap();
        let (event, turn) = fleet.wake(id(1), &"a".into(), &host, whole(), NOW).unwrap();
        assert_eq!((facts(event).state, turn), (EngineState::Waking, 2));
        assert!(fleet.ready(id(1), 1, NOW).is_none(), "the end of the first start has come already");
        let ready = facts(fleet.ready(id(1), 2, NOW.plus(Duration::from_secs(3))).unwrap());
        assert_eq!((ready.state, ready.start_took), (EngineState::Ready, Some(Duration::from_secs(3))));
        assert_eq!(fleet.loads(), 3);
    }

    #[test]
    fn without_ram_an_engine_stays_awake() {
        let mut fleet = fleet();
        started(&mut fleet, 1, "a");
        fleet.sleep(id(1)).unwrap();
        // One more has the room in which engines are exchanged.
        started(&mut fleet, 2, "b");
        assert!(matches!(fleet.sleep(id(2)).unwrap(), Event::EngineChanged { .. }));
        started(&mut fleet, 3, "b");
        assert!(matches!(fleet.sleep(id(3)).unwrap(), Event::SleepRefused { .. }));
        assert!(fleet.run(id(3), &"host1".into(), 1).is_ok());
    }

    #[test]
    fn what_no_host_could_do_is_a_fault_that_says_why() {
        let mut fleet = fleet();
        let host: HostId = "host1".into();
        started(&mut fleet, 1, "a");
        let twice = fleet.start(id(2), "b".into(), host.clone(), whole(), NOW).unwrap_err();
        assert!(twice.to_string().contains("gpu0 of host1 has no room"), "{twice}");
        let nowhere = fleet.start(id(2), "b".into(), "host9".into(), whole(), NOW).unwrap_err();
        assert!(nowhere.to_string().contains("there is no host host9"), "{nowhere}");
        let nothing = fleet.start(id(2), "b".into(), host.clone(), Vec::new(), NOW).unwrap_err();
        assert!(nothing.to_string().contains("no memory"), "{nothing}");
        assert!(fleet.run(id(1), &host, 1).unwrap_err().contains("is of a"));
        fleet.run(id(1), &host, 0).unwrap();
        assert!(fleet.run(id(1), &host, 0).unwrap_err().contains("no slot"));
        assert!(fleet.stop(id(1)).unwrap_err().to_string().contains("it serves"));
        assert!(fleet.sleep(id(1)).unwrap_err().to_string().contains("serves 1 jobs"));
        fleet.done(id(1));
        let awake = fleet.wake(id(1), &"a".into(), &host, whole(), NOW).unwrap_err();
        assert!(awake.to_string().contains("it is ready"), "{awake}");
        assert!(fleet.stop(id(1)).is_ok());
        assert!(fleet.stop(id(1)).unwrap_err().to_string().contains("no such engine"));
    }
}
