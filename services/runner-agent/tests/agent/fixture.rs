//! A real nats-server, an agent on it, and the two that talk with it: a leader and a gateway.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use berth_bus::{Bus, BusOptions, dispatch_headers, provision};
use berth_config::Config;
use berth_runner_agent::AgentError;
use berth_testkit::nats::TestNats;
use berth_testkit::wait::{until, until_ok};
use berth_wire::{
    Attempt, Body, CancelJob, Credit, DispatchHeaders, Driver, Ended, EngineFailure, EngineId, EngineKind,
    EngineReport, EngineSpec, EngineState, Epoch, HostId, Job, JobId, ModelSpec, Reply, Report, ReportAck,
    ReportEntry, Reservation, Route, Snapshot, StartEngine, StatusRequest, StopEngine, Timestamp, Verb,
};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;

pub(crate) const WAIT: Duration = Duration::from_secs(20);
pub(crate) const GIB: u64 = 1 << 30;

/// The path of the small engine.
pub(crate) fn engine_py() -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/agent/engine.py").display().to_string()
}

/// A request for a short stream.
pub(crate) const STREAM: &str = r#"{"model":"alias","do":"stream","n":4,"size":20}"#;

/// A model served by a process.
pub(crate) fn process(command: &[&str]) -> ModelSpec {
    ModelSpec {
        id: "m".into(),
        aliases: Vec::new(),
        engine: EngineSpec {
            kind: EngineKind::Custom,
            driver: Driver::Process,
            image: None,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            args: Vec::new(),
            env: Vec::new(),
            volumes: Vec::new(),
            port: 8080,
            health_path: "/health".into(),
            served_name: "served".into(),
            routes: None,
            container: berth_wire::ContainerSpec::default(),
            start_timeout: Duration::from_secs(20),
            stop_grace: Duration::from_secs(5),
            sleep: None,
        },
        memory: Some(GIB / 4),
        accelerators: 1,
        concurrency: 1,
        context: None,
        idle_ttl: None,
        asleep_ttl: None,
        pin: false,
        replicas: None,
        labels: Vec::new(),
        adapters: Vec::new(),
        max_adapters: None,
        keep_context: None,
        leases_keep_context: false,
        silence: berth_wire::Silence::default(),
    }
}

/// The small engine, with more arguments.
pub(crate) fn python(args: &[&str]) -> ModelSpec {
    let path = engine_py();
    let mut command = vec!["python3", "-u", path.as_str(), "{port}"];
    command.extend(args);
    process(&command)
}

/// What a leader has been told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) entries: RefCell<Vec<ReportEntry>>,
    last: Cell<u64>,
    /// It does not answer.
    pub(crate) silent: Cell<bool>,
    pub(crate) epoch: Cell<u64>,
    pub(crate) want_snapshot: Cell<bool>,
}

pub(crate) struct Fleet {
    pub(crate) nats: TestNats,
    pub(crate) bus: Bus,
    pub(crate) host: HostId,
    pub(crate) config: Arc<Config>,
    pub(crate) told: Rc<Told>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) agent: Option<tokio::task::JoinHandle<Result<(), AgentError>>>,
    pub(crate) gateway: Gateway,
    state: tempfile::TempDir,
    engines: Cell<u32>,
    attempts: Cell<u32>,
}

impl Fleet {
    pub(crate) async fn start(host: &str) -> Self {
        Self::start_with(host, |_| {}).await
    }

    pub(crate) async fn start_with(host: &str, change: impl FnOnce(&mut Config)) -> Self {
        let nats = TestNats::start().unwrap();
        let options = BusOptions { urls: vec![nats.url()], ..BusOptions::default() };
        let bus = Bus::connect(&options, "test").await.unwrap();
        provision(&bus).await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let mut config = Config::empty();
        config.host.name = host.into();
        config.host.memory = Some(GIB);
        config.host.drivers = vec![Driver::Process];
        config.host.state_dir = Some(state.path().to_path_buf());
        change(&mut config);
        let told = lead(&bus).await;
        let gateway = Gateway::open(&bus).await;
        let mut fleet = Self {
            nats,
            bus,
            host: host.into(),
            config: Arc::new(config),
            told,
            shutdown: CancellationToken::new(),
            agent: None,
            gateway,
            state,
            engines: Cell::new(0),
            attempts: Cell::new(0),
        };
        fleet.run_agent();
        fleet
            .until("the first snapshot came", |entries| {
                matches!(entries.first(), Some(ReportEntry::Snapshot(_)))
            })
            .await;
        fleet
    }

    pub(crate) fn options(&self) -> BusOptions {
        BusOptions { urls: vec![self.nats.url()], ..BusOptions::default() }
    }

    pub(crate) fn run_agent(&mut self) {
        self.shutdown = CancellationToken::new();
        let run = berth_runner_agent::run(Arc::clone(&self.config), self.options(), self.shutdown.clone());
        self.agent = Some(actix_rt::spawn(run));
    }

    /// The folder of the agent's notes.
    pub(crate) fn notes(&self) -> PathBuf {
        self.state.path().join("engines/berth.v1").join(self.host.as_str())
    }

    pub(crate) async fn until(&self, what: &str, mut seen: impl FnMut(&[ReportEntry]) -> bool) {
        until(what, WAIT, async || seen(&self.told.entries.borrow())).await;
    }

    /// The newest report of an engine in this state.
    pub(crate) async fn engine_in(&self, engine: EngineId, state: EngineState) -> EngineReport {
        until_ok(&format!("engine {engine} is {}", state.as_str()), WAIT, async || {
            let entries = self.told.entries.borrow();
            let mut reports = entries.iter().filter_map(|entry| match entry {
                ReportEntry::Engine(report) if report.engine == engine => Some(report.clone()),
                _ => None,
            });
            match reports.next_back() {
                Some(report) if report.state == state => Ok(report),
                other => Err(format!("{other:?}")),
            }
        })
        .await
    }

    pub(crate) async fn failure_of(&self, engine: EngineId) -> EngineFailure {
        self.engine_in(engine, EngineState::Failed).await.failure.unwrap()
    }

    /// The one end of an attempt.
    pub(crate) async fn ended(&self, attempt: Attempt) -> Ended {
        until_ok("the attempt ended", WAIT, async || {
            let entries = self.told.entries.borrow();
            let mut ends = entries.iter().filter_map(|entry| match entry {
                ReportEntry::Ended(ended) if ended.attempt == attempt => Some(ended.clone()),
                _ => None,
            });
            let end = ends.next().ok_or("no end yet")?;
            assert!(ends.next().is_none(), "an attempt ended twice");
            Ok::<_, &str>(end)
        })
        .await
    }

    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        let entries = self.told.entries.borrow();
        let snapshots = entries.iter().filter_map(|entry| match entry {
            ReportEntry::Snapshot(snapshot) => Some((**snapshot).clone()),
            _ => None,
        });
        snapshots.collect()
    }

    pub(crate) async fn command<M: berth_wire::Message>(&self, verb: Verb, message: &M) -> Reply {
        self.bus.request(self.bus.subjects.ctl(&self.host, verb), message, WAIT).await.unwrap()
    }

    pub(crate) fn next_engine(&self) -> EngineId {
        self.engines.set(self.engines.get() + 1);
        EngineId::new(Epoch(self.told.epoch.get()), self.engines.get())
    }

    pub(crate) fn start_command(&self, model: ModelSpec, bytes: u64) -> StartEngine {
        StartEngine {
            epoch: Epoch(self.told.epoch.get()),
            engine: self.next_engine(),
            model,
            reservations: vec![Reservation { accelerator: "ram".into(), bytes }],
            boot: None,
        }
    }

    /// Has an engine started; it need not be ready.
    pub(crate) async fn start_engine(&self, model: ModelSpec) -> EngineId {
        let bytes = model.memory.unwrap();
        let start = self.start_command(model, bytes);
        assert_eq!(self.command(Verb::Start, &start).await, Reply::Ok);
        start.engine
    }

    pub(crate) async fn ready_engine(&self, model: ModelSpec) -> EngineId {
        let engine = self.start_engine(model).await;
        self.engine_in(engine, EngineState::Ready).await;
        engine
    }

    pub(crate) async fn stop_engine(&self, engine: EngineId, force: bool) -> Reply {
        let epoch = Epoch(self.told.epoch.get());
        self.command(Verb::Stop, &StopEngine { epoch, engine, reason: "test".into(), force }).await
    }

    pub(crate) async fn status(&self) -> Snapshot {
        let epoch = Epoch(self.told.epoch.get());
        let subject = self.bus.subjects.ctl(&self.host, Verb::Status);
        self.bus.request(subject, &StatusRequest { epoch }, WAIT).await.unwrap()
    }

    /// A job whose body is what the client sent.
    pub(crate) fn job(&self, body: &str) -> Job {
        self.job_with(Body::Inline(body.to_owned().into()))
    }

    pub(crate) fn job_with(&self, body: Body) -> Job {
        self.attempts.set(self.attempts.get() + 1);
        Job {
            id: JobId(u128::from(self.attempts.get())),
            model: "m".into(),
            adapter: None,
            route: Route::ChatCompletions,
            gateway: self.gateway.name.clone(),
            stream: true,
            session: None,
            submitted_at: Timestamp(0),
            deadline: None,
            hurried: false,
            window: 1 << 20,
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            class: berth_wire::Class::Standard,
            key: None,
            content_type: None,
            target: None,
            body,
        }
    }

    pub(crate) fn attempt(&self) -> Attempt {
        Attempt::new(Epoch(self.told.epoch.get()), self.attempts.get())
    }

    pub(crate) async fn dispatch(&self, engine: EngineId, job: &Job) -> Reply {
        let epoch = Epoch(self.told.epoch.get());
        let headers = dispatch_headers(&DispatchHeaders { epoch, engine, attempt: self.attempt() });
        let subject = self.bus.subjects.ctl(&self.host, Verb::Dispatch);
        self.bus.request_raw(subject, headers, job.encode().unwrap().into(), WAIT).await.unwrap()
    }

    /// Dispatches a job that is taken.
    pub(crate) async fn run(&self, engine: EngineId, body: &str) -> (Job, Attempt) {
        let job = self.job(body);
        assert_eq!(self.dispatch(engine, &job).await, Reply::Ok);
        (job, self.attempt())
    }

    pub(crate) async fn cancel(&self, job: &Job) -> Reply {
        self.command(Verb::Cancel, &CancelJob { job: job.id, attempt: None }).await
    }

    pub(crate) async fn credit(&self, job: &Job, attempt: Attempt, granted: u64) {
        let subject = self.bus.subjects.ctl(&self.host, Verb::Credit);
        self.bus.publish(subject, &Credit { job: job.id, attempt, granted }).await.unwrap();
    }

    /// Ends the agent in order.
    pub(crate) async fn leave(&mut self) {
        self.shutdown.cancel();
        if let Some(agent) = self.agent.take() {
            tokio::time::timeout(Duration::from_secs(45), agent).await.unwrap().unwrap().unwrap();
        }
    }
}

/// Answers reports like a leader: takes each entry once, by its number.
async fn lead(bus: &Bus) -> Rc<Told> {
    let told = Rc::new(Told::default());
    told.epoch.set(5);
    let mut reports = bus.subscribe(bus.subjects.report_all()).await.unwrap();
    let (bus, taken) = (bus.clone(), Rc::clone(&told));
    let boot = RefCell::new(String::new());
    actix_rt::spawn(async move {
        while let Some(message) = reports.next().await {
            let report: Report = berth_wire::decode(&message.payload).unwrap();
            if boot.replace(report.boot.clone()) != report.boot {
                taken.last.set(0);
            }
            if taken.silent.get() {
                continue;
            }
            assert!(report.first <= taken.last.get() + 1, "entries are missing before {}", report.first);
            for (number, entry) in (report.first..).zip(report.entries) {
                if number > taken.last.get() {
                    taken.last.set(number);
                    taken.entries.borrow_mut().push(entry);
                }
            }
            let ack = ReportAck {
                epoch: Epoch(taken.epoch.get()),
                want_snapshot: taken.want_snapshot.replace(false),
            };
            bus.reply(message.reply, &ack).await.unwrap();
        }
    });
    told
}

/// Asks the small engine itself what became of its requests.
pub(crate) async fn stats(fleet: &Fleet) -> serde_json::Value {
    ask(fleet, "/stats").await
}

/// Asks the one engine that runs.
pub(crate) async fn ask(fleet: &Fleet, path: &str) -> serde_json::Value {
    let pid = noted_pid(fleet).unwrap();
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    let port = command.split('\0').nth(3).unwrap().to_owned();
    reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.unwrap().json().await.unwrap()
}

/// The process of the one engine that runs.
pub(crate) fn noted_pid(fleet: &Fleet) -> Option<u64> {
    let file = std::fs::read_dir(fleet.notes()).ok()?.next()?.ok()?;
    let note: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    note["pid"].as_u64()
}

/// What still holds memory in a process group.
pub(crate) fn group_members(group: u64) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            let mut fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
            let state = fields.next().unwrap();
            state != "Z" && fields.nth(1) == Some(group.to_string().as_str())
        })
        .collect()
}
