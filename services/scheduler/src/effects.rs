//! Carrying out what the core decides: commands to hosts, notices to gateways, facts for the log.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use berth_bus::{Bus, BusError, Jobs, NatsOutput, OutputSink, dispatch_headers};
use berth_placement::Refusal;
use berth_wire::{
    Attempt, CancelJob, DispatchHeaders, EngineFailure, EngineId, Epoch, Event as Fact, EventBody, GatewayId,
    HostId, JobId, ModelSpec, Notice, Reply, Reservation, SetLane, SleepEngine, Snapshot, StartEngine,
    StatusRequest, StopEngine, TRACEPARENT, Timestamp, Verb, WakeEngine,
};
use tokio::sync::OnceCell;
use tracing::{debug, warn};

use crate::entry::Payload;
use crate::keeper::Keeper;

/// Commands are acknowledged at once, so an agent that is silent for so long does not have it.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// Publishes a fact; a bus that is away loses it, which the log line outlives.
pub(crate) async fn record(bus: &Bus, body: EventBody) {
    let subject = bus.subjects.event(body.kind(), &body.id());
    let fact = Fact { at: Timestamp::from(SystemTime::now()), body };
    if let Err(error) = bus.publish_json(subject, &fact).await {
        debug!(%error, "could not publish an event");
    }
}

/// The latest epoch that a host was heard of that this leader is behind. Clones share it, also across terms.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outrun(Arc<AtomicU64>);

impl Outrun {
    pub(crate) fn by(&self, epoch: Epoch) {
        self.0.fetch_max(epoch.0, Ordering::AcqRel);
    }

    pub(crate) fn is_known(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }

    pub(crate) fn take(&self) -> Option<Epoch> {
        let epoch = self.0.swap(0, Ordering::AcqRel);
        (epoch > 0).then_some(Epoch(epoch))
    }
}

/// Speaks for the leader of one epoch.
#[derive(Clone)]
pub(crate) struct Carrier {
    pub(crate) bus: Bus,
    pub(crate) epoch: Epoch,
    output: NatsOutput,
    /// The job stream of this term, once it has been taken over.
    pub(crate) jobs: Arc<OnceCell<Jobs>>,
    /// Writes leases and profiles down.
    pub(crate) keeper: Keeper,
    /// Later epochs that hosts have seen.
    pub(crate) outrun: Outrun,
}

/// What came of a command.
#[derive(Debug)]
pub(crate) enum Answer {
    Taken,
    Refused(Refusal),
    /// Whether the host has it is not known.
    Unanswered(String),
    /// The host obeys a later leader.
    Stale,
}

impl Carrier {
    pub(crate) fn new(bus: Bus, epoch: Epoch, outrun: Outrun) -> Self {
        let output = NatsOutput::new(bus.clone());
        Self { output, bus, epoch, jobs: Arc::new(OnceCell::new()), keeper: Keeper::default(), outrun }
    }

    /// Sends a dispatch with the payload as it came.
    pub(crate) async fn dispatch(
        &self,
        host: &HostId,
        engine: EngineId,
        attempt: Attempt,
        payload: Payload,
        above: Option<String>,
    ) -> Answer {
        let payload = match payload {
            Payload::Here(bytes) => Ok(bytes),
            Payload::InStream(sequence) => match self.jobs.get() {
                Some(jobs) => jobs.payload(sequence).await,
                None => Err(BusError::Missing { asset: "the job stream".into() }),
            },
        };
        let payload = match payload {
            Ok(payload) => payload,
            Err(error) => return Answer::Refused(Refusal::Failed(error.to_string())),
        };
        let mut headers = dispatch_headers(&DispatchHeaders { epoch: self.epoch, engine, attempt });
        if let Some(above) = above {
            // In the payload is what the gateway said.
            headers.insert(TRACEPARENT, above);
        }
        let subject = self.bus.subjects.ctl(host, Verb::Dispatch);
        self.answer(self.bus.request_raw(subject, headers, payload, COMMAND_LIMIT).await, host)
    }

    /// Has an engine started; false: the host obeys a later leader.
    pub(crate) async fn start(
        &self,
        host: &HostId,
        engine: EngineId,
        boot: Option<String>,
        model: ModelSpec,
        reservations: Vec<Reservation>,
    ) -> Result<bool, (EngineFailure, bool)> {
        let command = StartEngine { epoch: self.epoch, engine, model, reservations, boot };
        let subject = self.bus.subjects.ctl(host, Verb::Start);
        match self.answer(self.bus.request(subject, &command, COMMAND_LIMIT).await, host) {
            Answer::Taken => Ok(true),
            Answer::Stale => Ok(false),
            Answer::Refused(why) => {
                // A host that is about to end, which says nothing of the model either.
                let passing = why == Refusal::Busy;
                Err((EngineFailure { message: told(why, host), permanent: false, was_ready: false }, passing))
            }
            Answer::Unanswered(message) => {
                Err((EngineFailure { message, permanent: false, was_ready: false }, true))
            }
        }
    }

    pub(crate) async fn stop(&self, host: &HostId, engine: EngineId, reason: String, force: bool) -> Answer {
        let command = StopEngine { epoch: self.epoch, engine, reason, force };
        let subject = self.bus.subjects.ctl(host, Verb::Stop);
        self.answer(self.bus.request(subject, &command, COMMAND_LIMIT).await, host)
    }

    pub(crate) async fn lane(&self, host: &HostId, engine: EngineId, number: u64, open: bool) -> Answer {
        let command = SetLane { epoch: self.epoch, engine, number, open };
        let subject = self.bus.subjects.ctl(host, Verb::Lane);
        self.answer(self.bus.request(subject, &command, COMMAND_LIMIT).await, host)
    }

    pub(crate) async fn sleep(&self, host: &HostId, engine: EngineId, reason: String) -> Answer {
        let command = SleepEngine { epoch: self.epoch, engine, reason };
        let subject = self.bus.subjects.ctl(host, Verb::Sleep);
        self.answer(self.bus.request(subject, &command, COMMAND_LIMIT).await, host)
    }

    pub(crate) async fn wake(
        &self,
        host: &HostId,
        engine: EngineId,
        reservations: Vec<Reservation>,
    ) -> Answer {
        let command = WakeEngine { epoch: self.epoch, engine, reservations };
        let subject = self.bus.subjects.ctl(host, Verb::Wake);
        self.answer(self.bus.request(subject, &command, COMMAND_LIMIT).await, host)
    }

    pub(crate) async fn cancel(&self, host: &HostId, job: JobId, attempt: Attempt) {
        let command = CancelJob { job, attempt: Some(attempt) };
        if let Err(error) = self.bus.publish(self.bus.subjects.ctl(host, Verb::Cancel), &command).await {
            debug!(%error, "could not send a cancel");
        }
    }

    pub(crate) async fn ask_snapshot(&self, host: &HostId) -> Option<Snapshot> {
        let subject = self.bus.subjects.ctl(host, Verb::Status);
        match self.bus.request(subject.clone(), &StatusRequest { epoch: self.epoch }, COMMAND_LIMIT).await {
            Ok(snapshot) => Some(snapshot),
            Err(error @ (BusError::NoResponders { .. } | BusError::TimedOut { .. })) => {
                debug!(%host, %error, "no snapshot yet");
                None
            }
            // No snapshot, but perhaps why.
            Err(_) => {
                let status = StatusRequest { epoch: self.epoch };
                let answer = self.answer(self.bus.request(subject, &status, COMMAND_LIMIT).await, host);
                debug!(%host, ?answer, "no snapshot yet");
                None
            }
        }
    }

    /// Which of these gateways nobody hears output for.
    pub(crate) async fn unheard(&self, gateways: BTreeSet<GatewayId>) -> BTreeSet<GatewayId> {
        let mut unheard = BTreeSet::new();
        for gateway in gateways {
            if !self.output.is_heard(&gateway).await {
                unheard.insert(gateway);
            }
        }
        unheard
    }

    fn answer(&self, reply: Result<Reply, BusError>, host: &HostId) -> Answer {
        match reply {
            Ok(Reply::Ok) => Answer::Taken,
            Ok(Reply::Busy { .. }) => Answer::Refused(Refusal::Busy),
            Ok(Reply::Refused { message }) => Answer::Refused(Refusal::Failed(message)),
            Ok(Reply::Stale { epoch }) => {
                warn!(%host, %epoch, "the host obeys a later leader");
                self.outrun.by(epoch);
                Answer::Stale
            }
            Err(BusError::NoResponders { .. } | BusError::TimedOut { .. }) => {
                Answer::Unanswered(format!("the host {host} does not answer"))
            }
            Err(error) => Answer::Unanswered(error.to_string()),
        }
    }

    pub(crate) async fn notify(&self, gateway: &GatewayId, job: JobId, notice: Notice) {
        if let Err(error) = self.output.notify(gateway, job, self.epoch, notice).await {
            debug!(%error, "could not send a notice");
        }
    }
}

/// A refusal in words.
pub(crate) fn told(why: Refusal, host: &HostId) -> String {
    match why {
        Refusal::Busy => format!("the host {host} is busy"),
        Refusal::Failed(message) | Refusal::Silent(message) => message,
    }
}
