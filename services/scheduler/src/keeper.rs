//! Writes leases, profiles, found models and drained hosts down, in order for each key: what is newer replaces what waits to be written, and
//! one task writes, so that a later write never loses to an earlier one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::jetstream::kv::Store;
use berth_bus::{Bus, BusError};
use berth_telemetry::Chain;
use berth_wire::{Drain, HostId, Lease, Message, ModelId, ModelSpec, Profile, SessionId, encode_json, slug};
use bytes::Bytes;
use tokio::sync::watch;
use tracing::{debug, warn};

/// How long before a write that failed is tried again; doubles up to [`RETRY_MOST`].
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// Where a value belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    bucket: &'static str,
    key: String,
}

impl Place {
    fn of_model(model: &ModelId) -> Self {
        Self { bucket: "catalog", key: slug::encode(model.as_str()) }
    }

    /// A drained host's.
    pub(crate) fn of_drain(host: &HostId) -> Self {
        Self { bucket: "drains", key: Drain::key_of(host) }
    }

    /// A lease's.
    pub(crate) fn of_lease(session: &SessionId, model: &ModelId) -> Self {
        Self { bucket: "leases", key: Lease::key_of(session, model) }
    }
}

#[derive(Default)]
struct Books {
    /// To be written; `None`: to be deleted. Bounded by the keys there are.
    pending: BTreeMap<Place, Option<Bytes>>,
    writing: Option<Place>,
}

/// Takes what is to be kept. Clones share.
#[derive(Clone)]
pub(crate) struct Keeper {
    books: Arc<Mutex<Books>>,
    /// Told of every change of the books.
    changed: watch::Sender<()>,
}

impl Default for Keeper {
    fn default() -> Self {
        Self { books: Arc::default(), changed: watch::Sender::new(()) }
    }
}

impl Keeper {
    pub(crate) fn keep_lease(&self, lease: &Lease) {
        self.keep(Place::of_lease(&lease.session, &lease.model), lease);
    }

    pub(crate) fn forget_lease(&self, session: &SessionId, model: &ModelId) {
        self.put(Place::of_lease(session, model), None);
    }

    pub(crate) fn keep_drain(&self, drain: &Drain) {
        self.keep(Place::of_drain(&drain.host), drain);
    }

    pub(crate) fn forget_drain(&self, host: &HostId) {
        self.put(Place::of_drain(host), None);
    }

    pub(crate) fn keep_profile(&self, profile: &Profile) {
        self.keep(Place { bucket: "profiles", key: profile.key() }, profile);
    }

    /// A model that hosts report.
    pub(crate) fn keep_model(&self, model: &ModelSpec) {
        self.keep(Place::of_model(&model.id), model);
    }

    pub(crate) fn forget_model(&self, model: &ModelId) {
        self.put(Place::of_model(model), None);
    }

    fn keep<M: Message>(&self, place: Place, value: &M) {
        match encode_json(value) {
            Ok(value) => self.put(place, Some(value.into())),
            Err(error) => warn!(%error, "cannot keep it"),
        }
    }

    fn put(&self, place: Place, value: Option<Bytes>) {
        self.books().pending.insert(place, value);
        self.changed.send_replace(());
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until what was to be kept there is written.
    pub(crate) async fn written(&self, place: &Place) {
        let done =
            |books: &Books| !books.pending.contains_key(place) && books.writing.as_ref() != Some(place);
        self.wait_for(done).await;
    }

    /// Waits until nothing is left to be written.
    pub(crate) async fn idle(&self) {
        self.wait_for(|books| books.pending.is_empty() && books.writing.is_none()).await;
    }

    async fn wait_for(&self, done: impl Fn(&Books) -> bool) {
        let mut changes = self.changed.subscribe();
        while !done(&self.books()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes, for as long as it is polled.
    pub(crate) async fn run(&self, bus: &Bus) {
        let mut stores = BTreeMap::new();
        let mut delay = RETRY;
        loop {
            self.wait_for(|books| !books.pending.is_empty()).await;
            let Some((place, value)) = self.begin() else { continue };
            match write(bus, &mut stores, &place, value.clone()).await {
                Ok(()) => {
                    self.end(None);
                    delay = RETRY;
                }
                Err(error) => {
                    // Opened anew: the bucket may have been made anew.
                    stores.clear();
                    warn!(bucket = place.bucket, error = %Chain(&error), "cannot write it down; trying again");
                    self.end(Some((place, value)));
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY_MOST);
                }
            }
        }
    }

    fn begin(&self) -> Option<(Place, Option<Bytes>)> {
        let mut books = self.books();
        let next = books.pending.pop_first()?;
        books.writing = Some(next.0.clone());
        Some(next)
    }

    /// Notes the end of a write; one that failed waits again, unless there is something newer.
    fn end(&self, failed: Option<(Place, Option<Bytes>)>) {
        let mut books = self.books();
        books.writing = None;
        if let Some((place, value)) = failed {
            books.pending.entry(place).or_insert(value);
        }
        drop(books);
        self.changed.send_replace(());
    }
}

async fn write(
    bus: &Bus,
    stores: &mut BTreeMap<&'static str, Store>,
    place: &Place,
    value: Option<Bytes>,
) -> Result<(), BusError> {
    let store = match stores.get(place.bucket) {
        Some(store) => store.clone(),
        None => {
            let store = bus.bucket(place.bucket).await?;
            stores.insert(place.bucket, store.clone());
            store
        }
    };
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| BusError::Nats {
        what: format!("write the key {} of {}", place.key, place.bucket),
        source,
    };
    match value {
        Some(value) => {
            store.put(&place.key, value).await.map_err(|e| failed(Box::new(e)))?;
        }
        None => store.delete(&place.key).await.map_err(|e| failed(Box::new(e)))?,
    }
    debug!(bucket = place.bucket, key = place.key, "written down");
    Ok(())
}

#[cfg(test)]
mod tests {
    use berth_wire::Timestamp;

    use super::*;

    fn lease(expires: u64) -> Lease {
        Lease {
            session: "s".into(),
            model: "m".into(),
            key: None,
            since: Timestamp(1),
            ttl: Duration::from_secs(1),
            expires: Timestamp(expires),
            keep_context: false,
        }
    }

    fn pending(keeper: &Keeper) -> Vec<Option<Bytes>> {
        keeper.books().pending.values().cloned().collect()
    }

    #[test]
    fn what_is_newer_replaces_what_waits() {
        let keeper = Keeper::default();
        keeper.keep_lease(&lease(5));
        keeper.keep_lease(&lease(9));
        assert_eq!(pending(&keeper), [Some(Bytes::from(encode_json(&lease(9)).unwrap()))]);
        keeper.forget_lease(&"s".into(), &"m".into());
        assert_eq!(pending(&keeper), [None]);
    }

    #[test]
    fn a_write_that_failed_does_not_replace_what_is_newer() {
        let keeper = Keeper::default();
        keeper.keep_lease(&lease(5));
        let earlier = keeper.begin().unwrap();
        keeper.forget_lease(&"s".into(), &"m".into());
        keeper.end(Some(earlier));
        assert_eq!(pending(&keeper), [None]);
        let only = keeper.begin().unwrap();
        keeper.end(Some(only));
        assert_eq!(pending(&keeper), [None], "it waits again");
    }

    #[tokio::test]
    async fn who_waits_for_a_write_is_told_when_it_is_done() {
        let keeper = Keeper::default();
        keeper.keep_lease(&lease(5));
        let place = Place::of_lease(&"s".into(), &"m".into());
        let waiting = tokio::spawn({
            let (keeper, place) = (keeper.clone(), place.clone());
            async move { keeper.written(&place).await }
        });
        tokio::task::yield_now().await;
        assert!(keeper.begin().is_some());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "it is being written");
        keeper.end(None);
        waiting.await.unwrap();
        keeper.written(&place).await;
        keeper.idle().await;
    }
}
