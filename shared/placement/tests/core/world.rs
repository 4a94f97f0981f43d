//! A fleet that does what the core asks, one event at a time, and checks every effect against what is true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use berth_placement::{
    AttemptEnd, Effect, Event, HostFacts, JobFacts, ModelNeeds, Policy, State, Verdict, step,
};
use berth_wire::{
    Accelerator, AcceleratorKind, ApiError, Attempt, Driver, EngineFailure, EngineId, EngineState, Epoch,
    HostId, JobId, Lease, ModelId, Profile, SessionId, SleepCost, Timestamp, Usage,
};

pub use crate::at_hosts::Engine;
use crate::at_hosts::facts_of;
pub use crate::kit::{GIB, error, job, model};

pub struct World {
    pub state: State,
    pub now: Timestamp,
    pub models: BTreeMap<ModelId, ModelNeeds>,
    pub hosts: BTreeMap<HostId, (u32, u64)>,
    /// Host RAM for sleepers: what may stay, and the spare; zero: no engine can sleep.
    pub ram: (u64, u64),
    pub down: BTreeSet<HostId>,
    pub draining: BTreeSet<HostId>,
    boots: u32,
    boot_of: BTreeMap<HostId, String>,
    pub engines: BTreeMap<EngineId, Engine>,
    pub jobs: BTreeSet<JobId>,
    pub verdicts: BTreeMap<JobId, Verdict>,
    pub started: Vec<(ModelId, HostId)>,
    /// What was told and what came of it, for people who look for a cause.
    pub story: Vec<String>,
    pub story_events: usize,
    /// The log, if one is kept.
    pub log: Option<Vec<String>>,
    /// The header, and the lines of the catalog and the hosts that were there from the start.
    pub first_lines: Vec<String>,
    pub told: usize,
    pub woken: usize,
    /// Leases that were handed out to be kept.
    pub kept: BTreeMap<(SessionId, ModelId), Lease>,
    pub refused: Vec<ApiError>,
    pub learned: Vec<Profile>,
}

impl World {
    /// Hosts of `(accelerators, bytes each)`, all joined, with these models.
    pub fn new(hosts: &[(u32, u64)], models: Vec<ModelNeeds>) -> Self {
        Self::with(Policy::default(), hosts, models)
    }

    pub fn with(policy: Policy, hosts: &[(u32, u64)], models: Vec<ModelNeeds>) -> Self {
        Self::with_ram(policy, hosts, models, (0, 0))
    }

    pub fn with_ram(policy: Policy, hosts: &[(u32, u64)], models: Vec<ModelNeeds>, ram: (u64, u64)) -> Self {
        let now = Timestamp(1_000_000);
        let mut world = Self {
            log: Some(vec![berth_placement::log::header(&policy, Epoch(1), now).unwrap()]),
            state: State::new(policy, Epoch(1), now),
            now,
            models: models.iter().map(|m| (m.id.clone(), m.clone())).collect(),
            hosts: hosts
                .iter()
                .enumerate()
                .map(|(n, shape)| (HostId::from(format!("h{n}")), *shape))
                .collect(),
            ram,
            down: BTreeSet::new(),
            draining: BTreeSet::new(),
            boots: 0,
            boot_of: BTreeMap::new(),
            engines: BTreeMap::new(),
            jobs: BTreeSet::new(),
            verdicts: BTreeMap::new(),
            started: Vec::new(),
            story: Vec::new(),
            story_events: 0,
            first_lines: Vec::new(),
            told: 0,
            woken: 0,
            kept: BTreeMap::new(),
            refused: Vec::new(),
            learned: Vec::new(),
        };
        world.tell(Event::Catalog(models));
        for host in world.hosts.keys().cloned().collect::<Vec<_>>() {
            world.join(&host);
        }
        world.first_lines = world.log.take().unwrap_or_default();
        world
    }

    pub fn join(&mut self, host: &HostId) {
        self.boots += 1;
        self.down.remove(host);
        self.boot_of.insert(host.clone(), format!("boot{}", self.boots));
        self.repeat(host);
    }

    /// The host says once more all that is true there.
    pub fn repeat(&mut self, host: &HostId) {
        let boot = self.boot_of[host].clone();
        self.snapshot(host, boot);
    }

    /// The host took a job by the express lane.
    pub fn express(&mut self, job: JobId, engine: EngineId) {
        let there = self.engines.get_mut(&engine).unwrap();
        there.running.insert(job, Attempt::EXPRESS);
        let facts = JobFacts { id: job, arrival: self.now, ..crate::kit::job(job.0, there.model.as_str()) };
        self.tell(Event::JobStarted { job: facts, engine });
    }

    pub fn snapshot(&mut self, host: &HostId, boot: String) {
        let (count, memory) = self.hosts[host];
        let facts = HostFacts {
            id: host.clone(),
            boot,
            accelerators: (0..count)
                .map(|n| Accelerator {
                    id: format!("gpu{n}").into(),
                    kind: AcceleratorKind::Ram,
                    name: "test".into(),
                    memory,
                    free: None,
                    held: None,
                    unexplained: None,
                })
                .collect(),
            drivers: vec![Driver::Process],
            labels: Vec::new(),
            draining: self.draining.contains(host),
            sleep_memory: self.ram.0,
            sleep_spare: self.ram.1,
        };
        let mine: Vec<_> = self.engines.iter().filter(|(_, e)| e.host == *host).collect();
        let engines = mine.iter().map(|(id, engine)| facts_of(**id, engine, None)).collect();
        let running = mine
            .iter()
            .flat_map(|(id, engine)| engine.running.iter().map(|(job, attempt)| (*job, *attempt, **id)))
            .collect();
        self.tell(Event::HostSnapshot { host: facts, engines, running });
    }

    pub fn lose(&mut self, host: &HostId) {
        self.down.insert(host.clone());
        self.engines.retain(|_, engine| engine.host != *host);
        self.tell(Event::HostLost { host: host.clone(), reason: "test".into() });
    }

    pub fn submit(&mut self, n: u128, model: &str) -> JobId {
        self.send(JobFacts { arrival: self.now, ..job(n, model) })
    }

    pub fn send(&mut self, job: JobFacts) -> JobId {
        let id = job.id;
        self.jobs.insert(id);
        self.tell(Event::JobSubmitted(job));
        id
    }

    /// A person has the host drained, or takes that back.
    pub fn drain(&mut self, host: &str, on: bool) {
        self.tell(Event::Drain { host: host.into(), on });
    }

    pub fn ask_lease(&mut self, session: &str, model: &str, ttl: u64) {
        let ttl = Duration::from_secs(ttl);
        let (session, model) = (session.into(), model.into());
        self.tell(Event::LeaseAsked { session, model, key: None, ttl, keep_context: None });
    }

    /// It has fallen asleep as it was told.
    pub fn asleep(&mut self, id: EngineId) {
        if let Some(engine) = self.engines.get_mut(&id) {
            engine.asleep = true;
        }
        self.engine_is(id, EngineState::Sleeping);
    }

    fn engine_is(&mut self, id: EngineId, state: EngineState) {
        let Some(engine) = self.engines.get_mut(&id) else { return };
        engine.state = state;
        let (host, facts) = (engine.host.clone(), facts_of(id, engine, None));
        self.tell(Event::EngineChanged { host, engine: facts });
    }

    /// Engines that were told to fall asleep and have not yet.
    pub fn falling_asleep(&self) -> Vec<EngineId> {
        let falls = |e: &Engine| e.in_ram && e.state == EngineState::Ready;
        self.engines.iter().filter(|(_, e)| falls(e)).map(|(id, _)| *id).collect()
    }

    /// Bytes taken of an accelerator; those of an engine that sleeps are its residue.
    fn taken(&self, host: &HostId, accelerator: &str) -> u64 {
        let engines = self.engines.values().filter(|e| e.host == *host);
        engines
            .flat_map(|engine| engine.reservations.iter().map(move |r| (engine, r)))
            .filter(|(_, r)| r.accelerator.as_str() == accelerator)
            .map(|(engine, r)| match engine.sleep {
                Some(sleep) if engine.asleep => sleep.residue.min(r.bytes),
                _ => r.bytes,
            })
            .sum()
    }

    /// The last of the story.
    fn told(&self) -> String {
        self.story[self.story.len().saturating_sub(390)..].join("\n")
    }

    fn check_memory(&self) {
        for (host, (count, memory)) in &self.hosts {
            for n in 0..*count {
                let taken = self.taken(host, &format!("gpu{n}"));
                assert!(
                    taken <= *memory,
                    "{taken} of {memory} bytes taken on gpu{n} of {host}: {}",
                    self.told()
                );
            }
            let asleep = self.engines.values().filter(|e| e.host == *host && e.in_ram);
            let ram: u64 = asleep.filter_map(|e| e.sleep).map(|sleep| sleep.ram).sum();
            assert!(ram <= self.ram.0 + self.ram.1, "{ram} bytes of host RAM taken on {host}");
        }
    }

    pub fn cancel(&mut self, job: JobId) {
        self.tell(Event::JobCancelled(job));
    }

    pub fn wait(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.tell(Event::Timer);
    }

    pub fn in_state(&self, state: EngineState) -> Vec<EngineId> {
        self.engines.iter().filter(|(_, e)| e.state == state).map(|(id, _)| *id).collect()
    }

    pub fn engine_of(&self, model: &str) -> Option<EngineId> {
        self.engines.iter().find(|(_, e)| e.model.as_str() == model).map(|(id, _)| *id)
    }

    pub fn running(&self) -> Vec<(JobId, Attempt, EngineId)> {
        self.engines
            .iter()
            .flat_map(|(id, engine)| engine.running.iter().map(|(job, attempt)| (*job, *attempt, *id)))
            .collect()
    }

    pub fn ready(&mut self, id: EngineId) {
        if let Some(engine) = self.engines.get_mut(&id) {
            engine.in_ram = false;
        }
        self.engine_is(id, EngineState::Ready);
    }

    /// The engine ends: stopped as asked, or failed.
    pub fn gone(&mut self, id: EngineId, failure: Option<EngineFailure>) {
        let Some(mut engine) = self.engines.remove(&id) else { return };
        let running = std::mem::take(&mut engine.running);
        engine.state = if failure.is_some() { EngineState::Failed } else { EngineState::Stopped };
        let (host, facts) = (engine.host.clone(), facts_of(id, &engine, failure));
        self.tell(Event::EngineChanged { host, engine: facts });
        for (job, attempt) in running {
            let end = AttemptEnd::Failed { error: error("died"), output_sent: false };
            self.tell(Event::AttemptEnded { job, attempt, engine: id, end, usage: Usage::default() });
        }
    }

    pub fn finish(&mut self, job: JobId, attempt: Attempt, engine: EngineId, end: AttemptEnd) {
        if let Some(there) = self.engines.get_mut(&engine)
            && there.running.remove(&job).is_some()
        {
            self.tell(Event::AttemptEnded { job, attempt, engine, end, usage: Usage::default() });
        }
    }

    /// A job is answered with so many tokens of prompt and output.
    pub fn answer(&mut self, job: JobId, attempt: Attempt, engine: EngineId, prompt: u64, output: u64) {
        self.engines.get_mut(&engine).unwrap().running.remove(&job);
        let usage =
            Usage { prompt_tokens: Some(prompt), completion_tokens: Some(output), ..Usage::default() };
        self.tell(Event::AttemptEnded { job, attempt, engine, end: AttemptEnd::Completed, usage });
    }

    /// Does the next thing that is under way, if any: a start or stop completes, a job is answered.
    pub fn progress(&mut self) -> bool {
        if let Some(id) = self.in_state(EngineState::Stopping).first() {
            self.gone(*id, None);
        } else if let Some(id) = self.falling_asleep().first() {
            self.asleep(*id);
        } else if let Some(id) =
            self.in_state(EngineState::Starting).iter().chain(&self.in_state(EngineState::Waking)).next()
        {
            self.ready(*id);
        } else if let Some((job, attempt, engine)) = self.running().first() {
            self.finish(*job, *attempt, *engine, AttemptEnd::Completed);
        } else {
            return false;
        }
        true
    }

    /// Lets what is under way come to its end, without letting time pass.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            if !self.progress() {
                return;
            }
        }
        panic!("it goes round in circles: {}", self.told());
    }

    /// Lets engines that are to stop be gone.
    pub fn settle_stops(&mut self) {
        for id in self.in_state(EngineState::Stopping) {
            self.gone(id, None);
        }
    }

    /// Lets everything run to its end; time passes where nothing else can happen.
    pub fn run_out(&mut self) {
        for _ in 0..10_000 {
            if !self.progress() {
                if self.verdicts.len() == self.jobs.len() {
                    return;
                }
                self.wait(Duration::from_secs(10));
            }
        }
        panic!(
            "{} of {} jobs never ended; the rest: {:#?}; engines: {:?}; {}",
            self.jobs.len() - self.verdicts.len(),
            self.jobs.len(),
            self.state
                .jobs(2, self.now)
                .into_iter()
                .map(|view| self.state.explain(view.job, self.now))
                .collect::<Vec<_>>(),
            (&self.engines, self.state.models(self.now)),
            self.told(),
        );
    }

    pub fn tell(&mut self, event: Event) {
        let told = format!("{event:?}");
        self.story_events += 1;
        if self.story.len() > 400 {
            self.story.drain(..200);
        }
        self.story.push(told.clone());
        let drained: BTreeSet<EngineId> =
            self.engines.keys().copied().filter(|id| self.state.is_draining(*id)).collect();
        let recorded = self.log.is_some().then(|| event.clone());
        let effects = step(&mut self.state, event, self.now);
        if let (Some(log), Some(event)) = (&mut self.log, recorded) {
            // Behind its header.
            let n = log.len() as u64;
            log.push(berth_placement::log::line(n, self.now, &event, &effects).unwrap());
        }
        let mut cancels = Vec::new();
        for effect in effects {
            if let Effect::Dispatch { engine, .. } = &effect
                && drained.contains(engine)
            {
                assert!(
                    !self.state.is_draining(*engine),
                    "dispatched to an engine that is drained, after {told}"
                );
            }
            if !matches!(effect, Effect::Tell { .. } | Effect::Record(_)) {
                self.story.push(format!("    {effect:?}"));
            }
            self.carry_out(effect, &mut cancels);
        }
        self.check_memory();
        if let Err(violation) = self.state.check() {
            panic!("{violation} after {told}");
        }
        for (job, attempt, engine) in cancels {
            self.finish(job, attempt, engine, AttemptEnd::Cancelled);
        }
    }

    fn carry_out(&mut self, effect: Effect, cancels: &mut Vec<(JobId, Attempt, EngineId)>) {
        match effect {
            Effect::Dispatch { job, attempt, engine, host } => {
                assert!(!self.state.drains(&host), "dispatched to a host that is drained");
                let there = self.engines.get_mut(&engine).expect("dispatched to an engine that is gone");
                assert_eq!(there.host, host);
                assert_eq!(there.state, EngineState::Ready, "dispatched to an engine that is not ready");
                assert!((there.running.len() as u32) < there.concurrency, "dispatched without a free slot");
                assert!(!self.verdicts.contains_key(&job), "dispatched a job that has ended");
                there.running.insert(job, attempt);
            }
            Effect::Start { engine, model, host, reservations } => {
                assert!(!self.down.contains(&host), "started on a host that is lost");
                assert!(!self.state.drains(&host), "started on a host that is drained");
                let spans: BTreeSet<_> = reservations.iter().map(|r| &r.accelerator).collect();
                assert_eq!(spans.len() as u32, self.models[&model].accelerators);
                let concurrency = self.models[&model].concurrency;
                self.started.push((model.clone(), host.clone()));
                let memory = reservations.iter().map(|r| r.bytes).sum();
                self.engines.insert(
                    engine,
                    Engine {
                        host,
                        model,
                        state: EngineState::Starting,
                        reservations,
                        concurrency,
                        running: BTreeMap::new(),
                        sleep: (self.ram.0 > 0).then_some(SleepCost { ram: memory, residue: memory / 16 }),
                        in_ram: false,
                        asleep: false,
                    },
                );
            }
            Effect::Stop { engine, force, .. } => {
                let there = self.engines.get_mut(&engine).expect("stopped an engine that is gone");
                if force {
                    there.running.clear();
                }
                assert!(there.running.is_empty(), "stopped an engine that serves");
                assert!(there.state != EngineState::Stopping, "stopped an engine twice");
                there.state = EngineState::Stopping;
            }
            Effect::CancelAttempt { job, attempt, .. } => {
                let on = self.running().into_iter().find(|(j, a, _)| *j == job && *a == attempt);
                cancels.extend(on);
            }
            Effect::End { job, verdict } => {
                assert!(self.verdicts.insert(job, verdict).is_none(), "job {job} ended twice");
            }
            Effect::Tell { job, .. } => {
                assert!(!self.verdicts.contains_key(&job), "told a job that has ended");
                self.told += 1;
            }
            Effect::Sleep { engine, .. } => {
                let there = self.engines.get_mut(&engine).expect("put an engine to sleep that is gone");
                assert!(there.running.is_empty(), "put an engine to sleep that serves");
                assert_eq!(there.state, EngineState::Ready);
                assert!(there.sleep.is_some() && !there.in_ram);
                there.in_ram = true;
            }
            Effect::Wake { engine, .. } => {
                let there = self.engines.get_mut(&engine).expect("woke an engine that is gone");
                assert_eq!(there.state, EngineState::Sleeping);
                assert!(!self.state.drains(&there.host), "woken on a host that is drained");
                there.state = EngineState::Waking;
                there.asleep = false;
                self.woken += 1;
            }
            Effect::LeaseKept(lease) => {
                self.kept.insert((lease.session.clone(), lease.model.clone()), lease);
            }
            Effect::LeaseEnded { session, model } => {
                assert!(self.kept.remove(&(session, model)).is_some(), "a lease ended that was not kept");
            }
            Effect::LeaseRefused { error, .. } | Effect::AskRefused(error) => self.refused.push(error),
            Effect::Learned(profile) => self.learned.push(profile),
            Effect::Lane { engine, open, .. } => {
                let there = self.engines.get(&engine).expect("a lane of an engine that is gone");
                assert!(!open || there.state == EngineState::Ready, "opened the lane of what does not serve");
            }
            Effect::AttemptLost { .. } | Effect::Record(_) => {}
        }
    }
}
