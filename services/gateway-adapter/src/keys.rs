//! The API keys that a gateway knows: those of its configuration, and those of the bucket as it changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use berth_bus::{Bus, Entries, View};
use berth_config::GatewayConfig;
use berth_telemetry::metric;
use berth_wire::{ApiError, ErrorKind, KeyHash, KeyId, KeyRecord};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::allowance::Allowance;
use crate::caller::Caller;
use crate::client::now;
use crate::error;

/// One key with its books.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) record: KeyRecord,
    pub(crate) allowance: Arc<Allowance>,
}

/// All keys at one moment. `KeyHash` compares in constant time, and the map's own hashes are seeded anew in each
/// process, so that how long a look-up takes tells nothing of a key.
#[derive(Debug, Default)]
struct Book {
    keys: HashMap<KeyHash, Arc<Key>>,
    /// The bucket has been read: what is not here is not there either.
    complete: bool,
}

impl Book {
    /// A name in the configuration counts before the same name in the bucket. Books of names that were there before
    /// are kept.
    fn new(configured: &[KeyRecord], stored: Option<&Entries<KeyRecord>>, before: &Self) -> Self {
        let own = |name: &KeyId| configured.iter().any(|key| key.name == *name);
        let stored_keys = stored.into_iter().flat_map(|entries| entries.values());
        let stored_keys = stored_keys.map(AsRef::as_ref).filter(|key| !own(&key.name));
        let known: HashMap<&KeyId, &Arc<Key>> =
            before.keys.values().map(|key| (&key.record.name, key)).collect();
        let mut keys = HashMap::new();
        for record in configured.iter().chain(stored_keys) {
            let allowance = match known.get(&record.name) {
                Some(key) => {
                    if key.record.limits != record.limits {
                        key.allowance.limit(record.limits, Instant::now());
                    }
                    Arc::clone(&key.allowance)
                }
                None => Allowance::new(&record.name, record.limits),
            };
            let key = Arc::new(Key { record: record.clone(), allowance });
            keys.entry(record.hash).or_insert(key);
        }
        Self { keys, complete: stored.is_some() }
    }
}

/// Who is let in.
pub(crate) struct Keys {
    configured: Vec<KeyRecord>,
    /// Everybody is.
    open: bool,
    book: ArcSwap<Book>,
    /// A key is asked for; once so, it stays so until the gateway ends, or the last revocation would open it.
    asked: AtomicBool,
    stored: View<KeyRecord>,
}

impl Keys {
    /// Follows the bucket until `end`.
    pub(crate) fn follow(config: &GatewayConfig, bus: &Bus, end: CancellationToken) -> Arc<Self> {
        let configured = config.keys.clone();
        let book = Book::new(&configured, None, &Book::default());
        let keys = Arc::new(Self {
            // Elsewhere than on loopback nobody is let in for want of keys.
            asked: AtomicBool::new(!book.keys.is_empty() || config.exposed().is_some()),
            open: config.open,
            book: ArcSwap::from_pointee(book),
            stored: View::follow(bus, "keys"),
            configured,
        });
        let (keeper, mut stored) = (Arc::clone(&keys), keys.stored.clone());
        actix_rt::spawn(async move {
            loop {
                tokio::select! {
                    () = end.cancelled() => return,
                    changed = stored.changed() => match changed {
                        Some(entries) => keeper.take_in(&entries),
                        None => return,
                    },
                }
            }
        });
        keys
    }

    fn take_in(&self, entries: &Entries<KeyRecord>) {
        let before = self.book.load_full();
        let book = Book::new(&self.configured, Some(entries), &before);
        if !book.keys.is_empty() && !self.asked.swap(true, Ordering::AcqRel) && !self.open {
            info!(keys = book.keys.len(), "there are API keys now: every request needs one");
        }
        self.book.store(Arc::new(book));
    }

    /// Whether who comes can be told from who may not.
    pub(crate) fn known(&self) -> bool {
        self.open || self.book.load().complete
    }

    /// Waits until the bucket has been read; whether anybody at all could come in then.
    pub(crate) async fn any(&self) -> bool {
        if self.open || !self.configured.is_empty() {
            return true;
        }
        let mut stored = self.stored.clone();
        stored.synced().await;
        !stored.entries().is_empty()
    }

    /// Who comes with what is `presented`.
    pub(crate) fn admit(&self, presented: Option<&str>) -> Result<Caller, ApiError> {
        if self.open {
            return Ok(Caller::anybody());
        }
        let book = self.book.load();
        let known = presented.filter(|_| !book.keys.is_empty());
        if let Some(key) = known.and_then(|presented| book.keys.get(&KeyHash::of(presented))) {
            if key.record.has_expired(now()) {
                return Err(failed("expired", "invalid_api_key", "this API key has expired"));
            }
            return Ok(Caller::with(Arc::clone(key)));
        }
        let asked = self.asked.load(Ordering::Acquire);
        match presented {
            // It may be a key that has not been read yet.
            _ if !book.complete && (presented.is_some() || !asked) => Err(error::starting()),
            _ if !asked => Ok(Caller::anybody()),
            Some(_) => Err(failed("invalid", "invalid_api_key", "this API key is not known, or was revoked")),
            None => Err(failed(
                "missing",
                "missing_api_key",
                "an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`",
            )),
        }
    }

    /// Whether what a caller was let in by is still an administrator's: for answers that have no end.
    pub(crate) fn is_admin_still(&self, caller: &Caller) -> bool {
        let Some(hash) = caller.hash() else { return self.admit(None).is_ok() };
        let book = self.book.load();
        let key = book.keys.get(hash).filter(|key| !key.record.has_expired(now()));
        key.is_some_and(|key| Caller::with(Arc::clone(key)).is_admin())
    }
}

fn failed(reason: &'static str, code: &'static str, message: &str) -> ApiError {
    metrics::counter!(metric::AUTH_FAILURES, "reason" => reason).increment(1);
    ApiError::new(ErrorKind::Unauthorized, code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, secret: &str) -> KeyRecord {
        KeyRecord::new(name.into(), KeyHash::of(secret))
    }

    fn entries(records: &[KeyRecord]) -> Entries<KeyRecord> {
        Arc::new(records.iter().map(|r| (KeyRecord::key_of(&r.name), Arc::new(r.clone()))).collect())
    }

    #[test]
    fn a_configured_name_counts_before_a_stored_one() {
        let configured = [record("a", "one")];
        let stored = entries(&[record("a", "two"), record("b", "three")]);
        let book = Book::new(&configured, Some(&stored), &Book::default());
        let name = |secret| book.keys.get(&KeyHash::of(secret)).map(|key| key.record.name.as_str());
        assert_eq!((name("one"), name("two"), name("three")), (Some("a"), None, Some("b")));
    }

    #[test]
    fn what_a_key_has_used_outlives_a_change_of_another() {
        let limits = berth_wire::KeyLimits { requests_per_minute: Some(1), ..Default::default() };
        let limited = KeyRecord { limits, ..record("a", "one") };
        let book = Book::new(&[], Some(&entries(std::slice::from_ref(&limited))), &Book::default());
        let now = Instant::now();
        book.keys[&KeyHash::of("one")].allowance.begin(now).unwrap();
        let book = Book::new(&[], Some(&entries(&[limited, record("b", "two")])), &book);
        assert!(book.keys[&KeyHash::of("one")].allowance.begin(now).is_err());
    }
}
