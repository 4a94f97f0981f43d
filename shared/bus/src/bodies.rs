//! Claim check: bodies that do not fit into a message wait in the object store, and so do results that are fetched later.

use async_nats::jetstream::object_store::ObjectStore;
use bytes::Bytes;
use tokio::io::AsyncReadExt;

use crate::connect::Bus;
use crate::error::BusError;

/// The bucket of large bodies, or that of results.
#[derive(Clone)]
pub struct Bodies {
    store: ObjectStore,
}

impl Bodies {
    /// Opens the bucket.
    ///
    /// # Errors
    /// [`BusError::Missing`] before a scheduler has made it.
    pub async fn open(bus: &Bus) -> Result<Self, BusError> {
        Self::named(bus, "bodies").await
    }

    /// Opens the bucket of results instead.
    ///
    /// # Errors
    /// As [`Bodies::open`].
    pub async fn results(bus: &Bus) -> Result<Self, BusError> {
        Self::named(bus, "results").await
    }

    async fn named(bus: &Bus, name: &str) -> Result<Self, BusError> {
        let name = bus.subjects.bucket(name);
        let store = bus
            .jetstream
            .get_object_store(&name)
            .await
            .map_err(|_| BusError::Missing { asset: format!("the object store {name}") })?;
        Ok(Self { store })
    }

    /// Stores a body under `name`.
    ///
    /// # Errors
    /// When the store is full or does not answer.
    pub async fn put(&self, name: &str, body: &Bytes) -> Result<(), BusError> {
        let mut reader: &[u8] = body;
        self.store.put(name, &mut reader).await.map_err(|e| BusError::nats("store a body", e))?;
        Ok(())
    }

    /// Fetches a body of `len` bytes.
    ///
    /// # Errors
    /// When it is gone (bodies live for an hour) or has another length.
    pub async fn get(&self, name: &str, len: u64) -> Result<Bytes, BusError> {
        let object = self.store.get(name).await.map_err(|e| BusError::nats("fetch a body", e))?;
        let mut body = Vec::with_capacity(usize::try_from(len).unwrap_or(0));
        let read = object
            .take(len.saturating_add(1))
            .read_to_end(&mut body)
            .await
            .map_err(|e| BusError::nats("fetch a body", e))?;
        if read as u64 != len {
            return Err(BusError::nats("fetch a body", format!("it has {read} bytes, not {len}")));
        }
        Ok(body.into())
    }

    /// Removes a body; one that is gone already is no error.
    pub async fn delete(&self, name: &str) {
        let _ = self.store.delete(name).await;
    }
}
