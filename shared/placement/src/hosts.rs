//! Hosts: joined, reporting anew, lost.

use std::collections::{BTreeMap, BTreeSet};

use berth_wire::{ApiError, Attempt, Driver, EngineId, ErrorKind, EventBody, HostId, JobId};

use crate::books::{Device, EnginePhase, Host, JobPhase, Run};
use crate::effect::Effect;
use crate::event::{EngineFacts, HostFacts};
use crate::state::Step;

impl Step<'_> {
    pub(crate) fn host_snapshot(
        &mut self,
        facts: HostFacts,
        engines: Vec<EngineFacts>,
        running: Vec<(JobId, Attempt, EngineId)>,
    ) {
        let id = facts.id.clone();
        match self.state.hosts.get(&id) {
            Some(known) if known.boot != facts.boot => {
                self.host_lost(&id, "its agent was restarted");
                self.joined(&facts);
            }
            Some(_) => {}
            None => self.joined(&facts),
        }
        let known = self.state.hosts.get(&id);
        let host = Host {
            boot: facts.boot,
            devices: facts
                .accelerators
                .into_iter()
                .map(|a| Device { id: a.id, name: a.name, memory: a.memory })
                .collect(),
            drivers: facts.drivers,
            labels: facts.labels,
            draining: facts.draining || self.state.drained.contains(&id),
            leaving: facts.draining,
            sleep_memory: facts.sleep_memory,
            sleep_spare: facts.sleep_spare,
            credit_floor: known.map_or(0.0, |host| host.credit_floor),
            ran: known.map(|host| host.ran.clone()).unwrap_or_default(),
            failed: known.map(|host| host.failed.clone()).unwrap_or_default(),
            engines: known.map(|host| host.engines.clone()).unwrap_or_default(),
            plans: known.map(|host| host.plans.clone()).unwrap_or_default(),
        };
        let missing = self.missing(&host, &engines);
        self.state.hosts.insert(id.clone(), host);
        self.forgive_external(&id);
        for engine in missing {
            self.forget_engine(engine, "its host does not know the engine any more");
        }
        // What runs comes first, so that no engine looks idle that is not.
        let mut at_engine: BTreeMap<EngineId, Vec<(JobId, Attempt)>> = BTreeMap::new();
        for (job, attempt, engine) in running {
            at_engine.entry(engine).or_default().push((job, attempt));
        }
        for facts in engines {
            let (engine, model) = (facts.id, facts.model.clone());
            self.adopt(&id, facts, at_engine.remove(&engine).unwrap_or_default());
            self.touch(&model);
        }
        self.room_changed();
    }

    /// A host says how things are also when a server that somebody else runs is back: what that one could not do it
    /// may do now, and nobody is to wait for a back-off to end.
    fn forgive_external(&mut self, id: &HostId) {
        let runs_servers = |host: &&Host| host.drivers.contains(&Driver::External);
        let Some(host) = self.state.hosts.get(id).filter(runs_servers) else { return };
        let of_host = self.state.models.iter().filter(|(_, model)| {
            model.needs.driver == Driver::External
                && (model.not_before.is_some() || model.start_failures > 0)
                && model.needs.labels.iter().all(|label| host.labels.contains(label))
        });
        for model in of_host.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            if let Some(entry) = self.state.models.get_mut(&model) {
                entry.blocked = None;
                entry.not_before = None;
                entry.start_failures = 0;
                entry.given_up = 0;
            }
            self.forgive_hosts(&model);
            self.touch(&model);
        }
    }

    fn joined(&mut self, facts: &HostFacts) {
        self.emit(Effect::Record(EventBody::HostJoined {
            host: facts.id.clone(),
            accelerators: u32::try_from(facts.accelerators.len()).unwrap_or(u32::MAX),
            memory: facts.accelerators.iter().map(|a| a.memory).sum(),
        }));
    }

    /// Engines in the books that the host no longer has. One that was only ordered may not have reached it yet.
    fn missing(&self, host: &Host, engines: &[EngineFacts]) -> Vec<EngineId> {
        let there: BTreeSet<EngineId> = engines.iter().map(|engine| engine.id).collect();
        host.engines
            .difference(&there)
            .filter(|id| {
                self.state.engines.get(id).is_some_and(|engine| engine.phase != EnginePhase::Ordered)
            })
            .copied()
            .collect()
    }

    fn adopt(&mut self, host: &HostId, facts: EngineFacts, running: Vec<(JobId, Attempt)>) {
        let id = facts.id;
        let newly = !self.state.engines.contains_key(&id);
        if newly {
            // Enter it as starting first, so that its jobs stand before it is looked at as ready.
            let state = facts.state;
            let entered = EngineFacts { state: berth_wire::EngineState::Starting, ..facts.clone() };
            self.engine_lives(host, entered);
            self.enter_running(host, id, running);
            if state != berth_wire::EngineState::Starting {
                self.engine_lives(host, facts);
            }
        } else {
            self.enter_running(host, id, running);
            self.engine_lives(host, facts);
        }
    }

    fn enter_running(&mut self, host: &HostId, engine: EngineId, running: Vec<(JobId, Attempt)>) {
        for (job, attempt) in running {
            if attempt.is_express() {
                self.express_found(job, engine);
                continue;
            }
            let wanted = match self.state.jobs.get(&job).map(|job| (job.phase, job.attempts)) {
                // Not in the books: the stream has yet to deliver it.
                None => !self.state.over.contains(job),
                Some((JobPhase::Running { attempt: current, .. }, _)) => current == attempt,
                // An earlier leader's attempt, of a job that this one has not tried yet.
                Some((JobPhase::Queued, 0)) => true,
                // Its gateway was told that the attempt is lost.
                Some((JobPhase::Queued, _)) => false,
            };
            if wanted {
                if let Some(entry) = self.state.engines.get_mut(&engine) {
                    entry.running.entry(job).or_insert(Run { attempt, since: self.now }).attempt = attempt;
                    self.state.strays.insert((job, engine));
                }
                self.mark_running(job, engine, attempt);
            } else {
                self.emit(Effect::CancelAttempt { job, attempt, host: host.clone() });
            }
        }
    }

    pub(crate) fn host_lost(&mut self, id: &HostId, reason: &str) {
        let Some(host) = self.state.hosts.remove(id) else { return };
        self.emit(Effect::Record(EventBody::HostLost { host: id.clone(), reason: reason.to_owned() }));
        for model in &host.plans {
            if let Some(model) = self.state.models.get_mut(model) {
                model.plan = None;
            }
            self.touch(model);
        }
        let error = ApiError::new(
            ErrorKind::EngineFailed,
            "host_lost",
            format!("the host {id} was lost while it served this job: {reason}"),
        );
        for engine_id in host.engines {
            let Some(engine) = self.state.engines.remove(&engine_id) else { continue };
            if let Some(model) = self.state.models.get_mut(&engine.model) {
                model.engines.remove(&engine_id);
            }
            self.touch(&engine.model);
            for (job, run) in engine.running {
                self.state.strays.remove(&(job, engine_id));
                self.attempt_lost(job, run.attempt, &error);
            }
        }
        self.room_changed();
    }
}
