//! The transport of output streams, behind one pair of traits: agents hold a sink, gateways a source.

use std::future::Future;
use std::time::Duration;

use async_nats::{HeaderMap, StatusCode, Subscriber};
use berth_wire::{BeginReply, Epoch, Frame, GatewayId, JobId, MSGPACK, Notice, Output, Reply, Subjects};
use futures::StreamExt;

use crate::connect::Bus;
use crate::error::BusError;
use crate::message::{Inbound, read_as};

/// Sends a job's output to its gateway, in order.
pub trait OutputSink: Clone + 'static {
    /// Sends frame 0 and waits for the permit. [`BusError::NoResponders`]: the gateway is gone.
    fn begin(
        &self,
        gateway: &GatewayId,
        job: JobId,
        frame: Frame,
    ) -> impl Future<Output = Result<BeginReply, BusError>>;

    /// Sends a later frame.
    fn send(
        &self,
        gateway: &GatewayId,
        job: JobId,
        frame: Frame,
    ) -> impl Future<Output = Result<(), BusError>>;

    /// Says on an offer's output subject that it is not taken.
    fn decline(&self, to: async_nats::Subject, reply: Reply) -> impl Future<Output = Result<(), BusError>>;

    /// Tells a gateway what the scheduler knows of a job.
    fn notify(
        &self,
        gateway: &GatewayId,
        job: JobId,
        epoch: Epoch,
        notice: Notice,
    ) -> impl Future<Output = Result<(), BusError>>;
}

/// How long a gateway may take to answer a probe before it counts as alive and busy.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// A message about a job, as a gateway receives it.
#[derive(Debug)]
pub struct Delivery {
    /// Which job.
    pub job: JobId,
    /// What is said.
    pub output: Output,
    /// Where frame 0 wants its [`BeginReply`].
    pub reply: Option<async_nats::Subject>,
}

/// All output of one gateway worker.
pub trait OutputSource {
    /// The next message; `None` when the connection has been closed for good.
    fn next(&mut self) -> impl Future<Output = Option<Delivery>>;
}

/// Output over core NATS: one wildcard subscription for each gateway worker.
#[derive(Clone, Debug)]
pub struct NatsOutput {
    bus: Bus,
}

impl NatsOutput {
    /// On this connection. NATS keeps the order of one publisher, so all frames of a job use one.
    #[must_use]
    pub fn new(bus: Bus) -> Self {
        Self { bus }
    }

    /// Hears all output for `gateway`; the subscription stands when this returns.
    ///
    /// # Errors
    /// When the subscription cannot be made.
    pub async fn listen(&self, gateway: &GatewayId) -> Result<NatsOutputSource, BusError> {
        let subscriber = self.bus.subscribe(self.bus.subjects.out_all(gateway)).await?;
        Ok(NatsOutputSource { subscriber, client: self.bus.client.clone() })
    }

    /// Whether anybody hears output for `gateway`. A probe is an empty message, answered by the transport itself.
    pub async fn is_heard(&self, gateway: &GatewayId) -> bool {
        let subject = self.bus.subjects.out_probe(gateway);
        let probe = async_nats::Request::new().timeout(Some(PROBE_LIMIT));
        match self.bus.client.send_request(subject, probe).await {
            Ok(_) => true,
            Err(error) => error.kind() != async_nats::RequestErrorKind::NoResponders,
        }
    }

    async fn publish(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        output: &Output,
    ) -> Result<(), BusError> {
        let payload = output.encode()?;
        self.bus.check_size(&subject, payload.len())?;
        let sent = match headers {
            Some(headers) => {
                self.bus.client.publish_with_headers(subject.clone(), headers, payload.into()).await
            }
            None => self.bus.client.publish(subject.clone(), payload.into()).await,
        };
        sent.map_err(|e| BusError::nats(format!("publish to {subject}"), e))
    }
}

/// How long a gateway may take to answer frame 0.
const BEGIN_LIMIT: Duration = Duration::from_secs(10);

/// Header names that need not be looked at any more.
mod name {
    use async_nats::HeaderName;

    pub(super) const CONTENT_TYPE: HeaderName = HeaderName::from_static(berth_wire::CONTENT_TYPE);
    pub(super) const SCHEMA: HeaderName = HeaderName::from_static(berth_wire::SCHEMA);
    pub(super) const ATTEMPT: HeaderName = HeaderName::from_static(berth_wire::ATTEMPT);
    pub(super) const SEQ: HeaderName = HeaderName::from_static(berth_wire::SEQ);
    pub(super) const FINAL: HeaderName = HeaderName::from_static(berth_wire::FINAL);
}

fn output_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(name::CONTENT_TYPE, MSGPACK);
    headers.insert(name::SCHEMA, Output::SCHEMA);
    headers
}

impl OutputSink for NatsOutput {
    async fn begin(&self, gateway: &GatewayId, job: JobId, frame: Frame) -> Result<BeginReply, BusError> {
        let payload = Output::Frame(frame).encode()?;
        let subject = self.bus.subjects.out(gateway, job);
        self.bus.request_raw(subject, output_headers(), payload.into(), BEGIN_LIMIT).await
    }

    async fn send(&self, gateway: &GatewayId, job: JobId, frame: Frame) -> Result<(), BusError> {
        // Only the last frame has headers: they cost more than they tell on every token.
        let headers = frame.end.as_ref().map(|end| {
            let mut headers = output_headers();
            headers.insert(name::ATTEMPT, frame.attempt.to_string());
            headers.insert(name::SEQ, frame.seq.to_string());
            headers.insert(name::FINAL, end.finish.as_str());
            headers
        });
        self.publish(self.bus.subjects.out(gateway, job), headers, &Output::Frame(frame)).await
    }

    async fn decline(&self, to: async_nats::Subject, reply: Reply) -> Result<(), BusError> {
        self.publish(to.to_string(), None, &Output::Declined(reply)).await
    }

    async fn notify(
        &self,
        gateway: &GatewayId,
        job: JobId,
        epoch: Epoch,
        notice: Notice,
    ) -> Result<(), BusError> {
        let output = Output::Notice { epoch, notice };
        self.publish(self.bus.subjects.out(gateway, job), Some(output_headers()), &output).await
    }
}

/// The subscription of one gateway worker.
#[derive(Debug)]
pub struct NatsOutputSource {
    subscriber: Subscriber,
    client: async_nats::Client,
}

impl NatsOutputSource {
    /// Reads one message; `None` if it is a probe or none of ours.
    async fn read(client: &async_nats::Client, message: &Inbound) -> Option<Delivery> {
        // An offer names the job's own subject for answers, so the server says there that nobody took it.
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            let job = Subjects::job_of(&message.subject)?;
            let reply = Reply::Refused { message: "no agent answers for this host".into() };
            return Some(Delivery { job, output: Output::Declined(reply), reply: None });
        }
        if message.payload.is_empty() {
            if let Some(reply) = message.reply.clone() {
                // If it fails, the prober hears nothing, which it takes for a busy gateway.
                let _ = client.publish(reply, bytes::Bytes::new()).await;
            }
            return None;
        }
        let output = read_as(message, Output::SCHEMA, Output::decode)?;
        let job = Subjects::job_of(&message.subject)?;
        Some(Delivery { job, output, reply: message.reply.clone() })
    }

    /// The messages, as an actor adds them as a stream.
    pub fn into_stream(self) -> impl futures::Stream<Item = Delivery> {
        let Self { subscriber, client } = self;
        subscriber.filter_map(move |message| {
            let client = client.clone();
            async move { Self::read(&client, &message).await }
        })
    }
}

impl OutputSource for NatsOutputSource {
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let message = self.subscriber.next().await?;
            if let Some(delivery) = Self::read(&self.client, &message).await {
                return Some(delivery);
            }
        }
    }
}
