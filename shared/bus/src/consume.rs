//! The stream of outstanding jobs: gateways submit, the leader reads it from the start and removes what has ended.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, PublishErrorKind};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::stream::Stream;
use berth_wire::{CONTENT_TYPE, Epoch, JOB, Job, JobId, MSGPACK, ModelId, SCHEMA};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tracing::{info, warn};

use crate::connect::Bus;
use crate::error::BusError;
use crate::message::read_as;

/// No job waits longer than this in the stream, whoever died: a backstop, beyond any deadline.
const JOB_TTL: Duration = Duration::from_secs(24 * 3600);
/// A reader that fails so often in a row may hear nothing any more.
const FAILURES: u32 = 2;
/// The consumer of a leader that is gone disappears after this.
const INACTIVE: Duration = Duration::from_secs(300);

impl Bus {
    /// Submits a job and waits until the stream has it. Returns its sequence number.
    ///
    /// # Errors
    /// [`BusError::Full`] at the stream's limits, [`BusError::Missing`] before a scheduler has made the stream.
    pub async fn submit(&self, job: &Job) -> Result<u64, BusError> {
        self.submit_payload(job.id, &job.model, job.encode()?.into()).await
    }

    /// Submits a job that is written already.
    ///
    /// # Errors
    /// As [`Bus::submit`].
    pub async fn submit_payload(&self, id: JobId, model: &ModelId, payload: Bytes) -> Result<u64, BusError> {
        let subject = self.subjects.submit(model);
        self.check_size(&subject, payload.len() + 1024)?;
        let id = id.to_string();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, MSGPACK);
        headers.insert(SCHEMA, Job::SCHEMA);
        headers.insert(JOB, id.as_str());
        headers.insert("Nats-Msg-Id", id.as_str());
        headers.insert("Nats-TTL", format!("{}s", JOB_TTL.as_secs()));
        let failed = |e: async_nats::jetstream::context::PublishError| match e.kind() {
            PublishErrorKind::StreamNotFound => {
                BusError::Missing { asset: format!("the stream {}", self.subjects.jobs_stream()) }
            }
            PublishErrorKind::TimedOut => BusError::TimedOut { subject: subject.clone() },
            _ if is_full(&e) => BusError::Full("too many jobs are outstanding".into()),
            _ => BusError::nats("submit a job", e),
        };
        let ack =
            self.jetstream.publish_with_headers(subject.clone(), headers, payload).await.map_err(failed)?;
        // The first await only sends; this one is the PubAck.
        Ok(ack.await.map_err(failed)?.sequence)
    }
}

fn is_full(error: &async_nats::jetstream::context::PublishError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if text.contains("maximum messages exceeded") || text.contains("maximum bytes exceeded") {
            return true;
        }
        cause = error.source();
    }
    false
}

/// A job read from the stream.
pub struct QueuedJob {
    /// The job; its body is a slice of `payload`.
    pub job: Job,
    /// The message as it came, which a dispatch passes on.
    pub payload: Bytes,
    /// Its place in the stream.
    pub sequence: u64,
    /// How many jobs of the stream have yet to be read.
    pub pending: u64,
    /// Removes it.
    pub ticket: Ticket,
}

/// The right to remove one job from the stream.
pub struct Ticket(Acker);

impl Ticket {
    /// Removes the job, which has ended; tries again until the server confirms, for a bounded time.
    pub async fn remove(self) {
        for _ in 0..10 {
            if self.0.double_ack().await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // The stream redelivers it, and the core then drops it as long ended.
        warn!("could not remove an ended job from the stream");
    }
}

fn consumer_name(epoch: Epoch) -> String {
    format!("scheduler-{epoch}")
}

/// The leader's view of the stream.
pub struct Jobs {
    stream: Stream,
    consumer: async_nats::jetstream::consumer::Consumer<pull::Config>,
}

impl Jobs {
    /// Takes the stream over for the leader of `epoch`: consumers of earlier leaders are removed, and every
    /// outstanding job is delivered anew.
    ///
    /// # Errors
    /// When the stream is missing or the consumer cannot be made.
    pub async fn take_over(bus: &Bus, epoch: Epoch) -> Result<Self, BusError> {
        let name = bus.subjects.jobs_stream();
        let stream = bus
            .jetstream
            .get_stream(&name)
            .await
            .map_err(|_| BusError::Missing { asset: format!("the stream {name}") })?;
        let earlier: Vec<String> =
            stream.consumer_names().try_collect().await.map_err(|e| BusError::nats("list consumers", e))?;
        for consumer in earlier {
            // Two consumers of a work queue may not overlap, and an old leader must hear nothing more.
            if let Err(error) = stream.delete_consumer(&consumer).await {
                info!(consumer, %error, "an earlier consumer was already gone");
            }
        }
        let consumer = stream
            .create_consumer(pull::Config {
                name: Some(consumer_name(epoch)),
                description: Some("the leading scheduler".into()),
                deliver_policy: DeliverPolicy::All,
                ack_policy: AckPolicy::Explicit,
                // A job stays unacknowledged for as long as it waits and runs.
                ack_wait: JOB_TTL,
                max_ack_pending: -1,
                inactive_threshold: INACTIVE,
                ..pull::Config::default()
            })
            .await
            .map_err(|e| BusError::nats("read the job stream", e))?;
        Ok(Self { stream, consumer })
    }

    /// The same once more within a term, when what was delivered may have been lost with the connection.
    ///
    /// # Errors
    /// As [`Jobs::take_over`], and when another leader has taken the stream over meanwhile.
    pub async fn take_again(bus: &Bus, epoch: Epoch) -> Result<Self, BusError> {
        let name = bus.subjects.jobs_stream();
        let stream =
            bus.jetstream.get_stream(&name).await.map_err(|e| BusError::nats("find the job stream", e))?;
        match stream.consumer_info(consumer_name(epoch)).await {
            Ok(_) => Self::take_over(bus, epoch).await,
            Err(e) if e.kind() == ConsumerInfoErrorKind::NotFound => {
                Err(BusError::Missing { asset: format!("this leader's consumer of the stream {name}") })
            }
            Err(e) => Err(BusError::nats("ask for the job stream's consumer", e)),
        }
    }

    /// Every outstanding job, then new ones as they come. An unreadable one is dropped from the stream. Ends when the
    /// server fails it several times in a row: then it is to be taken again.
    ///
    /// # Errors
    /// When the consumer is gone.
    pub async fn messages(&self) -> Result<impl futures::Stream<Item = QueuedJob> + use<>, BusError> {
        let messages = self
            .consumer
            .stream()
            .max_messages_per_batch(500)
            .heartbeat(Duration::from_secs(5))
            .expires(Duration::from_secs(30))
            .messages()
            .await
            .map_err(|e| BusError::nats("read the job stream", e))?;
        Ok(futures::stream::unfold((messages, 0), |(mut messages, mut failures)| async move {
            loop {
                let message = match messages.next().await? {
                    Ok(message) => message,
                    Err(error) => {
                        failures += 1;
                        warn!(%error, failures, "reading the job stream");
                        if failures == FAILURES {
                            return None;
                        }
                        continue;
                    }
                };
                failures = 0;
                let (sequence, pending) =
                    message.info().map_or((0, 0), |info| (info.stream_sequence, info.pending));
                let (message, acker) = message.split();
                let ticket = Ticket(acker);
                if let Some(job) = read_as(&message, Job::SCHEMA, Job::decode) {
                    let payload = message.payload;
                    return Some((
                        QueuedJob { job, payload, sequence, pending, ticket },
                        (messages, failures),
                    ));
                }
                ticket.remove().await;
            }
        }))
    }

    /// How many jobs there were to read when the stream was taken over.
    #[must_use]
    pub fn to_read(&self) -> u64 {
        self.consumer.cached_info().num_pending
    }

    /// How many jobs the stream holds now.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn outstanding(&mut self) -> Result<u64, BusError> {
        let info = self.stream.info().await.map_err(|e| BusError::nats("ask for the job stream", e))?;
        Ok(info.state.messages)
    }

    /// The payload of a job that is still in the stream.
    ///
    /// # Errors
    /// When it has been removed.
    pub async fn payload(&self, sequence: u64) -> Result<Bytes, BusError> {
        let message = self
            .stream
            .direct_get(sequence)
            .await
            .map_err(|e| BusError::nats("fetch a job from the stream", e))?;
        Ok(message.payload)
    }
}
