//! A real gateway on a real nats-server, with the scheduler and the agent played by the test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use berth_bus::{
    Bus, BusOptions, Jobs, NatsOutput, OutputSink, QueuedJob, Subscriber, provision, put_json, read,
};
use berth_config::Config;
use berth_testkit::nats::TestNats;
use berth_testkit::wait::until;
use berth_wire::{
    Accelerator, AcceleratorKind, Attempt, Begin, BeginReply, CancelJob, Credit, Driver, End, EngineKind,
    EngineSpec, Epoch, Finish, Frame, Head, HostBeat, HostId, Job, LeaderRecord, ModelSpec, Notice,
    Timestamp, Usage, slug,
};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio_util::sync::CancellationToken;

pub const PATIENCE: Duration = Duration::from_secs(10);
pub const MODEL: &str = "org/tiny:1.5";

pub fn model() -> ModelSpec {
    ModelSpec {
        id: MODEL.into(),
        aliases: vec!["tiny".into()],
        engine: EngineSpec {
            kind: EngineKind::Sim,
            driver: Driver::Process,
            image: None,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            volumes: Vec::new(),
            port: 8000,
            health_path: "/health".into(),
            served_name: "tiny".into(),
            routes: None,
            container: berth_wire::ContainerSpec::default(),
            start_timeout: Duration::from_secs(60),
            stop_grace: Duration::from_secs(10),
            sleep: None,
        },
        memory: None,
        accelerators: 1,
        concurrency: 4,
        context: Some(4096),
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

/// A gateway in a thread of its own.
pub struct Gateway {
    pub address: SocketAddr,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<Result<(), berth_gateway_adapter::GatewayError>>>,
}

impl Gateway {
    pub async fn start(nats: &TestNats, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::empty();
        config.gateway.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        config.gateway.workers = Some(2);
        change(&mut config);
        let shutdown = CancellationToken::new();
        let (sender, started) = tokio::sync::oneshot::channel();
        let options = options(nats);
        let token = shutdown.clone();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(berth_gateway_adapter::run(
                Arc::new(config),
                options,
                token,
                move |addresses| sender.send(addresses[0]).unwrap(),
                None,
            ))
        });
        let address =
            tokio::time::timeout(PATIENCE, started).await.unwrap().expect("the gateway did not start");
        Self { address, shutdown, thread: Some(thread) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn stop(mut self) {
        self.shutdown.cancel();
        let thread = self.thread.take().unwrap();
        until("the gateway has ended", PATIENCE, async || thread.is_finished()).await;
        thread.join().unwrap().unwrap();
    }

    pub fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shutdown.cancel();
        let Some(thread) = self.thread.take() else { return };
        let began = Instant::now();
        while !thread.is_finished() {
            if began.elapsed() > PATIENCE {
                assert!(std::thread::panicking(), "the gateway does not end");
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

pub fn options(nats: &TestNats) -> BusOptions {
    BusOptions { urls: vec![nats.url()], ..BusOptions::default() }
}

/// What the test plays: the scheduler that reads jobs and the agent that answers them.
pub struct Played {
    pub bus: Bus,
    pub sink: NatsOutput,
    jobs: BoxStream<'static, QueuedJob>,
    cancels: Subscriber,
    ctl: Subscriber,
    pub host: HostId,
}

impl Played {
    pub async fn new(nats: &TestNats) -> Self {
        let bus = Bus::connect(&options(nats), "played").await.unwrap();
        provision(&bus).await.unwrap();
        let catalog = bus.bucket("catalog").await.unwrap();
        put_json(&catalog, &slug::encode(MODEL), &model()).await.unwrap();
        let host = HostId::from("h1");
        let jobs = Jobs::take_over(&bus, Epoch(1)).await.unwrap();
        let jobs = jobs.messages().await.unwrap().boxed();
        Self {
            cancels: bus.subscribe(bus.subjects.cancel_all()).await.unwrap(),
            ctl: bus.subscribe(bus.subjects.ctl_all(&host)).await.unwrap(),
            sink: NatsOutput::new(bus.clone()),
            jobs,
            host,
            bus,
        }
    }

    /// A leader and a host, so that the gateway is ready.
    pub async fn appear(&self) {
        let leader = self.bus.bucket("leader").await.unwrap();
        let record = LeaderRecord { instance: "played".into(), since: Timestamp::default(), epoch: Epoch(1) };
        put_json(&leader, "leader", &record).await.unwrap();
        let hosts = self.bus.bucket("hosts").await.unwrap();
        let beat = HostBeat {
            host: self.host.clone(),
            boot: "b".into(),
            version: "0".into(),
            at: Timestamp::default(),
            accelerators: vec![Accelerator {
                id: "ram".into(),
                kind: AcceleratorKind::Ram,
                name: "RAM".into(),
                memory: 1,
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
        put_json(&hosts, self.host.as_str(), &beat).await.unwrap();
    }

    pub async fn job(&mut self) -> Job {
        let queued = tokio::time::timeout(PATIENCE, self.jobs.next()).await.expect("no job came").unwrap();
        queued.ticket.remove().await;
        queued.job
    }

    pub async fn begin(&self, job: &Job, attempt: u32) -> Result<BeginReply, berth_bus::BusError> {
        let begin = Begin { host: self.host.clone(), engine: "1-1".parse().unwrap() };
        let frame = Frame { begin: Some(begin), ..Frame::empty(number(attempt), 0) };
        self.sink.begin(&job.gateway, job.id, frame).await
    }

    pub async fn go(&self, job: &Job, attempt: u32) {
        match self.begin(job, attempt).await.unwrap() {
            BeginReply::Go { credit } => assert_eq!(credit, job.window),
            BeginReply::Refuse { reason } => panic!("refused: {reason}"),
        }
    }

    pub async fn frame(&self, job: &Job, frame: Frame) {
        self.sink.send(&job.gateway, job.id, frame).await.unwrap();
    }

    pub async fn notify(&self, job: &Job, epoch: u64, notice: Notice) {
        self.sink.notify(&job.gateway, job.id, Epoch(epoch), notice).await.unwrap();
    }

    /// A whole plain answer.
    pub async fn answer(&self, job: &Job, status: u16, kind: &str, body: &'static [u8]) {
        self.go(job, 1).await;
        self.frame(job, head(status, kind, 1, body)).await;
        self.frame(job, end(2, Finish::Stop)).await;
    }

    /// The next cancel of a job.
    pub async fn cancelled(&mut self) -> CancelJob {
        let message =
            tokio::time::timeout(PATIENCE, self.cancels.next()).await.expect("no cancel came").unwrap();
        read(&message).unwrap()
    }

    /// The next command at the host, by its verb.
    pub async fn command(&mut self, verb: &str) -> berth_bus::Inbound {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.ctl.next())
                .await
                .unwrap_or_else(|_| panic!("no {verb} came"))
                .unwrap();
            if message.subject.ends_with(verb) {
                return message;
            }
        }
    }

    pub async fn credit(&mut self) -> Credit {
        read(&self.command("credit").await).unwrap()
    }

    /// Credit that has come within a moment, if any.
    pub async fn no_credit_within(&mut self, moment: Duration) -> Option<u64> {
        let message = tokio::time::timeout(moment, self.ctl.next()).await.ok()??;
        message.subject.ends_with("credit").then(|| read::<Credit>(&message).unwrap().granted)
    }
}

pub fn number(attempt: u32) -> Attempt {
    Attempt::new(Epoch(1), attempt)
}

pub fn head(status: u16, kind: &str, seq: u64, body: &'static [u8]) -> Frame {
    let head = Some(Head { status, content_type: Some(kind.into()), length: None });
    Frame { head, data: Some(Bytes::from_static(body)), ..Frame::empty(number(1), seq) }
}

pub fn data(seq: u64, body: impl Into<Bytes>) -> Frame {
    Frame { data: Some(body.into()), ..Frame::empty(number(1), seq) }
}

pub fn end(seq: u64, finish: Finish) -> Frame {
    Frame { end: Some(End { finish, usage: Usage::default() }), ..Frame::empty(number(1), seq) }
}

pub fn chat(stream: bool) -> String {
    format!(r#"{{"model":"tiny","stream":{stream},"messages":[{{"role":"user","content":"hi"}}],"x_own":1}}"#)
}

/// An SSE answer's events and comments.
pub const EVENTS: &str = "text/event-stream";

pub async fn error_of(response: reqwest::Response) -> serde_json::Value {
    let value: serde_json::Value = response.json().await.unwrap();
    let error = value["error"].clone();
    for key in ["message", "type", "param", "code"] {
        assert!(error.get(key).is_some(), "{key} is missing in {error}");
    }
    error
}

/// What a stream says until its connection is cut. A clean end would be read as a success.
pub async fn until_cut(mut response: reqwest::Response) -> String {
    let mut told = Vec::new();
    let cut = async {
        loop {
            match response.chunk().await {
                Ok(Some(piece)) => told.extend_from_slice(&piece),
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    };
    let cut = tokio::time::timeout(PATIENCE, cut).await.expect("it neither ends nor is cut");
    let told = String::from_utf8(told).unwrap();
    assert!(cut, "it ends as if it were complete: {told}");
    told
}

/// A header of an answer.
pub fn header(response: &reqwest::Response, name: &str) -> Option<String> {
    response.headers().get(name).map(|value| value.to_str().unwrap().to_owned())
}

pub fn post(gateway: &Gateway, path: &str, body: String) -> tokio::task::JoinHandle<reqwest::Response> {
    let request = reqwest::Client::new().post(gateway.url(path)).body(body);
    tokio::spawn(async move { request.send().await.unwrap() })
}

/// One more model, once the gateway knows it.
pub async fn add_model(played: &Played, gateway: &Gateway, spec: &ModelSpec) {
    let catalog = played.bus.bucket("catalog").await.unwrap();
    put_json(&catalog, &slug::encode(spec.id.as_str()), spec).await.unwrap();
    let path = gateway.url(&format!("/v1/models/{}", spec.id));
    until("the model is known", PATIENCE, async || reqwest::get(&path).await.unwrap().status() == 200).await;
}

/// A model whose engine serves every route.
pub fn all_routes() -> ModelSpec {
    let mut spec = model();
    spec.id = "org/all".into();
    spec.aliases = vec!["all".into()];
    spec.engine.kind = EngineKind::Custom;
    spec
}

/// A form with a file.
pub fn form(model: &str) -> (String, Vec<u8>) {
    let mut body =
        b"--xy\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n".to_vec();
    body.extend((0..=255_u8).cycle().take(10_000));
    body.extend_from_slice(b"\r\n--xy\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n");
    body.extend_from_slice(model.as_bytes());
    body.extend_from_slice(b"\r\n--xy--\r\n");
    ("multipart/form-data; boundary=xy".into(), body)
}

/// A gateway with its played fleet.
pub async fn house(change: impl FnOnce(&mut Config)) -> (TestNats, Played, Gateway) {
    let nats = TestNats::start().unwrap();
    let played = Played::new(&nats).await;
    let gateway = another(&nats, change).await;
    (nats, played, gateway)
}

/// A gateway of a fleet that is there, once it knows the catalog.
pub async fn another(nats: &TestNats, change: impl FnOnce(&mut Config)) -> Gateway {
    let gateway = Gateway::start(nats, change).await;
    let client = reqwest::Client::new();
    until("the catalog is known", PATIENCE, async || {
        let list: serde_json::Value =
            client.get(gateway.url("/v1/models")).send().await.unwrap().json().await.unwrap();
        list["data"].as_array().is_some_and(|models| !models.is_empty())
    })
    .await;
    gateway
}

/// A gateway with these keys in its configuration, once it knows its catalog.
pub async fn house_with_keys(keys: Vec<berth_wire::KeyRecord>) -> (TestNats, Played, Gateway) {
    let nats = TestNats::start().unwrap();
    let played = Played::new(&nats).await;
    let gateway = Gateway::start(&nats, |config| config.gateway.keys = keys).await;
    until("the catalog and the keys are known", PATIENCE, async || {
        let state: serde_json::Value =
            reqwest::get(gateway.url("/readyz")).await.unwrap().json().await.unwrap();
        let parts = state["components"].as_array().unwrap();
        let ready = |name: &str| parts.iter().any(|part| part["name"] == name && part["ready"] == true);
        ready("catalog") && ready("keys")
    })
    .await;
    (nats, played, gateway)
}
