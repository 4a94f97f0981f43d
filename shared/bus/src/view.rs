//! A KV bucket as a map that keeps itself current: readers see levels, not edges.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, KeyValueErrorKind};
use async_nats::jetstream::kv::{CreateErrorKind, Operation, Store, UpdateErrorKind};
use berth_wire::{Message, decode_json, encode_json};
use futures::StreamExt;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::connect::Bus;
use crate::error::BusError;

/// Writes one key as JSON. Returns its revision.
///
/// # Errors
/// When the bucket is missing or the write is not confirmed.
pub async fn put_json<M: Message>(store: &Store, key: &str, message: &M) -> Result<u64, BusError> {
    let value = encode_json(message)?;
    store.put(key, value.into()).await.map_err(|e| BusError::nats(format!("write the key {key}"), e))
}

/// Writes one key as JSON, if there is none of that name. Returns its revision.
///
/// # Errors
/// [`BusError::Conflict`] when there is one; or when the write is not confirmed.
pub async fn create_json<M: Message>(store: &Store, key: &str, message: &M) -> Result<u64, BusError> {
    let value = encode_json(message)?;
    store.create(key, value.into()).await.map_err(|error| match error.kind() {
        CreateErrorKind::AlreadyExists => BusError::Conflict { key: key.to_owned() },
        _ => BusError::nats(format!("write the key {key}"), error),
    })
}

/// Deletes one key.
///
/// # Errors
/// When the bucket is missing or the write is not confirmed.
pub async fn delete_key(store: &Store, key: &str) -> Result<(), BusError> {
    store.delete(key).await.map_err(|e| BusError::nats(format!("delete the key {key}"), e))
}

/// Writes one key as JSON, unless it has been written since `revision`. Its new revision; `None`: it has.
///
/// # Errors
/// When the bucket is missing or the write is not confirmed.
pub async fn amend_json<M: Message>(
    store: &Store,
    key: &str,
    message: &M,
    revision: u64,
) -> Result<Option<u64>, BusError> {
    let value = encode_json(message)?;
    match store.update(key, value.into(), revision).await {
        Ok(revision) => Ok(Some(revision)),
        Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
        Err(error) => Err(BusError::nats(format!("write the key {key}"), error)),
    }
}

/// Reads one key, with its revision; `None`: there is nothing.
///
/// # Errors
/// When the bucket does not answer, or what is there cannot be read.
pub async fn get_json<M: Message>(store: &Store, key: &str) -> Result<Option<(M, u64)>, BusError> {
    let entry = store.entry(key).await.map_err(|e| BusError::nats(format!("read the key {key}"), e))?;
    let Some(entry) = entry.filter(|entry| entry.operation == Operation::Put) else { return Ok(None) };
    Ok(Some((decode_json(&entry.value)?, entry.revision)))
}

/// Every key with what it holds, and then each change: a key that is gone, or holds what cannot be read, has nothing.
/// For a bucket of which no map is kept; it ends with an error or with the watch.
///
/// # Errors
/// When the bucket does not answer.
pub async fn watch_json<M: Message>(
    store: &Store,
) -> Result<impl futures::Stream<Item = Result<(String, Option<M>), BusError>> + use<M>, BusError> {
    let failed = |e| BusError::nats("watch a bucket", e);
    let watch = store.watch_with_history(">").await.map_err(|e| BusError::nats("watch a bucket", e))?;
    Ok(watch.map(move |entry| {
        let entry = entry.map_err(failed)?;
        let value = (entry.operation == Operation::Put).then(|| decode_json(&entry.value).ok()).flatten();
        Ok((entry.key, value))
    }))
}

impl Bus {
    /// Opens a bucket by its short name (`hosts` for `berth_hosts`).
    ///
    /// # Errors
    /// [`BusError::Missing`] before a scheduler has made it.
    pub async fn bucket(&self, name: &str) -> Result<Store, BusError> {
        let name = self.subjects.bucket(name);
        self.jetstream.get_key_value(&name).await.map_err(|error| match error.kind() {
            // Told apart from a server that does not answer.
            KeyValueErrorKind::GetBucket if said_missing(&error) => {
                BusError::Missing { asset: format!("the bucket {name}") }
            }
            _ => BusError::nats(format!("open the bucket {name}"), error),
        })
    }
}

/// Whether the server itself said that there is no such stream.
fn said_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(told) = error.downcast_ref::<jetstream::Error>() {
            return told.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND;
        }
        if let Some(told) = error.downcast_ref::<GetStreamError>()
            && let GetStreamErrorKind::JetStream(told) = told.kind()
        {
            return told.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND;
        }
        cause = error.source();
    }
    false
}

/// The entries of a bucket by key; unreadable ones are left out (and logged).
pub type Entries<M> = Arc<BTreeMap<String, Arc<M>>>;

/// A bucket that is followed. Clones share; it ends when the last is dropped.
#[derive(Debug)]
pub struct View<M> {
    current: watch::Receiver<Option<Entries<M>>>,
}

impl<M> Clone for View<M> {
    fn clone(&self) -> Self {
        Self { current: self.current.clone() }
    }
}

impl<M: Message + Send + Sync + 'static> View<M> {
    /// Follows a bucket by its short name; waits with back-off for one that does not exist yet, and takes the
    /// watch up again after a server restart.
    #[must_use]
    pub fn follow(bus: &Bus, bucket: &str) -> Self {
        Self::follow_keys(bus, bucket, ">")
    }

    /// The same with only those keys that match, as in `*.name`.
    #[must_use]
    pub fn follow_keys(bus: &Bus, bucket: &str, keys: &str) -> Self {
        let (publish, current) = watch::channel(None);
        let (bus, bucket, keys) = (bus.clone(), bucket.to_owned(), keys.to_owned());
        tokio::spawn(async move {
            tokio::select! {
                () = publish.closed() => {}
                () = follow(&bus, &bucket, &keys, &publish) => {}
            }
        });
        Self { current }
    }

    /// The entries as last known; empty before the bucket was first read.
    #[must_use]
    pub fn entries(&self) -> Entries<M> {
        self.current.borrow().clone().unwrap_or_default()
    }

    /// Whether the bucket has been read whole at least once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// Waits until the bucket has been read whole.
    pub async fn synced(&mut self) {
        let _ = self.current.wait_for(Option::is_some).await;
    }

    /// Waits for a change and returns the entries; `None` when the view has ended.
    pub async fn changed(&mut self) -> Option<Entries<M>> {
        self.current.changed().await.ok()?;
        Some(self.current.borrow_and_update().clone().unwrap_or_default())
    }
}

/// A bucket whose last entry expired between its count and its delivery would never look current.
const QUIET: Duration = Duration::from_secs(2);

async fn follow<M: Message>(
    bus: &Bus,
    bucket: &str,
    keys: &str,
    publish: &watch::Sender<Option<Entries<M>>>,
) {
    let mut delay = Duration::from_millis(100);
    let mut connects = bus.connects.clone();
    let mut unreadable = Unreadable::default();
    loop {
        connects.mark_unchanged();
        let followed = tokio::select! {
            followed = follow_once(bus, bucket, keys, publish, &mut unreadable) => followed,
            // The server may have been restarted, and the bucket with it: a watch would find out late.
            Ok(()) = connects.changed() => Ok(()),
        };
        match followed {
            Ok(()) => delay = Duration::from_millis(100),
            Err(error) => {
                debug!(bucket, %error, "cannot follow the bucket yet");
                delay = (delay * 2).min(Duration::from_secs(2));
            }
        }
        tokio::time::sleep(delay).await;
    }
}

/// Entries that cannot be read, by key and revision: each is told of once, however often the bucket is read anew.
#[derive(Debug, Default)]
struct Unreadable(BTreeMap<String, u64>);

impl Unreadable {
    fn is_news(&mut self, key: &str, revision: u64) -> bool {
        self.0.insert(key.to_owned(), revision) != Some(revision)
    }
}

async fn follow_once<M: Message>(
    bus: &Bus,
    bucket: &str,
    keys: &str,
    publish: &watch::Sender<Option<Entries<M>>>,
    unreadable: &mut Unreadable,
) -> Result<(), BusError> {
    let store = bus.bucket(bucket).await?;
    let watching = |e| BusError::nats(format!("watch the bucket {bucket}"), e);
    let mut watch = store.watch_with_history(keys).await.map_err(|e| BusError::nats("watch a bucket", e))?;
    let held = store.status().await.map_err(|e| BusError::nats("ask for a bucket", e))?.values();
    let mut map: BTreeMap<String, Arc<M>> = BTreeMap::new();
    let mut current = held == 0;
    if current {
        publish.send_replace(Some(Arc::default()));
    }
    loop {
        let entry = if current {
            watch.next().await
        } else {
            match tokio::time::timeout(QUIET, watch.next()).await {
                Ok(entry) => entry,
                Err(_) => {
                    current = true;
                    publish.send_replace(Some(Arc::new(map.clone())));
                    continue;
                }
            }
        };
        let Some(entry) = entry else { return Ok(()) };
        let entry = entry.map_err(watching)?;
        match entry.operation {
            Operation::Put => match decode_json::<M>(&entry.value) {
                Ok(value) => {
                    map.insert(entry.key, Arc::new(value));
                }
                Err(error) => {
                    if unreadable.is_news(&entry.key, entry.revision) {
                        warn!(bucket, key = entry.key, %error, "left out an entry that cannot be read");
                    }
                    map.remove(&entry.key);
                }
            },
            Operation::Delete | Operation::Purge => {
                map.remove(&entry.key);
            }
        }
        current = current || entry.delta == 0;
        if current {
            publish.send_replace(Some(Arc::new(map.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_told_of_once_until_it_is_written_anew() {
        let mut unreadable = Unreadable::default();
        assert!(unreadable.is_news("a", 7));
        assert!(!unreadable.is_news("a", 7), "the bucket is read anew");
        assert!(unreadable.is_news("b", 7) && unreadable.is_news("a", 8));
    }
}
