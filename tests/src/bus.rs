//! What an operator sees on the bus.

use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use crate::run::SOON;
use crate::until_ok;

/// A look at one fleet's streams.
pub struct Bus {
    context: jetstream::Context,
}

impl Bus {
    /// Connects to a nats-server; a token may stand before the `@` of its URL, as for the NATS CLI, or there is the
    /// operator's key.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn connect(url: &str, nkey: Option<&str>) -> Self {
        let (options, url) = match url.strip_prefix("nats://").and_then(|rest| rest.split_once('@')) {
            Some((token, address)) => {
                (async_nats::ConnectOptions::with_token(token.into()), format!("nats://{address}"))
            }
            None => (async_nats::ConnectOptions::new(), url.to_owned()),
        };
        let options = match nkey {
            Some(key) => options.nkey(key.into()).custom_inbox_prefix("_INBOX.berth.v1.operator"),
            None => options,
        };
        let client = options.connect(&url).await.unwrap_or_else(|e| panic!("no connection to {url}: {e}"));
        Self { context: jetstream::new(client) }
    }

    /// Jobs that have not ended.
    ///
    /// # Errors
    /// When the stream cannot be asked.
    pub async fn outstanding(&self) -> Result<u64, String> {
        let stream = self.context.get_stream("BERTH_JOBS").await.map_err(|e| e.to_string())?;
        Ok(stream.cached_info().state.messages)
    }

    /// Waits until so many jobs are outstanding.
    pub async fn until_outstanding(&self, count: u64) {
        until_ok(&format!("{count} jobs are outstanding"), SOON, async || match self.outstanding().await {
            Ok(now) if now == count => Ok(()),
            Ok(now) => Err(format!("{now} are")),
            Err(error) => Err(error),
        })
        .await;
    }

    /// Removes every job from the stream, behind the back of whoever knows them.
    ///
    /// # Panics
    /// When it cannot be asked for.
    pub async fn lose_jobs(&self) {
        let stream = self.context.get_stream("BERTH_JOBS").await.expect("the stream is there");
        stream.purge().await.expect("it can be purged");
    }

    /// Takes the next job that the server would hand to the leader besides its own, and keeps it: a delivery that gets
    /// lost. `asked` is called once the server has been asked.
    ///
    /// # Panics
    /// When no leader reads the stream, or no job comes.
    pub async fn steal_delivery(&self, asked: impl Future<Output = ()>) {
        let stream = self.context.get_stream("BERTH_JOBS").await.expect("the stream is there");
        let names: Vec<String> =
            stream.consumer_names().try_collect().await.expect("consumers can be listed");
        let leader: jetstream::consumer::PullConsumer =
            stream.get_consumer(&names[0]).await.expect("the leader reads the stream");
        let mut stolen = leader
            .batch()
            .max_messages(1)
            .expires(Duration::from_secs(20))
            .messages()
            .await
            .expect("jobs can be asked for");
        asked.await;
        let message = tokio::time::timeout(Duration::from_secs(20), stolen.next()).await;
        message.expect("a job comes in time").expect("a job comes").expect("it can be read");
    }

    /// Every fact of this kind so far (`engine_starting`, `job_ended`), oldest first.
    ///
    /// # Panics
    /// When the stream cannot be read.
    pub async fn facts(&self, kind: &str) -> Vec<Value> {
        let all = self.payloads("BERTH_EVENTS").await;
        let facts = all.iter().map(|payload| serde_json::from_slice(payload).expect("facts are JSON"));
        facts.filter(|fact| holds(fact, kind)).collect()
    }

    /// Everything that JetStream keeps beside jobs: facts, buckets.
    ///
    /// # Panics
    /// When it cannot be read.
    pub async fn everything_kept(&self) -> String {
        let names: Vec<String> =
            self.context.stream_names().try_collect().await.expect("the streams can be listed");
        let mut all = String::new();
        // Jobs are handed out once, to the leader.
        for name in names.into_iter().filter(|name| !name.ends_with("_JOBS")) {
            for payload in self.payloads(&name).await {
                all.push_str(&String::from_utf8_lossy(&payload));
                all.push('\n');
            }
        }
        all
    }

    async fn payloads(&self, stream: &str) -> Vec<Bytes> {
        let stream = self.context.get_stream(stream).await.expect("the stream is there");
        let consumer = stream
            .create_consumer(jetstream::consumer::pull::OrderedConfig::default())
            .await
            .expect("the stream can be read");
        let mut left = consumer.cached_info().num_pending;
        let mut messages = consumer.messages().await.expect("the stream can be read");
        let mut payloads = Vec::new();
        while left > 0 {
            let message = tokio::time::timeout(Duration::from_secs(10), messages.next())
                .await
                .expect("the stream holds what it says")
                .expect("the stream goes on")
                .expect("a message can be read");
            payloads.push(message.payload.clone());
            left -= 1;
        }
        payloads
    }
}

/// Whether the fact is of this kind, at its top or one level below.
fn holds(fact: &Value, kind: &str) -> bool {
    let is = |value: &Value| value.get("kind").is_some_and(|k| k == kind);
    is(fact) || fact.as_object().is_some_and(|fields| fields.values().any(is))
}
