//! The sleep tier: an evicted engine keeps its weights in host RAM while there is room, by Landlord credit.
//!
//! Each sleeper's credit is what waking saves over starting, a GiB of RAM; when RAM is needed, the sleeper with the
//! least credit goes, and its credit becomes the floor that later ones start from (GreedyDual-Size, the form of
//! Landlord for variable sizes; Young, "On-line file caching", Algorithmica 2002).

use std::time::Duration;

use berth_wire::{EngineId, EventBody, HostId, ModelId, Residency, Timestamp};

use crate::books::{Engine, EnginePhase, Model};
use crate::effect::Effect;
use crate::scene::Scene;
use crate::state::Step;
use crate::timers::Due;

const GIB: f64 = (1u64 << 30) as f64;

impl Step<'_> {
    /// Evicts an engine that runs nothing: puts it to sleep if it can and host RAM allows, else stops it.
    pub(crate) fn put_away(&mut self, id: EngineId, reason: String) {
        let sleeps = {
            let scene = Scene::new(self.state, self.now);
            let engine = self.state.engines.get(&id);
            engine.is_some_and(|engine| {
                self.state.hosts.get(&engine.host).is_some_and(|host| scene.would_sleep(engine, host))
            })
        };
        if sleeps && self.make_ram(id) {
            self.fall_asleep(id, reason);
        } else {
            self.stop(id, reason);
        }
    }

    /// Stops the sleepers of least credit until there will be RAM for one more.
    fn make_ram(&mut self, id: EngineId) -> bool {
        let Some(engine) = self.state.engines.get(&id) else { return false };
        let (host_id, ram, model) = (engine.host.clone(), engine.ram(), engine.model.clone());
        let Some(host) = self.state.hosts.get(&host_id) else { return false };
        let engines = || host.engines.iter().filter_map(|id| Some((*id, self.state.engines.get(id)?)));
        // What is on its way back to its accelerator counts only as far as the spare does not hold it.
        let leaves = |e: &Engine| e.phase == EnginePhase::Waking || self.state.is_to_wake(e);
        let sleeps = |e: &Engine| matches!(e.phase, EnginePhase::FallingAsleep | EnginePhase::Sleeping);
        let leaving: u64 = engines().filter(|(_, e)| leaves(e)).map(|(_, e)| e.ram()).sum();
        let staying: u64 = engines().filter(|(_, e)| sleeps(e) && !leaves(e)).map(|(_, e)| e.ram()).sum();
        let mut held = staying.saturating_add(leaving.saturating_sub(host.sleep_spare));
        let mut sleepers: Vec<(f64, Timestamp, EngineId, u64)> = engines()
            .filter(|(_, e)| e.phase == EnginePhase::Sleeping && !leaves(e))
            .map(|(id, e)| (e.credit, e.since, id, e.ram()))
            .collect();
        sleepers.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let (limit, mut floor) = (host.sleep_memory, host.credit_floor);
        let mut goes = Vec::new();
        for (credit, _, sleeper, bytes) in sleepers {
            if held.saturating_add(ram) <= limit {
                break;
            }
            held = held.saturating_sub(bytes);
            floor = floor.max(credit);
            goes.push(sleeper);
        }
        if held.saturating_add(ram) > limit {
            return false;
        }
        if let Some(host) = self.state.hosts.get_mut(&host_id) {
            host.credit_floor = floor;
        }
        for sleeper in goes {
            self.stop(sleeper, format!("host RAM is needed for {model}"));
        }
        true
    }

    fn fall_asleep(&mut self, id: EngineId, reason: String) {
        let Some(engine) = self.state.engines.get(&id) else { return };
        let (host_id, model_id) = (engine.host.clone(), engine.model.clone());
        let Some(host) = self.state.hosts.get(&host_id) else { return };
        let saved = self.state.models.get(&model_id).map_or(0.0, |model| {
            let device = host.devices.iter().find(|device| engine.awake_on(&device.id) > 0);
            let start = self.state.start_cost(model, host, device);
            start.saturating_sub(self.state.wake_cost(model, device)).as_secs_f64()
        });
        let credit = host.credit_floor + saved / (engine.ram() as f64 / GIB).max(1e-3);
        let Some(engine) = self.state.engines.get_mut(&id) else { return };
        engine.phase = EnginePhase::FallingAsleep;
        engine.since = self.now;
        engine.credit = credit;
        engine.draining_for = None;
        self.emit(Effect::Record(EventBody::EngineSleeping {
            engine: id,
            host: host_id.clone(),
            model: model_id.clone(),
            why: reason,
        }));
        self.send_to_sleep(&host_id);
        self.touch(&model_id);
    }

    /// Sends those to sleep who wait for RAM that is there now.
    pub(crate) fn send_to_sleep(&mut self, id: &HostId) {
        let Some(host) = self.state.hosts.get(id) else { return };
        let engines = || host.engines.iter().filter_map(|id| Some((*id, self.state.engines.get(id)?)));
        let mut held: u64 = engines().filter(|(_, e)| e.in_ram).map(|(_, e)| e.ram()).sum();
        let mut sent = Vec::new();
        for (engine_id, engine) in
            engines().filter(|(_, e)| e.phase == EnginePhase::FallingAsleep && !e.in_ram)
        {
            if held.saturating_add(engine.ram()) > host.sleep_memory.saturating_add(host.sleep_spare) {
                break;
            }
            held = held.saturating_add(engine.ram());
            sent.push(engine_id);
        }
        for engine in sent {
            if let Some(entry) = self.state.engines.get_mut(&engine) {
                entry.in_ram = true;
            }
            let reason = "its accelerator's memory is needed".to_owned();
            self.emit(Effect::Sleep { engine, host: id.clone(), reason });
        }
    }

    /// It sleeps: its accelerator's memory is free.
    pub(crate) fn asleep(&mut self, id: EngineId) {
        let Some(engine) = self.state.engines.get_mut(&id) else { return };
        engine.phase = EnginePhase::Sleeping;
        engine.asleep = true;
        engine.in_ram = true;
        engine.since = self.now;
        engine.draining_for = None;
        let (host, model) = (engine.host.clone(), engine.model.clone());
        let plans = self.state.hosts.get(&host).map(|host| host.plans.clone()).unwrap_or_default();
        for claimant in plans {
            self.victim_gone(&claimant, id);
        }
        self.set_asleep_timer(id);
        self.touch(&model);
        self.room_changed();
    }

    fn set_asleep_timer(&mut self, id: EngineId) {
        let Some(engine) = self.state.engines.get(&id) else { return };
        let Some(ttl) = self.asleep_ttl(engine) else { return };
        self.state.timers.set(self.now.plus(ttl), Due::Asleep(id));
    }

    fn asleep_ttl(&self, engine: &Engine) -> Option<Duration> {
        let needs = &self.state.models.get(&engine.model)?.needs;
        needs.asleep_ttl.or(self.state.policy.asleep_ttl)
    }

    /// Stops an engine that nobody has woken for as long as its model says. One that was woken since has a timer of
    /// its later sleep; one that a plan wakes is left to it.
    pub(crate) fn asleep_due(&mut self, id: EngineId) {
        let Some(engine) = self.state.engines.get(&id) else { return };
        if engine.phase != EnginePhase::Sleeping {
            return;
        }
        let Some(ttl) = self.asleep_ttl(engine) else { return };
        let slept = self.now.since(engine.since);
        if slept < ttl {
            return;
        }
        let awaited = self.state.models.get(&engine.model).is_some_and(Model::is_awaited);
        if awaited || self.state.is_to_wake(engine) {
            self.set_asleep_timer(id);
        } else {
            self.stop(id, format!("asleep for {} s", slept.as_secs()));
        }
    }

    /// Has a sleeping engine woken where there is room for it.
    pub(crate) fn wake(&mut self, id: EngineId, why: String) {
        let Some(engine) = self.state.engines.get_mut(&id) else { return };
        engine.phase = EnginePhase::Waking;
        engine.asleep = false;
        engine.since = self.now;
        engine.from = Some(Residency::Sleeping);
        let (model, host, reservations) =
            (engine.model.clone(), engine.host.clone(), engine.reservations.clone());
        self.emit(Effect::Wake { engine: id, model: model.clone(), host: host.clone(), reservations });
        self.emit(Effect::Record(EventBody::EngineWaking { engine: id, host, model: model.clone(), why }));
        self.state.wanting.remove(&model);
        self.tell_queue(&model);
        self.touch(&model);
    }

    /// A host did not put it to sleep: it is stopped instead.
    pub(crate) fn sleep_refused(&mut self, id: EngineId, why: &str) {
        let Some(engine) = self.state.engines.get_mut(&id) else { return };
        if engine.phase != EnginePhase::FallingAsleep {
            return;
        }
        engine.in_ram = false;
        if engine.is_idle() {
            self.stop(id, format!("it could not be put to sleep: {why}"));
        } else {
            self.drain_instead(id);
        }
    }

    /// An engine that was to fall asleep serves a job after all: it is drained for whoever wants its room.
    pub(crate) fn drain_instead(&mut self, id: EngineId) {
        let Some(engine) = self.state.engines.get(&id) else { return };
        let (host, model) = (engine.host.clone(), engine.model.clone());
        let claimant = self.state.hosts.get(&host).and_then(|host| {
            let wants = |claimant: &&ModelId| {
                let plan = self.state.models.get(*claimant).and_then(|model| model.plan.as_ref());
                plan.is_some_and(|plan| plan.victims.contains(&id))
            };
            host.plans.iter().find(wants).cloned()
        });
        if let Some(engine) = self.state.engines.get_mut(&id) {
            engine.phase = EnginePhase::Ready;
            engine.since = self.now;
            engine.draining_for = claimant;
            engine.quota = 0;
        }
        self.touch(&model);
    }
}

impl Engine {
    /// It lies in host RAM, or is on its way there or back.
    pub(crate) fn ram_held(&self) -> u64 {
        if self.in_ram { self.ram() } else { 0 }
    }
}
