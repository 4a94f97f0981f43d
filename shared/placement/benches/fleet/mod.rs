//! A fleet in virtual time that does what the core says and tells it what comes of it: 1,000 hosts with 1 to 8
//! accelerators, 1,000 models of several sizes, and as many jobs outstanding as one likes.
//!
//! For every job that ends another one arrives, so that the queues stay as long as they are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use berth_placement::{
    AttemptEnd, Effect, EngineFacts, Event, HostFacts, JobFacts, ModelNeeds, Policy, State,
};
use berth_wire::{
    Accelerator, AcceleratorKind, Attempt, Class, Driver, EngineId, EngineState, Epoch, HostId, JobId,
    ModelId, Reservation, SleepCost, Timestamp, Usage,
};

const GIB: u64 = 1 << 30;
const LOAD: u64 = 30_000;
const WAKE: u64 = 3_000;

/// What an event is, for the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    JobArrives,
    AttemptEnds,
    JobCancelled,
    EngineChanges,
    HostReports,
    LeaseAsked,
    LeaseReleased,
    Hint,
    Timer,
}

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub hosts: usize,
    pub models: usize,
    pub jobs: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Ready { engine: EngineId, turn: u32 },
    Gone { engine: EngineId },
    Asleep { engine: EngineId },
    Ended { job: JobId, attempt: Attempt, engine: EngineId },
    Arrives,
}

struct Engine {
    host: HostId,
    model: ModelId,
    state: EngineState,
    reservations: Vec<Reservation>,
    turn: u32,
    running: BTreeMap<JobId, Attempt>,
    sleep: Option<SleepCost>,
}

pub struct Fleet {
    pub state: State,
    pub now: Timestamp,
    random: u64,
    hosts: Vec<HostFacts>,
    models: Vec<ModelNeeds>,
    /// Sums of popularity, for drawing.
    popularity: Vec<f64>,
    number: HashMap<ModelId, usize>,
    can_sleep: HashMap<HostId, bool>,
    engines: BTreeMap<EngineId, Engine>,
    at_once: VecDeque<(Kind, Event)>,
    due: BinaryHeap<Reverse<(Timestamp, u64, Due)>>,
    sequence: u64,
    jobs_made: u128,
    leased: VecDeque<(String, ModelId)>,
    pub seen: Seen,
}

/// What the core did.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub dispatched: u64,
    pub ended: u64,
    pub started: u64,
    pub stopped: u64,
    pub slept: u64,
    pub woken: u64,
    pub told: u64,
    pub most_told: usize,
    pub waited_ms: u64,
    /// Of all effects.
    pub digest: u64,
}

impl Fleet {
    pub fn new(size: Size) -> Self {
        let now = Timestamp(1_000_000);
        let policy = Policy {
            queue_limit: usize::MAX,
            model_queue_limit: usize::MAX,
            key_queue_limit: usize::MAX,
            settle: Duration::ZERO,
            ..Policy::default()
        };
        let mut sum = 0.0;
        let mut fleet = Self {
            state: State::new(policy, Epoch(1), now),
            now,
            random: 7,
            hosts: (0..size.hosts).map(host).collect(),
            models: (0..size.models).map(model).collect(),
            popularity: (0..size.models)
                .map(|n| {
                    sum += 1.0 / (n as f64 + 1.0).powf(0.9);
                    sum
                })
                .collect(),
            number: HashMap::new(),
            can_sleep: HashMap::new(),
            engines: BTreeMap::new(),
            at_once: VecDeque::new(),
            due: BinaryHeap::new(),
            sequence: 0,
            jobs_made: 0,
            leased: VecDeque::new(),
            seen: Seen::default(),
        };
        fleet.number = fleet.models.iter().enumerate().map(|(n, m)| (m.id.clone(), n)).collect();
        fleet.can_sleep = fleet.hosts.iter().map(|h| (h.id.clone(), h.sleep_memory > 0)).collect();
        fleet.at_once.push_back((Kind::Timer, Event::Catalog(fleet.models.clone())));
        for host in fleet.hosts.clone() {
            let event = Event::HostSnapshot { host, engines: Vec::new(), running: Vec::new() };
            fleet.at_once.push_back((Kind::HostReports, event));
        }
        // All within ten seconds.
        for n in 0..size.jobs {
            let at = Timestamp(now.0 + (n as u64 * 10_000) / size.jobs.max(1) as u64);
            fleet.set(at, Due::Arrives);
        }
        fleet
    }

    fn draw(&mut self) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    fn set(&mut self, at: Timestamp, due: Due) {
        self.sequence += 1;
        self.due.push(Reverse((at, self.sequence, due)));
    }

    fn after(&mut self, ms: u64, due: Due) {
        self.set(Timestamp(self.now.0 + ms), due);
    }

    fn any_model(&mut self) -> ModelId {
        let most = *self.popularity.last().unwrap();
        let at = (self.draw() >> 11) as f64 / (1u64 << 53) as f64 * most;
        let n = self.popularity.partition_point(|sum| *sum <= at).min(self.models.len() - 1);
        // Popularity has nothing to do with the names' order, nor with size.
        self.models[(n * 617) % self.models.len()].id.clone()
    }

    /// What happens next.
    pub fn next(&mut self) -> (Kind, Event) {
        loop {
            if let Some(next) = self.at_once.pop_front() {
                return next;
            }
            let timer = self.state.next_timer();
            let due = self.due.peek().map(|Reverse((at, ..))| *at);
            if let Some(timer) = timer
                && due.is_none_or(|due| timer <= due)
            {
                self.now = self.now.max(timer);
                return (Kind::Timer, Event::Timer);
            }
            let Reverse((at, _, due)) = self.due.pop().unwrap();
            self.now = self.now.max(at);
            self.sometimes();
            if let Some(event) = self.happens(due) {
                self.at_once.push_front(event);
            }
        }
    }

    fn happens(&mut self, due: Due) -> Option<(Kind, Event)> {
        match due {
            Due::Arrives => Some((Kind::JobArrives, self.arrives())),
            Due::Ended { job, attempt, engine } => {
                let there = self.engines.get_mut(&engine)?;
                there.running.remove(&job)?;
                let usage = Usage {
                    prompt_tokens: Some(400 + (job.0 % 700) as u64),
                    completion_tokens: Some(100 + (job.0 % 300) as u64),
                    total: Duration::from_secs(5),
                    ..Usage::default()
                };
                let end = AttemptEnd::Completed;
                Some((Kind::AttemptEnds, Event::AttemptEnded { job, attempt, engine, end, usage }))
            }
            Due::Ready { engine, turn } => {
                let there = self.engines.get_mut(&engine)?;
                let loads = matches!(there.state, EngineState::Starting | EngineState::Waking);
                if !loads || there.turn != turn {
                    return None;
                }
                there.state = EngineState::Ready;
                Some((Kind::EngineChanges, self.says(engine)))
            }
            Due::Asleep { engine } => {
                self.engines.get_mut(&engine)?.state = EngineState::Sleeping;
                Some((Kind::EngineChanges, self.says(engine)))
            }
            Due::Gone { engine } => {
                self.engines.get_mut(&engine)?.state = EngineState::Stopped;
                let event = self.says(engine);
                self.engines.remove(&engine);
                Some((Kind::EngineChanges, event))
            }
        }
    }

    /// Beside jobs that come and go.
    fn sometimes(&mut self) {
        match self.below(200) {
            0..4 => {
                // One of the jobs that came lately, or long ago.
                let back = 1 + self.below(100_000) as u128;
                if let Some(job) = self.jobs_made.checked_sub(back) {
                    self.at_once.push_back((Kind::JobCancelled, Event::JobCancelled(JobId(job))));
                }
            }
            4 if !self.hosts.is_empty() => {
                let n = self.below(self.hosts.len() as u64) as usize;
                let host = self.hosts[n].clone();
                let mine = || self.engines.iter().filter(|(_, e)| e.host == host.id);
                let engines = mine().map(|(id, _)| self.facts(*id)).collect();
                let running = mine()
                    .flat_map(|(id, e)| e.running.iter().map(|(job, attempt)| (*job, *attempt, *id)))
                    .collect();
                self.at_once.push_back((Kind::HostReports, Event::HostSnapshot { host, engines, running }));
            }
            5..7 => {
                let session = format!("s{}", self.below(20_000));
                let model = self.any_model();
                self.leased.push_back((session.clone(), model.clone()));
                let event = Event::LeaseAsked {
                    session: session.into(),
                    model,
                    key: Some(format!("k{}", self.below(500)).into()),
                    ttl: Duration::from_secs(120),
                    keep_context: None,
                };
                self.at_once.push_back((Kind::LeaseAsked, event));
            }
            7 => {
                if let Some((session, model)) = self.leased.pop_front() {
                    let event = Event::LeaseReleased { session: session.into(), model: Some(model) };
                    self.at_once.push_back((Kind::LeaseReleased, event));
                }
            }
            8..10 => {
                let session = format!("s{}", self.below(20_000)).into();
                let (model, in_ms) = (self.any_model(), self.below(60_000));
                let due = Timestamp(self.now.0 + in_ms);
                self.at_once.push_back((Kind::Hint, Event::Hint { session, model, due, key: None }));
            }
            _ => {}
        }
    }

    fn arrives(&mut self) -> Event {
        let id = JobId(self.jobs_made);
        self.jobs_made += 1;
        let session = self.below(20_000);
        let class = match self.below(10) {
            0 | 1 => Class::Interactive,
            2 | 3 => Class::Batch,
            _ => Class::Standard,
        };
        Event::JobSubmitted(JobFacts {
            id,
            model: self.any_model(),
            arrival: self.now,
            deadline: (self.below(20) == 0).then(|| self.now.plus(Duration::from_secs(1800))),
            hurried: true,
            session: (!session.is_multiple_of(4)).then(|| format!("s{session}").into()),
            key: Some(format!("k{}", session % 500).into()),
            class,
            tokens: 200 + self.below(1500),
        })
    }

    fn facts(&self, id: EngineId) -> EngineFacts {
        let engine = &self.engines[&id];
        EngineFacts {
            id,
            model: engine.model.clone(),
            state: engine.state,
            reservations: engine.reservations.clone(),
            concurrency: 8,
            failure: None,
            start_took: (engine.state == EngineState::Ready).then_some(Duration::from_millis(LOAD)),
            sleep: engine.sleep,
            peak_memory: None,
        }
    }

    fn says(&self, id: EngineId) -> Event {
        Event::EngineChanged { host: self.engines[&id].host.clone(), engine: self.facts(id) }
    }

    /// Does what the core says.
    pub fn carry_out(&mut self, effects: Vec<Effect>) {
        let mut told = 0;
        for effect in effects {
            match effect {
                Effect::Dispatch { job, attempt, engine, .. } => {
                    self.seen.dispatched += 1;
                    self.mix(job.0 as u64 ^ 0x11);
                    let there = self.engines.get_mut(&engine).unwrap();
                    assert_eq!(there.state, EngineState::Ready);
                    there.running.insert(job, attempt);
                    assert!(there.running.len() <= 8);
                    let model = self.number[&there.model] as u64;
                    let takes = 1_000 + model % 9 * 1_000 + self.below(2_000);
                    self.after(takes, Due::Ended { job, attempt, engine });
                }
                Effect::Start { engine, model, host, reservations } => {
                    self.seen.started += 1;
                    self.mix(self.number[&model] as u64);
                    let bytes: u64 = reservations.iter().map(|r| r.bytes).sum();
                    let sleep = self.can_sleep[&host].then_some(SleepCost { ram: bytes, residue: GIB / 2 });
                    let state = EngineState::Starting;
                    let running = BTreeMap::new();
                    let there = Engine { host, model, state, reservations, turn: 1, running, sleep };
                    self.engines.insert(engine, there);
                    self.after(LOAD, Due::Ready { engine, turn: 1 });
                    let event = self.says(engine);
                    self.at_once.push_back((Kind::EngineChanges, event));
                }
                Effect::Wake { engine, .. } => {
                    self.seen.woken += 1;
                    let there = self.engines.get_mut(&engine).unwrap();
                    there.state = EngineState::Waking;
                    there.turn += 1;
                    let turn = there.turn;
                    self.after(WAKE, Due::Ready { engine, turn });
                }
                Effect::Stop { engine, .. } => {
                    self.seen.stopped += 1;
                    self.engines.get_mut(&engine).unwrap().state = EngineState::Stopping;
                    self.after(500, Due::Gone { engine });
                }
                Effect::Sleep { engine, .. } => {
                    self.seen.slept += 1;
                    self.after(500, Due::Asleep { engine });
                }
                Effect::CancelAttempt { job, attempt, .. } => {
                    let on = self.engines.iter_mut().find(|(_, e)| e.running.get(&job) == Some(&attempt));
                    if let Some((engine, there)) = on {
                        there.running.remove(&job);
                        let (end, usage) = (AttemptEnd::Cancelled, Usage::default());
                        let event = Event::AttemptEnded { job, attempt, engine: *engine, end, usage };
                        self.at_once.push_back((Kind::AttemptEnds, event));
                    }
                }
                Effect::End { job, .. } => {
                    self.seen.ended += 1;
                    self.mix(job.0 as u64);
                    let ms = 1 + self.below(50);
                    self.after(ms, Due::Arrives);
                }
                Effect::Tell { .. } => told += 1,
                Effect::Record(berth_wire::EventBody::JobDispatched { queue_ms, .. }) => {
                    self.seen.waited_ms += queue_ms;
                }
                _ => {}
            }
        }
        self.seen.told += told as u64;
        self.seen.most_told = self.seen.most_told.max(told);
    }

    /// Engines, those that serve a job, accelerators with an engine, and accelerators.
    pub fn census(&self) -> [usize; 4] {
        let busy = self.engines.values().filter(|engine| !engine.running.is_empty()).count();
        let taken: BTreeSet<_> = self
            .engines
            .values()
            .flat_map(|engine| engine.reservations.iter().map(|r| (&engine.host, &r.accelerator)))
            .collect();
        let all = self.hosts.iter().map(|host| host.accelerators.len()).sum();
        [self.engines.len(), busy, taken.len(), all]
    }

    fn mix(&mut self, n: u64) {
        self.seen.digest = (self.seen.digest ^ n).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

fn host(n: usize) -> HostFacts {
    let accelerators = match n % 10 {
        0 => 8,
        1 | 2 => 2,
        _ => 1,
    };
    let memory = if n.is_multiple_of(3) { 48 * GIB } else { 80 * GIB };
    HostFacts {
        id: format!("host-{n:04}").into(),
        boot: "1".into(),
        accelerators: (0..accelerators)
            .map(|n| Accelerator {
                id: format!("gpu{n}").into(),
                kind: AcceleratorKind::Ram,
                name: if memory == 48 * GIB { "L40S".into() } else { "H100".into() },
                memory,
                free: None,
                held: None,
                unexplained: None,
            })
            .collect(),
        drivers: vec![Driver::Process],
        labels: if n.is_multiple_of(7) { vec!["eu".into()] } else { Vec::new() },
        draining: false,
        sleep_memory: if n.is_multiple_of(2) { 256 * GIB } else { 0 },
        sleep_spare: if n.is_multiple_of(2) { 80 * GIB } else { 0 },
    }
}

fn model(n: usize) -> ModelNeeds {
    let (memory, accelerators) = match n % 20 {
        0 => (Some(80 * GIB), 2),
        1 => (None, 1),
        2..6 => (Some(40 * GIB), 1),
        6..12 => (Some(16 * GIB), 1),
        _ => (Some(8 * GIB), 1),
    };
    ModelNeeds {
        id: format!("model-{n:04}").into(),
        memory,
        accelerators,
        concurrency: 8,
        driver: Driver::Process,
        labels: if n % 25 == 3 { vec!["eu".into()] } else { Vec::new() },
        idle_ttl: (n.is_multiple_of(3)).then_some(Duration::from_secs(600)),
        asleep_ttl: None,
        pin: n % 100 == 50,
        keeps_context: false,
        max_replicas: None,
        config: String::new(),
    }
}
