//! What must hold after every step. Tests check it; a release does not pay for it.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::books::{Engine, EnginePhase, JobPhase};
use crate::state::State;

/// A rule that was broken: a bug of the core.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Violation(String);

impl State {
    /// Checks the books.
    ///
    /// # Errors
    /// Names the first rule that does not hold.
    pub fn check(&self) -> Result<(), Violation> {
        self.check_memory()?;
        self.check_jobs()?;
        self.check_engines()?;
        self.check_counts()
    }

    fn check_memory(&self) -> Result<(), Violation> {
        for (id, host) in self.hosts.iter() {
            for device in &host.devices {
                let taken: u64 = host
                    .engines
                    .iter()
                    .filter_map(|engine| self.engines.get(engine))
                    .map(|engine| engine.bytes_on(&device.id))
                    .sum();
                if taken > device.memory {
                    return Err(Violation(format!(
                        "{taken} of {} bytes are reserved on {} of {id}",
                        device.memory, device.id
                    )));
                }
            }
            let engines = || host.engines.iter().filter_map(|engine| self.engines.get(engine));
            let ram: u64 = engines().map(Engine::ram_held).sum();
            let limit = host.sleep_memory.saturating_add(host.sleep_spare);
            if ram > limit {
                return Err(Violation(format!(
                    "{ram} of {limit} bytes of host RAM are held by sleepers of {id}"
                )));
            }
        }
        Ok(())
    }

    fn check_jobs(&self) -> Result<(), Violation> {
        for (id, job) in &self.jobs {
            let queued = self.models.get(&job.model).is_some_and(|model| model.queue.contains(*id));
            match job.phase {
                JobPhase::Queued if !queued => {
                    return Err(Violation(format!("job {id} is queued but in no queue")));
                }
                JobPhase::Running { .. } if queued => {
                    return Err(Violation(format!("job {id} runs and is queued as well")));
                }
                JobPhase::Running { engine, attempt } => {
                    let there = self.engines.get(&engine).is_some_and(|e| e.attempt_of(*id) == Some(attempt));
                    if !there {
                        return Err(Violation(format!("job {id} runs on {engine}, which does not know it")));
                    }
                }
                JobPhase::Queued => {}
            }
        }
        let queued: usize = self.models.values().map(|model| model.queue.len()).sum();
        let waiting = self.jobs.values().filter(|job| job.phase == JobPhase::Queued).count();
        if queued != waiting {
            return Err(Violation(format!("{queued} jobs are in queues, {waiting} wait")));
        }
        Ok(())
    }

    /// What is counted along is what counting anew gives.
    fn check_counts(&self) -> Result<(), Violation> {
        let (mut unserved, mut arrivals) = (0, 0);
        for (id, model) in self.models.iter() {
            let tally = self.tallies.of(id);
            let engines = || model.engines.iter().filter_map(|id| Some((*id, self.engines.get(id)?)));
            let open: BTreeSet<_> = engines()
                .filter(|(_, e)| e.admits() && self.hosts.get(&e.host).is_some_and(|host| !host.draining))
                .map(|(id, e)| (e.free_slots(), std::cmp::Reverse(id)))
                .collect();
            let in_phase =
                |phases: &[EnginePhase]| engines().filter(|(_, e)| phases.contains(&e.phase)).count();
            let serving = engines().filter(|(_, e)| e.serves()).count();
            let starting = in_phase(&[EnginePhase::Ordered, EnginePhase::Starting]);
            if open != tally.open
                || serving != tally.serving
                || in_phase(&[EnginePhase::Ready]) != tally.up
                || starting != tally.starting.len()
                || in_phase(&[EnginePhase::Waking]) != tally.waking.len()
                || in_phase(&[EnginePhase::Sleeping]) != tally.sleeping.len()
            {
                return Err(Violation(format!("the engines of {id} are not as they are counted")));
            }
            if self.wanting.contains(id)
                && serving == 0
                && let Some(oldest) = model.oldest()
            {
                unserved += 1;
                arrivals += u128::from(oldest.0);
            }
        }
        if let Some(host) = self.misjudged() {
            return Err(Violation(format!("the room on {host} is not as it is noted")));
        }
        if self.wanting.unserved() != (unserved, arrivals) {
            return Err(Violation("those who wait without an engine are not as they are counted".into()));
        }
        Ok(())
    }

    fn check_engines(&self) -> Result<(), Violation> {
        for (id, engine) in self.engines.iter() {
            let serves =
                matches!(engine.phase, EnginePhase::Ready | EnginePhase::Ordered | EnginePhase::Starting);
            if !serves && !engine.is_idle() {
                return Err(Violation(format!("engine {id} is {:?} while it serves", engine.phase)));
            }
            if engine.leaving != self.drained.contains(&engine.host) {
                return Err(Violation(format!(
                    "engine {id} does not know whether {} is drained",
                    engine.host
                )));
            }
            if engine.leaving && engine.is_idle() && engine.phase.is_loading() {
                return Err(Violation(format!("engine {id} loads on {}, which is drained", engine.host)));
            }
            if engine.leaving && engine.lane == Some(true) {
                return Err(Violation(format!(
                    "the lane of {id} is open on {}, which is drained",
                    engine.host
                )));
            }
            if engine.draining_for.is_some() && engine.quota > 0 {
                return Err(Violation(format!(
                    "engine {id} is drained before it served the {} jobs that waited for it",
                    engine.quota
                )));
            }
            let Some(host) = self.hosts.get(&engine.host) else {
                return Err(Violation(format!("engine {id} is on a host that is gone")));
            };
            if !host.engines.contains(id) {
                return Err(Violation(format!("engine {id} is not in its host's books")));
            }
        }
        for (id, model) in self.models.iter() {
            if let Some(plan) = &model.plan
                && plan.victims.is_empty()
            {
                return Err(Violation(format!("{id} waits for victims that are all gone")));
            }
            let idle = model.engines.iter().filter_map(|id| self.engines.get(id)).any(|engine| {
                let takes = self.hosts.get(&engine.host).is_some_and(|host| !host.draining);
                engine.phase == EnginePhase::Ready
                    && engine.draining_for.is_none()
                    && engine.free_slots() > 0
                    && engine.held_until.is_none()
                    && takes
            });
            let open = |engine: &&Engine| engine.lane == Some(true);
            let engines = || model.engines.iter().filter_map(|id| self.engines.get(id));
            if !model.queue.is_empty() && engines().any(|engine| open(&engine)) {
                return Err(Violation(format!("{id} has a job that waits and an open lane")));
            }
            if let Some(engine) = engines().filter(open).find(|engine| engine.draining_for.is_some()) {
                return Err(Violation(format!(
                    "an engine of {id} is drained on {} and its lane open",
                    engine.host
                )));
            }
            if idle && !model.queue.is_empty() {
                return Err(Violation(format!("{id} has a free slot and a job that waits")));
            }
        }
        Ok(())
    }
}
