//! The story of the fleet, read from its stream: what has happened since, and on as it happens.

use std::pin::Pin;
use std::time::SystemTime;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use berth_wire::{Event, decode_json};
use futures::{Stream, StreamExt};

use crate::connect::Bus;
use crate::error::BusError;

/// From where a story is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// From what is kept: 72 hours.
    Beginning,
    /// From then on.
    Time(SystemTime),
    /// Only what happens from here on.
    Now,
}

type Facts = Pin<Box<dyn Stream<Item = Result<Event, BusError>> + Send>>;

/// Facts in their order.
pub struct Story {
    facts: Facts,
    /// Messages of the past that are still to come.
    left: u64,
}

impl Bus {
    /// Reads the facts on these subjects.
    ///
    /// # Errors
    /// [`BusError::Missing`] before a scheduler has made the stream; or when NATS does not answer.
    pub async fn story(
        &self,
        since: Since,
        subjects: impl IntoIterator<Item = String>,
    ) -> Result<Story, BusError> {
        let name = self.subjects.events_stream();
        let deliver_policy = match since {
            Since::Beginning => DeliverPolicy::All,
            Since::Time(at) => DeliverPolicy::ByStartTime { start_time: at.into() },
            Since::Now => DeliverPolicy::New,
        };
        let missing = BusError::Missing { asset: format!("the stream {name}") };
        let stream = self.jetstream.get_stream(&name).await.map_err(|_| missing)?;
        let filter_subjects = subjects.into_iter().collect();
        let config = OrderedConfig { deliver_policy, filter_subjects, ..OrderedConfig::default() };
        let failed = |e| BusError::nats("read the events", e);
        let consumer =
            stream.create_consumer(config).await.map_err(|e| BusError::nats("read the events", e))?;
        let left = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|e| BusError::nats("read the events", e))?;
        let facts = messages.map(move |message| {
            let message = message.map_err(failed)?;
            Ok(decode_json::<Event>(&message.payload)?)
        });
        Ok(Story { facts: Box::pin(facts), left })
    }
}

impl Story {
    /// The next fact of the past; `None`: there are no more.
    ///
    /// # Errors
    /// When NATS does not answer.
    pub async fn past(&mut self) -> Result<Option<Event>, BusError> {
        while self.left > 0 {
            self.left -= 1;
            match self.facts.next().await {
                None => return Ok(None),
                Some(Ok(fact)) => return Ok(Some(fact)),
                // A fact of a later version than ours.
                Some(Err(BusError::Decode(_))) => {}
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The next fact, past or to come; `None`: the connection is closed.
    ///
    /// # Errors
    /// When NATS does not answer.
    pub async fn next(&mut self) -> Result<Option<Event>, BusError> {
        loop {
            self.left = self.left.saturating_sub(1);
            match self.facts.next().await {
                None => return Ok(None),
                Some(Ok(fact)) => return Ok(Some(fact)),
                Some(Err(BusError::Decode(_))) => {}
                Some(Err(error)) => return Err(error),
            }
        }
    }
}
