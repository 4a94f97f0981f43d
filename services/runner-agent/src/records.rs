//! Engine records in KV: the newest of each key is written, and a slow server delays nobody.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use berth_actors::Backoff;
use berth_bus::{BusError, put_json};
use berth_telemetry::Chain;
use berth_wire::EngineRecord;
use futures::TryStreamExt;
use tokio::sync::Notify;
use tracing::debug;

/// A write that has not been confirmed by then is tried again.
const WRITE: Duration = Duration::from_secs(5);

/// What is still to be written: a record, or that the key is to go.
pub(crate) struct Records {
    store: Store,
    pending: RefCell<BTreeMap<String, Option<EngineRecord>>>,
    changed: Notify,
    written: Notify,
}

impl Records {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, pending: RefCell::default(), changed: Notify::new(), written: Notify::new() }
    }

    pub(crate) fn put(&self, key: String, record: Option<EngineRecord>) {
        self.pending.borrow_mut().insert(key, record);
        self.changed.notify_one();
    }

    /// Waits until all is written.
    pub(crate) async fn flushed(&self) {
        while !self.pending.borrow().is_empty() {
            self.written.notified().await;
        }
    }

    /// Removes every key that begins with `prefix`.
    pub(crate) async fn purge(
        &self,
        prefix: &str,
    ) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
        let keys: Vec<String> = self.store.keys().await?.try_collect().await?;
        let mut removed = 0;
        for key in keys.iter().filter(|key| key.starts_with(prefix)) {
            self.store.delete(key).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Writes until dropped.
    pub(crate) async fn run(&self) {
        let mut backoff = Backoff::default();
        loop {
            let next =
                self.pending.borrow().first_key_value().map(|(key, value)| (key.clone(), value.clone()));
            let Some((key, record)) = next else {
                self.written.notify_waiters();
                self.changed.notified().await;
                continue;
            };
            match tokio::time::timeout(WRITE, self.write(&key, record.as_ref())).await {
                Ok(Ok(())) => {
                    backoff.reset();
                    let mut pending = self.pending.borrow_mut();
                    // Something newer may have come meanwhile.
                    if pending.get(&key) == Some(&record) {
                        pending.remove(&key);
                    }
                }
                Ok(Err(error)) => {
                    debug!(key, error = %Chain(&error), "cannot write an engine's record yet");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
                Err(_) => debug!(key, "writing an engine's record takes long; trying again"),
            }
        }
    }

    async fn write(&self, key: &str, record: Option<&EngineRecord>) -> Result<(), BusError> {
        match record {
            Some(record) => put_json(&self.store, key, record).await.map(|_| ()),
            None => self
                .store
                .delete(key)
                .await
                .map_err(|e| BusError::Nats { what: format!("delete the key {key}"), source: Box::new(e) }),
        }
    }

    pub(crate) fn observe(&self) -> serde_json::Value {
        serde_json::json!({ "pending": self.pending.borrow().len() })
    }
}
