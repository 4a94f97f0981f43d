//! The scheduling core as a leader runs it: elected, told of what happens, its effects sent on their way.

use super::reports::events_of;
use super::*;

impl World {
    pub(super) fn new() -> Self {
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
    pub(super) fn elect(&mut self) {
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
            keeps_context: false,
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

    pub(super) fn boot(&mut self, host: &HostId) {
        self.cut(host);
        self.boots += 1;
        let mut outbox = Outbox::default();
        outbox.want_snapshot();
        let agent =
            Agent { boot: self.boots, fence: Epoch(0), engines: BTreeMap::new(), outbox, report: None };
        self.agents.insert(host.clone(), Some(agent));
    }

    pub(super) fn facts(&self, job: JobId) -> JobFacts {
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

    pub(super) fn snapshot(&self, host: &HostId, ended: Vec<Ended>) -> Snapshot {
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

    pub(super) fn queued(&self, model: &ModelId) -> bool {
        self.core.models(self.now).iter().any(|view| view.model == *model && view.queued > 0)
    }

    pub(super) fn say_lane(&mut self, host: HostId, engine: EngineId, open: bool) {
        self.said += 1;
        self.commands.push((host, Epoch(self.epoch), Command::Lane(engine, self.said, open)));
    }

    /// One event through the core. `opened`: the stream has not been read, so lanes are opened later.
    pub(super) fn tell(&mut self, event: Event, opened: Option<&mut Vec<(HostId, EngineId, bool)>>) {
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

    pub(super) fn told(&self) -> String {
        self.story[self.story.len().saturating_sub(300)..].join("\n")
    }
}
