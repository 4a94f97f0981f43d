//! Offers, dispatches, drains, stops, lost agents and changes of leader in any order: the agents' gates and outboxes with
//! the scheduling core, and between them messages that are delivered when it pleases.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use berth_placement::{
    AttemptEnd, Effect, EngineFacts, Event, HostFacts, JobFacts, ModelNeeds, Policy, Refusal, State, Verdict,
    step,
};
use berth_wire::{
    Accelerator, AcceleratorKind, ApiError, Attempt, Class, Driver, Ended, EngineFailure, EngineId,
    EngineReport, EngineState, Epoch, ErrorKind, HostBeat, HostId, JobId, ModelId, Outcome, ReportAck,
    ReportEntry, Reservation, RunningAttempt, Snapshot, Started, Timestamp, Usage,
};
use proptest::prelude::*;

use super::{Gate, No};
use crate::outbox::{Batch, Outbox};

const SLOTS: u32 = 2;
const HOSTS: [&str; 2] = ["h0", "h1"];
/// A third does not fit on two hosts of one engine each.
const MODELS: [&str; 3] = ["a", "b", "c"];

/// An attempt at an agent.
#[derive(Debug, Default)]
struct Run {
    permitted: bool,
    output: bool,
}

#[derive(Debug)]
struct Engine {
    gate: Gate,
    model: ModelId,
    reservations: Vec<Reservation>,
    running: BTreeMap<(JobId, Attempt), Run>,
    /// A close was acknowledged, and the leader's queue for the model has not been empty since.
    closed_for_a_waiter: bool,
}

#[derive(Debug)]
struct Agent {
    boot: u32,
    fence: Epoch,
    engines: BTreeMap<EngineId, Engine>,
    outbox: Outbox,
    report: Option<Batch>,
}

/// From a leader to an agent.
#[derive(Debug, Clone)]
enum Command {
    Dispatch(JobId, Attempt, EngineId),
    Start(EngineId, ModelId, Vec<Reservation>, Option<String>),
    Stop(EngineId),
    Lane(EngineId, u64, bool),
    Cancel(JobId, Attempt),
}

impl Command {
    fn engine(&self) -> Option<EngineId> {
        match self {
            Self::Dispatch(_, _, id) | Self::Start(id, ..) | Self::Stop(id) | Self::Lane(id, ..) => Some(*id),
            Self::Cancel(..) => None,
        }
    }
}

/// To a gateway.
#[derive(Debug)]
enum Word {
    Declined,
    Begin(HostId, EngineId),
    Output,
    End,
    Failed,
    Lost,
    Refused,
    /// The job has ended; whoever has heard no end of it has lost that.
    Last,
}

/// What the gateway knows of a job.
#[derive(Debug)]
struct Asked {
    model: ModelId,
    newest: Option<Attempt>,
    run: Option<Attempt>,
    host: Option<HostId>,
    forwarded: bool,
    submitted: bool,
    ends: u32,
}

/// How far a leader has heard a host.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    boot: u32,
    next: u64,
    snapshot: u64,
    upto: u64,
}

impl Heard {
    fn takes(&mut self, snapshot: &Snapshot) {
        self.snapshot = self.snapshot.max(snapshot.number);
        self.upto = self.upto.max(snapshot.upto);
    }

    /// As a scheduler has it.
    fn is_news(&mut self, entry: &ReportEntry, number: u64) -> bool {
        match entry {
            ReportEntry::Snapshot(snapshot) if snapshot.number < self.snapshot => false,
            ReportEntry::Snapshot(snapshot) => {
                self.takes(snapshot);
                true
            }
            ReportEntry::Engine(report) => number > self.upto || report.state.is_gone(),
            _ => true,
        }
    }
}

struct World {
    now: Timestamp,
    epoch: u64,
    core: State,
    agents: BTreeMap<HostId, Option<Agent>>,
    boots: u32,
    /// Hosts whose agent died, until the leader has noticed.
    died: BTreeSet<HostId>,
    synced: BTreeMap<HostId, Heard>,
    commands: Vec<(HostId, Epoch, Command)>,
    offers: Vec<(HostId, EngineId, JobId)>,
    words: VecDeque<(JobId, Attempt, Word)>,
    /// What the gateway sent to the stream: a job, or that nobody waits for it.
    sent: VecDeque<(JobId, bool)>,
    stream: BTreeSet<JobId>,
    jobs: BTreeMap<JobId, Asked>,
    said: u64,
    story: Vec<String>,
}

fn error() -> ApiError {
    ApiError::new(ErrorKind::EngineFailed, "test", "test")
}

fn usage() -> Usage {
    Usage { total: Duration::from_millis(5), ..Usage::default() }
}

fn report_of(id: EngineId, engine: &Engine) -> EngineReport {
    EngineReport {
        engine: id,
        model: engine.model.clone(),
        state: engine.gate.state(),
        reservations: engine.reservations.clone(),
        concurrency: SLOTS,
        failure: None,
        start_took: None,
        detail: None,
        sleep: None,
        peak_memory: None,
    }
}

impl World {
    fn new() -> Self {
        let now = Timestamp(1_000_000);
        let mut world = Self {
            now,
            epoch: 0,
            core: State::new(Policy::default(), Epoch(0), now),
            agents: HOSTS.iter().map(|host| (HostId::from(*host), None)).collect(),
            boots: 0,
            died: BTreeSet::new(),
            synced: BTreeMap::new(),
            commands: Vec::new(),
            offers: Vec::new(),
            words: VecDeque::new(),
            sent: VecDeque::new(),
            stream: BTreeSet::new(),
            jobs: BTreeMap::new(),
            said: 0,
            story: Vec::new(),
        };
        for host in HOSTS {
            world.boot(&host.into());
        }
        world.elect();
        world
    }

    /// A leader begins with nothing but what it is told: hosts first, then the stream; lanes are opened after that.
    fn elect(&mut self) {
        self.epoch += 1;
        self.said = 0;
        self.synced.clear();
        self.died.clear();
        let policy = Policy {
            idle_ttl: Some(Duration::from_secs(3)),
            max_wait: Duration::from_secs(2),
            ..Policy::default()
        };
        self.core = State::new(policy, Epoch(self.epoch), self.now);
        let needs = |id: &&str| ModelNeeds {
            id: (*id).into(),
            memory: None,
            accelerators: 1,
            concurrency: SLOTS,
            driver: Driver::Process,
            labels: Vec::new(),
            idle_ttl: None,
            asleep_ttl: None,
            pin: false,
            max_replicas: Some(1),
            config: String::new(),
        };
        let mut opened = Vec::new();
        self.tell(Event::Catalog(MODELS.iter().map(needs).collect()), Some(&mut opened));
        let alive: Vec<HostId> =
            self.agents.iter().filter(|(_, agent)| agent.is_some()).map(|(host, _)| host.clone()).collect();
        for host in alive {
            let ended = self.agents[&host].as_ref().unwrap().outbox.unacknowledged();
            let mut snapshot = self.snapshot(&host, ended);
            let agent = self.agents.get_mut(&host).unwrap().as_mut().unwrap();
            agent.outbox.number(&mut snapshot);
            let mut heard = Heard { boot: agent.boot, ..Heard::default() };
            heard.takes(&snapshot);
            self.synced.insert(host.clone(), heard);
            for event in events_of(snapshot) {
                self.tell(event, Some(&mut opened));
            }
            let epoch = Epoch(self.epoch);
            self.agents.get_mut(&host).unwrap().as_mut().unwrap().fence = epoch;
        }
        for job in self.stream.clone() {
            let facts = self.facts(job);
            self.tell(Event::JobSubmitted(facts), Some(&mut opened));
        }
        for (host, engine, open) in opened {
            self.say_lane(host, engine, open);
        }
    }

    fn boot(&mut self, host: &HostId) {
        self.cut(host);
        self.boots += 1;
        let mut outbox = Outbox::default();
        outbox.want_snapshot();
        let agent =
            Agent { boot: self.boots, fence: Epoch(0), engines: BTreeMap::new(), outbox, report: None };
        self.agents.insert(host.clone(), Some(agent));
    }

    fn facts(&self, job: JobId) -> JobFacts {
        JobFacts {
            id: job,
            model: self.jobs[&job].model.clone(),
            arrival: self.now,
            deadline: None,
            hurried: false,
            session: None,
            key: None,
            class: Class::Standard,
            tokens: 10,
        }
    }

    fn snapshot(&self, host: &HostId, ended: Vec<Ended>) -> Snapshot {
        let agent = self.agents[host].as_ref().unwrap();
        let beat = HostBeat {
            host: host.clone(),
            boot: agent.boot.to_string(),
            version: String::new(),
            at: self.now,
            accelerators: vec![Accelerator {
                id: "gpu".into(),
                kind: AcceleratorKind::Ram,
                name: "test".into(),
                memory: 1 << 30,
                free: None,
                held: None,
                unexplained: None,
            }],
            drivers: vec![Driver::Process],
            labels: Vec::new(),
            running: 0,
            draining: false,
            sleep_memory: 0,
            sleep_spare: 0,
        };
        let running = agent
            .engines
            .iter()
            .flat_map(|(engine, e)| e.running.keys().map(|(job, attempt)| (*job, *attempt, *engine)))
            .map(|(job, attempt, engine)| RunningAttempt { job, attempt, engine })
            .collect();
        let engines = agent.engines.iter().map(|(id, engine)| report_of(*id, engine)).collect();
        let models = Vec::new();
        let (estimates, found) = (Vec::new(), Vec::new());
        Snapshot { beat, engines, models, running, ended, estimates, found, number: 0, upto: 0 }
    }

    fn queued(&self, model: &ModelId) -> bool {
        self.core.models(self.now).iter().any(|view| view.model == *model && view.queued > 0)
    }

    fn say_lane(&mut self, host: HostId, engine: EngineId, open: bool) {
        self.said += 1;
        self.commands.push((host, Epoch(self.epoch), Command::Lane(engine, self.said, open)));
    }

    /// One event through the core. `opened`: the stream has not been read, so lanes are opened later.
    fn tell(&mut self, event: Event, opened: Option<&mut Vec<(HostId, EngineId, bool)>>) {
        if event != Event::Timer {
            self.story.push(format!("core: {event:?}"));
        }
        let effects = step(&mut self.core, event, self.now);
        let mut later = Vec::new();
        let epoch = Epoch(self.epoch);
        for effect in effects {
            match effect {
                Effect::Dispatch { job, attempt, engine, host } => {
                    self.commands.push((host, epoch, Command::Dispatch(job, attempt, engine)));
                }
                Effect::Start { engine, model, host, reservations } => {
                    let boot = self.core.boot_of(&host).map(str::to_owned);
                    self.commands.push((host, epoch, Command::Start(engine, model, reservations, boot)));
                }
                Effect::Stop { engine, host, .. } => self.commands.push((host, epoch, Command::Stop(engine))),
                Effect::CancelAttempt { job, attempt, host } => {
                    self.commands.push((host, epoch, Command::Cancel(job, attempt)));
                }
                Effect::Lane { engine, host, open } => {
                    if opened.is_some() {
                        later.push((host, engine, open));
                    } else {
                        self.say_lane(host, engine, open);
                    }
                }
                Effect::AttemptLost { job, attempt, .. } => {
                    self.words.push_back((job, attempt, Word::Lost));
                }
                Effect::End { job, verdict } => {
                    assert!(self.stream.remove(&job), "{job} ended that was not in the stream");
                    // A gateway that still waits is told, after the last frames.
                    let untold = matches!(verdict, Verdict::Failed { told: false, .. });
                    let word = if untold { Word::Refused } else { Word::Last };
                    self.words.push_back((job, Attempt::EXPRESS, word));
                }
                _ => {}
            }
        }
        if let Some(opened) = opened {
            opened.retain(|(_, engine, _)| !later.iter().any(|(_, later, _)| later == engine));
            opened.extend(later);
        }
        if let Err(violation) = self.core.check() {
            panic!("{violation}: {}", self.told());
        }
        for model in MODELS.map(ModelId::from) {
            if !self.queued(&model) {
                let engines = self.agents.values_mut().flatten().flat_map(|agent| agent.engines.values_mut());
                for engine in engines.filter(|engine| engine.model == model) {
                    engine.closed_for_a_waiter = false;
                }
            }
        }
    }

    fn told(&self) -> String {
        self.story[self.story.len().saturating_sub(300)..].join("\n")
    }

    // The gateway.

    fn ask(&mut self, id: JobId, model: &str, n: usize) {
        let asked = Asked {
            model: model.into(),
            newest: None,
            run: None,
            host: None,
            forwarded: false,
            submitted: false,
            ends: 0,
        };
        self.jobs.insert(id, asked);
        let ready: Vec<(HostId, EngineId)> = self
            .agents
            .iter()
            .filter_map(|(host, agent)| Some((host, agent.as_ref()?)))
            .flat_map(|(host, agent)| agent.engines.iter().map(move |(id, engine)| (host, *id, engine)))
            .filter(|(_, _, engine)| engine.model.as_str() == model)
            .map(|(host, id, _)| (host.clone(), id))
            .collect();
        // What it knows may be old: it also offers to what is full, closed or being stopped.
        match ready.get(n % (ready.len() + 1)) {
            Some((host, engine)) => {
                let job = self.jobs.get_mut(&id).unwrap();
                job.newest = Some(Attempt::EXPRESS);
                job.run = Some(Attempt::EXPRESS);
                job.host = Some(host.clone());
                self.offers.push((host.clone(), *engine, id));
            }
            None => self.submit(id),
        }
    }

    fn submit(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        assert!(!job.submitted, "{id} was submitted twice");
        job.submitted = true;
        job.run = None;
        self.sent.push_back((id, true));
    }

    /// An express attempt is given up, whether or not it runs.
    fn give_up(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        if job.run != Some(Attempt::EXPRESS) || job.ends > 0 {
            return;
        }
        let host = job.host.clone().unwrap();
        self.commands.push((host, Epoch(u64::MAX), Command::Cancel(id, Attempt::EXPRESS)));
        if self.jobs[&id].forwarded {
            self.end(id);
        } else {
            self.submit(id);
        }
    }

    fn end(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        job.ends += 1;
        assert_eq!(job.ends, 1, "{id} ended twice");
    }

    fn leave(&mut self, id: JobId) {
        let job = self.jobs.get_mut(&id).unwrap();
        if job.ends > 0 {
            return;
        }
        if let (Some(attempt), Some(host)) = (job.run, job.host.clone()) {
            self.commands.push((host, Epoch(u64::MAX), Command::Cancel(id, attempt)));
        }
        if self.jobs[&id].submitted {
            self.sent.push_back((id, false));
        }
        self.end(id);
    }

    fn hear(&mut self) {
        let Some((id, attempt, word)) = self.words.pop_front() else { return };
        self.story.push(format!("gateway: {id} {attempt} {word:?}"));
        let job = self.jobs.get_mut(&id).unwrap();
        if let Word::Begin(host, engine) = &word {
            let go = job.ends == 0 && !job.forwarded && job.newest.is_none_or(|newest| attempt > newest);
            if go {
                job.newest = Some(attempt);
                job.run = Some(attempt);
                job.host = Some(host.clone());
            }
            let (host, engine) = (host.clone(), *engine);
            self.permit(&host, engine, id, attempt, go);
            return;
        }
        if job.ends > 0 {
            return;
        }
        let current = job.run == Some(attempt);
        match word {
            Word::Refused => self.end(id),
            Word::Last => {
                let told = self.told();
                assert!(self.jobs[&id].forwarded, "{id} has ended and its client knows nothing: {told}");
                self.end(id);
            }
            Word::Lost => {
                job.newest = job.newest.max(Some(attempt));
                if current && job.forwarded {
                    self.sent.push_back((id, false));
                    self.end(id);
                } else if current {
                    job.run = None;
                }
            }
            _ if !current => {}
            Word::Declined => self.submit(id),
            Word::Output => {
                assert!(!job.forwarded, "{id} was answered twice");
                job.forwarded = true;
            }
            Word::End => {
                assert!(job.forwarded);
                self.end(id);
            }
            Word::Failed if job.forwarded => self.end(id),
            Word::Failed if attempt.is_express() => self.submit(id),
            Word::Failed | Word::Begin(..) => {}
        }
    }

    fn permit(&mut self, host: &HostId, engine: EngineId, job: JobId, attempt: Attempt, go: bool) {
        if go {
            let run = self.engine(host, engine).and_then(|engine| engine.running.get_mut(&(job, attempt)));
            if let Some(run) = run {
                run.permitted = true;
            }
        } else {
            self.ended(host, engine, job, attempt, Outcome::Abandoned);
        }
    }

    /// The stream delivers to the leader.
    fn deliver(&mut self) {
        match self.sent.pop_front() {
            Some((job, true)) => {
                self.stream.insert(job);
                let facts = self.facts(job);
                self.tell(Event::JobSubmitted(facts), None);
            }
            Some((job, false)) => self.tell(Event::JobCancelled(job), None),
            None => {}
        }
    }

    // The agents.

    fn engine(&mut self, host: &HostId, engine: EngineId) -> Option<&mut Engine> {
        self.agents.get_mut(host)?.as_mut()?.engines.get_mut(&engine)
    }

    fn ended(&mut self, host: &HostId, id: EngineId, job: JobId, attempt: Attempt, outcome: Outcome) {
        let Some(agent) = self.agents.get_mut(host).and_then(Option::as_mut) else { return };
        let Some(engine) = agent.engines.get_mut(&id) else { return };
        if engine.running.remove(&(job, attempt)).is_none() {
            return;
        }
        engine.gate.leave();
        agent.outbox.push_ended(Ended { job, attempt, engine: id, outcome, usage: usage(), started: None });
    }

    fn take(
        &mut self,
        host: &HostId,
        id: EngineId,
        job: JobId,
        attempt: Attempt,
        ask: impl FnOnce(&mut Gate) -> Result<(), No>,
    ) -> Result<(), No> {
        let gone = Err(No::NotReady(EngineState::Stopped));
        let Some(engine) = self.engine(host, id) else { return gone };
        if engine.running.contains_key(&(job, attempt)) {
            return Ok(());
        }
        ask(&mut engine.gate)?;
        engine.running.insert((job, attempt), Run::default());
        assert!(engine.running.len() <= SLOTS as usize, "more jobs than slots: {engine:?}");
        assert_eq!(engine.running.len(), engine.gate.taken() as usize);
        assert_eq!(engine.gate.state(), EngineState::Ready);
        Ok(())
    }

    fn offered(&mut self, n: usize) {
        if self.offers.is_empty() {
            return;
        }
        let (host, engine, job) = self.offers.swap_remove(n % self.offers.len());
        if self.agents[&host].is_none() {
            // Nobody is there: the server says so.
            self.words.push_back((job, Attempt::EXPRESS, Word::Declined));
            return;
        }
        let taken = self.take(&host, engine, job, Attempt::EXPRESS, Gate::offer);
        self.story.push(format!("{host}: offered {job} for {engine}: {taken:?}"));
        if taken.is_err() {
            self.words.push_back((job, Attempt::EXPRESS, Word::Declined));
            return;
        }
        let overtakes = self.engine(&host, engine).unwrap().closed_for_a_waiter;
        assert!(!overtakes, "{job} went before a job that waits: {}", self.told());
        let model = self.jobs[&job].model.clone();
        let started = Started {
            job,
            attempt: Attempt::EXPRESS,
            engine,
            model,
            submitted_at: self.now,
            session: None,
            key: None,
            class: Class::Standard,
            bytes: 9,
        };
        self.agents.get_mut(&host).unwrap().as_mut().unwrap().outbox.push_started(started);
    }

    /// Nobody was there to take a command.
    fn unanswered(&mut self, command: &Command) {
        match command {
            Command::Start(engine, ..) => {
                let engine = *engine;
                let failure = EngineFailure { message: "gone".into(), permanent: false, was_ready: false };
                self.tell(Event::StartRefused { engine, failure, silent: false }, None);
            }
            Command::Dispatch(job, attempt, _) => {
                let (job, attempt) = (*job, *attempt);
                let why = Refusal::Failed("gone".into());
                self.tell(Event::DispatchRefused { job, attempt, why }, None);
            }
            Command::Stop(_) | Command::Lane(..) | Command::Cancel(..) => {}
        }
    }

    fn obey(&mut self, n: usize) {
        if self.commands.is_empty() {
            return;
        }
        let n = n % self.commands.len();
        let starts = |command: &Command| matches!(command, Command::Start(id, ..) if Some(*id) == self.commands[n].2.engine());
        // One connection keeps its order: nothing comes before the start of its engine.
        let first = self.commands.iter().position(|(_, _, command)| starts(command)).unwrap_or(n);
        let (host, epoch, command) = self.commands.remove(first);
        let Some(agent) = self.agents.get_mut(&host).unwrap() else {
            if epoch.0 == self.epoch {
                self.unanswered(&command);
            }
            return;
        };
        if epoch < agent.fence {
            return;
        }
        if epoch.0 != u64::MAX {
            agent.fence = epoch;
        }
        self.story.push(format!("{host}: {command:?}"));
        match command {
            Command::Start(engine, _, _, boot)
                if !agent.engines.is_empty()
                    || boot.as_ref().is_some_and(|b| *b != agent.boot.to_string()) =>
            {
                if epoch.0 == self.epoch {
                    let failure =
                        EngineFailure { message: "full".into(), permanent: false, was_ready: false };
                    self.tell(Event::StartRefused { engine, failure, silent: false }, None);
                }
            }
            Command::Start(id, model, reservations, _) => {
                let engine = Engine {
                    gate: Gate::new(SLOTS),
                    model,
                    reservations,
                    running: BTreeMap::new(),
                    closed_for_a_waiter: false,
                };
                agent.outbox.push_engine(report_of(id, &engine));
                agent.engines.insert(id, engine);
            }
            Command::Stop(id) => {
                let Some(engine) = agent.engines.get_mut(&id) else { return };
                if engine.gate.stop(false).is_ok() {
                    assert!(engine.running.is_empty(), "an engine was stopped while it served");
                    // Its actor gives a start up.
                    engine.gate.set_state(EngineState::Stopping);
                } else if self.core.is_stopping(id) && epoch.0 == self.epoch {
                    // The leader asks again.
                    self.commands.push((host, epoch, Command::Stop(id)));
                }
            }
            Command::Lane(id, number, open) => {
                let Some(engine) = agent.engines.get_mut(&id) else { return };
                engine.gate.set_lane(epoch, number, open);
                let model = engine.model.clone();
                // A word that comes after a later one closes nothing.
                let closed = !open && !engine.gate.takes_offers();
                if closed && self.queued(&model) && epoch.0 == self.epoch {
                    self.engine(&host, id).unwrap().closed_for_a_waiter = true;
                }
            }
            Command::Cancel(job, attempt) => {
                let on = agent.engines.iter().find(|(_, e)| e.running.contains_key(&(job, attempt)));
                if let Some(id) = on.map(|(id, _)| *id) {
                    self.ended(&host, id, job, attempt, Outcome::Cancelled);
                }
            }
            Command::Dispatch(job, attempt, id) => {
                let answer = self.take(&host, id, job, attempt, Gate::dispatch);
                self.story.push(format!("{host}: {answer:?}"));
                let why = match answer {
                    Ok(()) => {
                        self.words.push_back((job, attempt, Word::Begin(host, id)));
                        return;
                    }
                    Err(No::Full | No::Closed) => Refusal::Busy,
                    Err(No::NotReady(_)) => Refusal::Failed("not ready".into()),
                };
                if epoch.0 == self.epoch {
                    self.tell(Event::DispatchRefused { job, attempt, why }, None);
                }
            }
        }
    }

    fn attempts(&self) -> Vec<(HostId, EngineId, JobId, Attempt)> {
        let agents = self.agents.iter().filter_map(|(host, agent)| Some((host, agent.as_ref()?)));
        agents
            .flat_map(|(host, agent)| agent.engines.iter().map(move |(id, engine)| (host, *id, engine)))
            .flat_map(|(host, id, engine)| {
                engine.running.keys().map(move |(job, a)| (host.clone(), id, *job, *a))
            })
            .collect()
    }

    /// An attempt goes on: output, then its end; or it fails.
    fn serve(&mut self, n: usize, fails: bool) {
        let attempts = self.attempts();
        if attempts.is_empty() {
            return;
        }
        let (host, id, job, attempt) = attempts[n % attempts.len()].clone();
        let run = self.engine(&host, id).unwrap().running.get_mut(&(job, attempt)).unwrap();
        if !run.permitted && !attempt.is_express() {
            return;
        }
        let output_sent = run.output;
        if fails {
            if output_sent || attempt.is_express() {
                self.words.push_back((job, attempt, Word::Failed));
            }
            self.ended(&host, id, job, attempt, Outcome::Failed { error: error(), output_sent });
        } else if output_sent {
            self.words.push_back((job, attempt, Word::End));
            self.ended(&host, id, job, attempt, Outcome::Completed);
        } else {
            run.output = true;
            self.words.push_back((job, attempt, Word::Output));
        }
    }

    /// Engines become ready, or are gone.
    fn grow(&mut self, host: &HostId) {
        let Some(Some(agent)) = self.agents.get_mut(host) else { return };
        let mut gone = Vec::new();
        for (id, engine) in &mut agent.engines {
            let state = match engine.gate.state() {
                EngineState::Starting => EngineState::Ready,
                EngineState::Stopping => EngineState::Stopped,
                _ => continue,
            };
            engine.gate.set_state(state);
            agent.outbox.push_engine(report_of(*id, engine));
            if state.is_gone() {
                gone.push(*id);
            }
        }
        for id in gone {
            agent.engines.remove(&id);
        }
    }

    /// An agent sends what it has to tell; the answer may be lost on its way.
    fn report(&mut self, host: &HostId, lost: bool) {
        let Some(Some(_)) = self.agents.get(host) else { return };
        let mut outbox = std::mem::take(&mut self.agents.get_mut(host).unwrap().as_mut().unwrap().outbox);
        let batch = outbox.batch(|ended| self.snapshot(host, ended));
        self.agents.get_mut(host).unwrap().as_mut().unwrap().outbox = outbox;
        let agent = self.agents.get_mut(host).unwrap().as_mut().unwrap();
        agent.report = batch.clone();
        let (Some(batch), boot) = (batch, agent.boot) else { return };
        let agent_sent = batch.entries.len() as u64;
        let introduces = matches!(batch.entries.first(), Some(ReportEntry::Snapshot(_)));
        let known = self.synced.get(host).copied().filter(|known| known.boot == boot);
        let want_snapshot = known.is_none() && !introduces;
        if !want_snapshot {
            self.died.remove(host);
            let mut heard = known.unwrap_or(Heard { boot, ..Heard::default() });
            let skip = usize::try_from(heard.next.saturating_sub(batch.first)).unwrap();
            let news = batch.entries.into_iter().zip(batch.first..).skip(skip);
            let news: Vec<ReportEntry> = news
                .filter(|(entry, number)| heard.is_news(entry, *number))
                .map(|(entry, _)| entry)
                .collect();
            heard.next = heard.next.max(batch.first + agent_sent);
            self.synced.insert(host.clone(), heard);
            for entry in news {
                self.take_entry(host, entry);
            }
        }
        let ack = ReportAck { epoch: Epoch(self.epoch), want_snapshot };
        let agent = self.agents.get_mut(host).unwrap().as_mut().unwrap();
        if lost {
            agent.outbox.unanswered();
        } else {
            agent.fence = agent.fence.max(ack.epoch);
            agent.outbox.acknowledge(&ack);
        }
    }

    fn take_entry(&mut self, host: &HostId, entry: ReportEntry) {
        match entry {
            ReportEntry::Snapshot(snapshot) => {
                for event in events_of(*snapshot) {
                    self.tell(event, None);
                }
            }
            ReportEntry::Engine(report) => {
                self.tell(Event::EngineChanged { host: host.clone(), engine: facts_of(report) }, None);
            }
            ReportEntry::Started(started) => {
                let job = self.facts(started.job);
                self.tell(Event::JobStarted { job, engine: started.engine }, None);
            }
            ReportEntry::Ended(ended) => {
                if ended.started.is_some() {
                    let job = self.facts(ended.job);
                    self.tell(Event::JobStarted { job, engine: ended.engine }, None);
                }
                self.tell(ended_of(ended), None);
            }
            ReportEntry::Goodbye => {}
        }
    }

    fn kill(&mut self, host: &HostId) {
        if self.agents.insert(host.clone(), None).flatten().is_some() {
            self.died.insert(host.clone());
            self.cut(host);
        }
    }

    /// Nobody is there to take what was sent to a host.
    fn cut(&mut self, host: &HostId) {
        let mut lost = Vec::new();
        self.commands.retain(|(to, epoch, command)| {
            if to == host {
                lost.push((*epoch, command.clone()));
            }
            to != host
        });
        for (epoch, command) in lost {
            if epoch.0 == self.epoch {
                self.unanswered(&command);
            }
        }
        for (to, engine, job) in std::mem::take(&mut self.offers) {
            if to == *host {
                self.words.push_back((job, Attempt::EXPRESS, Word::Declined));
            } else {
                self.offers.push((to, engine, job));
            }
        }
    }

    /// Somebody notices that an agent died: the leader, and the gateway for each job of the express lane.
    fn notice(&mut self, host: &HostId) {
        if self.died.remove(host) {
            self.synced.remove(host);
            self.tell(Event::HostLost { host: host.clone(), reason: "test".into() }, None);
        }
        let lost: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.run == Some(Attempt::EXPRESS) && job.host.as_ref() == Some(host))
            .map(|(id, _)| *id)
            .collect();
        for job in lost {
            let runs = self.attempts().iter().any(|(_, _, id, a)| *id == job && a.is_express());
            let offered = self.offers.iter().any(|(_, _, id)| *id == job);
            let heard = self.words.iter().any(|(id, a, _)| *id == job && a.is_express());
            if !runs && !offered && !heard {
                self.give_up(job);
            }
        }
    }

    fn hosts(&self) -> Vec<HostId> {
        self.agents.keys().cloned().collect()
    }

    /// Delivers everything that is under way; jobs go on only if `serve`.
    fn settle(&mut self, serve: bool) {
        for _ in 0..200 {
            for host in self.hosts() {
                if self.agents[&host].is_none() {
                    self.notice(&host);
                    self.boot(&host);
                }
                self.notice(&host);
                self.grow(&host);
                self.report(&host, false);
            }
            while !self.sent.is_empty() {
                self.deliver();
            }
            for _ in 0..self.commands.len() {
                self.obey(0);
            }
            while !self.offers.is_empty() {
                self.offered(0);
            }
            while !self.words.is_empty() {
                self.hear();
            }
            if serve {
                for n in 0..self.attempts().len() {
                    self.serve(n, false);
                }
            }
            self.now = self.now.plus(Duration::from_millis(100));
            self.tell(Event::Timer, None);
        }
    }

    /// The leader's books are what is true at the agents.
    fn compare(&self) {
        for view in self.core.models(self.now) {
            let running = self.agents.values().flatten().flat_map(|agent| agent.engines.values());
            let running: usize = running.filter(|e| e.model == view.model).map(|e| e.running.len()).sum();
            assert_eq!(view.running, running, "jobs of {}: {}", view.model, self.told());
        }
    }
}

fn facts_of(report: EngineReport) -> EngineFacts {
    EngineFacts {
        id: report.engine,
        model: report.model,
        state: report.state,
        reservations: report.reservations,
        concurrency: report.concurrency,
        failure: report.failure,
        start_took: report.start_took,
        sleep: report.sleep,
        peak_memory: report.peak_memory,
    }
}

fn ended_of(ended: Ended) -> Event {
    let end = match ended.outcome {
        Outcome::Completed => AttemptEnd::Completed,
        Outcome::Cancelled | Outcome::Abandoned => AttemptEnd::Cancelled,
        Outcome::Failed { error, output_sent } => AttemptEnd::Failed { error, output_sent },
    };
    let (job, attempt, engine) = (ended.job, ended.attempt, ended.engine);
    Event::AttemptEnded { job, attempt, engine, end, usage: ended.usage }
}

fn events_of(snapshot: Snapshot) -> Vec<Event> {
    let beat = snapshot.beat;
    let host = HostFacts {
        id: beat.host,
        boot: beat.boot,
        accelerators: beat.accelerators,
        drivers: beat.drivers,
        labels: beat.labels,
        draining: beat.draining,
        sleep_memory: 0,
        sleep_spare: 0,
    };
    let mut events: Vec<Event> = snapshot.ended.into_iter().map(ended_of).collect();
    let running = snapshot.running.into_iter().map(|r| (r.job, r.attempt, r.engine)).collect();
    let engines = snapshot.engines.into_iter().map(facts_of).collect();
    events.push(Event::HostSnapshot { host, engines, running });
    events
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_crosses_no_slot_is_taken_twice_no_job_is_lost_and_nobody_is_overtaken(
        actions in prop::collection::vec((0_u8..112, 0_usize..1000), 20..160)
    ) {
        let mut world = World::new();
        let mut made = 0_u128;
        for (kind, n) in actions {
            let host = HostId::from(HOSTS[n % HOSTS.len()]);
            let job = (made > 0).then(|| JobId(1 + n as u128 % made));
            match kind {
                0..=19 => {
                    made += 1;
                    world.ask(JobId(made), MODELS[n % MODELS.len()], n / 7);
                }
                20..=34 => world.obey(n),
                35..=44 => world.offered(n),
                45..=56 => world.hear(),
                57..=66 => world.report(&host, n % 5 == 0),
                67..=74 => world.deliver(),
                75..=80 => world.grow(&host),
                81..=90 => world.serve(n, n % 6 == 0),
                91 | 100..=107 => if let Some(job) = job { world.give_up(job) },
                92 | 108 => if let Some(job) = job { world.leave(job) },
                93 => world.kill(&host),
                94 => world.notice(&host),
                95 => if world.agents[&host].is_none() { world.boot(&host) },
                96 | 109 => world.elect(),
                _ => {
                    world.now = world.now.plus(Duration::from_millis(n as u64 * 3));
                    world.tell(Event::Timer, None);
                }
            }
        }
        // What is under way arrives; then the books must be right, though jobs still run.
        world.settle(false);
        world.compare();
        world.settle(true);
        world.compare();
        for (id, job) in &world.jobs {
            prop_assert_eq!(job.ends, 1, "{} never ended: {:?}; {}", id, job, world.told());
        }
        prop_assert!(world.stream.is_empty());
        for engine in world.agents.values().flatten().flat_map(|agent| agent.engines.values()) {
            if engine.gate.state() == EngineState::Ready {
                prop_assert!(engine.gate.takes_offers(), "nobody waits and the lane is closed: {:?}", engine);
            }
        }
    }
}

/// Jobs of two models, each of which has one of the two hosts, and one of a third that waits for room.
fn full() -> World {
    let mut world = World::new();
    for (n, model) in MODELS.into_iter().enumerate() {
        world.ask(JobId(n as u128 + 1), model, 0);
        world.deliver();
    }
    world
}

#[test]
fn a_report_that_is_sent_again_to_a_later_leader_frees_no_room_that_is_taken() {
    let mut world = full();
    for host in world.hosts() {
        // The snapshot of an empty host was taken, and the answer to that lost.
        world.report(&host, true);
    }
    while !world.commands.is_empty() {
        world.obey(0);
    }
    for host in world.hosts() {
        world.grow(&host);
    }
    world.elect();
    for host in world.hosts() {
        world.report(&host, false);
    }
    world.settle(true);
    assert!(world.jobs.values().all(|job| job.ends == 1), "{}", world.told());
}

#[test]
fn a_start_that_was_decided_before_its_agent_was_restarted_is_not_carried_out_after() {
    let mut world = full();
    let under_way = std::mem::take(&mut world.commands);
    for host in world.hosts() {
        world.boot(&host);
    }
    world.commands = under_way;
    for host in world.hosts() {
        world.report(&host, false);
    }
    for _ in 0..world.commands.len() {
        world.obey(0);
    }
    for host in world.hosts() {
        world.report(&host, false);
    }
    world.settle(true);
    assert!(world.jobs.values().all(|job| job.ends == 1), "{}", world.told());
}
