//! Typed publishing and requesting, with the schema in a header.

use std::time::Duration;

use async_nats::{HeaderMap, Request, RequestErrorKind, Subject};
use berth_telemetry::metric;
use berth_wire::{
    ATTEMPT, CONTENT_TYPE, DecodeError, DispatchHeaders, ENGINE, EPOCH, EngineId, Epoch, GatewayId, HostId,
    JSON, JobId, MSGPACK, Message, SCHEMA, Verb, decode, encode, encode_json,
};
use bytes::Bytes;
use tracing::warn;

use crate::connect::Bus;
use crate::error::BusError;

/// A message that arrived and may want an answer.
pub type Inbound = async_nats::Message;

/// Room for the headers of an offer.
const OFFER_HEADERS: usize = 256;

fn schema_headers<M: Message>(content_type: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(SCHEMA, M::SCHEMA);
    headers
}

impl Bus {
    /// Publishes msgpack.
    ///
    /// # Errors
    /// When it cannot be written, is too large, or the connection is closed for good.
    pub async fn publish<M: Message>(&self, subject: String, message: &M) -> Result<(), BusError> {
        let payload = encode(message)?;
        self.check_size(&subject, payload.len())?;
        self.client
            .publish_with_headers(subject.clone(), schema_headers::<M>(MSGPACK), payload.into())
            .await
            .map_err(|e| BusError::nats(format!("publish to {subject}"), e))
    }

    /// Publishes JSON: for what people read.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn publish_json<M: Message>(&self, subject: String, message: &M) -> Result<(), BusError> {
        let payload = encode_json(message)?;
        self.check_size(&subject, payload.len())?;
        self.client
            .publish_with_headers(subject.clone(), schema_headers::<M>(JSON), payload.into())
            .await
            .map_err(|e| BusError::nats(format!("publish to {subject}"), e))
    }

    /// Asks and reads the typed answer.
    ///
    /// # Errors
    /// [`BusError::NoResponders`] when nobody listens, [`BusError::TimedOut`] when nobody answers.
    pub async fn request<M: Message, R: Message>(
        &self,
        subject: String,
        message: &M,
        timeout: Duration,
    ) -> Result<R, BusError> {
        self.request_raw(subject, schema_headers::<M>(MSGPACK), encode(message)?.into(), timeout).await
    }

    /// Asks with a payload that is already written.
    ///
    /// # Errors
    /// As [`Bus::request`].
    pub async fn request_raw<R: Message>(
        &self,
        subject: String,
        headers: HeaderMap,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<R, BusError> {
        self.check_size(&subject, payload.len())?;
        let request = Request::new().payload(payload).headers(headers).timeout(Some(timeout));
        let answer =
            self.client.send_request(subject.clone(), request).await.map_err(|e| match e.kind() {
                RequestErrorKind::NoResponders => BusError::NoResponders { subject: subject.clone() },
                // The server says so by an event alone, and the request is waited for in vain.
                RequestErrorKind::TimedOut if self.denials.has("publish", &subject) => {
                    BusError::Forbidden { action: "publish", subject: subject.clone() }
                }
                RequestErrorKind::TimedOut => BusError::TimedOut { subject: subject.clone() },
                _ => BusError::nats(format!("ask on {subject}"), e),
            })?;
        Ok(decode(&answer.payload)?)
    }

    /// Offers a job to the host of an engine. Everything that follows comes on the job's output subject: frames, or
    /// that it is declined, be it by the server because nobody is there.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn offer(
        &self,
        host: &HostId,
        engine: EngineId,
        gateway: &GatewayId,
        job: JobId,
        payload: Bytes,
    ) -> Result<(), BusError> {
        let subject = self.subjects.ctl(host, Verb::Offer);
        self.check_size(&subject, payload.len() + OFFER_HEADERS)?;
        let mut headers = HeaderMap::new();
        headers.insert(ENGINE, engine.to_string());
        let reply = self.subjects.out(gateway, job);
        self.client
            .publish_with_reply_and_headers(subject, reply, headers, payload)
            .await
            .map_err(|e| BusError::nats("offer a job", e))
    }

    /// Answers a request; a message without a reply subject wants none.
    ///
    /// # Errors
    /// As [`Bus::publish`].
    pub async fn reply<M: Message>(&self, to: Option<Subject>, message: &M) -> Result<(), BusError> {
        match to {
            Some(subject) => self.publish(subject.to_string(), message).await,
            None => Ok(()),
        }
    }

    /// Subscribes and makes sure that the server knows it before this returns.
    ///
    /// # Errors
    /// When the connection is closed for good, or the server does not answer.
    pub async fn subscribe(&self, subject: String) -> Result<async_nats::Subscriber, BusError> {
        let subscriber = self
            .client
            .subscribe(subject.clone())
            .await
            .map_err(|e| BusError::nats(format!("subscribe to {subject}"), e))?;
        // The SUB is only queued so far. The server reads a connection in order, so once an exchange that was
        // sent after it has been answered, the SUB stands.
        let inbox = self.client.new_inbox();
        let mut sentinel = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|e| BusError::nats("subscribe to an inbox", e))?;
        self.client
            .publish(inbox, Bytes::new())
            .await
            .map_err(|e| BusError::nats("publish to an inbox", e))?;
        let heard = futures::StreamExt::next(&mut sentinel);
        let heard = tokio::time::timeout(Duration::from_secs(10), heard).await;
        // What the server said of it came before the sentinel, by a task of its own.
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        match heard {
            _ if self.denials.has("subscribe", &subject) => {
                Err(BusError::Forbidden { action: "subscribe", subject })
            }
            Ok(Some(_)) => Ok(subscriber),
            _ => Err(BusError::TimedOut { subject }),
        }
    }
}

/// Reads a payload, or counts and logs that it cannot be read; the message is then dropped.
#[must_use]
pub fn read<M: Message>(message: &Inbound) -> Option<M> {
    read_as(message, M::SCHEMA, |payload| decode(payload))
}

/// As [`read`], by a decoder of one's own.
pub fn read_as<T>(
    message: &Inbound,
    schema: &'static str,
    decoder: impl FnOnce(&Bytes) -> Result<T, DecodeError>,
) -> Option<T> {
    match decoder(&message.payload) {
        Ok(value) => Some(value),
        Err(error) => {
            metrics::counter!(metric::BUS_BAD_MESSAGES, "schema" => schema).increment(1);
            warn!(subject = %message.subject, %error, "dropped a message that cannot be read");
            None
        }
    }
}

/// The NATS headers of a dispatch.
#[must_use]
pub fn dispatch_headers(d: &DispatchHeaders) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, MSGPACK);
    headers.insert(SCHEMA, berth_wire::Job::SCHEMA);
    headers.insert(EPOCH, d.epoch.to_string());
    headers.insert(ENGINE, d.engine.to_string());
    headers.insert(ATTEMPT, d.attempt.to_string());
    headers
}

/// Reads which engine an offer is for.
///
/// # Errors
/// When the header is missing or malformed.
pub fn read_offer_headers(headers: Option<&HeaderMap>) -> Result<EngineId, DecodeError> {
    let text = headers.and_then(|headers| headers.get(ENGINE)).map(async_nats::HeaderValue::as_str);
    text.and_then(|text| text.parse().ok()).ok_or_else(|| DecodeError {
        schema: "ctl.offer/1",
        reason: format!("header `{ENGINE}` is missing or malformed"),
    })
}

/// Reads what [`dispatch_headers`] wrote.
///
/// # Errors
/// Names the header that is missing or malformed.
pub fn read_dispatch_headers(headers: Option<&HeaderMap>) -> Result<DispatchHeaders, DecodeError> {
    let bad = |name: &str| DecodeError {
        schema: "ctl.dispatch/1",
        reason: format!("header `{name}` is missing or malformed"),
    };
    let text = |name: &'static str| {
        headers.and_then(|h| h.get(name)).map(async_nats::HeaderValue::as_str).ok_or_else(|| bad(name))
    };
    Ok(DispatchHeaders {
        epoch: Epoch(text(EPOCH)?.parse().map_err(|_| bad(EPOCH))?),
        engine: text(ENGINE)?.parse().map_err(|_| bad(ENGINE))?,
        attempt: text(ATTEMPT)?.parse().map_err(|_| bad(ATTEMPT))?,
    })
}
